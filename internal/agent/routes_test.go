// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/table"
)

// others are the routes that lead to other nodes.
func others(routes []*table.Route) []*table.Route {
	return slices.DeleteFunc(routes, func(r *table.Route) bool { return r.Type != "" })
}

// Guards against packets to unused addresses of the node's own ranges that leave
// by the default route, and against a range that would cut nodes off.
func TestOwnRangesAreUnreachable(t *testing.T) {
	self := func(ranges ...string) *table.Node {
		n := &table.Node{Name: "n1", Local: true, Addrs: []netip.Addr{ip("10.9.0.1")}}
		for _, r := range ranges {
			n.PodCIDRs = append(n.PodCIDRs, cidr(r))
		}
		return n
	}
	n2 := &table.Node{Name: "n2", Addrs: []netip.Addr{ip("10.9.0.2")}}
	for _, tc := range []struct {
		name    string
		fam     families
		self    *table.Node
		want    string
		problem string
	}{
		{name: "two families", fam: both, self: self("10.244.0.0/24", "fd00::/64"), want: "10.244.0.0/24 fd00::/64"},
		{name: "host bits", fam: both, self: self("10.244.0.9/24"), want: "10.244.0.0/24"},
		{name: "a family is off", fam: families{v4: true}, self: self("10.244.0.0/24", "fd00::/64"), want: "10.244.0.0/24"},
		{name: "none yet", fam: both, self: self()},
		{name: "holds a node", fam: both, self: self("10.9.0.0/25", "10.244.0.0/24"), want: "10.244.0.0/24", problem: "node n1: pod range 10.9.0.0/25 contains the address 10.9.0.1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			routes, problems := routing{fam: tc.fam, nodes: []*table.Node{n2, tc.self}}.routes()
			var got []string
			for _, r := range routes {
				if r.Type != table.RouteUnreachable || r.Via.IsValid() || r.Device != "" || r.Owner != "node/n1" {
					t.Errorf("got %+v", r)
				}
				got = append(got, r.Prefix.String())
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("unreachable are %q, want %q", s, tc.want)
			}
			if all := strings.Join(problems, "; "); (tc.problem == "") != (all == "") || !strings.Contains(all, tc.problem) {
				t.Errorf("problems %q, want %q", all, tc.problem)
			}
		})
	}
}

// memoryRoutes is a routing table in memory.
type memoryRoutes map[netip.Prefix]table.Route

func (m memoryRoutes) UpsertRoute(r table.Route) error  { m[r.Prefix] = r; return nil }
func (m memoryRoutes) DeleteRoute(p netip.Prefix) error { delete(m, p); return nil }
func (m memoryRoutes) ListRoutes() (out []table.Route, _ error) {
	for _, r := range m {
		out = append(out, r)
	}
	return out, nil
}

// Guards against a route of another type that passes for the one wanted, and
// against a repair that never ends.
func TestRouteDriftSeesType(t *testing.T) {
	m := memoryRoutes{}
	target := routeTarget{m}
	want := []*table.Route{{Prefix: cidr("10.244.0.0/24"), Type: table.RouteUnreachable}}
	for _, step := range []struct {
		have  table.Route
		drift bool
	}{{*want[0], false}, {table.Route{Prefix: want[0].Prefix}, true}} {
		m[step.have.Prefix] = step.have
		if drift, err := target.drifted(want); err != nil || drift != step.drift {
			t.Errorf("%+v: drift %v, %v", step.have, drift, err)
		}
	}
}
