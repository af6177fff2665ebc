// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/service/oracle"
	"github.com/weft-net/weft/internal/table"
)

// endpoint reads "ADDRESS NODE STATE [HINTS]": state is ready, serving (and
// terminating), down, or published (ready by publishNotReadyAddresses alone: it
// terminates and does not serve); hints are "zone=Z" and "node=N".
func endpoint(t *testing.T, text string) table.SliceEndpoint {
	t.Helper()
	f := strings.Fields(text)
	e := table.SliceEndpoint{Addr: netip.MustParseAddr(f[0]), Node: f[1]}
	switch f[2] {
	case "ready":
		e.Ready, e.Serving = true, true
	case "serving":
		e.Serving, e.Terminating = true, true
	case "published":
		e.Ready, e.Terminating = true, true
	case "down":
	default:
		t.Fatalf("state %q", f[2])
	}
	for _, h := range f[3:] {
		if e.Hints == nil {
			e.Hints = &table.Hints{}
		}
		if z, ok := strings.CutPrefix(h, "zone="); ok {
			e.Hints.Zones = append(e.Hints.Zones, z)
		}
		if n, ok := strings.CutPrefix(h, "node="); ok {
			e.Hints.Nodes = append(e.Hints.Nodes, n)
		}
	}
	return e
}

// Guards against both the model and its oracle having a rule wrong: here the
// expectations are written down.
func TestRules(t *testing.T) {
	internalLocal := func(s *table.Service) { s.InternalLocal = true }
	externalLocal := func(s *table.Service) { s.ExternalLocal = true }
	for _, c := range []struct {
		name      string
		change    func(*table.Service)
		endpoints []string
		// by the last number of their addresses: to the cluster IP from a pod, to an
		// externalIP from a pod and from outside; "-": refused
		cluster, external, outside string
	}{
		{"only ready ones", nil, []string{"10.0.0.1 n1 ready", "10.0.0.2 n2 ready", "10.0.0.3 n2 serving", "10.0.0.4 n2 down"}, "1 2", "1 2", "1 2"},
		{"none is ready", nil, []string{"10.0.0.3 n2 serving", "10.0.0.4 n2 down"}, "3", "3", "3"},
		{"none at all", nil, []string{"10.0.0.4 n2 down"}, "-", "-", "-"},
		{"published", nil, []string{"10.0.0.1 n2 published", "10.0.0.2 n2 serving"}, "1", "1", "1"},
		{"internalTrafficPolicy Local", internalLocal, []string{"10.0.0.1 n1 ready", "10.0.0.2 n2 ready"}, "1", "1 2", "1 2"},
		{"internalTrafficPolicy Local, none here", internalLocal, []string{"10.0.0.2 n2 ready"}, "-", "2", "2"},
		{"externalTrafficPolicy Local", externalLocal, []string{"10.0.0.1 n1 ready", "10.0.0.2 n2 ready"}, "1 2", "1 2", "1"},
		{"externalTrafficPolicy Local, none here", externalLocal, []string{"10.0.0.2 n2 ready"}, "2", "2", "-"},
		{"externalTrafficPolicy Local, the last one here goes", externalLocal, []string{"10.0.0.1 n1 serving", "10.0.0.2 n2 ready"}, "2", "2", "1"},
		{"zone hints", nil, []string{"10.0.0.1 n1 ready zone=a", "10.0.0.2 n2 ready zone=b", "10.0.0.3 n2 ready zone=a zone=b"}, "1 3", "1 3", "1 3"},
		{"zone hints, one without", nil, []string{"10.0.0.1 n1 ready zone=a", "10.0.0.2 n2 ready zone=b", "10.0.0.3 n2 ready"}, "1 2 3", "1 2 3", "1 2 3"},
		{"zone hints, one without is not ready", nil, []string{"10.0.0.1 n1 ready zone=a", "10.0.0.2 n2 ready zone=b", "10.0.0.3 n2 serving"}, "1", "1", "1"},
		{"zone hints, none for this zone", nil, []string{"10.0.0.2 n2 ready zone=b", "10.0.0.3 n2 ready zone=c"}, "2 3", "2 3", "2 3"},
		{"zone hints, the one for this zone is not ready", nil, []string{"10.0.0.1 n2 serving zone=a", "10.0.0.3 n2 ready zone=c"}, "3", "3", "3"},
		{"zone hints, none is ready", nil, []string{"10.0.0.1 n2 serving zone=a", "10.0.0.3 n2 serving zone=c"}, "1 3", "1 3", "1 3"},
		{"node hints go first", nil, []string{"10.0.0.1 n1 ready node=n1 zone=a", "10.0.0.2 n2 ready node=n2 zone=a"}, "1", "1", "1"},
		{"node hints, none for this node", nil, []string{"10.0.0.2 n2 ready node=n2 zone=a", "10.0.0.3 n3 ready node=n3 zone=b"}, "2", "2", "2"},
		{"hints and Local", internalLocal, []string{"10.0.0.1 n1 ready zone=b", "10.0.0.2 n2 ready zone=a"}, "1", "2", "2"},
		{"labelled for another proxy", func(s *table.Service) { s.Elsewhere = true }, []string{"10.0.0.1 n1 ready"}, "", "", ""},
		{"headless", func(s *table.Service) { s.Headless = true }, []string{"10.0.0.1 n1 ready"}, "", "", ""},
		{"ExternalName", func(s *table.Service) { s.Type = table.ServiceExternalName }, []string{"10.0.0.1 n1 ready"}, "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := web("a", "10.96.0.1")
			s.ExternalIPs = addrs("192.0.2.1")
			if c.change != nil {
				c.change(s)
			}
			// Each endpoint twice, in two slices: they are one.
			sl, again := webSlice("a"), webSlice("a")
			again.Name = "a-2"
			for _, text := range c.endpoints {
				sl.Endpoints = append(sl.Endpoints, endpoint(t, text))
				again.Endpoints = append(again.Endpoints, endpoint(t, text))
			}
			w := newWorld(config())
			w.setZone(zoneA)
			w.set(s)
			w.setSlice(sl)
			w.setSlice(again)
			w.commit(t)
			for _, ask := range []struct {
				from oracle.From
				dst  string
				want string
			}{
				{oracle.Pod, "10.96.0.1:80", c.cluster},
				{oracle.Host, "10.96.0.1:80", c.cluster},
				{oracle.Pod, "192.0.2.1:80", c.external},
				{oracle.Host, "192.0.2.1:80", c.external},
				{oracle.Outside, "192.0.2.1:80", c.outside},
			} {
				v := w.ask(ask.from, netip.MustParseAddrPort(ask.dst), table.ProtoTCP)
				var got []string
				for _, b := range v.Backends {
					got = append(got, b.Addr().String()[len("10.0.0."):])
				}
				if v.Service != "" && got == nil {
					got = []string{"-"}
				}
				if g := strings.Join(got, " "); g != ask.want {
					t.Errorf("from %d to %s: %q, want %q", ask.from, ask.dst, g, ask.want)
				}
			}
		})
	}
}

// Guards against a row that lacks what else belongs to a Service.
func TestRowsCarry(t *testing.T) {
	w := newWorld(config())
	s := web("a", "10.96.0.1")
	s.Type, s.ClusterIPs, s.Affinity, s.Restricted = table.ServiceLoadBalancer, addrs("10.96.0.1", "fd96::1"), 3*time.Hour, true
	s.Ingress = []table.ServiceIngress{{Addr: addrs("192.0.2.1")[0]}, {Addr: addrs("192.0.2.2")[0], Proxy: true}, {Addr: addrs("2001:db8::1")[0]}}
	s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	s.Ports[0].NodePort = 30080
	s.ExternalLocal = true
	w.set(s)
	w.setSlice(webSlice("a", "10.0.0.1"))
	w.commit(t)
	var got []string
	for k, r := range w.rows {
		if r.Affinity != 3*time.Hour || r.PortName != "web" {
			t.Errorf("%s: affinity %s, port %q", k, r.Affinity, r.PortName)
		}
		line := []string{k.String(), string(r.Type)}
		if r.Flags&table.FrontendBoth != 0 {
			line = append(line, "both")
		}
		if r.Flags&table.FrontendLocal != 0 {
			line = append(line, "local")
		}
		if r.Flags&table.FrontendSources != 0 {
			line = append(line, "sources")
		}
		for _, p := range r.SourceRanges {
			line = append(line, p.String())
		}
		got = append(got, strings.Join(line, " "))
	}
	slices.Sort(got)
	want := []string{
		"0.0.0.0:30080/TCP NodePort local",
		"0.0.0.0:30080/TCP/i NodePort",
		"10.96.0.1:80/TCP ClusterIP both",
		"192.0.2.1:80/TCP LoadBalancer local sources 203.0.113.0/24",
		"192.0.2.1:80/TCP/i LoadBalancer sources 203.0.113.0/24",
		"[2001:db8::1]:80/TCP LoadBalancer local sources",
		"[2001:db8::1]:80/TCP/i LoadBalancer sources",
		"[::]:30080/TCP NodePort local",
		"[::]:30080/TCP/i NodePort",
		"[fd96::1]:80/TCP ClusterIP both",
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
