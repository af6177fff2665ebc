// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// eachFamily runs f for IPv4 and IPv6 on one loaded datapath; conntrack is
// flushed in between.
func eachFamily(t *testing.T, f func(*testing.T, *node, int)) {
	n := newNode(t, datapath.Options{})
	for _, fam := range families {
		t.Run(fmt.Sprintf("ipv%d", fam), func(t *testing.T) {
			n.t = t
			n.flush()
			f(t, n, fam)
		})
	}
}

// TestLocalPodFast guards against pods of one node that do not reach each
// other, or whose packets keep MACs, TTL or checksums of the wrong link.
func TestLocalPodFast(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		a, b := podA.of(fam), podB.of(fam)
		p := frame.NewTCP(ap(a, 4000), ap(b, 80), frame.SYN, nil)
		r := n.packet(reason.FromPod, n.a, p, withMark(0x123)) // as if an earlier program had set one
		n.want(r, reason.FromPod, reason.Peer, reason.CTNew)
		if r.event.OutIf != n.b.Attrs().Index {
			t.Errorf("redirected to device %d, want %d", r.event.OutIf, n.b.Attrs().Index)
		}
		p.TTL, p.DstMAC, p.SrcMAC = 63, frame.MAC{2, 0, 0, 0, 0xbb, 0xbb}, hostMAC
		if string(r.out) != string(p.Bytes()) {
			t.Errorf("packet left as\n% x\nwant\n% x", r.out, p.Bytes())
		}
		if r.mark != 0 {
			t.Errorf("mark %#x went into the pod", r.mark)
		}
	})
}

// TestChecksumCarry guards against an IPv4 header whose checksum is off by one
// after the TTL went down, which happens to one packet in 65,536.
func TestChecksumCarry(t *testing.T) {
	n := newNode(t, both)
	found := 0
	for id := range uint32(1 << 16) {
		p := frame.NewUDP(ap(podA.v4, 1), ap(podB.v4, 2), nil)
		p.ID, p.DstMAC = id, hostMAC
		b := p.Bytes()
		if sum := binary.BigEndian.Uint16(b[24:]); sum < 0xfeff || b[25] != 0xff {
			continue
		}
		found++
		r := n.run(reason.FromPod, n.a, b)
		if _, err := frame.Parse(r.out); err != nil {
			t.Errorf("id %d, checksum % x -> % x: %v", id, b[24:26], r.out[24:26], err)
		}
	}
	if found == 0 {
		t.Error("no id gives a checksum that carries")
	}
}
