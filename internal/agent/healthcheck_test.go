// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-net/weft/internal/service/healthcheck"
	"github.com/weft-net/weft/internal/table"
)

// Guards against a node that attracts clients of a load balancer for backends that
// shut down, or are others': and against pods with two addresses counting twice.
func TestHealthChecksCount(t *testing.T) {
	tb, err := newTables()
	if err != nil {
		t.Fatal(err)
	}
	service := func(name string, port uint16, elsewhere bool) {
		put(t, tb.db, tb.services, &table.Service{Namespace: "a", Name: name, HealthPort: port, Elsewhere: elsewhere})
	}
	frontend := func(name, addr string, flags uint32, typ table.FrontendType, backends ...table.BackendRef) {
		put(t, tb.db, tb.frontends, &table.Frontend{
			Key:       table.FrontendKey{Addr: netip.MustParseAddrPort(addr), Proto: table.ProtoTCP},
			Namespace: "a", Service: name, Type: typ, Flags: flags, Backends: backends,
		})
	}
	backend := func(addr string, local, terminating bool) table.BackendRef {
		return table.BackendRef{ID: 1, Addr: netip.MustParseAddrPort(addr), Proto: table.ProtoTCP, Local: local, Terminating: terminating}
	}
	service("web", 31000, false)
	service("down", 31001, false)
	service("others", 31002, true)
	service("plain", 0, false)
	local := table.FrontendLocal
	pods := []table.BackendRef{backend("10.1.0.1:80", true, false), backend("10.1.0.2:80", true, false)}
	frontend("web", "192.0.2.1:80", local, table.FrontendLoadBalancer, pods...)
	frontend("web", "0.0.0.0:30080", local, table.FrontendNodePort, pods...)
	frontend("web", "[2001:db8::1]:80", local, table.FrontendLoadBalancer, backend("[fd00::1]:80", true, false), backend("[fd00::2]:80", true, false))
	frontend("web", "10.96.0.1:80", local, table.FrontendClusterIP, backend("10.1.0.2:80", true, false), backend("10.2.0.9:80", false, false))
	service("young", 31003, false)
	frontend("young", "10.96.0.2:80", table.FrontendBoth, table.FrontendClusterIP, backend("10.1.0.4:80", true, false), backend("10.2.0.9:80", false, false))
	frontend("down", "192.0.2.3:80", local, table.FrontendLoadBalancer, backend("10.1.0.5:80", true, true))
	frontend("plain", "192.0.2.4:80", local, table.FrontendLoadBalancer, pods...)
	got := tb.healthChecks()
	slices.SortFunc(got, func(a, b healthcheck.Check) int { return strings.Compare(a.Name, b.Name) })
	want := []healthcheck.Check{{Namespace: "a", Name: "down", Port: 31001}, {Namespace: "a", Name: "web", Port: 31000, Endpoints: 2}, {Namespace: "a", Name: "young", Port: 31003, Endpoints: 1}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("checks (-want +got):\n%s", d)
	}
}
