// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/arrival"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/service"
	"github.com/weft-net/weft/internal/table"
)

// serviceFixture is a derivation of services over tables that are not complete yet.
type serviceFixture struct {
	t        tables
	s        *services
	complete []func(statedb.WriteTxn) // one a table
	warned   []string
}

func newServiceFixture(t *testing.T, frontends int, kernel func() ([]table.Frontend, error)) *serviceFixture {
	t.Helper()
	tb, err := newTables()
	if err != nil {
		t.Fatal(err)
	}
	f := &serviceFixture{t: tb}
	txn := tb.db.WriteTxn(tb.services, tb.slices, tb.nodes)
	f.complete = []func(statedb.WriteTxn){
		tb.services.RegisterInitializer(txn, "test"), tb.slices.RegisterInitializer(txn, "test"), tb.nodes.RegisterInitializer(txn, "test"),
	}
	txn.Commit()
	f.s = newServices(tb, serviceParams{
		model:  service.Config{Node: "n1", IPv4: true, MaxFrontends: frontends, MaxBackends: 100},
		kernel: kernel, log: slog.New(slog.DiscardHandler),
		warn: func(reason, message string) { f.warned = append(f.warned, reason+" "+message) },
	})
	return f
}

// event writes to a table as a reflector does.
func (f *serviceFixture) event(at int64, log *arrival.Log, tb statedb.TableMeta, write func(statedb.WriteTxn)) {
	txn := f.t.db.WriteTxn(tb)
	write(txn)
	log.Note(tb.Revision(txn), time.Unix(at, 0))
	txn.Commit()
}

func (f *serviceFixture) set(at int64, s *table.Service) {
	f.event(at, f.t.arrived.services, f.t.services, func(txn statedb.WriteTxn) { _, _, _ = f.t.services.Insert(txn, s) })
}

func (f *serviceFixture) setSlice(at int64, s *table.EndpointSlice) {
	f.event(at, f.t.arrived.slices, f.t.slices, func(txn statedb.WriteTxn) { _, _, _ = f.t.slices.Insert(txn, s) })
}

func (f *serviceFixture) completeAll() {
	txn := f.t.db.WriteTxn(f.t.services, f.t.slices, f.t.nodes)
	for _, done := range f.complete {
		done(txn)
	}
	txn.Commit()
}

func (f *serviceFixture) frontend(addr string) *table.Frontend {
	r, _, _ := f.t.frontends.Get(f.t.db.ReadTxn(), table.FrontendByKey.Query(table.FrontendKey{Addr: netip.MustParseAddrPort(addr), Proto: table.ProtoTCP}))
	return r
}

func clusterIP(name, addr string) *table.Service {
	return &table.Service{
		Namespace: "default", Name: name, Type: table.ServiceClusterIP, ClusterIPs: []netip.Addr{ip(addr)},
		Ports: []table.ServicePortSpec{{Proto: table.ProtoTCP, Port: 80}},
	}
}

func backends(service string, addrs ...string) *table.EndpointSlice {
	s := &table.EndpointSlice{Namespace: "default", Name: service + "-1", Service: service, Ports: []table.SlicePort{{Proto: table.ProtoTCP, Port: 8080}}}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, table.SliceEndpoint{Addr: ip(a), Ready: true, Serving: true})
	}
	return s
}

// Guards against a restart that empties frontends whose slices are not listed yet,
// that prunes before all is known, or that gives ids to others than the kernel does.
func TestServicesWaitForAllInputs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		asked := 0
		f := newServiceFixture(t, 100, func() ([]table.Frontend, error) {
			mu.Lock()
			defer mu.Unlock()
			if asked++; asked == 1 {
				return nil, errors.New("map weft_svc4: not there yet")
			}
			return []table.Frontend{{
				Key: table.FrontendKey{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Proto: table.ProtoTCP}, ServiceID: 7,
				Backends: []table.BackendRef{{ID: 9, Addr: netip.MustParseAddrPort("10.0.0.2:8080"), Proto: table.ProtoTCP}},
			}}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		var g sync.WaitGroup
		g.Go(func() {
			if err := f.s.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		defer g.Wait()
		defer cancel()
		synctest.Wait()
		if c := f.s.Component(); c.State != rpc.StateFailing || !strings.Contains(c.Message, "not there yet") {
			t.Errorf("the kernel cannot be read: %+v", c)
		}
		f.set(1, clusterIP("web", "10.96.0.1"))
		time.Sleep(2 * retryShort) // of the bubble's clock: until the kernel is asked again
		synctest.Wait()
		if n := f.t.frontends.NumObjects(f.t.db.ReadTxn()); n != 0 {
			t.Errorf("%d frontends before slices and nodes are known", n)
		}
		if c := f.s.Component(); c.State != rpc.StateWarning || !strings.Contains(c.Message, "not all") {
			t.Errorf("inputs are not complete: %+v", c)
		}
		f.setSlice(2, backends("web", "10.0.0.1", "10.0.0.2"))
		f.completeAll()
		synctest.Wait()
		r := f.frontend("10.96.0.1:80")
		if r == nil || r.ServiceID != 7 || len(r.Backends) != 2 {
			t.Fatalf("frontend %+v", r)
		}
		for _, b := range r.Backends {
			if (b.Addr.Addr() == ip("10.0.0.2")) != (b.ID == 9) {
				t.Errorf("backend %s has id %d; 10.0.0.2 had 9", b.Addr, b.ID)
			}
		}
		if ok, _ := f.t.frontends.Initialized(f.t.db.ReadTxn()); !ok {
			t.Error("all is known, and nothing may be pruned")
		}
		if c := f.s.Component(); c.State != rpc.StateOK || c.Message != "1 Services, 1 frontends, 2 backends" {
			t.Errorf("component %+v", c)
		}
	})
}

// Guards against a latency that begins somewhere on the way: each frontend carries
// the arrival of the event behind its change, also when it goes.
func TestArrivalsReachTheFrontends(t *testing.T) {
	f := newServiceFixture(t, 100, nil)
	in, err := f.s.watch()
	if err != nil {
		t.Fatal(err)
	}
	txn := f.t.db.WriteTxn(f.t.frontends)
	changes, err := f.t.frontends.Changes(txn)
	if err != nil {
		t.Fatal(err)
	}
	txn.Commit()
	expect := func(what string, want map[string]int64) {
		t.Helper()
		if _, err := f.s.round(in); err != nil {
			t.Fatal(err)
		}
		got := map[string]int64{}
		rows, _ := changes.Next(f.t.db.ReadTxn())
		for c, rev := range rows {
			got[c.Object.Key.String()] = f.t.arrived.frontends.At(rev).Unix()
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: arrivals %v, want %v", what, got, want)
		}
	}
	f.set(1, clusterIP("a", "10.96.0.1"))
	f.set(2, clusterIP("b", "10.96.0.2"))
	f.setSlice(3, backends("b", "10.0.0.1"))
	f.completeAll()
	expect("all at once", map[string]int64{"10.96.0.1:80/TCP": 1, "10.96.0.2:80/TCP": 2})
	f.setSlice(4, backends("a", "10.0.0.2"))
	f.setSlice(5, backends("b", "10.0.0.1", "10.0.0.3"))
	expect("slices change", map[string]int64{"10.96.0.1:80/TCP": 4, "10.96.0.2:80/TCP": 5})
	f.event(6, f.t.arrived.services, f.t.services, func(txn statedb.WriteTxn) { _, _, _ = f.t.services.Delete(txn, clusterIP("a", "10.96.0.1")) })
	expect("a service goes", map[string]int64{"10.96.0.1:80/TCP": 6})
	f.event(7, f.t.arrived.slices, f.t.slices, func(txn statedb.WriteTxn) { _, _, _ = f.t.slices.Delete(txn, backends("b")) })
	expect("a slice goes", map[string]int64{"10.96.0.2:80/TCP": 7})
}

// Guards against Services that are refused without anybody hearing of it, or
// with an event at each change of something else.
func TestRefusedServicesAreTold(t *testing.T) {
	f := newServiceFixture(t, 2, nil)
	in, err := f.s.watch()
	if err != nil {
		t.Fatal(err)
	}
	round := func() {
		t.Helper()
		if _, err := f.s.round(in); err != nil {
			t.Fatal(err)
		}
	}
	f.completeAll()
	for i, name := range []string{"a", "b", "c"} {
		f.set(int64(i), clusterIP(name, fmt.Sprintf("10.96.0.%d", i+1)))
	}
	bad := backends("a", "127.0.0.1", "10.0.0.1")
	f.setSlice(4, bad)
	round()
	if len(f.warned) != 1 || !strings.HasPrefix(f.warned[0], "ServiceOverflow service default/c: 1 of 1 frontends have no place") {
		t.Errorf("events: %q", f.warned)
	}
	r, ok := f.s.Reading()
	if !ok || r.Findings[service.Overflow] != 1 || r.Findings[service.BadInput] != 1 || r.Frontends != 2 || r.Backends != 1 {
		t.Errorf("reading %+v", r)
	}
	if c := f.s.Component(); c.State != rpc.StateWarning || len(c.Details) != 2 || !strings.Contains(c.Message, "(and 1 more)") {
		t.Errorf("component %+v", c)
	}
	f.setSlice(5, backends("b", "127.0.0.1", "10.0.0.2")) // something else is wrong now, too
	round()
	if r, _ := f.s.Reading(); r.Findings[service.BadInput] != 2 || len(f.warned) != 1 {
		t.Errorf("told again: %q", f.warned)
	}
	f.event(6, nil, f.t.services, func(txn statedb.WriteTxn) { _, _, _ = f.t.services.Delete(txn, clusterIP("b", "10.96.0.2")) })
	round()
	if f.frontend("10.96.0.3:80") == nil {
		t.Error("there is room, and c has no frontend")
	}
	if r, _ := f.s.Reading(); r.Findings[service.Overflow] != 0 {
		t.Errorf("reading %+v", r)
	}
}

// Guards against hints that are measured against another zone than the node's.
func TestZoneOfTheNodeCounts(t *testing.T) {
	f := newServiceFixture(t, 10, nil)
	in, err := f.s.watch()
	if err != nil {
		t.Fatal(err)
	}
	f.completeAll()
	f.set(1, clusterIP("a", "10.96.0.1"))
	sl := backends("a", "10.0.0.1", "10.0.0.2")
	sl.Endpoints[0].Hints, sl.Endpoints[1].Hints = &table.Hints{Zones: []string{"a"}}, &table.Hints{Zones: []string{"b"}}
	f.setSlice(1, sl)
	for _, step := range []struct {
		local, other string
		want         int
	}{{"", "b", 2}, {"a", "b", 1}, {"c", "a", 2}} {
		put(t, f.t.db, f.t.nodes, &table.Node{Name: "n1", Local: true, Zone: step.local})
		put(t, f.t.db, f.t.nodes, &table.Node{Name: "n2", Zone: step.other})
		if _, err := f.s.round(in); err != nil {
			t.Fatal(err)
		}
		if r := f.frontend("10.96.0.1:80"); len(r.Backends) != step.want {
			t.Errorf("zone %q: backends %v, want %d", step.local, r.Backends, step.want)
		}
	}
}

// Guards against parts that work alone and are not put together: from the API
// server to what `weft service list` and the metrics show.
func TestNodeKnowsServices(t *testing.T) {
	if !node(t) {
		return
	}
	o, _ := newNode(t, map[string]string{"bpf-lb-sock": "true", "enable-node-port": "true", "bpf-lb-algorithm-annotation": "true"})
	api := serveAPI(t, &o)
	addNode(t, api, "n1", 1)
	if err := Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	api.Do(t, http.MethodPost, "/api/v1/namespaces/default/services", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","annotations":{"service.cilium.io/lb-algorithm":"maglev"}},
		"spec":{"type":"NodePort","sessionAffinity":"ClientIP","ports":[{"port":80,"targetPort":8080,"nodePort":30080}]}}`, nil)
	api.Do(t, http.MethodPost, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice",
		"metadata":{"name":"web-1","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4","ports":[{"port":8080}],
		"endpoints":[{"addresses":["10.244.1.9"],"nodeName":"n1"},{"addresses":["10.244.1.8"],"nodeName":"n1"}]}`, nil)
	find := func(key string) *table.Frontend {
		for _, f := range fetch[[]table.Frontend](s, rpc.PathServices) {
			if f.Key.String() == key {
				return &f
			}
		}
		return nil
	}
	eventually(t, "web's NodePort", func() (bool, any) {
		f := find("0.0.0.0:30080/TCP")
		return f != nil && len(f.Backends) == 2 && f.Backends[0].Local && f.Affinity == 3*time.Hour, f
	})
	eventually(t, "metrics", func() (bool, any) {
		m := s.scrape()
		return m["weft_service_frontends"] >= 2 && m["weft_service_findings/Overflow"] == 0, m["weft_service_frontends"]
	})
	eventually(t, "web's Maglev table", func() (bool, any) {
		rows := fetch[[]maps.MaglevRow](s, rpc.PathBPFLBMaglev)
		return len(rows) == 2 && rows[0].Slots == 16381 && rows[0].Has+rows[1].Has == 16381, rows
	})
	if c := s.component("Services"); c.State != rpc.StateOK {
		t.Errorf("status: %+v", c)
	}
	api.Do(t, http.MethodDelete, "/api/v1/namespaces/default/services/web", nil, nil)
	eventually(t, "web is gone", func() (bool, any) { f := find("0.0.0.0:30080/TCP"); return f == nil, f })
	s.end()
}

// 10,000 Services x 10 backends: from tables to frontends, one change after that,
// and what tables and model weigh together.
func BenchmarkServices(b *testing.B) {
	const services = 10_000
	build := func() (*serviceFixture, serviceInputs) {
		tb, err := newTables()
		if err != nil {
			b.Fatal(err)
		}
		f := &serviceFixture{t: tb}
		f.s = newServices(tb, serviceParams{
			model: service.Config{Node: "n1", IPv4: true, MaxFrontends: 65536, MaxBackends: 131071}, log: slog.New(slog.DiscardHandler),
		})
		in, err := f.s.watch()
		if err != nil {
			b.Fatal(err)
		}
		txn := tb.db.WriteTxn(tb.services, tb.slices)
		for i := range services {
			name := fmt.Sprintf("svc-%d", i)
			_, _, _ = tb.services.Insert(txn, clusterIP(name, netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()))
			_, _, _ = tb.slices.Insert(txn, slice(i, 10))
		}
		txn.Commit()
		return f, in
	}
	b.Run("from empty", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			f, in := build()
			b.StartTimer()
			if _, err := f.s.round(in); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("one change", func(b *testing.B) {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		f, in := build()
		if _, err := f.s.round(in); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		i := 0
		for b.Loop() {
			f.setSlice(1, slice(i%services, 9+i/services%2))
			if _, err := f.s.round(in); err != nil {
				b.Fatal(err)
			}
			i++
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
	})
}

func slice(i, backends int) *table.EndpointSlice {
	name := fmt.Sprintf("svc-%d", i)
	s := &table.EndpointSlice{Namespace: "default", Name: name + "-1", Service: name, Ports: []table.SlicePort{{Proto: table.ProtoTCP, Port: 8080}}}
	for j := range backends {
		n := i*10 + j
		s.Endpoints = append(s.Endpoints, table.SliceEndpoint{Addr: netip.AddrFrom4([4]byte{10, byte(1 + n>>16), byte(n >> 8), byte(n)}), Ready: true, Serving: true})
	}
	return s
}
