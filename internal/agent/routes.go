// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/table"
)

// routing is what the routes to other nodes are derived from.
type routing struct {
	direct  bool // auto-direct-node-routes
	fam     families
	nodes   []*table.Node
	devices []*table.Device
	// foreign are the destinations of the main table's routes that are not
	// Weft's and not default ones.
	foreign []netip.Prefix
	overlay overlayView
}

// routes derives the routes to other nodes' pods. Where a range cannot be
// reached, or must not be routed, there is no route and a sentence that names
// the node: a wrong route would swallow packets in silence. The node's own ranges
// get routes that say of unused addresses that they are unreachable: by the
// default route, packets to them would go round until their TTL ends.
func (r routing) routes() (out []*table.Route, problems []string) {
	nodes := slices.SortedFunc(slices.Values(r.nodes), func(a, b *table.Node) int { return cmp.Compare(a.Name, b.Name) })
	taken := map[netip.Prefix]string{}
	for _, n := range nodes {
		if n.Local {
			for _, p := range n.PodCIDRs {
				p = p.Masked()
				taken[p] = n.Name
				if !r.fam.has(p.Addr()) {
					continue
				}
				if why := r.unsafe(p, n, nodes, nil); why != "" {
					problems = append(problems, why)
					continue
				}
				out = append(out, &table.Route{Prefix: p, Type: table.RouteUnreachable, Owner: nodeOwner(n.Name)})
			}
		}
	}
	for _, n := range nodes {
		if n.Local {
			continue
		}
		for _, p := range n.PodCIDRs {
			p = p.Masked()
			if !r.fam.has(p.Addr()) {
				continue
			}
			if why := r.unsafe(p, n, nodes, taken); why != "" {
				problems = append(problems, why)
				continue
			}
			taken[p] = n.Name
			route, why := r.route(n, p)
			if why != "" {
				problems = append(problems, why)
			}
			if route != nil {
				out = append(out, route)
			}
		}
	}
	return out, problems
}

// unsafe says why no route for p may exist: it would take packets from another
// node's pods, or from a node itself.
func (r routing) unsafe(p netip.Prefix, n *table.Node, nodes []*table.Node, taken map[netip.Prefix]string) string {
	for q, other := range taken {
		if q.Overlaps(p) {
			return fmt.Sprintf("node %s: pod range %s overlaps %s of node %s: delete and re-add one of the two nodes so that it gets a range of its own", n.Name, p, q, other)
		}
	}
	for _, m := range nodes {
		for _, a := range m.Addrs {
			if p.Contains(a) {
				return fmt.Sprintf("node %s: pod range %s contains the address %s of node %s: choose pod ranges outside of the nodes' subnets", n.Name, p, a, m.Name)
			}
		}
	}
	return ""
}

// route returns the direct route to p, or none and why, or neither where the
// network routes the range by itself.
func (r routing) route(n *table.Node, p netip.Prefix) (*table.Route, string) {
	via := n.Addr(p.Addr().Is6())
	if !via.IsValid() {
		return nil, fmt.Sprintf("node %s: pod range %s has no next hop: the node has no InternalIP of that family: start its kubelet with --node-ip for both families", n.Name, p)
	}
	if r.overlay.reaches(n) {
		return &table.Route{Prefix: p, Device: link.TunnelDevice, Src: r.self(p.Addr().Is6()), Owner: nodeOwner(n.Name)}, ""
	}
	if r.direct {
		if dev, src := r.subnet(via); dev != "" {
			return &table.Route{Prefix: p, Via: via, Device: dev, Src: src, Owner: nodeOwner(n.Name)}, ""
		}
	}
	for _, f := range r.foreign {
		if f.Bits() > 0 && f.Bits() <= p.Bits() && f.Contains(p.Addr()) {
			return nil, ""
		}
	}
	if r.overlay.on && !r.overlay.send {
		return nil, "" // not yet
	}
	if r.overlay.on {
		return nil, fmt.Sprintf("node %s (%s) does not take part in the overlay (%s), and no other way leads to its pods %s: look at its agent: `weft status` there", n.Name, via, r.overlay.announce, p)
	}
	if r.direct {
		return nil, fmt.Sprintf("node %s (%s) is across a router: no direct route to its pods is possible: add a route for %s on this node, or let the routers announce it", n.Name, via, p)
	}
	return nil, fmt.Sprintf("node %s: nothing routes its pod range %s: set autoDirectNodeRoutes=true where nodes share a subnet, or add a route", n.Name, p)
}

// self returns this node's address of a family.
func (r routing) self(v6 bool) netip.Addr {
	for _, n := range r.nodes {
		if n.Local {
			return n.Addr(v6)
		}
	}
	return netip.Addr{}
}

// subnet returns the device on whose subnet a lies, with this node's address
// there: the longest prefix wins, then the device that carries our programs.
func (r routing) subnet(a netip.Addr) (dev string, src netip.Addr) {
	bits, selected := -1, false
	for _, d := range r.devices {
		if !d.Up {
			continue
		}
		for _, p := range d.Addrs {
			if !p.Contains(a) || p.Addr() == a || p.IsSingleIP() {
				continue
			}
			if p.Bits() > bits || (p.Bits() == bits && d.Selected && !selected) {
				dev, src, bits, selected = d.Name, p.Addr(), p.Bits(), d.Selected
			}
		}
	}
	return dev, src
}
