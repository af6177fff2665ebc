// SPDX-License-Identifier: Apache-2.0

// Package selftest runs the programs of the datapath on built-in packets before
// any hook is switched to them. It loads them a second time, over maps of their
// own, so that nothing it does is seen by packets of pods, nor in counters.
package selftest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/table"
)

// Options say what the programs were loaded for.
type Options struct {
	IPv4, IPv6 bool
	Masquerade bool
}

// What a program tells the kernel to do with a packet.
const (
	next     = 0xffffffff // TCX_NEXT: the stack's
	shot     = 2          // TC_ACT_SHOT: dropped
	redirect = 7          // TC_ACT_REDIRECT
)

func action(a uint32) string {
	switch a {
	case next:
		return "left to the stack"
	case shot:
		return "dropped"
	case redirect:
		return "redirected"
	}
	return fmt.Sprintf("action %d", a)
}

// Each network namespace has a loopback device, and its index is 1: packets
// under test come in and go out there, whatever their hook.
const loopback = 1

// flowTable is room enough for the flows of the test in each map of flows.
const flowTable = 256

// Run loads the programs of spec with maps of their own and sends packets
// through each hook. The error names hook, packet, and what happened to it.
func Run(spec *ebpf.CollectionSpec, o Options) error {
	spec = spec.Copy()
	for _, m := range spec.Maps {
		switch m.Type {
		case ebpf.LRUHash:
			m.MaxEntries = flowTable
		case ebpf.RingBuf:
			m.MaxEntries = uint32(os.Getpagesize())
		}
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return err
	}
	defer coll.Close()
	set, err := maps.NewSet(coll.Maps)
	if err != nil {
		return err
	}
	w := &world{set: set, programs: coll.Programs, masquerade: o.Masquerade}
	for _, s := range []struct {
		on bool
		side
	}{{o.IPv4, side4()}, {o.IPv6, side6()}} {
		if !s.on {
			continue
		}
		if err := w.family(s.side); err != nil {
			return err
		}
	}
	return nil
}

// world is the node on which packets are judged.
type world struct {
	set        *maps.Set
	programs   map[string]*ebpf.Program
	masquerade bool
}

// side is the addresses of one family, out of the ranges for documentation.
type side struct {
	family                                       string
	pod, neighbour, remote, node, other, outside netip.Addr
}

func side4() side {
	a := netip.MustParseAddr
	return side{"IPv4", a("198.51.100.10"), a("198.51.100.11"), a("198.51.100.140"), a("203.0.113.1"), a("203.0.113.2"), a("192.0.2.9")}
}

func side6() side {
	a := netip.MustParseAddr
	return side{"IPv6", a("2001:db8:1::10"), a("2001:db8:1::11"), a("2001:db8:2::20"), a("2001:db8:9::1"), a("2001:db8:9::2"), a("2001:db8:f::9")}
}

// Ports that flows of pods get outside.
const portMin, portMax = 49152, 65535

// family fills the maps for one family and runs its packets.
func (w *world) family(s side) error {
	cfg := maps.Config{
		Overlay: maps.Overlay{IfIndex: loopback + 1, MTU: 1450, Local: s.node},
	}
	if w.masquerade {
		cfg.Masquerade = maps.Masquerade{IPv4: s.node.Is4(), IPv6: s.node.Is6(), PortMin: portMin, PortMax: portMax}
	}
	errs := []error{w.set.Config.Set(cfg)}
	for id, addr := range map[uint16]netip.Addr{1: s.pod, 2: s.neighbour} {
		row := maps.EndpointRow{
			ID: id, IfIndex: loopback - 1 + int(id), MAC: "02:00:00:00:00:01", HostMAC: "02:00:00:00:00:02", MTU: 1500,
			Generation: uint32(id), Identity: table.IdentityInit,
		}
		if addr.Is4() {
			row.IPv4 = addr
		} else {
			row.IPv6 = addr
		}
		errs = append(errs, w.set.Endpoints.Upsert(row))
	}
	for _, r := range []maps.IPCacheRow{
		{Prefix: one(s.pod), Identity: table.IdentityInit, Kind: table.KindLocalPod, EndpointID: 1},
		{Prefix: one(s.neighbour), Identity: table.IdentityInit, Kind: table.KindLocalPod, EndpointID: 2},
		{Prefix: one(s.node), Identity: table.IdentityHost, Kind: table.KindHost},
		{Prefix: one(s.other), Identity: table.IdentityRemoteNode, Kind: table.KindNode, Tunnel: s.other},
		{Prefix: one(s.remote), Identity: table.IdentityInit, Kind: table.KindRemotePod, Tunnel: s.other, ByTunnel: true},
	} {
		errs = append(errs, w.set.IPCache.Upsert(r))
	}
	dev := maps.NATDevice{Index: loopback}
	if s.node.Is4() {
		dev.IPv4 = s.node
	} else {
		dev.IPv6 = s.node
	}
	errs = append(errs, w.set.NAT.SetDevices([]maps.NATDevice{dev}))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := w.judge(s, w.cases(s)); err != nil {
		return err
	}
	if err := w.overlay(s); err != nil || !w.masquerade {
		return err
	}
	return w.translation(s)
}

func one(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// sample is a packet and what must become of it.
type sample struct {
	hook   reason.Hook
	what   string
	packet frame.Packet
	want   uint32
}

func (w *world) judge(s side, samples []sample) error {
	for _, c := range samples {
		if _, err := w.send(s, w.programs[c.hook.String()], c); err != nil {
			return err
		}
	}
	return nil
}

// send runs a program on a packet and returns the packet that came out.
func (w *world) send(s side, p *ebpf.Program, c sample) ([]byte, error) {
	name := fmt.Sprintf("%s, %s: %s", c.hook, s.family, c.what)
	if p == nil {
		return nil, fmt.Errorf("%s: there is no such program", name)
	}
	data := c.packet.Bytes()
	run := &ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)+256)}
	got, err := p.Run(run)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if got != c.want {
		return nil, fmt.Errorf("%s was %s, must be %s", name, action(got), action(c.want))
	}
	return run.DataOut, nil
}

func (w *world) cases(s side) []sample {
	at := netip.AddrPortFrom
	udp := func(from, to netip.Addr) frame.Packet {
		return frame.NewUDP(at(from, 4000), at(to, 5000), []byte("weft"))
	}
	answer := func(from, to netip.Addr) frame.Packet {
		return frame.NewUDP(at(from, 5000), at(to, 4000), []byte("weft"))
	}
	syn := func(from, to netip.Addr) frame.Packet {
		return frame.NewTCP(at(from, 4001), at(to, 80), frame.SYN, nil)
	}
	synAck := func(from, to netip.Addr) frame.Packet {
		return frame.NewTCP(at(from, 80), at(to, 4001), frame.SYN|frame.ACK, nil)
	}
	ack := func(from, to netip.Addr) frame.Packet {
		return frame.NewTCP(at(from, 4001), at(to, 80), frame.ACK, []byte("weft"))
	}
	bad := func(from, to netip.Addr) frame.Packet {
		p, long := udp(from, to), 2000 // longer than the packet is
		p.TotalLen = &long
		return p
	}
	return []sample{
		{reason.FromPod, "datagram to a pod of this node", udp(s.pod, s.neighbour), redirect},
		{reason.FromPod, "second datagram to a pod of this node", udp(s.pod, s.neighbour), redirect},
		{reason.FromPod, "SYN to a pod of another node", syn(s.pod, s.remote), redirect},
		{reason.FromNet, "answer of a pod of another node", synAck(s.remote, s.pod), redirect},
		{reason.FromPod, "packet of an established connection", ack(s.pod, s.remote), redirect},
		{reason.FromPod, "datagram to the outside", udp(s.pod, s.outside), next},
		{reason.FromPod, "source address of another pod", udp(s.neighbour, s.outside), shot},
		{reason.FromPod, "malformed packet", bad(s.pod, s.outside), shot},
		{reason.ToPod, "SYN of this node", syn(s.node, s.pod), next},
		{reason.ToPod, "packet of an established connection of this node", ack(s.node, s.pod), next},
		{reason.ToPod, "packet to the address of another pod", udp(s.node, s.neighbour), shot},
		{reason.ToPod, "malformed packet", bad(s.node, s.pod), shot},
		{reason.FromNet, "datagram of a pod of another node", udp(s.remote, s.pod), redirect},
		{reason.FromNet, "packet to this node", udp(s.outside, s.node), next},
		{reason.FromNet, "source address of a pod of this node", udp(s.neighbour, s.pod), shot},
		{reason.FromNet, "malformed packet to a pod", bad(s.remote, s.pod), shot},
		{reason.ToNet, "packet of this node", udp(s.node, s.outside), next},
		{reason.ToNet, "answer of a pod to the outside", answer(s.pod, s.outside), next},
		{reason.ToOverlay, "datagram of a pod to a pod of another node", udp(s.pod, s.remote), next},
		{reason.ToOverlay, "packet to an address of no node", udp(s.pod, s.outside), shot},
	}
}

// overlay runs from_overlay, whose packets come with a tunnel key.
func (w *world) overlay(s side) error {
	at := netip.AddrPortFrom
	p := frame.NewUDP(at(s.remote, 4002), at(s.pod, 5002), []byte("weft"))
	direct := w.programs[reason.FromOverlay.String()]
	if _, err := w.send(s, direct, sample{reason.FromOverlay, "packet without a tunnel key", p, shot}); err != nil {
		return err
	}
	for _, c := range []struct {
		sample
		node netip.Addr
	}{
		{sample{reason.FromOverlay, "datagram of a pod of another node", p, redirect}, s.other},
		{sample{reason.FromOverlay, "packet of an address that is no node's", p, shot}, s.outside},
	} {
		t, err := ByTunnel(direct, c.node, table.IdentityInit)
		if err != nil {
			return err
		}
		_, err = w.send(s, t.Program, c.sample)
		if err := errors.Join(err, t.Close()); err != nil {
			return err
		}
	}
	return nil
}

// translation follows a masqueraded flow out and its answer back.
func (w *world) translation(s side) error {
	at := netip.AddrPortFrom
	out := sample{reason.ToNet, "packet of a pod to the outside", frame.NewTCP(at(s.pod, 4003), at(s.outside, 443), frame.SYN, nil), next}
	b, err := w.send(s, w.programs[reason.ToNet.String()], out)
	if err != nil {
		return err
	}
	p, err := frame.Parse(b)
	if err != nil {
		return fmt.Errorf("%s, %s: %s came out broken: %w", out.hook, s.family, out.what, err)
	}
	port := p.SrcPort()
	if p.Src != s.node || port < portMin {
		return fmt.Errorf("%s, %s: %s left from %s port %d, must leave from %s and a port of %d-%d",
			out.hook, s.family, out.what, p.Src, port, s.node, portMin, portMax)
	}
	back := sample{reason.FromNet, "answer to a masqueraded packet", frame.NewTCP(at(s.outside, 443), at(s.node, port), frame.SYN|frame.ACK, nil), next}
	if b, err = w.send(s, w.programs[reason.FromNet.String()], back); err != nil {
		return err
	}
	if p, err = frame.Parse(b); err != nil {
		return fmt.Errorf("%s, %s: %s came out broken: %w", back.hook, s.family, back.what, err)
	}
	if p.Dst != s.pod || p.DstPort() != 4003 {
		return fmt.Errorf("%s, %s: %s went to %s port %d, must go to %s port 4003", back.hook, s.family, back.what, p.Dst, p.DstPort(), s.pod)
	}
	return nil
}
