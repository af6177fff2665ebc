// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/table"
)

var podMAC = frame.MAC{2, 0, 0, 0, 0xaa, 0xaa}

// TestPodSources guards against a pod that speaks for others (DATAPATH rule 3).
func TestPodSources(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		to := ap(remotePod.of(fam), 80)
		for _, from := range []host{podB, ownNode, otherNode, remotePod, world} {
			r := n.packet(reason.FromPod, n.a, frame.NewUDP(ap(from.of(fam), 4000), to, nil))
			n.want(r, reason.FromPod, reason.SourceSpoofed)
			r = n.packet(reason.FromPod, n.a, frame.NewUDP(ap(from.of(fam), 4000), ap(podB.of(fam), 80), nil))
			n.want(r, reason.FromPod, reason.SourceSpoofed)
		}
		n.noCT()
		// The right address at the wrong device, also where conntrack knows the connection.
		p := frame.NewUDP(ap(podA.of(fam), 4000), to, nil)
		n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, reason.Neigh, reason.CTNew)
		n.want(n.packet(reason.FromPod, n.b, p), reason.FromPod, reason.SourceSpoofed)
		n.want(n.packet(reason.FromPod, n.eth, p), reason.FromPod, reason.NoEndpoint)
	})
}

// TestPodDestinations guards against packets to nowhere going somewhere.
func TestPodDestinations(t *testing.T) {
	n := newNode(t, datapath.Options{})
	for _, s := range []string{"127.0.0.1", "0.0.0.0", "0.1.2.3", "240.0.0.1", "::", "::1", "::ffff:10.1.0.11", podA.v4.String(), podA.v6.String()} {
		dst := netip.MustParseAddr(s)
		src := podA.v4
		if dst.Is6() {
			src = podA.v6
		}
		n.want(n.packet(reason.FromPod, n.a, frame.NewUDP(ap(src, 1), ap(dst, 2), nil)), reason.FromPod, reason.MartianDestination)
	}
	for _, s := range []string{"224.0.0.1", "239.1.2.3", "255.255.255.255", "ff02::1", "ff05::2"} {
		dst := netip.MustParseAddr(s)
		src := podA.v4
		if dst.Is6() {
			src = podA.v6
		}
		n.want(n.packet(reason.FromPod, n.a, frame.NewUDP(ap(src, 1), ap(dst, 2), nil)), reason.FromPod, reason.Stack)
	}
	n.noCT()
	for _, dst := range []netip.Addr{gateway4, netip.MustParseAddr("169.254.169.254"), gateway6} {
		src := podA.v4
		if dst.Is6() {
			src = podA.v6
		}
		n.flush()
		n.want(n.packet(reason.FromPod, n.a, frame.NewUDP(ap(src, 1), ap(dst, 2), nil)), reason.FromPod, reason.Stack, reason.CTNew)
	}
}

// TestNotForThisHost guards against frames for another MAC being forwarded.
func TestNotForThisHost(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		p := frame.NewUDP(ap(podA.of(fam), 1), ap(podB.of(fam), 2), nil)
		p.DstMAC = frame.MAC{2, 9, 9, 9, 9, 9}
		n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, reason.Stack)
		p.Src, p.Dst = remotePod.of(fam), podA.of(fam)
		n.want(n.packet(reason.FromNet, n.eth, p), reason.FromNet, reason.Stack)
		n.noCT()
	})
}

// TestARP guards against pods whose gateway does not resolve, and against
// pods that answer or announce for others.
func TestARP(t *testing.T) {
	n := newNode(t, datapath.Options{})
	broadcast := frame.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	ask := frame.ARPPacket{EthDst: broadcast, EthSrc: podMAC, Op: 1, SenderMAC: podMAC, Sender: podA.v4}
	for _, target := range []netip.Addr{gateway4, podB.v4, world.v4, ownNode.v4} {
		q := ask
		q.Target = target
		r := n.run(reason.FromPod, n.a, q.Bytes())
		n.want(r, reason.FromPod, reason.Answer)
		reply := frame.ARPPacket{EthDst: podMAC, EthSrc: hostMAC, Op: 2, SenderMAC: hostMAC, Sender: target, TargetMAC: podMAC, Target: podA.v4}
		if d := cmp.Diff(reply.Bytes(), r.out); d != "" {
			t.Errorf("answer for %s (-want +got):\n%s", target, d)
		}
		if r.event.OutIf != n.a.Attrs().Index {
			t.Errorf("answered to device %d", r.event.OutIf)
		}
	}
	for name, tc := range map[string]struct {
		change func(*frame.ARPPacket)
		want   reason.Code
	}{
		"own address":       {func(a *frame.ARPPacket) { a.Target = podA.v4 }, reason.Stack},
		"probe":             {func(a *frame.ARPPacket) { a.Sender, a.Target = netip.IPv4Unspecified(), podA.v4 }, reason.Stack},
		"answer of its own": {func(a *frame.ARPPacket) { a.Op, a.Target = 2, ownNode.v4 }, reason.Stack},
		"other's address":   {func(a *frame.ARPPacket) { a.Sender, a.Target = podB.v4, gateway4 }, reason.ARPSpoofed},
		"answer for other":  {func(a *frame.ARPPacket) { a.Op, a.Sender, a.Target = 2, gateway4, podB.v4 }, reason.ARPSpoofed},
		"other's MAC":       {func(a *frame.ARPPacket) { a.SenderMAC, a.Target = peerMAC, gateway4 }, reason.ARPSpoofed},
	} {
		q := ask
		tc.change(&q)
		t.Run(name, func(t *testing.T) {
			n.t = t
			n.want(n.run(reason.FromPod, n.a, q.Bytes()), reason.FromPod, tc.want)
		})
	}
	n.t = t
	b := ask
	b.Target = gateway4
	n.want(n.run(reason.FromPod, n.a, b.Bytes()[:30]), reason.FromPod, reason.Truncated)
	bad := b.Bytes()
	bad[14+4] = 8
	n.want(n.run(reason.FromPod, n.a, bad), reason.FromPod, reason.Malformed)
	n.want(n.run(reason.FromPod, n.eth, b.Bytes()), reason.FromPod, reason.NoEndpoint)
}

// TestNeighbourDiscovery guards against pods whose gateway does not resolve,
// against pods that pose as routers or as others, and against breaking their
// duplicate address detection.
func TestNeighbourDiscovery(t *testing.T) {
	n := newNode(t, datapath.Options{})
	mcast := netip.MustParseAddr("ff02::1:ff00:1")
	for _, src := range []netip.Addr{podA.v6, linkLocal} {
		for _, target := range []netip.Addr{gateway6, podB.v6, world.v6} {
			q := frame.NewNS(src, mcast, target, podMAC)
			q.SrcMAC = podMAC
			q.DstMAC = frame.MAC{0x33, 0x33, 0xff, 0, 0, 1}
			for _, opt := range []bool{true, false} {
				if !opt { // the option is optional in unicast probes
					q = frame.NewICMP(src, mcast, 135, 0, append(make([]byte, 4), target.AsSlice()...))
					q.TTL, q.SrcMAC = 255, podMAC
				}
				r := n.packet(reason.FromPod, n.a, q)
				n.want(r, reason.FromPod, reason.Answer)
				reply := frame.NewNA(target, src, target, hostMAC)
				reply.Payload[4] = 0xe0
				reply = frame.NewICMP(target, src, 136, 0, reply.Payload[4:])
				reply.TTL, reply.DstMAC, reply.SrcMAC = 255, podMAC, hostMAC
				if d := cmp.Diff(reply.Bytes(), r.out); d != "" {
					t.Errorf("answer for %s (-want +got):\n%s", target, d)
				}
				if _, err := frame.Parse(r.out); err != nil {
					t.Error(err)
				}
			}
		}
	}
	all := netip.IPv6Unspecified()
	icmp6 := func(src netip.Addr, typ, code uint8, target netip.Addr, ttl uint8) frame.Packet {
		p := frame.NewICMP(src, allNodes6, typ, code, append(make([]byte, 4), target.AsSlice()...))
		p.TTL = ttl
		return p
	}
	for name, tc := range map[string]struct {
		p    frame.Packet
		want reason.Code
	}{
		"DAD":                        {frame.NewNS(all, mcast, linkLocal, podMAC), reason.Stack},
		"DAD own":                    {frame.NewNS(all, mcast, podA.v6, podMAC), reason.Stack},
		"own address":                {frame.NewNS(linkLocal, mcast, podA.v6, podMAC), reason.Stack},
		"NS from other's address":    {frame.NewNS(podB.v6, mcast, gateway6, podMAC), reason.SourceSpoofed},
		"NS hop limit":               {icmp6(linkLocal, 135, 0, gateway6, 64), reason.NDInvalid},
		"NS code":                    {icmp6(linkLocal, 135, 1, gateway6, 255), reason.NDInvalid},
		"NS multicast target":        {icmp6(linkLocal, 135, 0, mcast, 255), reason.NDInvalid},
		"NA own":                     {frame.NewNA(podA.v6, allNodes6, podA.v6, podMAC), reason.Stack},
		"NA link-local":              {frame.NewNA(linkLocal, allNodes6, linkLocal, podMAC), reason.Stack},
		"NA other's":                 {frame.NewNA(podA.v6, allNodes6, podB.v6, podMAC), reason.NDSpoofed},
		"NA gateway":                 {frame.NewNA(linkLocal, allNodes6, gateway6, podMAC), reason.NDSpoofed},
		"NA from nobody":             {frame.NewNA(all, allNodes6, podA.v6, podMAC), reason.NDInvalid},
		"router advertisement":       {icmp6(linkLocal, 134, 0, all, 255), reason.RouterAdvertisement},
		"router advertisement own":   {icmp6(podA.v6, 134, 0, all, 255), reason.RouterAdvertisement},
		"router solicitation":        {icmp6(linkLocal, 133, 0, all, 255), reason.Stack},
		"redirect":                   {icmp6(linkLocal, 137, 0, gateway6, 255), reason.ICMPRedirect},
		"MLD report":                 {icmp6(linkLocal, 131, 0, mcast, 1), reason.Stack},
		"MLDv2 report":               {mld2(linkLocal), reason.Stack},
		"MLDv2 report of nobody":     {mld2(all), reason.Stack},
		"link-local UDP":             {frame.NewUDP(ap(linkLocal, 546), ap(netip.MustParseAddr("ff02::1:2"), 547), nil), reason.LinkLocalSource},
		"link-local echo":            {frame.NewEcho(linkLocal, gateway6, 1, false, nil), reason.LinkLocalSource},
		"nobody's UDP":               {frame.NewUDP(ap(all, 1), ap(podB.v6, 2), nil), reason.SourceSpoofed},
		"truncated NS":               {frame.Packet{Src: linkLocal, Dst: mcast, Proto: 58, TTL: 255, Payload: make8(135)}, reason.Truncated},
		"NS in fragments (RFC 6980)": {fragmented(frame.NewNS(linkLocal, mcast, gateway6, podMAC)), reason.NDInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			n.t = t
			r := n.packet(reason.FromPod, n.a, tc.p)
			n.want(r, reason.FromPod, tc.want)
		})
	}
	n.t = t
	n.noCT()
}

// mld2 is a listener report as Linux sends it: behind a router alert option.
func mld2(src netip.Addr) frame.Packet {
	p := frame.NewICMP(src, netip.MustParseAddr("ff02::16"), 143, 0, []byte{0, 0, 0, 0})
	p.TTL = 1
	p.Ext = []frame.Ext{{Type: frame.HopByHop, Body: []byte{5, 2, 0, 0, 1, 0}}}
	return p
}

func make8(typ uint8) []byte { return []byte{typ, 0, 0, 0, 0, 0, 0, 0} }

// fragmented marks a packet as the first of several fragments.
func fragmented(p frame.Packet) frame.Packet {
	p.More = true
	return p
}

// TestIPv4Redirect guards against a pod steering another's traffic to itself.
func TestIPv4Redirect(t *testing.T) {
	n := newNode(t, datapath.Options{})
	about := frame.NewUDP(ap(podB.v4, 1), ap(world.v4, 2), nil)
	p := frame.NewError(podA.v4, podB.v4, 5, 1, 0x0a010001, about)
	n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, reason.ICMPRedirect)
}

// TestFromNetSources guards against addresses of this node arriving from
// outside (DATAPATH rule 3), whatever they are addressed to.
func TestFromNetSources(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		for _, from := range []host{podA, ownNode} {
			for _, to := range []host{podB, ownNode, otherNode, world} {
				p := frame.NewUDP(ap(from.of(fam), 4000), ap(to.of(fam), 80), nil)
				n.want(n.packet(reason.FromNet, n.eth, p), reason.FromNet, reason.SourceSpoofed)
			}
		}
		n.noCT()
		// Also where conntrack knows the connection.
		p := frame.NewUDP(ap(podA.of(fam), 4000), ap(podB.of(fam), 80), nil)
		n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, reason.Peer, reason.CTNew)
		n.want(n.packet(reason.FromNet, n.eth, p), reason.FromNet, reason.SourceSpoofed)
		q := frame.NewUDP(ap(ownNode.of(fam), 4000), ap(podB.of(fam), 80), nil)
		n.want(n.packet(reason.ToPod, n.b, q), reason.ToPod, reason.Stack, reason.CTNew)
		n.want(n.packet(reason.FromNet, n.eth, q), reason.FromNet, reason.SourceSpoofed)
		// And in an ICMP error about it, whose inner packet is true.
		e := frame.NewError(podB.of(fam), podA.of(fam), map[int]uint8{4: 3, 6: 1}[fam], 0, 0, p)
		n.want(n.packet(reason.FromNet, n.eth, e), reason.FromNet, reason.SourceSpoofed)
	})
}

// TestToPodSources guards against a device without a hook letting a local
// pod's address in (DATAPATH rule 2).
func TestToPodSources(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		p := frame.NewUDP(ap(podA.of(fam), 4000), ap(podB.of(fam), 80), nil)
		n.want(n.packet(reason.ToPod, n.b, p, from(n.eth)), reason.ToPod, reason.SourceSpoofed)
		n.noCT()
		n.want(n.packet(reason.ToPod, n.b, p, from(n.a)), reason.ToPod, reason.Stack, reason.CTNew)
	})
}

// TestToPodDestination guards against a pod getting what is not its own.
func TestToPodDestination(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		for _, to := range []host{podA, remotePod, world} {
			p := frame.NewUDP(ap(ownNode.of(fam), 4000), ap(to.of(fam), 80), nil)
			n.want(n.packet(reason.ToPod, n.b, p), reason.ToPod, reason.NotForEndpoint)
		}
		n.want(n.packet(reason.ToPod, n.eth, frame.NewUDP(ap(ownNode.of(fam), 1), ap(podB.of(fam), 2), nil)), reason.ToPod, reason.NoEndpoint)
		n.noCT()
		p := frame.NewUDP(ap(ownNode.of(fam), 4000), ap(world.of(fam), 80), nil)
		n.want(n.packet(reason.ToPod, n.b, p, withMark(0x5ef70001)), reason.ToPod, reason.Marked)
	})
	n := newNode(t, datapath.Options{})
	for _, p := range []frame.Packet{frame.NewNS(gateway6, allNodes6, podB.v6, hostMAC), mld2(gateway6), frame.NewNA(gateway6, allNodes6, gateway6, hostMAC)} {
		n.want(n.packet(reason.ToPod, n.b, p), reason.ToPod, reason.Stack)
	}
	arp := frame.ARPPacket{EthDst: podMAC, EthSrc: hostMAC, Op: 1, SenderMAC: hostMAC, Sender: ownNode.v4, Target: podB.v4}
	n.want(n.run(reason.ToPod, n.b, arp.Bytes()), reason.ToPod, reason.Stack)
}

// TestOtherProtocols guards against pods speaking what nobody checks.
func TestOtherProtocols(t *testing.T) {
	n := newNode(t, datapath.Options{})
	lldp := append(frame.Ethernet(hostMAC, podMAC, 0x88cc), make([]byte, 50)...)
	n.want(n.run(reason.FromPod, n.a, lldp), reason.FromPod, reason.UnknownProtocol)
	n.want(n.run(reason.ToPod, n.a, lldp), reason.ToPod, reason.UnknownProtocol)
	n.want(n.run(reason.FromNet, n.eth, lldp), reason.FromNet, reason.Stack)
	n.want(n.run(reason.ToNet, n.eth, lldp), reason.ToNet, reason.Stack)
}

// TestFamilyOff guards against a family that the node does not have leaking
// out of pods, or being touched on the node's own devices.
func TestFamilyOff(t *testing.T) {
	for _, off := range families {
		n := newNode(t, datapath.Options{IPv4: off != 4, IPv6: off != 6})
		p := frame.NewUDP(ap(podA.of(off), 1), ap(podB.of(off), 2), nil)
		n.want(n.packet(reason.FromPod, n.a, p), reason.FromPod, reason.FamilyDisabled)
		n.want(n.packet(reason.ToPod, n.b, p), reason.ToPod, reason.FamilyDisabled)
		n.want(n.packet(reason.FromNet, n.eth, p), reason.FromNet, reason.Stack)
		n.want(n.packet(reason.ToNet, n.eth, p), reason.ToNet, reason.Stack)
		on := 10 - off
		q := frame.NewUDP(ap(podA.of(on), 1), ap(podB.of(on), 2), nil)
		n.want(n.packet(reason.FromPod, n.a, q), reason.FromPod, reason.Peer, reason.CTNew)
	}
}

// TestWrongEndpoint guards against a wrong ipcache entry handing one pod's
// packets to another.
func TestWrongEndpoint(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		b := podB.of(fam)
		row := maps.IPCacheRow{Prefix: netip.PrefixFrom(b, b.BitLen()), Identity: 5, Kind: table.KindLocalPod, EndpointID: 1}
		n.must(n.d.Maps().IPCache.Upsert(row))
		r := n.packet(reason.FromNet, n.eth, frame.NewUDP(ap(remotePod.of(fam), 1), ap(b, 2), nil))
		n.want(r, reason.FromNet, reason.NoEndpoint, reason.CTNew)
		n.must(n.d.Maps().Endpoints.Delete(2))
		third := n.endpointsB
		third.ID, third.IPv4, third.IPv6 = 3, netip.MustParseAddr("10.1.0.99"), netip.MustParseAddr("fd00:1::99")
		n.must(n.d.Maps().Endpoints.Upsert(third))
		row.EndpointID = 3
		n.must(n.d.Maps().IPCache.Upsert(row))
		n.flush()
		r = n.packet(reason.FromPod, n.a, frame.NewUDP(ap(podA.of(fam), 1), ap(b, 2), nil))
		n.want(r, reason.FromPod, reason.NoEndpoint, reason.CTNew)
		n.must(n.d.Maps().Endpoints.Delete(3))
		n.must(n.d.Maps().Endpoints.Upsert(n.endpointsB))
	})
}
