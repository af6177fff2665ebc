// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// FuzzPrograms guards against packets that make a program return what the
// kernel does not expect, or that are counted under no verdict or under two.
//
//	go test -fuzz FuzzPrograms -fuzztime 1m ./internal/datapath
func FuzzPrograms(f *testing.F) {
	a4, b4, a6, b6 := ap(podA.v4, 1000), ap(podB.v4, 80), ap(podA.v6, 1000), ap(podB.v6, 80)
	ext := frame.NewTCP(a6, b6, frame.SYN, nil)
	ext.Ext = []frame.Ext{{Type: frame.HopByHop, Body: []byte{1, 4, 0, 0, 0, 0}}, {Type: frame.DestOpts, Body: make([]byte, 20)}}
	opts := frame.NewTCP(a4, b4, frame.SYN, nil)
	opts.Options = []byte{1, 1, 1, 1}
	for _, p := range []frame.Packet{
		frame.NewUDP(a4, b4, []byte("x")), frame.NewUDP(a6, b6, []byte("x")), ext, opts,
		frame.NewEcho(podA.v4, remotePod.v4, 1, false, nil), frame.NewEcho(podA.v6, remotePod.v6, 1, true, nil),
		frame.NewError(podA.v4, remotePod.v4, 3, 4, 1400, frame.NewUDP(ap(remotePod.v4, 1), a4, nil)),
		frame.NewError(podA.v6, remotePod.v6, 2, 0, 1400, frame.NewUDP(ap(remotePod.v6, 1), a6, nil)),
		frame.NewNS(linkLocal, allNodes6, gateway6, podMAC), frame.NewNA(podA.v6, allNodes6, podA.v6, podMAC), mld2(linkLocal),
		frame.NewUDP(a4, b4, make([]byte, 100)).Fragments(64)[1], frame.NewUDP(a6, b6, make([]byte, 100)).Fragments(64)[0],
		big(a4, b4, 1600), big(a6, ap(remotePod.v6, 1), 1600), frame.NewUDP(ap(remotePod.v4, 5), b4, nil),
	} {
		if p.DstMAC == (frame.MAC{}) {
			p.DstMAC = hostMAC
		}
		for hook := range uint8(4) {
			f.Add(hook, uint32(0), uint32(0), p.Bytes())
		}
	}
	arp := frame.ARPPacket{EthDst: hostMAC, EthSrc: podMAC, Op: 1, SenderMAC: podMAC, Sender: podA.v4, Target: gateway4}
	f.Add(uint8(0), uint32(0), uint32(0), arp.Bytes())
	n := newNode(f, datapath.Options{})
	n.config(func(c *maps.Config) { c.Trace = maps.TraceNone })
	f.Fuzz(func(t *testing.T, hook uint8, mark, gso uint32, data []byte) {
		n.t = t
		h := reason.Hooks()[hook%4]
		dev := map[reason.Hook]netlink.Link{reason.FromPod: n.a, reason.ToPod: n.b, reason.FromNet: n.eth, reason.ToNet: n.eth}[h]
		ctx := skb{Ifindex: uint32(dev.Attrs().Index), Mark: mark, GSOSize: gso & 0xffff}
		before := n.counts()
		act, err := n.d.Program(h).Run(&ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)+256), Context: ctx})
		if err != nil {
			t.Skip("the kernel does not take it for a packet")
		}
		judged, told := uint64(0), uint64(0)
		var code reason.Code
		after := n.counts()
		for _, i := range reason.All() {
			key := h.String() + " " + string(i.Code.Class()) + "/" + i.Name
			d := after[key] - before[key]
			switch {
			case i.Code == reason.ICMPSent:
				told = d
			case i.Code.Class() != reason.ClassNote:
				if judged += d; d != 0 {
					code = i.Code
				}
			}
		}
		if judged != 1 {
			t.Fatalf("%s counted %d times", h, judged)
		}
		want := uint32(actShot)
		switch {
		case code == reason.Stack || code == reason.Marked:
			want = actNext
		case code.Class() == reason.ClassVerdict || told == 1:
			want = actRedirect
		}
		if act != want {
			t.Fatalf("%s counted %s and returned %#x, want %#x", h, code, act, want)
		}
	})
}
