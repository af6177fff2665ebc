// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"fmt"
	"net/netip"
	"slices"
)

// Topology is what a plan is made of.
type Topology struct {
	Nodes     []Node
	APIServer Service
	DNS       Service
	Outside   Outside
	Network   Network
	Port      uint16 // on which the servers echo
}

// Service is an address a family and a port; Why says why there is none.
type Service struct {
	Name  string
	Addrs []netip.Addr
	Port  uint16
	Why   string
}

// Node is one node with the probes on it.
type Node struct {
	Name    string
	Addrs   []netip.Addr   // InternalIPs
	All     []netip.Addr   // these and the node's other addresses
	Ranges  []netip.Prefix // pod ranges; a family without one is off on the node
	A, B    Pod
	Host    Pod // in the node's network
	Hairpin Service
}

// Pod is one probe. Why says why it does not run, "" if it does.
type Pod struct {
	Name  string
	Addrs []netip.Addr
	Why   string
}

// DefaultPeers bounds to how many other nodes each node is tried, so that the
// number of cells grows with the number of nodes and not with its square.
const DefaultPeers = 8

var (
	allFamilies = []Family{IPv4, IPv6}
	allProtos   = []Proto{TCP, UDP, ICMP}
	allSizes    = []Size{OneByte, MTU, MTUPlus1, Max}
)

// Plan lists the cells that the filter selects, numbered from 0. It is pure:
// the same topology gives the same plan.
func Plan(t Topology, f Filter) []Cell {
	p := &planner{t: t, filter: f}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		p.pairs(PodToPodSameNode, n.podParty(n.A), n.A.Why, p.toPod(n, n.B))
		p.pairs(PodToOwnHost, n.podParty(n.A), n.A.Why, p.toNode(n))
		p.pairs(HostToOwnPod, n.party(), n.Host.Why, p.toPod(n, n.A))
		p.pairs(Hairpin, n.podParty(n.A), n.A.Why, p.toSelf(n))
		for _, m := range peers(t.Nodes, i) {
			p.pairs(PodToPodOtherNode, n.podParty(n.A), n.A.Why, p.toPod(m, m.A))
			p.pairs(PodToOtherHost, n.podParty(n.A), n.A.Why, p.toNode(m))
			p.pairs(HostToOtherPod, n.party(), n.Host.Why, p.toPod(m, m.A))
		}
		if len(t.Nodes) == 1 {
			p.alone(n)
		}
		p.services(n)
		p.outside(n)
	}
	return p.cells
}

// peers returns the nodes after the i-th, round the ring.
func peers(nodes []Node, i int) []*Node {
	var out []*Node
	for d := 1; d < len(nodes) && d <= DefaultPeers; d++ {
		out = append(out, &nodes[(i+d)%len(nodes)])
	}
	return out
}

type planner struct {
	t      Topology
	filter Filter
	cells  []Cell
}

// target resolves the far end for one family: its address, or why the cell is
// skipped or has failed already.
type target struct {
	party Party
	port  uint16
	at    func(Family) (addr netip.Addr, skip, fail string)
}

func (n *Node) party() Party         { return Party{Kind: KindNode, Node: n.Name} }
func (n *Node) podParty(p Pod) Party { return Party{Kind: KindPod, Node: n.Name, Name: p.Name} }

func (n *Node) has(f Family) bool {
	for _, r := range n.Ranges {
		if f.Is(r.Addr()) {
			return true
		}
	}
	return false
}

// familyOff says why no pod can speak the family, "" if all can.
func (p *planner) familyOff(f Family) string {
	for i := range p.t.Nodes {
		if p.t.Nodes[i].has(f) {
			return ""
		}
	}
	return fmt.Sprintf("%s is off: no node has an %s pod range", f, f)
}

func (p *planner) toPod(n *Node, pod Pod) target {
	return target{party: n.podParty(pod), port: p.t.Port, at: func(f Family) (netip.Addr, string, string) {
		if pod.Why != "" {
			return netip.Addr{}, "", pod.Why
		}
		if a := f.Of(pod.Addrs); a.IsValid() {
			return a, "", ""
		}
		if !n.has(f) {
			return netip.Addr{}, fmt.Sprintf("node %s has no %s pod range", n.Name, f), ""
		}
		return netip.Addr{}, "", fmt.Sprintf("pod %s has no %s address, though node %s has a range", pod.Name, f, n.Name)
	}}
}

func (p *planner) toNode(n *Node) target {
	return target{party: n.party(), port: p.t.Port, at: func(f Family) (netip.Addr, string, string) {
		a := f.Of(n.Addrs)
		switch {
		case !a.IsValid():
			return a, fmt.Sprintf("node %s has no %s InternalIP", n.Name, f), ""
		case n.Host.Why != "":
			return a, "", n.Host.Why
		}
		return a, "", ""
	}}
}

func (p *planner) toSelf(n *Node) target {
	self := n.podParty(n.A)
	return target{
		party: Party{Kind: KindService, Node: n.Name, Name: n.Hairpin.Name}, port: n.Hairpin.Port,
		at: func(f Family) (netip.Addr, string, string) {
			if _, skip, fail := p.toPod(n, n.A).at(f); skip != "" || fail != "" {
				return netip.Addr{}, skip, fail
			}
			if n.Hairpin.Why != "" {
				return netip.Addr{}, "", n.Hairpin.Why
			}
			a := f.Of(n.Hairpin.Addrs)
			if !a.IsValid() {
				return a, fmt.Sprintf("the cluster gives Services no %s address (asked for %s)", f, self.Name), ""
			}
			return a, "", ""
		},
	}
}

// pairs adds all families, protocols and sizes of one pair.
func (p *planner) pairs(path Path, from Party, fromWhy string, to target) {
	for _, f := range allFamilies {
		off := p.familyOff(f)
		addr, skip, fail := to.at(f)
		for _, proto := range allProtos {
			for _, size := range allSizes {
				c := Cell{Path: path, Family: f, Proto: proto, Size: size, From: from, To: to.party, Addr: addr, Port: to.port}
				switch {
				case off != "":
					c.Skip = off
				case path == Hairpin && proto == ICMP:
					c.Skip = "a ClusterIP answers no ICMP"
				case skip != "":
					c.Skip = skip
				case fromWhy != "":
					c.Fail = fromWhy
				case fail != "":
					c.Fail = fail
				case from.Kind == KindPod && !p.sourceHas(from.Node, f):
					c.Skip = fmt.Sprintf("node %s has no %s pod range", from.Node, f)
				}
				p.add(c)
			}
		}
	}
}

func (p *planner) sourceHas(node string, f Family) bool {
	for i := range p.t.Nodes {
		if p.t.Nodes[i].Name == node {
			return p.t.Nodes[i].has(f)
		}
	}
	return false
}

func (p *planner) add(c Cell) {
	if !p.filter.Selects(&c) {
		return
	}
	if c.Proto == ICMP {
		c.Port = 0
	}
	c.ID = len(p.cells)
	p.cells = append(p.cells, c)
}

// alone records what a single node cannot try.
func (p *planner) alone(n *Node) {
	nobody := target{party: Party{Kind: KindNode, Node: "-"}, at: func(Family) (netip.Addr, string, string) {
		return netip.Addr{}, "there is only one node", ""
	}}
	p.pairs(PodToPodOtherNode, n.podParty(n.A), "", nobody)
	p.pairs(PodToOtherHost, n.podParty(n.A), "", nobody)
	p.pairs(HostToOtherPod, n.party(), "", nobody)
}

// services adds what a pod needs of the cluster: the API server and DNS. Sizes
// do not apply: the exchange is given by the protocol.
func (p *planner) services(n *Node) {
	from := n.podParty(n.A)
	for _, f := range allFamilies {
		p.service(PodToAPIServer, from, n.A.Why, f, p.t.APIServer, Handshake, TCP)
		p.service(PodToDNS, from, n.A.Why, f, p.t.DNS, Query, UDP, TCP)
	}
}

func (p *planner) service(path Path, from Party, fromWhy string, f Family, s Service, size Size, protos ...Proto) {
	for _, proto := range allProtos {
		c := Cell{
			Path: path, Family: f, Proto: proto, Size: size, From: from,
			To: Party{Kind: KindService, Name: s.Name}, Addr: f.Of(s.Addrs), Port: s.Port,
		}
		switch off := p.familyOff(f); {
		case !slices.Contains(protos, proto):
			c.Skip = fmt.Sprintf("%s does not speak %s", s.Name, proto)
		case s.Why != "":
			c.Skip = s.Why
		case off != "" && from.Kind == KindPod:
			c.Skip = off
		case !c.Addr.IsValid():
			c.Skip = fmt.Sprintf("%s has no %s address", s.Name, f)
		case fromWhy != "":
			c.Fail = fromWhy
		}
		p.add(c)
	}
}
