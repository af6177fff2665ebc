// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/arrival"
	"github.com/weft-net/weft/internal/table"
)

// Config of a Model.
type Config struct {
	Node       string // the name of this node
	IPv4, IPv6 bool   // families that are on; frontends of others are left out
	// MaxFrontends bounds the rows of each family, MaxBackends those of both together.
	MaxFrontends, MaxBackends int
	Maglev                    Maglev
}

// Maglev says which Services spread what comes from outside by Maglev tables, and how
// many tables there may be. Its zero value says none.
type Maglev struct {
	Default     bool // those whose annotation says nothing
	Annotations bool // annotations are looked at
	MaxTables   int
	Slots       int // of each table; a service with more backends gets none
}

// Change is one row that is new or different, or gone.
type Change struct {
	Row     *table.Frontend // gone: as it was last
	Deleted bool
	Arrived time.Time // of the first event behind it; zero: none
}

// Model holds what is known of Services, and the frontends that follow. Its
// methods are called from one goroutine at a time. Rows that it is given and that
// it gives are not changed by anybody.
type Model struct {
	cfg      Config
	zone     string
	services map[string]*svc       // by namespace/name
	sliceOf  map[string]string     // slice -> Service that it is filed under
	claims   map[claimKey][]*claim // all who want a frontend; the first has it, see holder
	pods     map[*svc]struct{}     // with hostPorts
	ids      numbers               // of Services' ports
	restored map[table.FrontendKey]uint32
	resumed  map[uint32]bool // restored numbers that a port has taken
	backends *backends
	count    [2]int // rows, by family: IPv4, IPv6
	serving  int    // Services with rows
	tables   int    // of Maglev, that rows need

	dirty   map[*svc]time.Time // to be evaluated, with the arrival of the first event
	waiting map[*svc]struct{}  // that did not get all, for want of room
	trouble map[*svc]struct{}  // that have findings
	news    bool               // findings changed since TakeNews
	changes map[table.FrontendKey]Change
}

// svc is one Service, or the slices of one that is not known.
type svc struct {
	name     string
	row      *table.Service         // nil: not known
	ofPod    bool                   // row stands for the hostPorts of pod
	pod      *podPorts              // nil: it is gone
	slices   []*table.EndpointSlice // by name
	claims   []*claim               // what it wants, in the order of preference
	unread   []Finding              // of the Service's own addresses
	findings []Finding
	ids      []portID
	held     []uint32          // backends that it names, sorted
	tables   int               // of Maglev, that its rows need
	rows     []*table.Frontend // in the order of its claims
}

// portID is the number of one port of a Service in one family.
type portID struct {
	name  string
	proto uint8
	v6    bool
	id    uint32
}

// New returns a model that knows nothing.
func New(cfg Config) *Model {
	return &Model{
		cfg: cfg, services: map[string]*svc{}, sliceOf: map[string]string{}, claims: map[claimKey][]*claim{}, pods: map[*svc]struct{}{},
		// Each port has a row at least, so that these are enough with all rows in use,
		// and as many given back a moment ago.
		ids: newNumbers(uint32(4 * cfg.MaxFrontends)), backends: newBackends(uint32(cfg.MaxBackends)),
		dirty: map[*svc]time.Time{}, waiting: map[*svc]struct{}{}, trouble: map[*svc]struct{}{},
		changes: map[table.FrontendKey]Change{},
	}
}

// Restore takes over the numbers that rows in the kernel carry, before anything
// else is told. They stay reserved until Settle.
func (m *Model) Restore(rows []table.Frontend) {
	m.backends.restore(rows)
	m.restored, m.resumed = map[table.FrontendKey]uint32{}, map[uint32]bool{}
	var used []uint32
	for _, r := range rows {
		if r.ServiceID != 0 && r.ServiceID <= m.ids.max {
			m.restored[r.Key] = r.ServiceID
			used = append(used, r.ServiceID)
		}
	}
	slices.Sort(used)
	m.ids.resume(slices.Compact(used))
}

// Settle gives up what was restored and that nobody took. It is called once all
// Services and slices are told and committed.
func (m *Model) Settle() {
	for _, id := range m.restored {
		if !m.resumed[id] {
			m.resumed[id] = true // several rows may carry it
			m.ids.put(id)
		}
	}
	m.restored, m.resumed = nil, nil // read only from now on
	if m.backends.abandon() {
		m.retry()
	}
}

// SetZone says in which zone this node is; empty: in none.
func (m *Model) SetZone(zone string, arrived time.Time) {
	if m.zone == zone {
		return
	}
	m.zone = zone
	for _, s := range m.services {
		if s.row != nil {
			m.touch(s, arrived)
		}
	}
}

// SetService tells of a Service that is new or different.
func (m *Model) SetService(row *table.Service, arrived time.Time) {
	s := m.service(row.FullName())
	s.row = row
	m.reclaim(s, arrived)
}

// DeleteService tells of a Service that is gone. Its slices stay until they go.
func (m *Model) DeleteService(namespace, name string, arrived time.Time) {
	s := m.service(namespace + "/" + name)
	s.row = nil
	m.reclaim(s, arrived)
}

// SetSlice tells of a slice that is new or different.
func (m *Model) SetSlice(row *table.EndpointSlice, arrived time.Time) {
	owner := row.Namespace + "/" + row.Service
	if was, had := m.sliceOf[row.FullName()]; had && was != owner {
		m.DeleteSlice(row.Namespace, row.Name, arrived)
	}
	m.sliceOf[row.FullName()] = owner
	s := m.service(owner)
	at, found := s.slice(row.Name)
	if found {
		s.slices[at] = row
	} else {
		s.slices = slices.Insert(s.slices, at, row)
	}
	m.touch(s, arrived)
}

// DeleteSlice tells of a slice that is gone.
func (m *Model) DeleteSlice(namespace, name string, arrived time.Time) {
	owner, had := m.sliceOf[namespace+"/"+name]
	if !had {
		return
	}
	delete(m.sliceOf, namespace+"/"+name)
	s := m.service(owner)
	if at, found := s.slice(name); found {
		s.slices = slices.Delete(s.slices, at, at+1)
	}
	m.touch(s, arrived)
}

func (s *svc) slice(name string) (int, bool) {
	return slices.BinarySearchFunc(s.slices, name, func(e *table.EndpointSlice, name string) int { return cmp.Compare(e.Name, name) })
}

func (m *Model) service(name string) *svc {
	s := m.services[name]
	if s == nil {
		s = &svc{name: name}
		m.services[name] = s
	}
	return s
}

func (m *Model) touch(s *svc, arrived time.Time) {
	m.dirty[s] = arrival.Earlier(m.dirty[s], arrived)
}

// Commit works out what was told since the last one, and returns the rows that
// changed: upserts first, and those for traffic from inside before those for
// all, so that a frontend that gets or loses a row of its own for the inside is
// never without any.
func (m *Model) Commit() []Change {
	// New ones: to clear a map costs as much as it was ever large.
	m.changes = map[table.FrontendKey]Change{}
	freed := false
	for _, s := range m.byAge() {
		freed = m.evaluate(s, m.dirty[s]) || freed
		if s.row == nil && len(s.slices) == 0 {
			delete(m.services, s.name)
		}
	}
	m.dirty = map[*svc]time.Time{}
	if m.backends.settle() || freed {
		m.retry()
	}
	out := make([]Change, 0, len(m.changes))
	for _, c := range m.changes {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Change) int {
		if a.Deleted != b.Deleted {
			if b.Deleted {
				return -1
			}
			return 1
		}
		return cmp.Or(-cmp.Compare(a.Row.Key.Scope, b.Row.Key.Scope), cmp.Compare(a.Row.ServiceID, b.Row.ServiceID),
			a.Row.Key.Addr.Compare(b.Row.Key.Addr), cmp.Compare(a.Row.Key.Proto, b.Row.Key.Proto))
	})
	return out
}

// Stats count what a Model holds.
type Stats struct {
	Services  int // with a frontend at least; hostPorts' are of none
	Frontends int // rows
	Backends  int // that have an id
}

// Stats returns the counts of the last Commit.
func (m *Model) Stats() Stats {
	return Stats{Services: m.serving, Frontends: m.count[0] + m.count[1], Backends: len(m.backends.byKey)}
}

// Pending tells that another Commit has work to do: something became free that
// others wait for.
func (m *Model) Pending() bool { return len(m.dirty) > 0 }

// byAge lists what is to be evaluated, the older first: where there is no room
// for all, it is the older that have it.
func (m *Model) byAge() []*svc {
	out := make([]*svc, 0, len(m.dirty))
	for s := range m.dirty {
		out = append(out, s)
	}
	slices.SortFunc(out, older)
	return out
}

// older orders Services by what decides between them; one that is gone comes
// first, as it makes room.
func older(a, b *svc) int {
	switch {
	case a.row != nil && b.row != nil:
		return cmp.Or(a.row.Created.Compare(b.row.Created), cmp.Compare(a.row.Namespace, b.row.Namespace), cmp.Compare(a.row.Name, b.row.Name))
	case a.row == nil && b.row == nil:
		return cmp.Compare(a.name, b.name)
	case a.row == nil:
		return -1
	}
	return 1
}

// retry has those evaluated again that did not get all that they want.
func (m *Model) retry() {
	for s := range m.waiting {
		m.touch(s, time.Time{})
	}
}

// Known is a backend that has an id, for those who keep what the kernel knows of
// it: named by a row, or by a slice that does not count at the moment.
func (m *Model) Known(addr netip.AddrPort, proto uint8) (id uint32, ok bool) {
	id, ok = m.backends.byKey[backendKey{addr, proto}]
	return id, ok
}
