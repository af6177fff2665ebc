// SPDX-License-Identifier: Apache-2.0

// Package oracle says which backends may answer a connection to a Service, from
// the objects alone and for one connection at a time: nothing is remembered,
// indexed or shared. It is the judge of package service and of the datapath in
// tests, and is written to be read, not to be fast.
package oracle

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/service/maglev"
	"github.com/weft-net/weft/internal/table"
)

// World is everything that decides, as one node sees it.
type World struct {
	Services   []*table.Service
	Slices     []*table.EndpointSlice
	Node, Zone string       // this node
	NodeAddrs  []netip.Addr // of all nodes: where NodePorts are
	OtherNodes []netip.Addr // those of NodeAddrs that are not this node's
	IPv4, IPv6 bool

	Algorithm   string // of Services that name none, or are not asked
	Annotations bool   // they are asked
	Maglev      maglev.Table
}

// From is where a client is.
type From int

// Places of clients.
const (
	Outside From = iota // not in the cluster; the packet reaches this node
	Host                // this node
	Pod                 // a pod of this node
)

// Verdict is what becomes of a connection.
type Verdict struct {
	// Service that answers, namespace/name, and the name of its port; empty: the
	// destination is none of any Service and is left alone.
	Service, Port string
	// Backends that may get it, sorted; none: it is refused.
	Backends []netip.AddrPort
}

// Ask says what becomes of a connection from somewhere to dst.
func (w World) Ask(from From, dst netip.AddrPort, proto uint8) Verdict {
	if !usable(dst.Addr()) || dst.Port() == 0 || (dst.Addr().Is4() && !w.IPv4) || (dst.Addr().Is6() && !w.IPv6) {
		return Verdict{}
	}
	services := slices.DeleteFunc(slices.Clone(w.Services), func(s *table.Service) bool { return !served(s) })
	slices.SortFunc(services, func(a, b *table.Service) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	// A cluster IP is its Service's own, whoever else writes it somewhere. Then come
	// the other addresses that Services name, and NodePorts last: they are on every
	// address of a node that nothing else claims. Which of its own backends another
	// node has for who comes from outside, it says itself.
	for _, answers := range []func(*table.Service, table.ServicePortSpec, netip.AddrPort) bool{byClusterIP, byExternal, w.byNodePort} {
		for _, s := range services {
			for _, p := range s.Ports {
				// A port that nobody can connect to leads nowhere on the nodes either.
				if p.Proto == proto && p.Port > 0 && p.Port <= 65535 && answers(s, p, dst) {
					if from != Outside && s.ExternalLocal && slices.Contains(w.OtherNodes, dst.Addr()) {
						return Verdict{}
					}
					return Verdict{Service: s.FullName(), Port: p.Name, Backends: w.backends(from, s, p, dst.Addr())}
				}
			}
		}
	}
	return Verdict{}
}

func byClusterIP(s *table.Service, p table.ServicePortSpec, dst netip.AddrPort) bool {
	return p.Port == int32(dst.Port()) && slices.Contains(s.ClusterIPs, dst.Addr())
}

func byExternal(s *table.Service, p table.ServicePortSpec, dst netip.AddrPort) bool {
	return p.Port == int32(dst.Port()) && hasFamily(s, dst.Addr()) && slices.Contains(external(s), dst.Addr())
}

func (w World) byNodePort(s *table.Service, p table.ServicePortSpec, dst netip.AddrPort) bool {
	if s.Type != table.ServiceNodePort && s.Type != table.ServiceLoadBalancer {
		return false
	}
	return p.NodePort == int32(dst.Port()) && hasFamily(s, dst.Addr()) && slices.Contains(w.NodeAddrs, dst.Addr())
}

// served says whether Services like this are the node's business.
func served(s *table.Service) bool {
	return !s.Headless && !s.Elsewhere && s.Type != table.ServiceExternalName
}

// external are the addresses outside the cluster's own range.
func external(s *table.Service) (out []netip.Addr) {
	out = append(out, s.ExternalIPs...)
	if s.Type == table.ServiceLoadBalancer {
		for _, in := range s.Ingress {
			if !in.Proxy {
				out = append(out, in.Addr)
			}
		}
	}
	return out
}

func hasFamily(s *table.Service, like netip.Addr) bool {
	return slices.ContainsFunc(s.ClusterIPs, func(ip netip.Addr) bool { return usable(ip) && ip.Is4() == like.Is4() })
}

func usable(ip netip.Addr) bool {
	return ip.IsValid() && ip.IsGlobalUnicast() && !ip.Is4In6() && ip.Zone() == ""
}

// endpoint is what all slices together say of one address.
type endpoint struct {
	addr               netip.AddrPort
	ready, terminating bool
	node               string
	zones, nodes       []string
}

func (w World) backends(from From, s *table.Service, p table.ServicePortSpec, dst netip.Addr) []netip.AddrPort {
	endpoints := w.endpoints(s, p, dst.Is6())
	inside := from != Outside
	onlyLocal := s.InternalLocal
	if !slices.Contains(s.ClusterIPs, dst) {
		// Inside, an external address is a name of the Service as good as any.
		onlyLocal = s.ExternalLocal && !inside
	}
	use := func(endpoint) bool { return true }
	if onlyLocal {
		use = func(e endpoint) bool { return e.node == w.Node }
	} else if hint := w.hint(endpoints); hint != nil {
		use = hint
	}
	var ready, terminating []netip.AddrPort
	for _, e := range endpoints {
		switch {
		case e.ready && use(e):
			ready = append(ready, e.addr)
		case e.terminating && (!onlyLocal || use(e)):
			terminating = append(terminating, e.addr)
		}
	}
	out := ready
	if len(ready) == 0 {
		out = terminating
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

func (w World) endpoints(s *table.Service, p table.ServicePortSpec, v6 bool) (out []endpoint) {
	for _, sl := range w.Slices {
		for _, sp := range sl.Ports {
			if sl.Namespace != s.Namespace || sl.Service != s.Name || sl.V6 != v6 || sp.Name != p.Name || sp.Proto != p.Proto || sp.Port < 1 || sp.Port > 65535 {
				continue
			}
			for _, e := range sl.Endpoints {
				if !usable(e.Addr) || e.Addr.Is6() != v6 {
					continue
				}
				found := endpoint{addr: netip.AddrPortFrom(e.Addr, uint16(sp.Port)), node: e.Node}
				found.ready = e.Ready
				found.terminating = !e.Ready && e.Serving && e.Terminating
				if e.Hints != nil {
					found.zones, found.nodes = e.Hints.Zones, e.Hints.Nodes
				}
				out = enter(out, found)
			}
		}
	}
	return out
}

// enter adds an endpoint, or what else is said of one that is there: that it is
// ready counts more than that it is not, and that it still serves more than nothing.
func enter(all []endpoint, e endpoint) []endpoint {
	for i := range all {
		if all[i].addr == e.addr {
			all[i].ready = all[i].ready || e.ready
			all[i].terminating = all[i].terminating || e.terminating
			return all
		}
	}
	return append(all, e)
}

// hint returns what hints say, or nil where they do not hold.
func (w World) hint(endpoints []endpoint) func(endpoint) bool {
	for _, h := range []struct {
		own string
		of  func(endpoint) []string
	}{
		{w.Node, func(e endpoint) []string { return e.nodes }},
		{w.Zone, func(e endpoint) []string { return e.zones }},
	} {
		all, some := true, false
		for _, e := range endpoints {
			if !e.ready {
				continue
			}
			if len(h.of(e)) == 0 {
				all = false
			}
			if slices.Contains(h.of(e), h.own) {
				some = true
			}
		}
		if all && some && h.own != "" {
			return func(e endpoint) bool { return slices.Contains(h.of(e), h.own) }
		}
	}
	return nil
}
