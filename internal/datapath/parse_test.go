// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"bytes"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// TestMalformed guards against packets whose lengths lie being believed. What a
// pod sends is dropped; what comes in is dropped only if a pod would get it.
func TestMalformed(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		udp := frame.NewUDP(ap(podA.of(fam), 1), ap(podB.of(fam), 2), make([]byte, 32))
		tcp := frame.NewTCP(ap(podA.of(fam), 1), ap(podB.of(fam), 2), frame.SYN, nil)
		echo := frame.NewEcho(podA.of(fam), podB.of(fam), 1, false, nil)
		with := func(p frame.Packet, change func(*frame.Packet)) frame.Packet {
			p.Payload = bytes.Clone(p.Payload)
			change(&p)
			return p
		}
		for name, tc := range map[string]struct {
			p    frame.Packet
			want reason.Code
		}{
			"version":               {with(udp, func(p *frame.Packet) { p.Version = new(uint8(5)) }), reason.Malformed},
			"length beyond the end": {with(udp, func(p *frame.Packet) { p.TotalLen = new(500) }), reason.Truncated},
			"length within UDP":     {with(udp, func(p *frame.Packet) { p.TotalLen = new(map[int]int{4: 24, 6: 4}[fam]) }), reason.Truncated},
			"UDP length too small":  {with(udp, func(p *frame.Packet) { p.Payload[5] = 7 }), reason.Malformed},
			"UDP length too large":  {with(udp, func(p *frame.Packet) { p.Payload[5] = 200 }), reason.Malformed},
			"TCP cut":               {with(tcp, func(p *frame.Packet) { p.Payload = p.Payload[:19] }), reason.Truncated},
			"TCP offset too small":  {with(tcp, func(p *frame.Packet) { p.Payload[12] = 4 << 4 }), reason.Malformed},
			"TCP offset too large":  {with(tcp, func(p *frame.Packet) { p.Payload[12] = 6 << 4 }), reason.Truncated},
			"ICMP cut":              {with(echo, func(p *frame.Packet) { p.Payload = p.Payload[:7] }), reason.Truncated},
			"SCTP cut":              {frame.Packet{Src: udp.Src, Dst: udp.Dst, Proto: frame.SCTP, Payload: []byte{0, 1}}, reason.Truncated},
		} {
			t.Run(name, func(t *testing.T) {
				n.t = t
				n.want(n.packet(reason.FromPod, n.a, tc.p), reason.FromPod, tc.want)
				in := tc.p
				in.Src = remotePod.of(fam)
				n.want(n.packet(reason.FromNet, n.eth, in), reason.FromNet, tc.want)
				in.Dst = ownNode.of(fam)
				n.want(n.packet(reason.FromNet, n.eth, in), reason.FromNet, reason.Stack)
				n.want(n.packet(reason.ToPod, n.b, tc.p, from(n.a)), reason.ToPod, tc.want)
				n.want(n.packet(reason.ToNet, n.eth, tc.p), reason.ToNet, reason.Stack)
				n.noCT()
			})
		}
		n.t = t
		// Padding behind a short packet is no lie.
		short := frame.NewUDP(ap(podA.of(fam), 1), ap(podB.of(fam), 2), nil)
		short.Pad = 30
		n.want(n.packet(reason.FromPod, n.a, short), reason.FromPod, reason.Peer, reason.CTNew)
	})
}

// TestTruncatedHeaders cuts packets at every length: none may be taken for one
// whose ports are known, and from_net may not lose what the stack would answer.
func TestTruncatedHeaders(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		full := frame.NewTCP(ap(podA.of(fam), 1), ap(podB.of(fam), 2), frame.SYN, nil)
		full.DstMAC = hostMAC
		b := full.Bytes()
		// The kernel runs no program on less than a network header.
		for cut := frame.EthLen + map[int]int{4: 20, 6: 40}[fam]; cut < len(b); cut++ {
			n.want(n.run(reason.FromPod, n.a, b[:cut]), reason.FromPod, reason.Truncated)
			n.want(n.run(reason.ToPod, n.b, b[:cut], from(n.a)), reason.ToPod, reason.Truncated)
		}
		n.noCT()
	})
}

// TestIPv4Options guards against options moving the ports out of sight.
func TestIPv4Options(t *testing.T) {
	n := newNode(t, both)
	for _, size := range []int{4, 24, 40} {
		n.flush()
		p := frame.NewTCP(ap(podA.v4, 1000), ap(podB.v4, 80), frame.SYN, nil)
		p.Options = bytes.Repeat([]byte{1}, size)
		r := n.packet(reason.FromPod, n.a, p)
		n.want(r, reason.FromPod, reason.Peer, reason.CTNew)
		if row := n.ct(); row.SrcPort != 1000 || row.DstPort != 80 {
			t.Errorf("%d bytes of options: %+v", size, row)
		}
		p.TTL, p.DstMAC, p.SrcMAC = 63, frame.MAC{2, 0, 0, 0, 0xbb, 0xbb}, hostMAC
		if !bytes.Equal(r.out, p.Bytes()) {
			t.Errorf("packet left as\n% x\nwant\n% x", r.out, p.Bytes())
		}
	}
	bad := frame.NewTCP(ap(podA.v4, 1000), ap(podB.v4, 80), frame.SYN, nil)
	bad.IHL = new(uint8(4))
	n.want(n.packet(reason.FromPod, n.a, bad), reason.FromPod, reason.Malformed)
	bad.IHL = new(uint8(15))
	n.want(n.packet(reason.FromPod, n.a, bad), reason.FromPod, reason.Malformed)
}

// TestExtensionHeaders guards against IPv6 extension headers moving the ports
// out of sight, and against walking them without end.
func TestExtensionHeaders(t *testing.T) {
	n := newNode(t, both)
	opt := func(typ uint8) frame.Ext { return frame.Ext{Type: typ, Body: []byte{1, 4, 0, 0, 0, 0}} }
	srh := frame.Ext{Type: frame.Routing, Body: []byte{4, 0, 0, 0, 0, 0}}
	long := frame.Ext{Type: frame.DestOpts, Body: append([]byte{1, 252}, make([]byte, 300)...)}
	rh0 := frame.Ext{Type: frame.Routing, Body: []byte{0, 0, 0, 0, 0, 0}}
	six := []frame.Ext{opt(frame.HopByHop), opt(frame.DestOpts), srh, {Type: frame.AH, Body: make([]byte, 22)}, opt(frame.DestOpts), long}
	for name, tc := range map[string]struct {
		exts []frame.Ext
		want reason.Code
	}{
		"hop-by-hop":       {six[:1], reason.Peer},
		"long":             {[]frame.Ext{long}, reason.Peer},
		"AH":               {six[3:4], reason.Peer},
		"six":              {six, reason.Peer},
		"seven":            {append(six, opt(frame.DestOpts)), reason.ExtHeaders},
		"routing header 0": {[]frame.Ext{rh0}, reason.RoutingHeader},
	} {
		t.Run(name, func(t *testing.T) {
			n.t = t
			n.flush()
			p := frame.NewTCP(ap(podA.v6, 1000), ap(podB.v6, 80), frame.SYN, nil)
			p.Ext = tc.exts
			if tc.want != reason.Peer {
				n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, tc.want)
				n.noCT()
				return
			}
			n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, tc.want, reason.CTNew)
			if row := n.ct(); row.SrcPort != 1000 || row.DstPort != 80 || row.Proto != frame.TCP {
				t.Errorf("conntrack %+v", row)
			}
		})
	}
	n.t = t
	p := frame.NewTCP(ap(podA.v6, 1000), ap(podB.v6, 80), frame.SYN, nil)
	p.Ext, p.Payload = []frame.Ext{long}, nil
	p.DstMAC = hostMAC
	b := p.Bytes()
	b[4+frame.EthLen], b[5+frame.EthLen] = 0, 16 // the packet ends within the header
	n.want(n.run(reason.FromPod, n.a, b[:frame.EthLen+56]), reason.FromPod, reason.Truncated)
	// What is no transport we know is tracked by addresses alone.
	n.flush()
	esp := frame.Packet{Src: podA.v6, Dst: podB.v6, Proto: 50, Payload: make([]byte, 16)}
	n.want(n.packet(reason.FromPod, n.a, esp), reason.FromPod, reason.Peer, reason.CTNew)
	if row := n.ct(); row.Proto != 50 || row.SrcPort != 0 || row.DstPort != 0 {
		t.Errorf("conntrack %+v", row)
	}
}

// TestFragments guards against fragments taking another way than the rest of
// their connection, in order, reordered, and after their first one is forgotten.
func TestFragments(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		n.config(func(*maps.Config) {})
		p := frame.NewUDP(ap(podA.of(fam), 1000), ap(podB.of(fam), 53), make([]byte, 3000))
		p.ID = 77
		parts := p.Fragments(1200)
		// Reordered: the later one has no ports.
		n.want(n.packet(reason.FromPod, n.a, parts[1]), reason.FromPod, reason.FragmentUnknown)
		n.noCT()
		n.want(n.packet(reason.FromPod, n.a, parts[0]), reason.FromPod, reason.Peer, reason.CTNew)
		for _, f := range parts[1:] {
			r := n.packet(reason.FromPod, n.a, f)
			n.want(r, reason.FromPod, reason.Peer)
			if r.event.SrcPort != 1000 || r.event.DstPort != 53 {
				t.Errorf("later fragment is shown with ports %d and %d", r.event.SrcPort, r.event.DstPort)
			}
		}
		if row := n.ct(); row.SrcPort != 1000 || row.DstPort != 53 {
			t.Errorf("conntrack %+v", row)
		}
		// Another datagram, another pod, another protocol: not this one's ports.
		for name, change := range map[string]func(*frame.Packet){
			"id":       func(f *frame.Packet) { f.ID++ },
			"protocol": func(f *frame.Packet) { f.Proto = frame.TCP },
			"address":  func(f *frame.Packet) { f.Dst = remotePod.of(fam) },
		} {
			f := parts[1]
			change(&f)
			t.Run(name, func(t *testing.T) {
				n.t = t
				n.want(n.packet(reason.FromPod, n.a, f), reason.FromPod, reason.FragmentUnknown)
			})
		}
		n.t = t
		// To the node and beyond, the stack puts datagrams together.
		f := parts[1]
		f.Dst = ownNode.of(fam)
		n.want(n.packet(reason.FromPod, n.a, f), reason.FromPod, reason.Stack)
		// From the net, the same rule.
		in := parts
		for i := range in {
			in[i].Src, in[i].ID = remotePod.of(fam), 99
		}
		n.flush()
		n.want(n.packet(reason.FromNet, n.eth, in[2]), reason.FromNet, reason.FragmentUnknown)
		n.want(n.packet(reason.FromNet, n.eth, in[0]), reason.FromNet, reason.Peer, reason.CTNew)
		n.want(n.packet(reason.FromNet, n.eth, in[2]), reason.FromNet, reason.Peer)
		in[1].Src = world.of(fam)
		n.want(n.packet(reason.FromNet, n.eth, in[1]), reason.FromNet, reason.Stack)
		n.want(n.packet(reason.ToPod, n.b, in[1], from(n.eth)), reason.ToPod, reason.Stack)
	})
}

// TestFragmentsBehindOptions guards against later fragments being taken for
// another protocol where extension headers stand behind the fragment header.
func TestFragmentsBehindOptions(t *testing.T) {
	n := newNode(t, both)
	frag := func(offset byte) frame.Ext {
		return frame.Ext{Type: frame.Fragment, Body: []byte{0, offset | 1, 0, 0, 0, 9}}
	}
	first := frame.NewUDP(ap(podA.v6, 1000), ap(podB.v6, 53), make([]byte, 64))
	first.Payload[4], first.Payload[5] = 1, 0 // of the whole datagram
	first.Ext = []frame.Ext{frag(0), {Type: frame.DestOpts, Body: []byte{1, 4, 0, 0, 0, 0}}}
	later := frame.Packet{Src: podA.v6, Dst: podB.v6, Proto: frame.DestOpts, Payload: make([]byte, 64), Ext: []frame.Ext{frag(80)}}
	n.want(n.packet(reason.FromPod, n.a, first), reason.FromPod, reason.Peer, reason.CTNew)
	r := n.packet(reason.FromPod, n.a, later)
	n.want(r, reason.FromPod, reason.Peer)
	if r.event.Proto != frame.UDP || r.event.DstPort != 53 {
		t.Errorf("later fragment is shown as protocol %d, port %d", r.event.Proto, r.event.DstPort)
	}
}

// TestFragmentsForgotten guards against a first fragment lending its ports for
// ever: identifiers are used again.
func TestFragmentsForgotten(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		n.config(func(c *maps.Config) { c.Timeouts.Fragment = 1 })
		p := frame.NewUDP(ap(podA.of(fam), 1000), ap(podB.of(fam), 53), make([]byte, 3000))
		parts := p.Fragments(1200)
		n.want(n.packet(reason.FromPod, n.a, parts[0]), reason.FromPod, reason.Peer, reason.CTNew)
		n.want(n.packet(reason.FromPod, n.a, parts[1]), reason.FromPod, reason.Peer)
		deadline := time.Now().Add(patience)
		for time.Now().Before(deadline) { // a tick is 1.07 s
			if r := n.packet(reason.FromPod, n.a, parts[1]); r.action == actShot {
				n.want(r, reason.FromPod, reason.FragmentUnknown)
				return
			}
			<-time.After(100 * time.Millisecond)
		}
		t.Error("ports of a first fragment are still lent out")
	})
}

// TestFragmentsForged guards against a pod or a node lending its ports to the
// later fragments of a datagram of another, by a first one with a forged source.
func TestFragmentsForged(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		b, r := podB.of(fam), remotePod.of(fam)
		first := func(src, dst netip.AddrPort) frame.Packet {
			p := frame.NewUDP(src, dst, make([]byte, 3000))
			p.ID = 77
			return p.Fragments(1200)[0]
		}
		later := frame.NewUDP(ap(b, 5), ap(r, 6), make([]byte, 3000))
		later.ID = 77
		n.want(n.packet(reason.FromPod, n.b, first(ap(b, 5), ap(r, 6))), reason.FromPod, reason.Neigh, reason.CTNew)
		n.want(n.packet(reason.FromPod, n.a, first(ap(b, 1111), ap(r, 2222))), reason.FromPod, reason.SourceSpoofed)
		n.want(n.packet(reason.FromNet, n.eth, first(ap(b, 1111), ap(r, 2222))), reason.FromNet, reason.SourceSpoofed)
		n.want(n.packet(reason.FromNet, n.eth, first(ap(b, 1111), ap(podA.of(fam), 2222))), reason.FromNet, reason.SourceSpoofed)
		res := n.packet(reason.FromPod, n.b, later.Fragments(1200)[1])
		n.want(res, reason.FromPod, reason.Neigh)
		if res.event.SrcPort != 5 || res.event.DstPort != 6 {
			t.Errorf("later fragment goes with ports %d and %d, want 5 and 6", res.event.SrcPort, res.event.DstPort)
		}
		n.ct() // and no second connection
	})
}

// TestFragmentAttacks guards against fragments that hide or overwrite ports and
// TCP flags (RFC 1858, RFC 7112).
func TestFragmentAttacks(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		tcp := frame.NewTCP(ap(podA.of(fam), 1), ap(podB.of(fam), 2), frame.SYN, make([]byte, 40))
		first := tcp.Fragments(16)[0]
		n.want(n.packet(reason.FromPod, n.a, first), reason.FromPod, reason.FragmentOverlap)
		if fam == 4 {
			n.want(n.packet(reason.FromPod, n.a, tcp.Fragments(8)[1]), reason.FromPod, reason.FragmentOverlap)
		} else {
			hidden := tcp.Fragments(16)[0]
			hidden.Proto, hidden.Payload = frame.DestOpts, []byte{6, 8, 0, 0, 0, 0, 0, 0}
			n.want(n.packet(reason.FromPod, n.a, hidden), reason.FromPod, reason.FragmentOverlap)
			// An atomic fragment (RFC 6946) is a whole packet.
			atomic := tcp
			atomic.Frag = true
			n.want(n.packet(reason.FromPod, n.a, atomic), reason.FromPod, reason.Peer, reason.CTNew)
			return
		}
		n.noCT()
	})
}

// TestFragmentsEvicted guards against a full fragment table breaking what fits:
// the oldest datagrams lose.
func TestFragmentsEvicted(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		onOneCPU(t) // each has its own list of the youngest entries, which only it empties
		p := frame.NewUDP(ap(podA.of(fam), 1000), ap(podB.of(fam), 53), make([]byte, 3000))
		parts := p.Fragments(1200)
		for id := range 3000 { // the table of the tests holds 1024
			f := parts[0]
			f.ID, f.DstMAC = uint32(id+1), hostMAC
			n.quiet(reason.FromPod, n.a, f.Bytes())
		}
		n.drain()
		old, young := parts[1], parts[1]
		old.ID, young.ID = 1, 3000
		n.want(n.packet(reason.FromPod, n.a, young), reason.FromPod, reason.Peer)
		n.want(n.packet(reason.FromPod, n.a, old), reason.FromPod, reason.FragmentUnknown)
	})
}

// onOneCPU keeps the test on the CPU that it runs on.
func onOneCPU(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := range len(all) * 64 {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &all); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
}
