// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/table"
)

// hostPorts is what comes after a pod's name where its hostPorts stand in for a
// Service: no Service can have such a name.
const hostPorts = ":host-port"

// typeHostPort is the type of what stands in for a pod with hostPorts.
const typeHostPort = string(table.FrontendHostPort)

// podPorts is a pod with hostPorts and the addresses that it has by now.
type podPorts struct {
	row   *table.PodHostPorts
	addrs []netip.Addr
}

// SetPod tells of a pod of this node with hostPorts that is new or different, and
// of its addresses: in a family without one nothing answers for it.
func (m *Model) SetPod(row *table.PodHostPorts, addrs []netip.Addr, arrived time.Time) {
	s := m.service(row.FullName() + hostPorts)
	s.ofPod, s.pod = true, &podPorts{row, addrs}
	s.row = &table.Service{Namespace: row.Namespace, Name: row.Pod + hostPorts, Created: row.Created, Type: typeHostPort}
	s.slices = nil
	for _, p := range row.Ports {
		s.row.Ports = append(s.row.Ports, table.ServicePortSpec{Name: p.String(), Proto: p.Proto, Port: p.Port})
	}
	for i, a := range addrs {
		sl := &table.EndpointSlice{
			Namespace: row.Namespace, Name: fmt.Sprintf("%s-%d", s.row.Name, i), Service: s.row.Name, V6: a.Is6(),
			Endpoints: []table.SliceEndpoint{{Addr: a, Ready: true, Serving: true, Node: m.cfg.Node}},
		}
		for _, p := range row.Ports {
			sl.Ports = append(sl.Ports, table.SlicePort{Name: p.String(), Proto: p.Proto, Port: p.To})
		}
		s.slices = append(s.slices, sl)
	}
	m.reclaim(s, arrived)
}

// DeletePod tells of a pod that is gone, has ended, or has no hostPorts any more.
func (m *Model) DeletePod(namespace, pod string, arrived time.Time) {
	s := m.services[namespace+"/"+pod+hostPorts]
	if s == nil {
		return
	}
	s.row, s.pod, s.slices = nil, nil, nil
	m.reclaim(s, arrived)
}

// wantsOfPod lists the frontends of a pod, each once, and what is wrong with it.
// Without a hostIP a port is one of each address in the families that the pod has.
func (m *Model) wantsOfPod(s *svc) (out []*claim, found []Finding) {
	bad := func(format string, args ...any) {
		found = append(found, Finding{Kind: BadInput, Service: s.name, Pod: true, Message: fmt.Sprintf(format, args...)})
	}
	for _, g := range s.pod.row.Garbage {
		bad("%s cannot be read: it is left out, correct the pod", g)
	}
	has := map[claimKey]bool{}
	for i, p := range s.pod.row.Ports {
		if p.Proto == 0 || p.Port < 1 || p.Port > 65535 || p.To < 1 || p.To > 65535 {
			bad("hostPort %s to containerPort %d/%s is none that can be served: use TCP, UDP or SCTP, and 1 to 65535", p, p.To, table.ProtoName(p.Proto))
			continue
		}
		if why := noHostIP(p.HostIP); why != "" {
			bad("hostIP %s of hostPort %d %s: it is left out, correct the pod", p.HostIP, p.Port, why)
			continue
		}
		for _, a := range s.pod.addrs {
			at := p.HostIP
			if !at.IsValid() {
				at = unspecified(a.Is6())
			}
			key := claimKey{netip.AddrPortFrom(at, uint16(p.Port)), p.Proto}
			if at.Is6() == a.Is6() && m.on(at) && !has[key] {
				has[key] = true
				out = append(out, &claim{s, key, table.FrontendHostPort, i})
			}
		}
	}
	return out, found
}

// noHostIP says why an address is none that a hostPort can be at; empty: it can.
func noHostIP(ip netip.Addr) string {
	if !ip.IsValid() || ip.IsUnspecified() || ip.IsLoopback() {
		return ""
	}
	return unusable(ip)
}

// wildcard is the key of a NodePort with the claim's port.
func (c *claim) wildcard() claimKey {
	addr := c.key.addr
	return claimKey{netip.AddrPortFrom(unspecified(addr.Addr().Is6()), addr.Port()), c.key.proto}
}

// holder is who has what is claimed. A NodePort goes before a hostPort, also before
// one at a single address, which would be found before it.
func (m *Model) holder(c *claim) *claim {
	first := m.claims[c.key][0]
	if first.typ != table.FrontendHostPort {
		return first
	}
	if all := m.claims[c.wildcard()]; len(all) > 0 && all[0].typ == table.FrontendNodePort {
		return all[0]
	}
	return first
}

// touchShadowed has the pods evaluated again whose hostPorts a NodePort takes, or gave
// back.
func (m *Model) touchShadowed(c *claim, arrived time.Time) {
	if c.typ != table.FrontendNodePort {
		return
	}
	for s := range m.pods {
		if slices.ContainsFunc(s.claims, func(o *claim) bool { return o.wildcard() == c.key }) {
			m.touch(s, arrived)
		}
	}
}
