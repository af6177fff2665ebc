// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// jumbo is what older kernels put into IPv6's super-packets of more than 64 KiB.
var jumbo = frame.Ext{Type: frame.HopByHop, Body: []byte{0xc2, 4, 0, 0, 12, 0}}

// TestJumboToStack guards against connections that hang because the stack refuses
// to forward their super-packets: it counts the jumbo header, which no segment has.
func TestJumboToStack(t *testing.T) {
	n := newNode(t, datapath.Options{IPv4: true, IPv6: true})
	p := frame.NewTCP(ap(podA.v6, 1), ap(world.v6, 2), frame.SYN, make([]byte, 3000))
	p.SrcMAC, p.DstMAC, p.TotalLen, p.Ext = podMAC, hostMAC, new(0), []frame.Ext{jumbo}
	n.want(n.packet(reason.FromPod, n.a, p, withGSO(1500-40-20-8)), reason.FromPod, reason.Stack, reason.CTNew)
	res := n.packet(reason.FromPod, n.a, p, withGSO(1500-40-20-7))
	n.want(res, reason.FromPod, reason.TooBig, reason.ICMPSent)
	wantTooBig(t, res.out, p, ownNode.v6, 1500-8)
	// Without the header nothing is counted too much.
	p.TotalLen, p.Ext = nil, nil
	n.want(n.packet(reason.FromPod, n.a, p, withGSO(1500-40-20)), reason.FromPod, reason.Stack)
}

// withOptions gives a TCP segment options, padded with what ends them.
func withOptions(src, dst netip.AddrPort, flags uint8, options ...byte) frame.Packet {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	p := frame.NewTCP(src, dst, flags, options)
	p.Payload[12] = byte(20+len(options)) / 4 << 4
	p.Payload[16], p.Payload[17] = 0, 0
	pseudo := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(p.Payload))), 0, 0, 0, 6)
	binary.BigEndian.PutUint16(p.Payload[16:], frame.Checksum(pseudo, p.Payload))
	p.SrcMAC, p.DstMAC = podMAC, hostMAC
	return p
}

// TestSegmentSize guards against others sending pods segments that leave no room
// for the jumbo header, against a size that is changed where nobody asked for it,
// and against wrong checksums and options that are taken for others.
func TestSegmentSize(t *testing.T) {
	n := newNode(t, datapath.Options{IPv4: true, IPv6: true})
	mss := func(size int) []byte { return []byte{2, 4, byte(size >> 8), byte(size)} }
	const most = 1500 - 60 - 8
	for _, tc := range []struct {
		name    string
		off     bool
		flags   uint8
		options []byte
		at      int // of the size; 0: nothing is to change
	}{
		{"as Linux has it", false, frame.SYN, append(mss(1440), 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7), 2},
		{"answer", false, frame.SYN | frame.ACK, mss(1440), 2},
		{"by one", false, frame.SYN, mss(most + 1), 2},
		{"behind others", false, frame.SYN, append([]byte{4, 2, 3, 3, 7, 1}, mss(65535)...), 8},
		{"odd place", false, frame.SYN, append([]byte{1}, mss(1440)...), 3},
		{"small already", false, frame.SYN, mss(most), 0},
		{"off", true, frame.SYN, mss(1440), 0},
		{"no SYN", false, frame.ACK, mss(1440), 0},
		{"none", false, frame.SYN, []byte{4, 2}, 0},
		{"end before it", false, frame.SYN, append([]byte{1, 0}, mss(1440)...), 0},
		{"length 0", false, frame.SYN, append([]byte{9, 0}, mss(1440)...), 0},
		{"length 1", false, frame.SYN, append([]byte{9, 1}, mss(1440)...), 0},
		{"beyond the end", false, frame.SYN, append([]byte{9, 40}, mss(1440)...), 0},
		{"another length", false, frame.SYN, []byte{2, 6, 0xff, 0xff, 0xff, 0xff}, 0},
	} {
		n.config(func(c *maps.Config) { c.BigTCP6 = !tc.off })
		for _, to := range []host{remotePod, podB, world} {
			p := withOptions(ap(podA.v6, 1), ap(to.v6, 2), tc.flags, tc.options...)
			res := n.packet(reason.FromPod, n.a, p)
			out, err := frame.Parse(res.out)
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
				continue
			}
			want := append([]byte{}, p.Payload...)
			if tc.at > 0 {
				binary.BigEndian.PutUint16(want[20+tc.at:], most)
			}
			copy(want[16:18], out.Payload[16:18]) // which Parse has checked
			if string(out.Payload) != string(want) {
				t.Errorf("%s to %s:\n% x, want\n% x", tc.name, to.v6, out.Payload, want)
			}
		}
	}
	n.config(func(c *maps.Config) { c.BigTCP6 = true })
	p := withOptions(ap(podA.v4, 1), ap(remotePod.v4, 2), frame.SYN, mss(1460)...)
	if out, err := frame.Parse(n.packet(reason.FromPod, n.a, p).out); err != nil || string(out.Payload) != string(p.Payload) {
		t.Errorf("IPv4: % x, %v", out.Payload, err)
	}
}
