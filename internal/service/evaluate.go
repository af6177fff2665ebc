// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/table"
)

// mostFindings bounds what is said about one Service.
const mostFindings = 8

// evaluation is the work on one Service.
type evaluation struct {
	m    *Model
	s    *svc
	ids  []portID
	held []uint32
	rows []*table.Frontend

	choices map[choiceKey]*choice
	noRoom  []*claim // frontends without a row
	missing int      // backends without an id

	tables  map[tableKey]bool // false: there is no room for it
	crowded []string          // frontends with more backends than slots
}

// evaluate brings the rows of a Service up to date. It reports whether any
// of them is gone, which makes room.
func (m *Model) evaluate(s *svc, arrived time.Time) (freed bool) {
	delete(m.waiting, s)
	for _, r := range s.rows {
		m.count[family(r.Key.Addr.Addr().Is6())]--
	}
	m.tables -= s.tables
	e := evaluation{m: m, s: s, choices: map[choiceKey]*choice{}, tables: map[tableKey]bool{}}
	for _, c := range s.claims {
		if m.holder(c) == c {
			e.add(c)
		}
	}
	slices.Sort(e.held)
	e.held = slices.Compact(e.held) // two ports may lead to one
	m.backends.hold(e.held, s.held)
	for _, p := range s.ids {
		if !slices.Contains(e.ids, p) {
			m.ids.put(p.id)
		}
	}
	tables, refused := e.countTables()
	freed = m.publish(s, e.rows, arrived) || tables < s.tables
	s.tables = tables
	m.tables += tables
	if !s.ofPod {
		m.serving += some(e.rows) - some(s.rows)
	}
	s.ids, s.held, s.rows = e.ids, e.held, e.rows
	if len(e.noRoom) > 0 || e.missing > 0 || refused > 0 {
		m.waiting[s] = struct{}{}
	}
	was := s.findings
	s.findings = e.findings()
	m.news = m.news || !slices.Equal(was, s.findings)
	delete(m.trouble, s)
	if len(s.findings) > 0 {
		m.trouble[s] = struct{}{}
	}
	return freed
}

// some is 1 if there are any.
func some(rows []*table.Frontend) int { return min(len(rows), 1) }

// publish notes what differs between the rows of a Service and those that it had;
// it replaces new ones that are equal to old ones by these. It reports whether
// any is gone.
func (m *Model) publish(s *svc, rows []*table.Frontend, arrived time.Time) (gone bool) {
	old := make(map[table.FrontendKey]*table.Frontend, len(s.rows))
	for _, r := range s.rows {
		old[r.Key] = r
	}
	for i, r := range rows {
		was := old[r.Key]
		delete(old, r.Key)
		if was != nil && was.Equal(r) {
			rows[i] = was
			continue
		}
		m.changes[r.Key] = Change{Row: r, Arrived: arrived}
	}
	for key, r := range old {
		gone = true
		// One that went to another Service in this commit is not gone.
		if _, is := m.changes[key]; !is {
			m.changes[key] = Change{Row: r, Deleted: true, Arrived: arrived}
		}
	}
	return gone
}

// add makes the rows of a frontend.
func (e *evaluation) add(c *claim) {
	row, v6 := e.s.row, c.key.addr.Addr().Is6()
	scopes := e.scopes(c)
	if e.m.count[family(v6)]+len(scopes) > e.m.cfg.MaxFrontends {
		e.noRoom = append(e.noRoom, c)
		return
	}
	id := e.portID(c)
	if id == 0 {
		e.noRoom = append(e.noRoom, c)
		return
	}
	ch := e.choice(c.port, v6)
	for _, s := range scopes {
		f := &table.Frontend{
			Key:       table.FrontendKey{Addr: c.key.addr, Proto: c.key.proto, Scope: s.scope},
			Namespace: row.Namespace, Service: row.Name, PortName: row.Ports[c.port].Name, Type: c.typ,
			ServiceID: id, Affinity: row.Affinity, Flags: s.flags, Backends: e.backends(ch, s.flags&table.FrontendLocal != 0),
		}
		if c.typ == table.FrontendLoadBalancer && row.Restricted {
			f.Flags |= table.FrontendSources
			f.SourceRanges = ofFamily(row.SourceRanges, v6)
		}
		if e.spreads(c, f) {
			f.Flags |= table.FrontendMaglev
		}
		e.rows = append(e.rows, f)
		e.m.count[family(v6)]++
	}
}

type scope struct {
	scope uint8
	flags uint32
}

// scopes says which rows a frontend has. externalTrafficPolicy Local is about
// what comes from outside: pods and nodes that use an external address reach all
// backends, as if the load balancer had brought them to the right node.
func (e *evaluation) scopes(c *claim) []scope {
	if c.typ == table.FrontendClusterIP {
		if e.s.row.InternalLocal {
			return []scope{{table.ScopeExternal, table.FrontendBoth | table.FrontendLocal}}
		}
	} else if e.s.row.ExternalLocal {
		return []scope{{table.ScopeExternal, table.FrontendLocal}, {table.ScopeInternal, 0}}
	}
	return []scope{{table.ScopeExternal, table.FrontendBoth}}
}

// portID returns the number of the claim's port: what it has, what the kernel
// had under one of its frontends, or a new one; 0: there is none.
func (e *evaluation) portID(c *claim) uint32 {
	m, p := e.m, e.s.row.Ports[c.port]
	want := portID{name: p.Name, proto: p.Proto, v6: c.key.addr.Addr().Is6()}
	same := func(o portID) bool { return o.name == want.name && o.proto == want.proto && o.v6 == want.v6 }
	if i := slices.IndexFunc(e.ids, same); i >= 0 {
		return e.ids[i].id
	}
	if i := slices.IndexFunc(e.s.ids, same); i >= 0 {
		want.id = e.s.ids[i].id
	} else if want.id = m.claimRestored(c.key); want.id == 0 {
		want.id = m.ids.take()
	}
	if want.id != 0 {
		e.ids = append(e.ids, want)
	}
	return want.id
}

// claimRestored returns the number that a frontend had in the kernel, unless
// another port has taken it over: its frontends may have gone different ways.
func (m *Model) claimRestored(key claimKey) uint32 {
	for _, scope := range []uint8{table.ScopeExternal, table.ScopeInternal} {
		id := m.restored[table.FrontendKey{Addr: key.addr, Proto: key.proto, Scope: scope}]
		if id != 0 && !m.resumed[id] {
			m.resumed[id] = true
			return id
		}
	}
	return 0
}

type choiceKey struct {
	port int
	v6   bool
}

// choice are the backends of a port in a family, worked out as they are asked for:
// with internalTrafficPolicy Local, those of other nodes need no ids.
type choice struct {
	all            []candidate
	cluster, local []table.BackendRef // nil: not asked for yet
	missing        map[backendKey]bool
}

func (e *evaluation) choice(port int, v6 bool) *choice {
	key := choiceKey{port, v6}
	if ch := e.choices[key]; ch != nil {
		return ch
	}
	ch := &choice{all: e.s.candidates(e.s.row.Ports[port], v6)}
	for _, c := range ch.all {
		if id := e.m.backends.byKey[c.key]; id != 0 {
			e.held = append(e.held, id)
		}
	}
	e.choices[key] = ch
	return ch
}

func (e *evaluation) backends(ch *choice, local bool) []table.BackendRef {
	if local {
		if ch.local == nil {
			ch.local = e.refs(ch, pick(ch.all, func(ep *table.SliceEndpoint) bool { return ep.Node == e.m.cfg.Node }))
		}
		return ch.local
	}
	if ch.cluster == nil {
		ch.cluster = e.refs(ch, pick(ch.all, e.m.hinted(ch.all)))
	}
	return ch.cluster
}

// refs gives the picked ones their ids, and orders them by these.
func (e *evaluation) refs(ch *choice, picked []candidate) []table.BackendRef {
	out := make([]table.BackendRef, 0, len(picked))
	for _, c := range picked {
		id := e.m.backends.get(c.key)
		if id == 0 {
			e.miss(ch, c.key)
			continue
		}
		e.held = append(e.held, id)
		out = append(out, table.BackendRef{
			ID: id, Addr: c.key.addr, Proto: c.key.proto, Terminating: !c.ep.Ready,
			Local: c.ep.Node == e.m.cfg.Node, Node: c.ep.Node, Zone: c.ep.Zone,
		})
	}
	slices.SortFunc(out, func(a, b table.BackendRef) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// miss counts a backend that got no id, once for both policies.
func (e *evaluation) miss(ch *choice, key backendKey) {
	if ch.missing == nil {
		ch.missing = map[backendKey]bool{}
	}
	if !ch.missing[key] {
		ch.missing[key] = true
		e.missing++
	}
}

// findings names what is wrong with a Service and its slices, the worst first.
func (e *evaluation) findings() (out []Finding) {
	s, cfg := e.s, e.m.cfg
	say := func(kind Kind, format string, args ...any) {
		out = append(out, Finding{Kind: kind, Service: s.name, Pod: s.pod != nil, Message: fmt.Sprintf(format, args...)})
	}
	if n := len(e.noRoom); n > 0 {
		c := e.noRoom[0]
		say(Overflow, "%d of %d frontends have no place, %s %s/%s among them: all %d rows of the family are in use: raise bpf.lbMapMax or remove Services",
			n, len(s.claims), c.typ, c.key.addr, table.ProtoName(c.key.proto), cfg.MaxFrontends)
	}
	if e.missing > 0 {
		say(Overflow, "%d backends have no place and get no connections: all %d are in use: raise bpf.lbMapMax or remove endpoints",
			e.missing, cfg.MaxBackends)
	}
	out = append(out, e.tableFindings()...)
	if len(s.claims) > 0 {
		out = append(out, e.m.lost(s)...)
		for _, sl := range s.slices {
			out = append(out, unreadable(s.name, sl)...)
		}
	}
	out = append(out, s.unread...)
	if more := len(out) - mostFindings; more > 0 {
		out = out[:mostFindings]
		say(out[mostFindings-1].Kind, "and %d more of the like", more)
	}
	return out
}

// unreadable names what a slice has that nothing can be sent to.
func unreadable(service string, sl *table.EndpointSlice) (out []Finding) {
	bad := func(what, why string) {
		out = append(out, Finding{
			Kind: BadInput, Service: service,
			Message: fmt.Sprintf("EndpointSlice %s: %s %s: it is left out, correct what writes the slice", sl.FullName(), what, why),
		})
	}
	for _, g := range sl.Garbage {
		bad(g, "cannot be read")
	}
	for i := range sl.Endpoints {
		if why := unfit(&sl.Endpoints[i], sl.V6); why != "" {
			bad("endpoint "+sl.Endpoints[i].Addr.String(), why)
		}
	}
	for _, p := range sl.Ports {
		if p.Port < 1 || p.Port > 65535 || p.Proto == 0 {
			bad(fmt.Sprintf("port %q (%d/%s)", p.Name, p.Port, table.ProtoName(p.Proto)), "is none that a Service can have")
		}
	}
	return out
}

func ofFamily(ranges []netip.Prefix, v6 bool) (out []netip.Prefix) {
	for _, p := range ranges {
		if p.Addr().Is6() == v6 {
			out = append(out, p)
		}
	}
	return out
}
