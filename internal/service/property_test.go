// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-net/weft/internal/service"
	"github.com/weft-net/weft/internal/service/maglev"
	"github.com/weft-net/weft/internal/service/oracle"
	"github.com/weft-net/weft/internal/table"
)

const (
	self  = "n1"
	zoneA = "a"
)

func config() service.Config {
	return service.Config{
		Node: self, IPv4: true, IPv6: true, MaxFrontends: 1000, MaxBackends: 1000,
		Maglev: service.Maglev{Annotations: true, MaxTables: 1000, Slots: 251},
	}
}

func addrs(texts ...string) []netip.Addr {
	out := make([]netip.Addr, len(texts))
	for i, s := range texts {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

// What random objects are made of: few enough of all that they clash.
func clusterIPs() []netip.Addr {
	return addrs("10.96.0.1", "10.96.0.2", "10.96.0.3", "fd96::1", "fd96::2", "127.0.0.1")
}

func externalIPs() []netip.Addr {
	return addrs("192.0.2.1", "192.0.2.2", "2001:db8::1", "10.96.0.1", "224.0.0.1", "fe80::1")
}
func nodeAddrs() []netip.Addr { return addrs("172.18.0.2", "172.18.0.3", "fc00::2", "192.0.2.2") }
func podAddrs() []netip.Addr {
	return addrs("10.0.0.1", "10.0.0.2", "10.0.1.1", "10.0.1.2", "10.0.2.3", "fd00::1", "fd00::2", "fd00:1::1", "::1", "169.254.0.1", "::ffff:10.0.0.1")
}

func subset[T any](t *rapid.T, of []T, most int, label string) []T {
	return slices.Clone(rapid.Permutation(of).Draw(t, label)[:rapid.IntRange(0, most).Draw(t, label+" count")])
}

// mostly draws what is usual three times of four: objects that fit together are
// rare otherwise.
func mostly[T any](t *rapid.T, label string, usual T, others ...T) T {
	if rapid.IntRange(0, 3).Draw(t, label+" usual") > 0 {
		return usual
	}
	return rapid.SampledFrom(others).Draw(t, label)
}

func randomService(t *rapid.T) *table.Service {
	s := &table.Service{
		Namespace: mostly(t, "namespace", "x", "y"), Name: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name"),
		Created:  time.Unix(int64(rapid.IntRange(0, 2).Draw(t, "created")), 0),
		Type:     mostly(t, "type", table.ServiceLoadBalancer, table.ServiceClusterIP, table.ServiceNodePort, table.ServiceExternalName),
		Headless: rapid.IntRange(0, 19).Draw(t, "headless") == 19, Elsewhere: rapid.IntRange(0, 19).Draw(t, "elsewhere") == 19,
		ClusterIPs:    mostly(t, "cluster IPs", addrs("10.96.0.1", "fd96::1"), subset(t, clusterIPs(), 3, "cluster IPs")),
		ExternalIPs:   subset(t, externalIPs(), 2, "external IPs"),
		InternalLocal: rapid.Bool().Draw(t, "internal local"), ExternalLocal: rapid.Bool().Draw(t, "external local"),
		Affinity:  time.Duration(rapid.IntRange(0, 1).Draw(t, "affinity")) * time.Hour,
		Algorithm: mostly(t, "algorithm", "", table.AlgorithmMaglev, table.AlgorithmRandom),
	}
	for _, a := range subset(t, externalIPs(), 2, "ingress") {
		s.Ingress = append(s.Ingress, table.ServiceIngress{Addr: a, Proxy: rapid.Bool().Draw(t, "proxy")})
	}
	for range rapid.IntRange(1, 3).Draw(t, "ports") {
		s.Ports = append(s.Ports, table.ServicePortSpec{
			Name: mostly(t, "port name", "web", "", "dns"), Proto: mostly[uint8](t, "proto", 6, 17, 0),
			Port: mostly[int32](t, "port", 80, 81, 0, 70000), NodePort: mostly[int32](t, "node port", 30000, 30001, 0),
		})
	}
	return s
}

// randomSlice names each address with the same node and hints at all times: what
// two slices say of one endpoint differs in its conditions.
func randomSlice(t *rapid.T) *table.EndpointSlice {
	s := &table.EndpointSlice{
		Namespace: mostly(t, "namespace", "x", "y"), Name: rapid.SampledFrom([]string{"s1", "s2", "s3"}).Draw(t, "slice"),
		Service: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "service"), V6: rapid.IntRange(0, 3).Draw(t, "v6") == 3,
	}
	for range rapid.IntRange(1, 2).Draw(t, "slice ports") {
		s.Ports = append(s.Ports, table.SlicePort{
			Name: mostly(t, "port name", "web", "", "dns"), Proto: mostly[uint8](t, "proto", 6, 17), Port: mostly[int32](t, "port", 8080, 8081, 0, 70000),
		})
	}
	for _, a := range subset(t, podAddrs(), 5, "endpoints") {
		b := a.As16()
		node := fmt.Sprintf("n%d", 1+b[14]+b[3])
		e := table.SliceEndpoint{Addr: a, Node: node, Zone: zoneA, Ready: rapid.Bool().Draw(t, "ready")}
		if !e.Ready {
			e.Serving, e.Terminating = rapid.Bool().Draw(t, "serving"), rapid.Bool().Draw(t, "terminating")
		}
		switch b[15] {
		case 1:
			e.Hints = &table.Hints{Zones: []string{zoneA}, Nodes: []string{node}}
		case 2:
			e.Hints = &table.Hints{Zones: []string{"b"}}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// world is a model beside the objects that it was told of, and the rows that it
// said there are.
type world struct {
	model    *service.Model
	services map[string]*table.Service
	slices   map[string]*table.EndpointSlice
	zone     string
	rows     map[table.FrontendKey]*table.Frontend
}

func newWorld(cfg service.Config) *world {
	return &world{
		model: service.New(cfg), services: map[string]*table.Service{}, slices: map[string]*table.EndpointSlice{},
		rows: map[table.FrontendKey]*table.Frontend{},
	}
}

func (w *world) set(s *table.Service) {
	w.services[s.FullName()] = s
	w.model.SetService(s, time.Time{})
}

func (w *world) setSlice(s *table.EndpointSlice) {
	w.slices[s.FullName()] = s
	w.model.SetSlice(s, time.Time{})
}

func (w *world) delete(namespace, name string) {
	delete(w.services, namespace+"/"+name)
	w.model.DeleteService(namespace, name, time.Time{})
}

func (w *world) deleteSlice(namespace, name string) {
	delete(w.slices, namespace+"/"+name)
	w.model.DeleteSlice(namespace, name, time.Time{})
}

func (w *world) setZone(zone string) {
	w.zone = zone
	w.model.SetZone(zone, time.Time{})
}

// commit applies what the model says has changed, as a reconciler does. It says
// which rows were written.
func (w *world) commit(t interface {
	Helper()
	Errorf(string, ...any)
},
) (written []table.FrontendKey) {
	t.Helper()
	for again := true; again; again = w.model.Pending() {
		for _, c := range w.model.Commit() {
			was := w.rows[c.Row.Key]
			if c.Deleted {
				if was == nil {
					t.Errorf("%s is deleted and was not there", c.Row.Key)
				}
				delete(w.rows, c.Row.Key)
				continue
			}
			if was != nil && was.Equal(c.Row) {
				t.Errorf("%s is written and has not changed", c.Row.Key)
			}
			w.rows[c.Row.Key] = c.Row
			written = append(written, c.Row.Key)
		}
	}
	return written
}

// find looks a destination up as the kernel does.
func (w *world) find(from oracle.From, dst netip.AddrPort, proto uint8) *table.Frontend {
	find := func(addr netip.Addr) *table.Frontend {
		key := table.FrontendKey{Addr: netip.AddrPortFrom(addr, dst.Port()), Proto: proto}
		r := w.rows[key]
		if from != oracle.Outside && (r == nil || r.Flags&table.FrontendBoth == 0) {
			key.Scope = table.ScopeInternal
			return w.rows[key]
		}
		return r
	}
	r := find(dst.Addr())
	if r == nil && slices.Contains(nodeAddrs(), dst.Addr()) {
		any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
		if dst.Addr().Is4() {
			r = find(any4)
		} else {
			r = find(any6)
		}
	}
	return r
}

// ask says what becomes of a connection.
func (w *world) ask(from oracle.From, dst netip.AddrPort, proto uint8) oracle.Verdict {
	r := w.find(from, dst, proto)
	if r == nil {
		return oracle.Verdict{}
	}
	v := oracle.Verdict{Service: r.Name(), Port: r.PortName}
	for _, b := range r.Backends {
		v.Backends = append(v.Backends, b.Addr)
	}
	slices.SortFunc(v.Backends, netip.AddrPort.Compare)
	return v
}

func (w *world) judge() oracle.World {
	return oracle.World{
		Services: slices.Collect(maps.Values(w.services)), Slices: slices.Collect(maps.Values(w.slices)),
		Node: self, Zone: w.zone, NodeAddrs: nodeAddrs(), IPv4: true, IPv6: true,
		Algorithm: table.AlgorithmRandom, Annotations: true, Maglev: maglev.Table{Size: 251},
	}
}

// agrees asks for every destination that there could be, from everywhere.
func (w *world) agrees(t *rapid.T) {
	judge := w.judge()
	for _, a := range slices.Concat(clusterIPs(), externalIPs(), nodeAddrs(), addrs("203.0.113.1", "0.0.0.0", "::")) {
		for _, port := range []uint16{0, 80, 81, 30000, 30001} {
			for _, proto := range []uint8{6, 17} {
				for _, from := range []oracle.From{oracle.Outside, oracle.Host, oracle.Pod} {
					dst := netip.AddrPortFrom(a, port)
					if a.IsUnspecified() {
						continue // the key of NodePorts, and nothing that one connects to
					}
					got, want := w.ask(from, dst, proto), judge.Ask(from, dst, proto)
					if got.Service != want.Service || got.Port != want.Port || !slices.Equal(got.Backends, want.Backends) {
						t.Fatalf("from %d to %s/%d: model %+v, oracle %+v", from, dst, proto, got, want)
					}
					if from != oracle.Outside || len(want.Backends) == 0 {
						continue
					}
					by := judge.Spread(netip.AddrPortFrom(a, 4711), dst, proto).IsValid()
					if flag := w.find(from, dst, proto).Flags & table.FrontendMaglev; by != (flag != 0) {
						t.Fatalf("to %s/%d by a Maglev table: model %t, oracle %t", dst, proto, flag != 0, by)
					}
				}
			}
		}
	}
}

// anonymous are the rows without what depends on history: ids, and the order that they give.
func anonymous(rows map[table.FrontendKey]*table.Frontend) map[table.FrontendKey]table.Frontend {
	out := make(map[table.FrontendKey]table.Frontend, len(rows))
	for k, r := range rows {
		c := *r
		c.ServiceID, c.Backends = 0, slices.Clone(r.Backends)
		for i := range c.Backends {
			c.Backends[i].ID = 0
		}
		slices.SortFunc(c.Backends, func(a, b table.BackendRef) int { return a.Addr.Compare(b.Addr) })
		out[k] = c
	}
	return out
}

// sameAsFromScratch tells a new model the same objects in another order.
func (w *world) sameAsFromScratch(t *rapid.T) {
	fresh := newWorld(config())
	var tell []func()
	for _, s := range w.services {
		tell = append(tell, func() { fresh.set(s) })
	}
	for _, s := range w.slices {
		tell = append(tell, func() { fresh.setSlice(s) })
	}
	tell = append(tell, func() { fresh.setZone(w.zone) })
	for _, f := range tell {
		f()
	}
	fresh.commit(t)
	got, want := anonymous(w.rows), anonymous(fresh.rows)
	if len(got) != len(want) {
		t.Fatalf("%d rows, from scratch %d", len(got), len(want))
	}
	for k, r := range got {
		if o := want[k]; !r.Equal(&o) {
			t.Fatalf("%s: %+v, from scratch %+v", k, r, o)
		}
	}
	if got, want := len(w.model.Findings()), len(fresh.model.Findings()); got != want {
		t.Fatalf("%d findings, from scratch %d", got, want)
	}
}

type portName struct {
	service, name string
	proto         uint8
	v6            bool
}

// ids checks that numbers lead to one thing each, and returns them.
func (w *world) ids(t *rapid.T) (map[table.BackendRef]uint32, map[portName]uint32) {
	byID, ports := map[uint32]table.BackendRef{}, map[uint32]portName{}
	backends, services := map[table.BackendRef]uint32{}, map[portName]uint32{}
	for k, r := range w.rows {
		p := portName{r.Name(), r.PortName, k.Proto, k.Addr.Addr().Is6()}
		if o, had := ports[r.ServiceID]; r.ServiceID == 0 || had && o != p {
			t.Fatalf("service id %d is of %v and of %v", r.ServiceID, o, p)
		}
		if id, had := services[p]; had && id != r.ServiceID {
			t.Fatalf("%v has ids %d and %d", p, id, r.ServiceID)
		}
		ports[r.ServiceID], services[p] = p, r.ServiceID
		for i, b := range r.Backends {
			if i > 0 && r.Backends[i-1].ID >= b.ID {
				t.Fatalf("%s: backends are not ordered by id", k)
			}
			id, b := b.ID, table.BackendRef{Addr: b.Addr, Proto: b.Proto}
			if o, had := byID[id]; id == 0 || had && o != b {
				t.Fatalf("backend id %d is of %v and of %v", id, o, b)
			}
			if o, had := backends[b]; had && o != id {
				t.Fatalf("%v has ids %d and %d", b, o, id)
			}
			byID[id], backends[b] = b, id
		}
	}
	return backends, services
}

func (w *world) step(t *rapid.T) {
	switch rapid.IntRange(0, 9).Draw(t, "step") {
	case 0, 1, 2:
		w.set(randomService(t))
	case 3, 4, 5, 6:
		w.setSlice(randomSlice(t))
	case 7:
		if names := slices.Sorted(maps.Keys(w.services)); len(names) > 0 {
			s := w.services[rapid.SampledFrom(names).Draw(t, "which")]
			w.delete(s.Namespace, s.Name)
		}
	case 8:
		if names := slices.Sorted(maps.Keys(w.slices)); len(names) > 0 {
			s := w.slices[rapid.SampledFrom(names).Draw(t, "which")]
			w.deleteSlice(s.Namespace, s.Name)
		}
	case 9:
		w.setZone(rapid.SampledFrom([]string{zoneA, "b", ""}).Draw(t, "zone"))
	}
}

// Guards against a model that answers otherwise than the rules say, or otherwise
// after many changes than from scratch, and against ids that move or are shared.
func TestModelIsTheOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(config())
		hadBackends, hadPorts := w.ids(t)
		for range rapid.IntRange(1, 12).Draw(t, "commits") {
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				w.step(t)
			}
			w.commit(t)
			w.agrees(t)
			w.sameAsFromScratch(t)
			backends, ports := w.ids(t)
			for b, id := range backends {
				if was, had := hadBackends[b]; had && was != id {
					t.Fatalf("backend %v had id %d and has %d", b, was, id)
				}
			}
			for p, id := range ports {
				if was, had := hadPorts[p]; had && was != id {
					t.Fatalf("port %v had id %d and has %d", p, was, id)
				}
			}
			hadBackends, hadPorts = backends, ports
		}
	})
}
