// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/masquerade"
	"github.com/weft-net/weft/internal/table"
	"github.com/weft-net/weft/test/bench/sandbox"
)

const (
	bpffs      = sandbox.BPFFS
	tunnelPort = 8472
	// bigTCP is the largest super-packet of the variant with BIG TCP, in bytes.
	bigTCP = 196608
)

// weftNode is a node with Weft's datapath, set up as the agent does it by default.
type weftNode struct {
	*node
	d *datapath.Datapath
}

// weftOptions are what may differ between nodes.
type weftOptions struct {
	mtu      int
	services int // with endpoints that are nowhere
}

func newWeftNode(n, other *node, o weftOptions) (*weftNode, error) {
	do := datapath.Options{Root: bpffs + "/" + n.Name, IPv4: true, IPv6: true, Outside: o.services > 0}
	if o.services > 0 {
		do.Sizes = maps.Sizes{Services: 1 << 16, Backends: 1 << 17}
	}
	d, err := datapath.Open(do)
	if err != nil {
		return nil, err
	}
	w := &weftNode{n, d}
	cfg := maps.DefaultConfig()
	cfg.NodeIPv4 = n.addr
	if o.services > 0 {
		cfg.Outside.IPv4 = true
		cfg.Masquerade.PortMin, cfg.Masquerade.PortMax = masquerade.DefaultMin, masquerade.DefaultMax
	}
	if err := loadServices(d.Maps().Services, o.services); err != nil {
		return nil, err
	}
	if err := d.SetConfig(cfg); err != nil {
		return nil, err
	}
	err = n.In(func() error {
		return d.SyncDevices([]datapath.Device{{Name: nodeDevice, Index: n.index}})
	})
	if err != nil {
		return nil, err
	}
	if _, err := n.addPod(o.mtu, w.attach(o.mtu)); err != nil {
		return nil, err
	}
	return w, errors.Join(
		w.upsert(maps.IPCacheRow{Prefix: single(n.addr), Identity: table.IdentityHost, Kind: table.KindHost}),
		w.upsert(maps.IPCacheRow{Prefix: single(n.podIP), Identity: table.IdentityInit, Kind: table.KindLocalPod, EndpointID: 1}),
		w.upsert(maps.IPCacheRow{Prefix: single(other.addr), Identity: table.IdentityRemoteNode, Kind: table.KindNode}),
		w.upsert(maps.IPCacheRow{Prefix: other.pods, Identity: table.IdentityInit, Kind: table.KindRemotePod}),
	)
}

// endpointsEach is how many endpoints a Service has.
const endpointsEach = 10

// loadServices fills the maps, as an agent does.
func loadServices(m *maps.ServiceMap, services int) error {
	for i := range services {
		f := table.Frontend{
			Key:  table.FrontendKey{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80), Proto: table.ProtoTCP},
			Type: table.FrontendClusterIP, ServiceID: uint32(i) + 1, Flags: table.FrontendBoth,
		}
		for j := range endpointsEach {
			id := uint32(i*endpointsEach + j + 1)
			f.Backends = append(f.Backends, table.BackendRef{
				ID: id, Proto: table.ProtoTCP,
				Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 128 | byte(id>>16), byte(id >> 8), byte(id)}), 8080),
			})
		}
		if err := m.Upsert(f); err != nil {
			return err
		}
	}
	return nil
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (w *weftNode) upsert(r maps.IPCacheRow) error { return w.d.Maps().IPCache.Upsert(r) }

func (w *weftNode) attach(mtu int) func(link.Veth, int) error {
	return func(v link.Veth, index int) error {
		row := maps.EndpointRow{
			ID: 1, IfIndex: index, IfName: v.HostIfName, MAC: v.MAC.String(), HostMAC: v.HostMAC.String(),
			IPv4: w.podIP, MTU: mtu, Generation: 1, Identity: table.IdentityInit,
		}
		return errors.Join(w.d.Maps().Endpoints.Upsert(row), w.d.AttachEndpoint(v.HostIfName, index))
	}
}

// route leads to the other node's pods as the agent does.
func (w *weftNode) route(r table.Route) error {
	return w.In(func() error { return w.links.UpsertRoute(r) })
}

// joinOverlay makes the tunnel device, and lets the other node be reached by it.
func (w *weftNode) joinOverlay(other *node) error {
	t := link.Tunnel{Port: tunnelPort, MTU: deviceMTU - vxlanOverhead, MAC: net.HardwareAddr{2, 0, 0, 0, 0x10, w.addr.As4()[3]}, Addrs: []netip.Addr{w.addr}}
	cfg, err := w.d.Maps().Config.Get()
	if err != nil {
		return err
	}
	err = w.In(func() error {
		index, err := w.links.EnsureTunnel(t)
		if err != nil {
			return err
		}
		if err := w.d.SyncOverlay(&datapath.Device{Name: link.TunnelDevice, Index: index}); err != nil {
			return err
		}
		cfg.Overlay = maps.Overlay{IfIndex: index, MTU: t.MTU, Local: w.addr, Port: tunnelPort, Strict: true}
		return errors.Join(w.links.TunnelUp(index, t), w.d.SetConfig(cfg))
	})
	if err != nil {
		return err
	}
	return errors.Join(
		w.upsert(maps.IPCacheRow{Prefix: single(other.addr), Identity: table.IdentityRemoteNode, Kind: table.KindNode, Tunnel: other.addr, ByTunnel: true}),
		w.upsert(maps.IPCacheRow{Prefix: other.pods, Identity: table.IdentityInit, Kind: table.KindRemotePod, Tunnel: other.addr, ByTunnel: true}),
		w.route(table.Route{Prefix: other.pods, Device: link.TunnelDevice, Src: w.addr}),
	)
}

// hops are the programs that a packet meets, and what each must say of it.
type hops map[reason.Hook]string

func weftPair(p pair, o weftOptions, join func(w *weftNode, other *node) error, way hops) (*variant, error) {
	var nodes []*weftNode
	v := &variant{programs: map[string][]*ebpf.Program{}}
	for i, n := range p {
		w, err := newWeftNode(n, p[1-i], o)
		if err != nil {
			return nil, err
		}
		if err := join(w, p[1-i]); err != nil {
			return nil, err
		}
		for h := range way {
			v.programs[h.String()] = append(v.programs[h.String()], w.d.Program(h))
		}
		nodes = append(nodes, w)
	}
	v.between(p)
	v.check = func() error {
		var errs []error
		for _, w := range nodes {
			errs = append(errs, w.took(way))
		}
		return errors.Join(errs...)
	}
	return v, nil
}

// took tells whether packets took this way: figures of another would be about
// something else. A few per mille may not: the last ones of connections that the
// end of a measurement cut off.
func (w *weftNode) took(way hops) error {
	rows, err := w.d.Maps().Metrics.List()
	if err != nil {
		return err
	}
	total, right := map[string]uint64{}, map[string]uint64{}
	for h, verdict := range way {
		for _, r := range rows {
			if r.Hook != h.String() || r.Class == reason.ClassNote {
				continue
			}
			total[r.Hook] += r.Packets
			if r.Reason == verdict {
				right[r.Hook] += r.Packets
			}
		}
		name := h.String()
		if total[name] == 0 || right[name] < total[name]/1000*995 {
			return fmt.Errorf("%s: %d of %d packets at %s were %q, which is not the path to be measured: %v", w.Name, right[name], total[name], name, verdict, rows)
		}
	}
	return nil
}

func joinNative(w *weftNode, other *node) error {
	return w.route(table.Route{Prefix: other.pods, Via: other.addr, Device: nodeDevice, Src: w.addr})
}

func weftNative(p pair) (*variant, error) { return weftServing(0)(p) }

// weftServing is weftNative on nodes that have so many Services, and would answer
// for them from outside.
func weftServing(services int) func(pair) (*variant, error) {
	return func(p pair) (*variant, error) {
		return weftPair(p, weftOptions{mtu: deviceMTU, services: services}, joinNative, hops{reason.FromPod: "neigh", reason.ToNet: "marked", reason.FromNet: "peer"})
	}
}

func weftVXLAN(p pair) (*variant, error) {
	return weftPair(p, weftOptions{mtu: deviceMTU - vxlanOverhead}, (*weftNode).joinOverlay, hops{
		reason.FromPod: "tunnel", reason.ToOverlay: "marked", reason.ToNet: "marked",
		reason.FromNet: "stack", reason.FromOverlay: "peer",
	})
}

// weftBigTCP is weftNative with larger super-packets.
func weftBigTCP(p pair) (*variant, error) {
	v, err := weftNative(p)
	for _, n := range p {
		err = errors.Join(err, allowBig(n.Space, nodeDevice), allowBig(n.Space, podDevice), allowBig(n.pod, nodeDevice))
	}
	return v, err
}

// allowBig lets a device send and gather super-packets of bigTCP bytes, as an agent does.
func allowBig(s sandbox.Space, device string) error {
	return s.In(func() error {
		l, err := net.InterfaceByName(device)
		if err != nil {
			return fmt.Errorf("device %s in %s: %w", device, s.Name, err)
		}
		links, err := link.New("", nil)
		if err != nil {
			return err
		}
		return links.SetSizes(l.Index, link.BigTCP{IPv4: bigTCP, IPv6: bigTCP}.Sizes())
	})
}
