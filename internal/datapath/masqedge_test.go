// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

var router = newHost("203.0.113.1", "2001:db8:1::1")

// opened has a pod's flow translated and returns its port outside.
func (n *node) opened(p frame.Packet) uint16 {
	n.t.Helper()
	r := n.leave(p)
	if r.action != actNext {
		n.t.Fatalf("did not leave: %+v", r.event)
	}
	port, _ := ports(parsed(n.t, r.out))
	return port
}

// unreachable is an ICMP error "too big" of each family about a packet.
func tooBigError(fam int, src, dst netip.Addr, about frame.Packet) frame.Packet {
	if fam == 4 {
		return frame.NewError(src, dst, 3, 4, 1400, about)
	}
	return frame.NewError(src, dst, 2, 0, 1400, about)
}

// checkInner checks what an ICMP error quotes: addresses, ports, checksums.
func checkInner(t *testing.T, fam int, msg frame.Parsed, want frame.Packet) {
	t.Helper()
	inner := msg.Payload[8:]
	exp := want.Bytes()[frame.EthLen:]
	exp = exp[:min(len(exp), 256)]
	if string(inner) != string(exp) {
		t.Errorf("quotes\n% x\nwant\n% x", inner, exp)
	}
	_ = fam
}

// TestMasqueradedErrors guards against path MTU discovery that ends at the node,
// and against errors that show outside a pod that it does not know.
func TestMasqueradedErrors(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		for proto, flow := range flows {
			t.Run(proto, func(t *testing.T) {
				n.t = t
				n.flush()
				n.flushNAT()
				pod, out := ap(podA.of(fam), 4000), ap(world.of(fam), 443)
				node := ap(ownNode.of(fam), n.opened(flow.ask(pod, out)))
				// A router on the way says that the pod's packet is too big.
				r := n.packet(reason.FromNet, n.eth, tooBigError(fam, router.of(fam), node.Addr(), flow.ask(node, out)))
				n.want(r, reason.FromNet, reason.Stack)
				msg := parsed(t, r.out)
				if msg.Src != router.of(fam) || msg.Dst != pod.Addr() {
					t.Errorf("the error went from %s to %s", msg.Src, msg.Dst)
				}
				checkInner(t, fam, msg, flow.ask(pod, out))
				// An answer comes, and the pod says that its port is closed.
				n.packet(reason.FromNet, n.eth, flow.answer(out, node))
				back := tooBigError(fam, pod.Addr(), out.Addr(), flow.answer(out, pod))
				r = n.packet(reason.ToNet, n.eth, back)
				n.want(r, reason.ToNet, reason.Stack)
				msg = parsed(t, r.out)
				if msg.Src != node.Addr() || msg.Dst != out.Addr() {
					t.Errorf("the pod's error left from %s to %s", msg.Src, msg.Dst)
				}
				checkInner(t, fam, msg, flow.answer(out, node))
				// The node itself says so.
				r = n.packet(reason.ToNet, n.eth, tooBigError(fam, ownNode.of(fam), out.Addr(), flow.answer(out, pod)))
				n.want(r, reason.ToNet, reason.Stack)
				msg = parsed(t, r.out)
				if msg.Src != node.Addr() {
					t.Errorf("the node's error left from %s", msg.Src)
				}
				checkInner(t, fam, msg, flow.answer(out, node))
			})
		}
		// About nothing that anybody knows.
		n.t = t
		n.flush()
		lost := tooBigError(fam, podA.of(fam), world.of(fam), frame.NewUDP(ap(world.of(fam), 9), ap(podA.of(fam), 9), nil))
		n.want(n.packet(reason.ToNet, n.eth, lost), reason.ToNet, reason.NATUnsupported)
		// A short quotation: the IP header and eight bytes.
		short := frame.NewTCP(ap(podA.of(fam), 4000), ap(world.of(fam), 443), frame.SYN, nil)
		port := n.opened(short)
		about := frame.NewTCP(ap(ownNode.of(fam), port), ap(world.of(fam), 443), frame.SYN, nil)
		about.Payload = about.Payload[:8]
		r := n.packet(reason.FromNet, n.eth, tooBigError(fam, router.of(fam), ownNode.of(fam), about))
		if msg := parsed(t, r.out); msg.Dst != podA.of(fam) || binary.BigEndian.Uint16(msg.Payload[8+map[int]int{4: 20, 6: 40}[fam]:]) != 4000 {
			t.Errorf("short quotation went to %s: % x", msg.Dst, msg.Payload)
		}
	})
}

// TestMasqueradedFragments guards against later fragments that leave as they
// are, or whose answer's later fragments go to the host.
func TestMasqueradedFragments(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		data := make([]byte, 2000)
		for i := range data {
			data[i] = byte(i)
		}
		pod, out := ap(podA.of(fam), 4000), ap(world.of(fam), 5000)
		whole := frame.NewUDP(pod, out, data)
		whole.ID = 77
		parts := whole.Fragments(1024)
		// Out of order: nobody knows whose it is.
		n.packet(reason.FromPod, n.a, parts[1])
		n.want(n.packet(reason.ToNet, n.eth, parts[1]), reason.ToNet, reason.FragmentUnknown)
		var left []byte
		for i, f := range parts {
			n.packet(reason.FromPod, n.a, f)
			r := n.packet(reason.ToNet, n.eth, f)
			if r.action != actNext {
				t.Fatalf("fragment %d: %+v", i, r.event)
			}
			src, payload := fragment(fam, r.out)
			if src != ownNode.of(fam) {
				t.Errorf("fragment %d left from %s", i, src)
			}
			left = append(left, payload...)
		}
		port := binary.BigEndian.Uint16(left)
		want := frame.NewUDP(ap(ownNode.of(fam), port), out, data)
		if string(left) != string(want.Payload) {
			t.Errorf("the datagram left with header % x, want % x", left[:8], want.Payload[:8])
		}
		answer := frame.NewUDP(out, ap(ownNode.of(fam), port), data)
		answer.ID = 78
		var back []byte
		for i, f := range answer.Fragments(1024) {
			r := n.packet(reason.FromNet, n.eth, f)
			if r.action != actNext {
				t.Fatalf("fragment %d: %+v", i, r.event)
			}
			p := r.out[frame.EthLen:]
			if dst := addrAt(p, fam, 1); dst != pod.Addr() {
				t.Errorf("fragment %d of the answer went to %s", i, dst)
			}
			_, payload := fragment(fam, r.out)
			back = append(back, payload...)
		}
		if string(back) != string(frame.NewUDP(out, pod, data).Payload) {
			t.Errorf("the answer's header % x", back[:8])
		}
	})
}

// addrAt returns source (0) or destination (1) of an IP packet.
func addrAt(ip []byte, fam, which int) netip.Addr {
	off, size := 12+4*which, 4
	if fam == 6 {
		off, size = 8+16*which, 16
	}
	a, _ := netip.AddrFromSlice(ip[off : off+size])
	return a
}

// fragment returns source and payload of a frame with a fragment.
func fragment(fam int, b []byte) (netip.Addr, []byte) {
	ip := b[frame.EthLen:]
	if fam == 4 {
		return addrAt(ip, 4, 0), ip[20:binary.BigEndian.Uint16(ip[2:])]
	}
	return addrAt(ip, 6, 0), ip[48 : 40+binary.BigEndian.Uint16(ip[4:])]
}

// TestPortsExhausted guards against a flow that gets another's port when none is
// free, and against ports that stay taken by flows that are over.
func TestPortsExhausted(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		n.masquerade(func(c *maps.Config) { c.Masquerade.PortMin, c.Masquerade.PortMax = 60000, 60007 })
		defer n.masquerade(func(*maps.Config) {})
		out := ap(world.of(fam), 443)
		seen := map[uint16]uint16{}
		syn := func(sport uint16) frame.Packet {
			return frame.NewTCP(ap(podA.of(fam), sport), out, frame.SYN, nil)
		}
		for sport := uint16(1); sport <= 8; sport++ {
			port := n.opened(syn(sport))
			if port < 60000 || port > 60007 || seen[port] != 0 {
				t.Fatalf("port %d for %d; so far %v", port, sport, seen)
			}
			seen[port] = sport
		}
		n.packet(reason.FromPod, n.a, syn(9))
		n.want(n.packet(reason.ToNet, n.eth, syn(9)), reason.ToNet, reason.NATExhausted)
		// Another destination, and another port of it, have all ports for themselves.
		for _, to := range []netip.AddrPort{ap(router.of(fam), 443), ap(out.Addr(), 444)} {
			n.opened(frame.NewTCP(ap(podA.of(fam), 9), to, frame.SYN, nil))
		}
		// One is reset, and after a while its port is free for who finds no other.
		n.packet(reason.FromNet, n.eth, frame.NewTCP(out, ap(ownNode.of(fam), 60003), frame.RST|frame.ACK, nil))
		n.want(n.packet(reason.ToNet, n.eth, syn(9)), reason.ToNet, reason.NATExhausted)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		var r result
		for start := time.Now(); ; {
			<-tick.C
			if r = n.packet(reason.ToNet, n.eth, syn(9)); r.action == actNext {
				break
			}
			if time.Since(start) > patience {
				t.Fatal("the port of the connection that was reset is never given away")
			}
		}
		if port, _ := ports(parsed(t, r.out)); port != 60003 {
			t.Errorf("got port %d, want that of the connection that was reset", port)
		}
		// The old owner must not be heard any more.
		r = n.packet(reason.ToNet, n.eth, frame.NewTCP(ap(podA.of(fam), seen[60003]), out, frame.ACK, nil))
		if r.action == actNext {
			if port, _ := ports(parsed(t, r.out)); port == 60003 {
				t.Error("two flows share a port")
			}
		}
	})
}

// TestTranslationRebuilt guards against connections that break because one of
// the three entries that belong together was lost.
func TestTranslationRebuilt(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		pod, out := ap(podA.of(fam), 4000), ap(world.of(fam), 443)
		establish := func() uint16 {
			t.Helper()
			n.flush()
			n.flushNAT()
			port := n.opened(frame.NewTCP(pod, out, frame.SYN, nil))
			n.packet(reason.FromNet, n.eth, frame.NewTCP(out, ap(ownNode.of(fam), port), frame.SYN|frame.ACK, nil))
			if again := n.opened(frame.NewTCP(pod, out, frame.ACK, nil)); again != port {
				t.Fatalf("the second packet has port %d, the first had %d", again, port)
			}
			return port
		}
		data := frame.NewTCP(pod, out, frame.ACK|frame.PSH, []byte("x"))

		port := establish()
		n.flushNAT() // conntrack knows the port
		if got := n.opened(data); got != port {
			t.Errorf("without the translation: port %d, want %d", got, port)
		}
		port = establish()
		n.flush() // the translation knows the flow
		if got := n.opened(data); got != port {
			t.Errorf("without conntrack: port %d, want %d", got, port)
		}
		port = establish()
		n.flush()
		n.flushNAT() // the ports are tried in the same order
		if got := n.opened(data); got != port {
			t.Errorf("without both: port %d, want %d", got, port)
		}
		// Without conntrack an answer comes first: the pod still is who opened.
		port = establish()
		n.flush()
		r := n.packet(reason.FromNet, n.eth, frame.NewTCP(out, ap(ownNode.of(fam), port), frame.ACK|frame.PSH, []byte("y")))
		n.want(r, reason.FromNet, reason.Stack, reason.CTNew)
		if p := parsed(t, r.out); p.Dst != pod.Addr() {
			t.Errorf("the answer went to %s", p.Dst)
		}
		n.packet(reason.ToPod, n.a, frame.NewTCP(out, pod, frame.ACK|frame.PSH, []byte("y")), from(n.eth))
		if got := n.opened(data); got != port {
			t.Errorf("after an answer without conntrack: port %d, want %d", got, port)
		}
		// Both sides close, and the pod opens again with the same port.
		n.opened(frame.NewTCP(pod, out, frame.FIN|frame.ACK, nil))
		n.packet(reason.FromNet, n.eth, frame.NewTCP(out, ap(ownNode.of(fam), port), frame.FIN|frame.ACK, nil))
		if rows := n.nat(); len(rows) != 1 || rows[0].State != "closed" {
			t.Errorf("after both FINs: %+v", rows)
		}
		if got := n.opened(frame.NewTCP(pod, out, frame.SYN, nil)); got != port {
			t.Errorf("opened again: port %d, want %d", got, port)
		}
		if rows := n.nat(); len(rows) != 1 || rows[0].State != "opening" {
			t.Errorf("after the new SYN: %+v", rows)
		}
	})
}

// TestPurgeTranslations guards against an address that is given to another pod
// while translations of the first still lead to it.
func TestPurgeTranslations(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		out := ap(world.of(fam), 443)
		port := n.opened(frame.NewUDP(ap(podA.of(fam), 4000), out, nil))
		if got, err := n.d.Maps().NAT.PurgeAddrs(podB.of(fam)); err != nil || got != 0 {
			t.Errorf("another's address: %d %v", got, err)
		}
		// A new endpoint with the address, before anything was purged.
		row := n.endpointsA
		row.Generation = 99
		n.must(n.d.Maps().Endpoints.Upsert(row))
		defer func() { n.must(n.d.Maps().Endpoints.Upsert(n.endpointsA)) }()
		answer := frame.NewUDP(out, ap(ownNode.of(fam), port), nil)
		if p := parsed(t, n.packet(reason.FromNet, n.eth, answer).out); p.Dst != ownNode.of(fam) {
			t.Errorf("an answer to the old pod went to %s", p.Dst)
		}
		if got, err := n.d.Maps().NAT.PurgeAddrs(podA.of(fam)); err != nil || got != 1 {
			t.Errorf("purged %d %v, want 1", got, err)
		}
	})
}

// TestHostHoldsPort guards against a pod that gets the port with which the host
// talks to the same server, and against the host's that meets a pod's.
func TestHostHoldsPort(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		for proto, flow := range flows {
			t.Run(proto, func(t *testing.T) {
				n.t = t
				n.flush()
				n.flushNAT()
				n.masquerade(func(c *maps.Config) { c.Masquerade.PortMin, c.Masquerade.PortMax = 60000, 60001 })
				defer n.masquerade(func(*maps.Config) {})
				out, node := ap(world.of(fam), 443), ownNode.of(fam)
				host := flow.ask(ap(node, 60000), out)
				if p := parsed(t, n.packet(reason.ToNet, n.eth, host).out); p.Src != node {
					t.Errorf("the host's packet left from %s", p.Src)
				}
				if port := n.opened(flow.ask(ap(podA.of(fam), 4000), out)); port != 60001 {
					t.Errorf("the pod got port %d, which the host has", port)
				}
				p := parsed(t, n.packet(reason.FromNet, n.eth, flow.answer(out, ap(node, 60000))).out)
				if p.Dst != node {
					t.Errorf("the host's answer went to %s", p.Dst)
				}
				// The other way round: a pod was there first.
				n.flush()
				n.flushNAT()
				taken := n.opened(flow.ask(ap(podA.of(fam), 4000), out))
				other := uint16(60000 + 60001 - int(taken))
				left := parsed(t, n.packet(reason.ToNet, n.eth, flow.ask(ap(node, taken), out)).out)
				if port, _ := ports(left); left.Src != node || port != other {
					t.Errorf("the host's packet left from %s port %d, want %d", left.Src, port, other)
				}
				r := n.packet(reason.FromNet, n.eth, flow.answer(out, ap(node, other)))
				want := flow.answer(out, ap(node, taken))
				want.DstMAC, want.SrcMAC = hostMAC, peerMAC
				if string(r.out) != string(want.Bytes()) {
					t.Errorf("the host's answer became\n% x\nwant\n% x", r.out, want.Bytes())
				}
				if p := parsed(t, n.packet(reason.FromNet, n.eth, flow.answer(out, ap(node, taken))).out); p.Dst != podA.of(fam) {
					t.Errorf("the pod's answer went to %s", p.Dst)
				}
			})
		}
	})
}

// TestUnmasquerable guards against a pod's address getting outside in a packet
// of a protocol that cannot be translated.
func TestUnmasquerable(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		for _, proto := range []uint8{47, 50, 136} { // GRE, ESP, UDP-Lite
			p := frame.Packet{Src: podA.of(fam), Dst: world.of(fam), Proto: proto, Payload: make([]byte, 32)}
			n.packet(reason.FromPod, n.a, p)
			if r := n.packet(reason.ToNet, n.eth, p); r.action != actShot || r.counts["to_net drop/nat-unsupported"] != 1 {
				t.Errorf("protocol %d: %+v", proto, r.event)
			}
		}
		// SCTP keeps its port, or fails.
		sctp := func(a netip.Addr) frame.Packet {
			b := make([]byte, 12)
			binary.BigEndian.PutUint16(b, 4000)
			binary.BigEndian.PutUint16(b[2:], 443)
			return frame.Packet{Src: a, Dst: world.of(fam), Proto: frame.SCTP, Payload: b}
		}
		left := parsed(t, n.leave(sctp(podA.of(fam))).out)
		if port, _ := ports(left); left.Src != ownNode.of(fam) || port != 4000 {
			t.Errorf("SCTP left from %s port %d", left.Src, port)
		}
		n.packet(reason.FromPod, n.b, sctp(podB.of(fam)))
		n.want(n.packet(reason.ToNet, n.eth, sctp(podB.of(fam))), reason.ToNet, reason.NATExhausted)
		// A device without an address.
		n.must(n.d.Maps().NAT.SetDevices(nil))
		defer func() {
			n.must(n.d.Maps().NAT.SetDevices([]maps.NATDevice{{Index: n.eth.Attrs().Index, IPv4: ownNode.v4, IPv6: ownNode.v6}}))
		}()
		p := frame.NewTCP(ap(podA.of(fam), 4001), ap(world.of(fam), 443), frame.SYN, nil)
		n.packet(reason.FromPod, n.a, p)
		n.want(n.packet(reason.ToNet, n.eth, p), reason.ToNet, reason.NATNoAddress)
	})
}

// TestNoChecksum guards against a UDP datagram without a checksum getting one.
func TestNoChecksum(t *testing.T) {
	n := newMasq(t)
	p := frame.NewUDP(ap(podA.v4, 4000), ap(world.v4, 53), []byte("x"))
	p.Payload[6], p.Payload[7] = 0, 0
	r := n.leave(p)
	if udp := r.out[frame.EthLen+20:]; udp[6] != 0 || udp[7] != 0 || binary.BigEndian.Uint16(udp) == 4000 {
		t.Errorf("left with the header % x", udp[:8])
	}
}

// TestChecksumsProperty guards against a checksum that is wrong for some
// addresses, ports or contents: one's complement has two zeros.
func TestChecksumsProperty(t *testing.T) {
	n := newMasq(t)
	n.config(func(c *maps.Config) {
		c.Trace = maps.TraceNone
		c.Masquerade = maps.Masquerade{IPv4: true, IPv6: true, PortMin: natMin, PortMax: natMax}
	})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range 3000 {
		fam := families[i%2]
		dst := world.of(fam).AsSlice()
		dst[len(dst)-1], dst[len(dst)-2] = byte(rnd.Uint32()), byte(rnd.Uint32()&0x7f)
		to, _ := netip.AddrFromSlice(dst)
		pod, out := ap(podA.of(fam), uint16(rnd.Uint32()|1)), ap(to, uint16(rnd.Uint32()|1))
		data := make([]byte, rnd.IntN(40))
		for j := range data {
			data[j] = byte(rnd.Uint32()) | byte(-(i & 1)) // many 0xff
		}
		p := frame.NewUDP(pod, out, data)
		switch i % 3 {
		case 1:
			p = frame.NewTCP(pod, out, frame.SYN, data)
		case 2:
			p = frame.NewEcho(pod.Addr(), to, pod.Port(), false, data)
		}
		left := parsed(t, n.leave(p).out)
		port, _ := ports(left)
		var answer frame.Packet
		switch i % 3 {
		case 0:
			answer = frame.NewUDP(out, ap(left.Src, port), data)
		case 1:
			answer = frame.NewTCP(out, ap(left.Src, port), frame.SYN|frame.ACK, data)
		case 2:
			answer = frame.NewEcho(to, left.Src, port, true, data)
		}
		if got := parsed(t, n.packet(reason.FromNet, n.eth, answer).out); got.Dst != pod.Addr() {
			t.Fatalf("packet %d: the answer went to %s", i, got.Dst)
		}
		about := p
		about.Src = left.Src
		about.Payload = left.Payload
		msg := parsed(t, n.packet(reason.FromNet, n.eth, tooBigError(fam, router.of(fam), left.Src, about)).out)
		checkInner(t, fam, msg, p)
		if t.Failed() {
			t.Fatalf("packet %d: %s", i, fmt.Sprint(p))
		}
	}
}
