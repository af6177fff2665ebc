// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// wantTooBig checks an error message to the byte: addresses, checksums, MTU, and
// the packet that it is about.
func wantTooBig(t *testing.T, out []byte, about frame.Packet, from netip.Addr, mtu int) {
	t.Helper()
	p, err := frame.Parse(out)
	if err != nil {
		t.Fatalf("%v\n% x", err, out)
	}
	orig := about.Bytes()
	if p.DstMAC != about.SrcMAC || p.SrcMAC != about.DstMAC {
		t.Errorf("MACs %x -> %x, want the sender's turned round", p.SrcMAC, p.DstMAC)
	}
	if p.Src != from || p.Dst != about.Src {
		t.Errorf("error from %s to %s, want from %s to %s", p.Src, p.Dst, from, about.Src)
	}
	typ, code, got := uint8(3), uint8(4), int(binary.BigEndian.Uint16(p.Payload[6:]))
	if about.Src.Is6() {
		typ, code, got = 2, 0, int(binary.BigEndian.Uint32(p.Payload[4:]))
	}
	if p.Payload[0] != typ || p.Payload[1] != code {
		t.Errorf("ICMP type %d code %d, want %d %d", p.Payload[0], p.Payload[1], typ, code)
	}
	if got != mtu {
		t.Errorf("MTU %d, want %d", got, mtu)
	}
	inner := p.Payload[8:]
	if len(inner) < 68 || !bytes.Equal(inner, orig[frame.EthLen:frame.EthLen+len(inner)]) {
		t.Errorf("error is about\n% x\nwant\n% x", inner, orig[frame.EthLen:])
	}
	if about.Src.Is6() && len(p.Payload)+40 > 1280 {
		t.Errorf("error of %d bytes (RFC 4443: at most 1280)", len(p.Payload)+40)
	}
}

// big returns a datagram that is size bytes long from the network header on.
func big(src, dst netip.AddrPort, size int) frame.Packet {
	header := 20
	if src.Addr().Is6() {
		header = 40
	}
	p := frame.NewUDP(src, dst, bytes.Repeat([]byte{0xab}, size-header-8))
	p.DF, p.SrcMAC, p.DstMAC = true, podMAC, hostMAC
	return p
}

// TestTooBig guards against black holes, and against errors that the sender's
// kernel would throw away: redirects bypass the stack's checks (rule 4).
func TestTooBig(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		narrow := n.endpointsB
		narrow.MTU = 1400
		n.must(n.d.Maps().Endpoints.Upsert(narrow))
		a, b, r, w := ap(podA.of(fam), 1), ap(podB.of(fam), 2), ap(remotePod.of(fam), 3), ownNode.of(fam)
		n.want(n.packet(reason.FromPod, n.a, big(a, b, 1400)), reason.FromPod, reason.Peer, reason.CTNew)
		p := big(a, b, 1401)
		res := n.packet(reason.FromPod, n.a, p)
		n.want(res, reason.FromPod, reason.TooBig, reason.ICMPSent)
		wantTooBig(t, res.out, p, w, 1400)
		if res.mark != 0x5ef70001 {
			t.Errorf("mark %#x: to_pod would not let it pass", res.mark)
		}
		// By the route: the device's MTU is 1500.
		n.want(n.packet(reason.FromPod, n.a, big(a, r, 1500)), reason.FromPod, reason.Neigh, reason.CTNew)
		p = big(a, r, 1501)
		res = n.packet(reason.FromPod, n.a, p)
		n.want(res, reason.FromPod, reason.TooBig, reason.ICMPSent)
		wantTooBig(t, res.out, p, w, 1500)
		// From the net to a pod with a narrower device.
		n.want(n.packet(reason.FromNet, n.eth, big(r, b, 1400)), reason.FromNet, reason.Peer, reason.CTNew)
		n.want(n.packet(reason.FromNet, n.eth, big(r, b, 1401)), reason.FromNet, reason.Stack) // which tells the sender
		// Without a node address, the gateway that the pod knows speaks.
		n.config(func(c *maps.Config) { c.NodeIPv4, c.NodeIPv6 = netip.Addr{}, netip.Addr{} })
		p = big(a, b, 1401)
		res = n.packet(reason.FromPod, n.a, p)
		n.want(res, reason.FromPod, reason.TooBig, reason.ICMPSent)
		wantTooBig(t, res.out, p, map[int]netip.Addr{4: gateway4, 6: gateway6}[fam], 1400)
		n.config(func(*maps.Config) {})
		n.must(n.d.Maps().Endpoints.Upsert(n.endpointsB))
	})
}

// TestTooBigOptions guards against errors about packets with options or
// extension headers quoting the wrong bytes.
func TestTooBigOptions(t *testing.T) {
	n := newNode(t, both)
	p := big(ap(podA.v4, 1), ap(remotePod.v4, 2), 1500)
	p.Options = bytes.Repeat([]byte{1}, 40)
	res := n.packet(reason.FromPod, n.a, p)
	n.want(res, reason.FromPod, reason.TooBig, reason.CTNew, reason.ICMPSent)
	wantTooBig(t, res.out, p, ownNode.v4, 1500)
	q := big(ap(podA.v6, 1), ap(remotePod.v6, 2), 1500)
	q.Ext = []frame.Ext{{Type: frame.DestOpts, Body: append([]byte{1, 252}, make([]byte, 300)...)}}
	res = n.packet(reason.FromPod, n.a, q)
	n.want(res, reason.FromPod, reason.TooBig, reason.CTNew, reason.ICMPSent)
	wantTooBig(t, res.out, q, ownNode.v6, 1500)
}

// TestTooBigMinimum guards against telling an IPv6 sender an MTU below 1280,
// which it would take for a request to send fragment headers, or ignore.
func TestTooBigMinimum(t *testing.T) {
	n := newNode(t, both)
	narrow := n.endpointsB
	narrow.MTU = 1200
	n.must(n.d.Maps().Endpoints.Upsert(narrow))
	p := big(ap(podA.v6, 1), ap(podB.v6, 2), 1300)
	res := n.packet(reason.FromPod, n.a, p)
	n.want(res, reason.FromPod, reason.TooBig, reason.CTNew, reason.ICMPSent)
	wantTooBig(t, res.out, p, ownNode.v6, 1280)
}

// TestTooBigMayFragment guards against IPv4 packets without DF being refused:
// the stack cuts them up.
func TestTooBigMayFragment(t *testing.T) {
	n := newNode(t, both)
	p := big(ap(podA.v4, 1), ap(remotePod.v4, 2), 1501)
	p.DF = false
	n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, reason.Stack, reason.CTNew)
}

// TestTooBigSilence guards against errors about errors (RFC 1122 3.2.2) and
// against a flood of errors.
func TestTooBigSilence(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		a, r := ap(podA.of(fam), 1), ap(remotePod.of(fam), 2)
		n.want(n.packet(reason.FromNet, n.eth, frame.NewUDP(r, a, nil)), reason.FromNet, reason.Peer, reason.CTNew)
		e := frame.NewError(a.Addr(), r.Addr(), map[int]uint8{4: 3, 6: 1}[fam], 3, 0, frame.NewUDP(r, a, nil))
		e.Payload = append(e.Payload, make([]byte, 1500)...)
		e.DF = true
		n.want(n.packet(reason.FromPod, n.a, e), reason.FromPod, reason.TooBig, reason.ICMPSuppressed)
		n.config(func(c *maps.Config) { c.ICMPRate = 3 })
		sent, suppressed := 0, 0
		for range 20 {
			res := n.packet(reason.FromPod, n.a, big(a, r, 1501))
			sent += int(res.counts["from_pod note/icmp-sent"])
			suppressed += int(res.counts["from_pod note/icmp-suppressed"])
		}
		// A tick may have ended in between, or have been used up by the other family.
		if (fam == 4 && sent == 0) || sent > 9 || sent+suppressed != 20 {
			t.Errorf("%d errors sent, %d suppressed of 20 at 3 a second", sent, suppressed)
		}
		n.config(func(*maps.Config) {})
	})
}

// TestSuperPackets guards against segments that will fit being refused because
// their super-packet is long, and against segments that do not fit passing.
func TestSuperPackets(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		header := map[int]uint32{4: 20, 6: 40}[fam]
		p := frame.NewTCP(ap(podA.of(fam), 1), ap(remotePod.of(fam), 2), frame.SYN, make([]byte, 3000)) // test runs take one page
		p.SrcMAC, p.DstMAC = podMAC, hostMAC
		n.want(n.packet(reason.FromPod, n.a, p, withGSO(1500-header-20)), reason.FromPod, reason.Neigh, reason.CTNew)
		res := n.packet(reason.FromPod, n.a, p, withGSO(1500-header-20+1))
		n.want(res, reason.FromPod, reason.TooBig, reason.ICMPSent)
		wantTooBig(t, res.out, p, ownNode.of(fam), 1500)
		// BIG TCP: no length in the header.
		p.TotalLen = new(0)
		n.want(n.packet(reason.FromPod, n.a, p, withGSO(1400)), reason.FromPod, reason.Neigh)
		if fam == 4 { // no super-packet, no 0
			n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, reason.Malformed)
		}
		if fam == 6 { // older kernels put a jumbogram header in, which no segment carries
			p.Ext = []frame.Ext{{Type: frame.HopByHop, Body: []byte{0xc2, 4, 0, 0, 12, 0}}}
			n.want(n.packet(reason.FromPod, n.a, p, withGSO(1500-header-20)), reason.FromPod, reason.Neigh)
		}
	})
}

// TestLastHop guards against the fast path forwarding what the stack would
// answer with "time exceeded".
func TestLastHop(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		for _, to := range []host{podB, remotePod} {
			p := frame.NewUDP(ap(podA.of(fam), 1), ap(to.of(fam), 2), nil)
			p.TTL = 1
			n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, reason.Stack, reason.CTNew)
			p.TTL = 2
			r := n.packet(reason.FromPod, n.a, p)
			if out, err := frame.Parse(r.out); err != nil || out.TTL != 1 {
				t.Errorf("left with TTL %d: %v", out.TTL, err)
			}
		}
		p := frame.NewUDP(ap(remotePod.of(fam), 1), ap(podB.of(fam), 2), nil)
		p.TTL = 1
		n.want(n.packet(reason.FromNet, n.eth, p), reason.FromNet, reason.Stack, reason.CTNew)
	})
}

// TestNoRoute guards against pods' packets disappearing where the node has no
// route: the stack tells the sender.
func TestNoRoute(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		ip(t, "link set eth0 down") // takes the routes with it
		p := frame.NewUDP(ap(podA.of(fam), 1), ap(remotePod.of(fam), 2), nil)
		n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, reason.Stack, reason.CTNew)
		ip(t, "link set eth0 up")
		n.route()
		n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, reason.Stack) // one path a connection
		q := frame.NewUDP(ap(podA.of(fam), 3), ap(remotePod.of(fam), 4), nil)
		n.want(n.packet(reason.FromPod, n.a, q), reason.FromPod, reason.Neigh, reason.CTNew)
		// Gone under a fast connection.
		ip(t, "link set eth0 down")
		n.must(n.d.Maps().Ways.Changed()) // as the agent, once the kernel says so
		n.want(n.packet(reason.FromPod, n.a, q), reason.FromPod, reason.Stack)
		ip(t, "link set eth0 up")
		n.route()
		n.want(n.packet(reason.FromPod, n.a, q), reason.FromPod, reason.Neigh)
	})
}
