// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// OutsideOptions say which host beyond the cluster is tried, if any.
type OutsideOptions struct {
	Here    bool             // this process runs on it: it answers there, and tries the nodes from there
	Targets []netip.AddrPort // its addresses, one a family; port 0: only ICMP
	Token   *Token           // of the `weft connectivity listen` that answers at Targets; nil: none does
	NAT     bool             // something between cluster and host translates addresses: any source will do
}

// Outside is a host beyond the cluster; without Targets there is none.
type Outside struct {
	Targets []netip.AddrPort // one a family
	Echo    bool             // a server of ours answers there
	Here    bool             // nodes can be tried from it
	NAT     bool             // as in OutsideOptions
}

// Reasons to skip, which say what to do instead.
const (
	noOutside = "no host outside is known: run the test on one with --from-outside, or name one with --external-target"
	notHere   = "the nodes can only be tried from the host outside itself: run the test there with --from-outside"
	notOurs   = "no echo server of ours answers at --external-target: run `weft connectivity listen` there"
)

// here is the probe that runs in this process.
const here = "this host"

// outside adds the cells between a node and the host outside.
func (p *planner) outside(n *Node) {
	for _, f := range allFamilies {
		p.toOutside(n, f)
	}
	for _, f := range allFamilies {
		p.fromOutside(n, f)
	}
}

func (o *Outside) target(f Family) netip.AddrPort {
	for _, t := range o.Targets {
		if f.Is(t.Addr()) {
			return t
		}
	}
	return netip.AddrPort{}
}

func outsideParty(a netip.Addr) Party {
	if !a.IsValid() {
		return Party{Kind: KindOutside}
	}
	return Party{Kind: KindOutside, Name: a.String()}
}

func (p *planner) toOutside(n *Node, f Family) {
	o := &p.t.Outside
	to := o.target(f)
	c := Cell{Path: PodToOutside, Family: f, From: n.podParty(n.A), To: outsideParty(to.Addr()), Addr: to.Addr(), Port: to.Port()}
	switch off := p.familyOff(f); {
	case off != "":
		c.Skip = off
	case len(o.Targets) == 0:
		c.Skip = noOutside
	case !to.IsValid():
		c.Skip = fmt.Sprintf("the host outside has no %s address", f)
	case n.A.Why != "":
		c.Fail = n.A.Why
	case !n.has(f):
		c.Skip = fmt.Sprintf("node %s has no %s pod range", n.Name, f)
	}
	if o.Echo && c.Runs() && !o.NAT {
		c.Source, c.SourceIs = p.t.Network.source(n, n.A, to.Addr())
	}
	for _, proto := range allProtos {
		if !o.Echo && len(o.Targets) > 0 {
			p.foreign(c, proto)
			continue
		}
		p.sizes(c, proto)
	}
}

// foreign adds what a host that is not ours can be expected to answer: echo
// requests of one packet and, on a port that was named, a connection.
func (p *planner) foreign(c Cell, proto Proto) {
	c.Proto, c.Size = proto, OneByte
	if proto == ICMP {
		for _, s := range []Size{OneByte, MTU} {
			c.Size = s
			p.add(c)
		}
		return
	}
	switch {
	case !c.Runs():
	case proto == UDP:
		c.Skip = notOurs
	case c.Port == 0:
		c.Skip = "--external-target names no port to connect to"
	default:
		c.Size = Connect
	}
	p.add(c)
}

func (p *planner) fromOutside(n *Node, f Family) {
	o := &p.t.Outside
	c := Cell{
		Path: OutsideToNode, Family: f, From: outsideParty(o.target(f).Addr()), To: n.party(), Addr: f.Of(n.Addrs), Port: p.t.Port,
	}
	switch off := p.familyOff(f); {
	case off != "":
		c.Skip = off
	case len(o.Targets) == 0:
		c.Skip = noOutside
	case !o.Here:
		c.Skip = notHere
	case !c.Addr.IsValid():
		c.Skip = fmt.Sprintf("node %s has no %s InternalIP", n.Name, f)
	case !o.target(f).IsValid():
		c.Skip = fmt.Sprintf("the host outside has no %s address", f)
	case n.Host.Why != "":
		c.Fail = n.Host.Why
	}
	for _, proto := range allProtos {
		p.sizes(c, proto)
	}
}

func (p *planner) sizes(c Cell, proto Proto) {
	c.Proto = proto
	for _, c.Size = range allSizes {
		// A tunnel leaves pods less room than the network outside has: what answers a
		// full packet and one byte more need not fit.
		c.LearnsMTU = c.Path == PodToOutside && p.t.Network.Tunnels() && proto != TCP && (c.Size == MTUPlus1 || c.Size == Max)
		p.add(c)
	}
}

// findOutside fills in the host outside, from what the caller asked for.
func (r *runner) findOutside(ctx context.Context) error {
	o := &r.opts.Outside
	switch {
	case o.Here:
		addrs, err := localAddrs(ctx, r.topo.Nodes)
		if err != nil {
			return err
		}
		r.topo.Outside = Outside{Echo: true, Here: true, NAT: o.NAT}
		for _, a := range addrs {
			r.topo.Outside.Targets = append(r.topo.Outside.Targets, netip.AddrPortFrom(a, r.opts.Port))
		}
	case len(o.Targets) > 0:
		r.topo.Outside = Outside{Targets: o.Targets, Echo: o.Token != nil, NAT: o.NAT}
	}
	return nil
}

// localAddrs finds this host's addresses, at most one a family: those that it
// would send to the nodes from. A host that is a node is no host outside.
func localAddrs(ctx context.Context, nodes []Node) ([]netip.Addr, error) {
	var out []netip.Addr
	var firstErr error
	for _, f := range allFamilies {
		for i := range nodes {
			to := f.Of(nodes[i].Addrs)
			if !to.IsValid() {
				continue
			}
			var d net.Dialer
			c, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(to, 9).String()) // sends nothing
			if err != nil {
				firstErr = errors.Join(firstErr, err)
				continue
			}
			from, err := netip.ParseAddrPort(c.LocalAddr().String())
			_ = c.Close() // nothing was sent on it
			if err != nil {
				return nil, err
			}
			out = append(out, plain(from.Addr()))
			break
		}
	}
	for i := range nodes {
		for _, a := range out {
			if slices.Contains(nodes[i].All, a) {
				return nil, fmt.Errorf("--from-outside: %s is an address of node %s: run the test on a host that is no node", a, nodes[i].Name)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("--from-outside: this host has no route to the nodes' addresses: %w", firstErr)
	}
	return out, nil
}

// answerOutside lets this host answer where pods are tried against it. The
// function that it returns ends that, looks at what arrived, and has to be called.
func (r *runner) answerOutside(ctx context.Context, cells []Cell) (func(map[int]Result) error, error) {
	var addrs []netip.Addr
	for i := range cells {
		if c := &cells[i]; r.opts.Outside.Here && c.Path == PodToOutside && c.Runs() && !slices.Contains(addrs, c.Addr) {
			addrs = append(addrs, c.Addr)
		}
	}
	if len(addrs) == 0 {
		return func(map[int]Result) error { return nil }, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	listening, ended := make(chan struct{}), make(chan error, 1)
	go func() { // ends with ctx, which the returned function cancels
		ended <- Serve(ctx, ServeConfig{Addrs: addrs, Port: r.opts.Port, Token: r.token}, func() { close(listening) })
	}()
	select {
	case <-listening:
	case err := <-ended:
		cancel()
		return nil, fmt.Errorf("--from-outside: %w; is --port free on this host?", err)
	}
	icmp := watchICMP(ctx, r.token, addrs)
	return func(results map[int]Result) error {
		icmp.stop()
		icmp.judge(cells, results)
		cancel()
		return <-ended
	}, nil
}

// probeHere runs cells from this process.
func (r *runner) probeHere(ctx context.Context, _ string, plan *ProbePlan, take func(Result)) (map[int]bool, error) {
	done := map[int]bool{}
	err := Probe(ctx, plan, func(res Result) error {
		done[res.ID] = true
		take(res)
		return nil
	})
	return done, err
}

// Addresses returns this host's own addresses that others can reach it by.
func Addresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok && addr.IsGlobalUnicast() {
				out = append(out, plain(addr))
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("this host has no address that others could reach it by: give --address")
	}
	return out, nil
}

// ParseTarget reads HOST, HOST:PORT, ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT. A
// name gives one address a family.
func ParseTarget(ctx context.Context, s string) ([]netip.AddrPort, error) {
	host, port := s, "0"
	if _, err := netip.ParseAddr(s); err != nil {
		if h, p, err := net.SplitHostPort(s); err == nil && !strings.Contains(s, "/") {
			host, port = h, p
		} else if strings.ContainsAny(s, "[]:/") {
			return nil, fmt.Errorf("--external-target %q: write HOST, HOST:PORT or [IPv6]:PORT", s)
		}
	}
	var r net.Resolver
	n, err := r.LookupPort(ctx, "tcp", port)
	if err != nil {
		return nil, fmt.Errorf("--external-target %q: port %q: write a number", s, port)
	}
	addrs, err := r.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("--external-target %q: %w", s, err)
	}
	var out []netip.AddrPort
	for _, f := range allFamilies {
		for _, a := range addrs {
			if a = a.Unmap(); f.Is(a) {
				out = append(out, netip.AddrPortFrom(a, uint16(n)))
				break
			}
		}
	}
	return out, nil
}
