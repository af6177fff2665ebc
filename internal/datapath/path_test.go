// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
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
		r := n.packet(reason.FromPod, n.a, p)
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
