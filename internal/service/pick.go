// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/table"
)

// candidate is one backend that a port has in some state.
type candidate struct {
	key backendKey
	ep  *table.SliceEndpoint
}

// rank says how usable an endpoint is (KEP-1669): 2 ready, 1 shutting down and
// still serving, 0 not at all. Ready is what the slices' writer calls ready, also
// of a pod that terminates.
func rank(ep *table.SliceEndpoint) int {
	switch {
	case ep.Ready:
		return 2
	case ep.Serving && ep.Terminating:
		return 1
	}
	return 0
}

// candidates lists the endpoints of a port, by address, each once. One endpoint
// may stand in several slices for a while, as the API allows; what is said there
// of it may differ, and the best of it counts.
func (s *svc) candidates(port table.ServicePortSpec, v6 bool) []candidate {
	var out []candidate
	for _, sl := range s.slices {
		if sl.V6 != v6 {
			continue
		}
		for _, p := range sl.Ports {
			if p.Name != port.Name || p.Proto != port.Proto || p.Port < 1 || p.Port > 65535 {
				continue
			}
			out = slices.Grow(out, len(sl.Endpoints))
			for i := range sl.Endpoints {
				if ep := &sl.Endpoints[i]; unfit(ep, v6) == "" {
					out = append(out, candidate{backendKey{netip.AddrPortFrom(ep.Addr, uint16(p.Port)), p.Proto}, ep})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b candidate) int {
		return cmp.Or(a.key.addr.Compare(b.key.addr), better(a.ep, b.ep))
	})
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.key == b.key })
}

// better orders what two slices say of one endpoint. It is the same whichever
// slice is seen first; beyond the rank it is arbitrary.
func better(a, b *table.SliceEndpoint) int {
	if c := cmp.Or(-cmp.Compare(rank(a), rank(b)), -cmp.Compare(a.Node, b.Node), -cmp.Compare(a.Zone, b.Zone)); c != 0 {
		return c
	}
	var none table.Hints
	ha, hb := cmp.Or(a.Hints, &none), cmp.Or(b.Hints, &none)
	return cmp.Or(-slices.Compare(ha.Nodes, hb.Nodes), -slices.Compare(ha.Zones, hb.Zones))
}

// unfit says why an endpoint is none that connections can go to; empty: it is.
func unfit(ep *table.SliceEndpoint, v6 bool) string {
	if why := unusable(ep.Addr); why != "" {
		return why
	}
	if ep.Addr.Is6() != v6 {
		return "is of another family than its slice"
	}
	return ""
}

// pick returns the ready ones of those that may be used, or if there is none,
// those of them that are shutting down and still serve.
func pick(all []candidate, may func(*table.SliceEndpoint) bool) []candidate {
	for want := 2; want > 0; want-- {
		var out []candidate
		for _, c := range all {
			if rank(c.ep) == want && may(c.ep) {
				out = append(out, c)
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

// hinted says which endpoints this node should use. Hints hold only if every
// ready endpoint has one and some are for this node, or its zone: slices that are
// half rewritten, or a zone that lost its last endpoint, must not take a Service
// down. Hints for nodes go before those for zones (KEP-3015).
func (m *Model) hinted(all []candidate) func(*table.SliceEndpoint) bool {
	node, zone := tally{all: true}, tally{all: true}
	for _, c := range all {
		if rank(c.ep) != 2 {
			continue
		}
		h := cmp.Or(c.ep.Hints, &table.Hints{})
		node.count(h.Nodes, m.cfg.Node)
		zone.count(h.Zones, m.zone)
	}
	switch {
	case node.all && node.some:
		return func(ep *table.SliceEndpoint) bool {
			return ep.Hints != nil && slices.Contains(ep.Hints.Nodes, m.cfg.Node)
		}
	case zone.all && zone.some && m.zone != "":
		return func(ep *table.SliceEndpoint) bool { return ep.Hints != nil && slices.Contains(ep.Hints.Zones, m.zone) }
	}
	return func(*table.SliceEndpoint) bool { return true }
}

// tally says whether all endpoints have hints of a kind, and some are for us.
type tally struct{ all, some bool }

func (t *tally) count(hints []string, own string) {
	t.all = t.all && len(hints) > 0
	t.some = t.some || slices.Contains(hints, own)
}
