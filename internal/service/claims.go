// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/table"
)

// claimKey is what one Service alone may have.
type claimKey struct {
	addr  netip.AddrPort
	proto uint8
}

// claim says that a Service wants a frontend.
type claim struct {
	svc  *svc
	key  claimKey
	typ  table.FrontendType
	port int // index of the Service's port
}

// before orders the claims of one frontend: the first has it. A cluster IP was
// given by the API server, which anybody's externalIPs were not; Services are the
// cluster's, hostPorts one pod's; between equals the older has it.
func (c *claim) before(o *claim) int {
	return cmp.Or(cmp.Compare(c.rank(), o.rank()), older(c.svc, o.svc))
}

func (c *claim) rank() int {
	switch c.typ {
	case table.FrontendClusterIP:
		return 0
	case table.FrontendHostPort:
		return 2
	}
	return 1
}

// reclaim enters what a Service wants now instead of what it wanted before. All
// who want the same are evaluated again.
func (m *Model) reclaim(s *svc, arrived time.Time) {
	delete(m.pods, s)
	for _, c := range s.claims {
		m.touchShadowed(c, arrived)
		left := slices.DeleteFunc(m.claims[c.key], func(o *claim) bool { return o == c })
		if len(left) == 0 {
			delete(m.claims, c.key)
			continue
		}
		m.claims[c.key] = left
		for _, o := range left {
			m.touch(o.svc, arrived)
		}
	}
	if s.pod != nil {
		m.pods[s] = struct{}{}
		s.claims, s.unread = m.wantsOfPod(s)
	} else {
		s.claims, s.unread = m.wants(s)
	}
	for _, c := range s.claims {
		m.touchShadowed(c, arrived)
		m.claims[c.key] = append(m.claims[c.key], c)
		if all := m.claims[c.key]; len(all) > 1 {
			slices.SortFunc(all, (*claim).before)
			for _, o := range all {
				m.touch(o.svc, arrived)
			}
		}
	}
	m.touch(s, arrived)
}

// wants lists the frontends of a Service, each once, and what is wrong with it.
func (m *Model) wants(s *svc) (out []*claim, found []Finding) {
	row := s.row
	if row == nil || row.Headless || row.Elsewhere || row.Type == table.ServiceExternalName {
		return nil, nil
	}
	bad := func(format string, args ...any) {
		found = append(found, Finding{Kind: BadInput, Service: s.name, Message: fmt.Sprintf(format, args...)})
	}
	for _, g := range row.Garbage {
		bad("%s cannot be read and is left out: correct the Service", g)
	}
	has := map[claimKey]bool{}
	add := func(addr netip.Addr, number int32, typ table.FrontendType, port int) {
		key := claimKey{netip.AddrPortFrom(addr, uint16(number)), row.Ports[port].Proto}
		if !has[key] {
			has[key] = true
			out = append(out, &claim{s, key, typ, port})
		}
	}
	addrs := m.addresses(row, bad)
	for i, p := range row.Ports {
		if p.Proto == 0 || p.Port < 1 || p.Port > 65535 {
			bad("port %q (%d/%s) is none that can be served: use TCP, UDP or SCTP, and 1 to 65535", p.Name, p.Port, table.ProtoName(p.Proto))
			continue
		}
		for _, a := range addrs {
			add(a.addr, p.Port, a.typ, i)
		}
		if p.NodePort == 0 || (row.Type != table.ServiceNodePort && row.Type != table.ServiceLoadBalancer) {
			continue
		}
		if p.NodePort < 1 || p.NodePort > 65535 {
			bad("nodePort %d is none: use 1 to 65535", p.NodePort)
			continue
		}
		for _, ip := range row.ClusterIPs {
			if m.on(ip) && unusable(ip) == "" {
				add(unspecified(ip.Is6()), p.NodePort, table.FrontendNodePort, i)
			}
		}
	}
	return out, found
}

type typedAddr struct {
	addr netip.Addr
	typ  table.FrontendType
}

// addresses lists the addresses that all ports of a Service have. What an
// ExternalIP or an ingress is beside a cluster IP of the same family: without
// one the Service is not of that family and has no endpoints in it.
func (m *Model) addresses(row *table.Service, bad func(string, ...any)) (out []typedAddr) {
	var families [2]bool
	for _, ip := range row.ClusterIPs {
		if why := unusable(ip); why != "" {
			bad("clusterIP %s %s: it is left out", ip, why)
			continue
		}
		families[family(ip.Is6())] = true
		if m.on(ip) {
			out = append(out, typedAddr{ip, table.FrontendClusterIP})
		}
	}
	add := func(what string, ip netip.Addr, typ table.FrontendType) {
		switch why := unusable(ip); {
		case why != "":
			bad("%s %s %s: it is left out, correct the Service", what, ip, why)
		case !families[family(ip.Is6())]:
			if len(row.ClusterIPs) > 0 {
				bad("%s %s: the Service has no cluster IP of that family, so nothing can answer: see ipFamilies", what, ip)
			}
		case m.on(ip):
			out = append(out, typedAddr{ip, typ})
		}
	}
	if row.Type == table.ServiceLoadBalancer {
		for _, in := range row.Ingress {
			if !in.Proxy {
				add("load balancer address", in.Addr, table.FrontendLoadBalancer)
			}
		}
	}
	for _, ip := range row.ExternalIPs {
		add("externalIP", ip, table.FrontendExternalIPs)
	}
	return out
}

func (m *Model) on(ip netip.Addr) bool { return (ip.Is4() && m.cfg.IPv4) || (ip.Is6() && m.cfg.IPv6) }

// lost names the frontends that another Service has.
func (m *Model) lost(s *svc) (out []Finding) {
	for _, c := range s.claims {
		first := m.holder(c)
		if first == c {
			continue
		}
		why := "which is older"
		switch {
		case first.typ == table.FrontendClusterIP:
			why = "whose cluster IP it is"
		case first.typ == table.FrontendNodePort && c.typ == table.FrontendHostPort:
			why = "whose nodePort it is"
		case first.typ != c.typ && c.typ == table.FrontendHostPort:
			why = "and Services go before pods"
		}
		out = append(out, Finding{Kind: Clash, Service: s.name, Pod: s.pod != nil, Message: fmt.Sprintf("%s %s/%s belongs to %s, %s: remove it from one of them",
			c.typ, c.key.addr, table.ProtoName(c.key.proto), first.svc, why)})
	}
	return out
}

// String names what is behind the frontends as users know it.
func (s *svc) String() string {
	if s.pod != nil {
		return "pod " + s.pod.row.FullName()
	}
	return "Service " + s.name
}

// unusable says why nothing can be sent to an address; empty: it can.
func unusable(ip netip.Addr) string {
	switch {
	case !ip.IsValid():
		return "is no address"
	case ip.Zone() != "":
		return "has a zone, which means something on one machine only"
	case ip.Is4In6():
		return "is an IPv4 address written as IPv6"
	case ip.IsUnspecified():
		return "is the unspecified address"
	case ip.IsLoopback():
		return "is a loopback address"
	case ip.IsMulticast():
		return "is a multicast address"
	case ip.IsLinkLocalUnicast():
		return "is a link-local address"
	case ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the broadcast address"
	}
	return ""
}

func unspecified(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// Kind says what a Finding is about.
type Kind string

// Kinds of findings.
const (
	BadInput Kind = "BadInput" // an object holds what nothing can be done with
	Clash    Kind = "Clash"    // two Services claim one frontend
	Overflow Kind = "Overflow" // there is no room for all
)

// Finding names what could not be done for a Service, and what to do. All else
// of the Service is in effect.
type Finding struct {
	Kind    Kind
	Service string // namespace/name
	Pod     bool   // it is about the hostPorts of a pod, and Service its name with more behind it
	Message string
}

// String returns the finding as users read it.
func (f Finding) String() string {
	if f.Pod {
		return "pod " + strings.TrimSuffix(f.Service, hostPorts) + ": " + f.Message
	}
	return "service " + f.Service + ": " + f.Message
}

// TakeNews tells whether Findings changed since it was asked last.
func (m *Model) TakeNews() bool {
	news := m.news
	m.news = false
	return news
}

// Findings lists what could not be done, by Service.
func (m *Model) Findings() (out []Finding) {
	for s := range m.trouble {
		out = append(out, s.findings...)
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(a.Service, b.Service) })
	return out
}
