// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-net/weft/internal/service"
	"github.com/weft-net/weft/internal/table"
)

// small is a model with room for little.
func small(frontends, backends int) service.Config {
	cfg := config()
	cfg.MaxFrontends, cfg.MaxBackends = frontends, backends
	return cfg
}

// Guards against one object without room that harms others, that is not named, or
// that gets no room when there is some again; and against an id that names another
// backend before the kernel's rows have let go of it.
func TestWithoutRoom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := small(rapid.IntRange(1, 8).Draw(t, "frontends"), rapid.IntRange(1, 6).Draw(t, "backends"))
		w, all := newWorld(cfg), newWorld(config())
		for range rapid.IntRange(1, 12).Draw(t, "commits") {
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				switch rapid.IntRange(0, 9).Draw(t, "step") {
				case 0, 1, 2:
					s := randomService(t)
					w.set(s)
					all.set(s)
				case 3, 4, 5, 6:
					s := randomSlice(t)
					w.setSlice(s)
					all.setSlice(s)
				default:
					ns, name := mostly(t, "namespace", "x", "y"), rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name")
					w.delete(ns, name)
					all.delete(ns, name)
				}
			}
			before, _ := w.ids(t)
			owner := map[uint32]table.BackendRef{}
			for b, id := range before {
				owner[id] = b
			}
			for again := true; again; again = w.model.Pending() {
				for _, c := range w.model.Commit() {
					for _, b := range c.Row.Backends {
						if was, had := owner[b.ID]; had && !c.Deleted && was != (table.BackendRef{Addr: b.Addr, Proto: b.Proto}) {
							t.Fatalf("%s: id %d is %v, and rows still name %v by it", c.Row.Key, b.ID, b.Addr, was)
						}
					}
					if w.rows[c.Row.Key] = c.Row; c.Deleted {
						delete(w.rows, c.Row.Key)
					}
				}
				owner = map[uint32]table.BackendRef{}
				now, _ := w.ids(t)
				for b, id := range now {
					owner[id] = b
				}
			}
			all.commit(t)
			w.fits(t, cfg, all)
		}
	})
}

// fits compares a model with bounds with one that has none.
func (w *world) fits(t *rapid.T, cfg service.Config, all *world) {
	count, lacking := map[bool]int{}, map[bool]bool{} // by family
	got, want := anonymous(w.rows), anonymous(all.rows)
	missing := map[string]bool{} // services without all that they want
	for k, r := range want {
		name := r.Name()
		have, ok := got[k]
		if !ok {
			missing[name], lacking[k.Addr.Addr().Is6()] = true, true
			continue
		}
		count[k.Addr.Addr().Is6()]++
		if len(have.Backends) < len(r.Backends) {
			missing[name] = true
		}
		for _, b := range have.Backends {
			if !slices.Contains(r.Backends, b) {
				t.Fatalf("%s leads to %v, which is none of its backends", k, b)
			}
		}
		if have.Backends, r.Backends = nil, nil; !have.Equal(&r) {
			t.Fatalf("%s: %+v, with room %+v", k, have, r)
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			t.Fatalf("%s is there and should not be", k)
		}
	}
	for _, v6 := range []bool{false, true} {
		if count[v6] > cfg.MaxFrontends {
			t.Fatalf("%d rows of a family, room for %d", count[v6], cfg.MaxFrontends)
		}
		// One that needs two rows may find one place only.
		if lacking[v6] && count[v6] < cfg.MaxFrontends-1 {
			t.Fatalf("frontends are missing with %d of %d rows in use", count[v6], cfg.MaxFrontends)
		}
	}
	named := map[string]bool{}
	for _, f := range w.model.Findings() {
		if f.Kind == service.Overflow {
			named[f.Service] = true
		}
	}
	for name := range missing {
		if !named[name] {
			t.Fatalf("%s lacks something and is not named: %v", name, w.model.Findings())
		}
	}
	for name := range named {
		if !missing[name] {
			t.Fatalf("%s has everything and is named: %v", name, w.model.Findings())
		}
	}
}

// listed is what the kernel can say of rows: no names.
func (w *world) listed() (out []table.Frontend) {
	for _, r := range w.rows {
		f := table.Frontend{Key: r.Key, ServiceID: r.ServiceID}
		for _, b := range r.Backends {
			f.Backends = append(f.Backends, table.BackendRef{ID: b.ID, Addr: b.Addr, Proto: b.Proto})
		}
		out = append(out, f)
	}
	return out
}

// Guards against a restart that renumbers: all session affinity would be lost, and
// rows and backends would name others for as long as the kernel is rewritten.
func TestRestartKeepsNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(config())
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			w.step(t)
			w.commit(t)
		}
		again := newWorld(config())
		again.model.Restore(w.listed())
		for _, s := range w.services {
			again.set(s)
		}
		for _, s := range w.slices {
			again.setSlice(s)
		}
		again.setZone(w.zone)
		again.commit(t)
		again.model.Settle()
		again.commit(t)
		if len(again.rows) != len(w.rows) {
			t.Fatalf("%d rows, %d before", len(again.rows), len(w.rows))
		}
		for k, r := range w.rows {
			if o := again.rows[k]; o == nil || !o.Equal(r) {
				t.Fatalf("%s: %+v, before %+v", k, o, r)
			}
		}
		again.step(t)
		again.commit(t)
		again.ids(t)
	})
}

func web(name, ip string) *table.Service {
	return &table.Service{
		Namespace: "default", Name: name, Type: table.ServiceClusterIP, ClusterIPs: addrs(ip),
		Ports: []table.ServicePortSpec{{Name: "web", Proto: table.ProtoTCP, Port: 80}},
	}
}

func webSlice(service string, ips ...string) *table.EndpointSlice {
	s := &table.EndpointSlice{Namespace: "default", Name: service + "-1", Service: service, Ports: []table.SlicePort{{Name: "web", Proto: table.ProtoTCP, Port: 8080}}}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, table.SliceEndpoint{Addr: netip.MustParseAddr(ip), Ready: true, Serving: true, Node: self})
	}
	return s
}

func (w *world) idOf(t *testing.T, ip string) uint32 {
	t.Helper()
	id, ok := w.model.Known(netip.AddrPortFrom(netip.MustParseAddr(ip), 8080), table.ProtoTCP)
	if !ok {
		t.Fatalf("%s has no id", ip)
	}
	return id
}

// Guards against an id that goes to somebody else while the kernel still
// remembers whose it was last, and against ids that are lost with a flapping probe.
func TestFreedIDsAreReusedOldestFirst(t *testing.T) {
	w := newWorld(small(10, 3))
	w.set(web("a", "10.96.0.1"))
	w.setSlice(webSlice("a", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
	w.commit(t)
	first, second := w.idOf(t, "10.0.0.2"), w.idOf(t, "10.0.0.1")
	w.setSlice(webSlice("a", "10.0.0.1", "10.0.0.3"))
	w.commit(t)
	w.setSlice(webSlice("a", "10.0.0.3"))
	w.commit(t)
	w.setSlice(webSlice("a", "10.0.0.3", "10.0.0.4"))
	w.commit(t)
	w.setSlice(webSlice("a", "10.0.0.3", "10.0.0.4", "10.0.0.5"))
	w.commit(t)
	if a, b := w.idOf(t, "10.0.0.4"), w.idOf(t, "10.0.0.5"); a != first || b != second {
		t.Errorf("ids %d and %d were freed in this order and given again as %d and %d", first, second, a, b)
	}
	unready := webSlice("a", "10.0.0.3", "10.0.0.4", "10.0.0.5")
	unready.Endpoints[0].Ready = false
	had := w.idOf(t, "10.0.0.3")
	w.setSlice(unready)
	w.commit(t)
	if id := w.idOf(t, "10.0.0.3"); id != had {
		t.Errorf("an unready endpoint had id %d and has %d", had, id)
	}
}

// Guards against an id that names another backend while rows of the same commit,
// which the kernel gets one at a time, still mean the one before.
func TestFreedIDsRestForACommit(t *testing.T) {
	w := newWorld(small(10, 1))
	w.set(web("a", "10.96.0.1"))
	w.set(web("b", "10.96.0.2"))
	w.setSlice(webSlice("a", "10.0.0.1"))
	w.commit(t)
	w.setSlice(webSlice("a"))
	w.setSlice(webSlice("b", "10.0.0.2"))
	for _, c := range w.model.Commit() {
		if len(c.Row.Backends) > 0 {
			t.Errorf("%s got %v in the commit that frees its id", c.Row.Key, c.Row.Backends)
		}
	}
	if !w.model.Pending() {
		t.Fatal("nobody gives the freed id to who waits for it")
	}
	changes := w.model.Commit()
	if len(changes) != 1 || changes[0].Row.Service != "b" || len(changes[0].Row.Backends) != 1 {
		t.Errorf("after that: %+v", changes)
	}
}

// Guards against restored numbers that nobody needs any more and that are never
// given again, and against two owners of one that two wanted to resume.
func TestRestoredNumbersAreGivenUp(t *testing.T) {
	w := newWorld(small(10, 2))
	gone, kept := netip.MustParseAddrPort("10.0.0.9:8080"), netip.MustParseAddrPort("10.0.0.1:8080")
	w.model.Restore([]table.Frontend{
		{
			Key: table.FrontendKey{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Proto: table.ProtoTCP}, ServiceID: 5,
			Backends: []table.BackendRef{{ID: 2, Addr: kept, Proto: table.ProtoTCP}, {ID: 1, Addr: gone, Proto: table.ProtoTCP}},
		},
		{Key: table.FrontendKey{Addr: netip.MustParseAddrPort("10.96.0.2:80"), Proto: table.ProtoTCP}, ServiceID: 5},
	})
	w.set(web("a", "10.96.0.1"))
	w.set(web("b", "10.96.0.2"))
	w.setSlice(webSlice("a", "10.0.0.1", "10.0.0.2"))
	w.commit(t)
	a, b := w.rows[table.FrontendKey{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Proto: 6}], w.rows[table.FrontendKey{Addr: netip.MustParseAddrPort("10.96.0.2:80"), Proto: 6}]
	if a.ServiceID == b.ServiceID || (a.ServiceID != 5 && b.ServiceID != 5) {
		t.Errorf("ids %d and %d, one of which should be 5", a.ServiceID, b.ServiceID)
	}
	if len(a.Backends) != 1 || a.Backends[0].ID != 2 {
		t.Errorf("before all is known, restored ids are reserved: %v", a.Backends)
	}
	w.model.Settle()
	w.commit(t)
	a = w.rows[a.Key]
	if len(a.Backends) != 2 || a.Backends[0].ID != 1 || a.Backends[0].Addr.Addr() != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("the id of a backend that is gone was not given again: %v", a.Backends)
	}
	if f := w.model.Findings(); len(f) != 0 {
		t.Errorf("findings: %v", f)
	}
}

// Guards against a frontend that has no row at all for a moment while it gets rows
// of its own for each side, or loses them: the kernel takes one row at a time.
func TestNoGapBetweenScopes(t *testing.T) {
	w := newWorld(config())
	s := web("a", "10.96.0.1")
	s.ExternalIPs = addrs("192.0.2.1")
	w.set(s)
	w.commit(t)
	local := *s
	local.ExternalLocal = true
	for _, step := range []*table.Service{&local, s} {
		w.set(step)
		for _, c := range w.model.Commit() {
			w.rows[c.Row.Key] = c.Row
			if c.Deleted {
				delete(w.rows, c.Row.Key)
			}
			if v := w.ask(2, netip.MustParseAddrPort("192.0.2.1:80"), table.ProtoTCP); v.Service == "" {
				t.Errorf("externalLocal %v: after the change of %s, pods find no frontend", step.ExternalLocal, c.Row.Key)
			}
		}
	}
}

// Guards against bad input that nobody hears of, or that is put in effect.
func TestBadInputIsNamed(t *testing.T) {
	w := newWorld(small(3, 100))
	a := web("a", "10.96.0.1")
	a.Created, a.ExternalIPs = time.Unix(2, 0), addrs("192.0.2.1", "127.0.0.1", "2001:db8::1")
	w.set(a)
	sl := webSlice("a", "10.0.0.1", "169.254.0.7", "0.0.0.0")
	sl.Garbage = []string{`address "10.0.0.300"`}
	sl.Ports = append(sl.Ports, table.SlicePort{Name: "none", Proto: table.ProtoTCP})
	w.setSlice(sl)
	older := web("older", "10.96.0.2")
	older.Created, older.ExternalIPs, older.Garbage = time.Unix(1, 0), addrs("192.0.2.1"), []string{`externalIP "x"`}
	w.set(older)
	thief := web("thief", "10.96.0.3")
	thief.ExternalIPs = addrs("10.96.0.1") // the oldest of all, but a cluster IP is its owner's
	w.set(thief)
	w.commit(t)
	var said []string
	for _, f := range w.model.Findings() {
		said = append(said, string(f.Kind)+" "+f.String())
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{
		"Clash service default/a: ExternalIPs 192.0.2.1:80/TCP belongs to Service default/older, which is older",
		"Clash service default/thief: ExternalIPs 10.96.0.1:80/TCP belongs to Service default/a, whose cluster IP it is",
		"BadInput service default/a: externalIP 127.0.0.1 is a loopback address",
		"BadInput service default/a: externalIP 2001:db8::1: the Service has no cluster IP of that family",
		`BadInput service default/older: externalIP "x" cannot be read`,
		"BadInput service default/a: EndpointSlice default/a-1: endpoint 169.254.0.7 is a link-local address",
		"BadInput service default/a: EndpointSlice default/a-1: endpoint 0.0.0.0 is the unspecified address",
		`BadInput service default/a: EndpointSlice default/a-1: address "10.0.0.300" cannot be read`,
		`BadInput service default/a: EndpointSlice default/a-1: port "none" (0/TCP) is none that a Service can have`,
		`Overflow service default/a: 1 of 2 frontends have no place`, // 192.0.2.1 is another's
	} {
		if !strings.Contains(all, want) {
			t.Errorf("nobody is told: %s", want)
		}
	}
	if t.Failed() {
		t.Log(all)
	}
}
