// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/service/maglev"
	"github.com/weft-net/weft/internal/table"
)

// MostBackends is how many backends one frontend may have: what svc_has of
// bpf/lib/lb.h finds its way through.
const MostBackends = 1 << 16

// ServiceMap is weft_svc4, weft_svc6, weft_svcset, weft_maglev and weft_be: frontends
// with their backends. It remembers what the kernel holds, so that a backend is written
// before the first row names it and cleared after the last does not. Its methods
// may be called from several goroutines.
type ServiceMap struct {
	svc4, svc6, sets, backends, sockets, affinity *ebpf.Map
	sources4, sources6, tables                    *ebpf.Map

	mu     sync.Mutex
	keep   func(netip.AddrPort, uint8) bool // see Keep; nil: none
	memory *serviceMemory                   // nil: not read yet
	gone   []Gone
	maglev maglev.Table // see SetMaglev
}

// Gone is a backend that a frontend had and has no more.
type Gone struct {
	Frontend table.FrontendKey
	Backend  netip.AddrPort
}

// serviceMemory is what the kernel holds.
type serviceMemory struct {
	rows     map[table.FrontendKey]serviceRow
	backends map[uint32]object.DatapathWeftBackend // proto 0: cleared, with its generation
	refs     map[uint32]int                        // backend → rows that name it
	sources  map[source]int                        // range → rows that name it
	lastSet  uint32
	tables   map[uint64]*maglevTable
}

// serviceRow is a row and the backends that it names, by itself or in its set.
type serviceRow struct {
	value   object.DatapathWeftSvc
	ids     []uint32
	sources []netip.Prefix // sorted
}

// Keep has backends that no frontend names stay known for as long as f says so of
// their address and protocol: connections to one that shuts down, or is not ready for
// a moment, go on. What f says no more of is cleared by the next Prune.
func (m *ServiceMap) Keep(f func(netip.AddrPort, uint8) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep = f
}

func (m *ServiceMap) kept(b object.DatapathWeftBackend) bool {
	return m.keep != nil && m.keep(backendAddr(b), b.Proto)
}

// Upsert writes a frontend together with its backends: until it returns connections
// get what was there before, and from then on only the new ones. One that does not
// fit is refused by an error that wraps ErrFull, and leaves everything as it was.
func (m *ServiceMap) Upsert(f table.Frontend) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.remember(); err != nil {
		return fmt.Errorf("frontend %s: %w", f.Key, err)
	}
	if err := m.upsert(&f); err != nil {
		return fmt.Errorf("frontend %s of service %s: %w", f.Key, f.Name(), err)
	}
	return nil
}

func (m *ServiceMap) upsert(f *table.Frontend) error {
	want, err := m.encode(f)
	if err != nil {
		return err
	}
	had, exists := m.memory.rows[f.Key]
	if exists && had.value.Set != 0 && slices.Equal(had.ids, want.ids) {
		want.value.Set = had.value.Set
	}
	for _, id := range want.ids {
		m.memory.refs[id]++
	}
	m.moved(f, had.ids)
	err = errors.Join(m.putBackends(f.Backends), m.putSources(want))
	if err == nil && len(want.ids) > inlineBackends && want.value.Set == 0 {
		want.value.Set, err = m.putSet(want.ids)
	}
	var noTable error // the row goes without it: at random is better than not at all
	if err == nil {
		noTable = m.putTable(&want.value, f)
		err = m.put(f.Key, want.value)
	}
	if err != nil {
		if want.value.Set != had.value.Set {
			err = errors.Join(err, m.removeSet(want.value.Set, len(want.ids)))
		}
		return errors.Join(err, m.release(want.ids), m.releaseSources(want), m.releaseTable(want.value))
	}
	m.memory.rows[f.Key] = want
	if !exists {
		return noTable
	}
	return errors.Join(noTable, m.outdated(f.Key, had, want))
}

// moved notes backends whose ids the frontend's own new ones take over.
func (m *ServiceMap) moved(f *table.Frontend, had []uint32) {
	for _, b := range f.Backends {
		old := m.memory.backends[b.ID]
		if _, own := slices.BinarySearch(had, b.ID); own && old.Proto != 0 && backendAddr(old) != b.Addr {
			m.gone = append(m.gone, Gone{f.Key, backendAddr(old)})
		}
	}
}

// outdated lets go of what only the old row named.
func (m *ServiceMap) outdated(key table.FrontendKey, had, now serviceRow) error {
	for _, id := range had.ids {
		if _, kept := slices.BinarySearch(now.ids, id); !kept {
			m.gone = append(m.gone, Gone{key, backendAddr(m.memory.backends[id])})
		}
	}
	var err error
	if had.value.Set != 0 && had.value.Set != now.value.Set {
		err = m.removeSet(had.value.Set, len(had.ids))
	}
	return errors.Join(err, m.release(had.ids), m.releaseSources(had), m.releaseTable(had.value))
}

// Delete removes a frontend; one that is not there is no error.
func (m *ServiceMap) Delete(key table.FrontendKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.remember()
	if err == nil {
		err = m.delete(key)
	}
	if err != nil {
		return fmt.Errorf("frontend %s: %w", key, err)
	}
	return nil
}

func (m *ServiceMap) delete(key table.FrontendKey) error {
	k, in := m.row(key)
	if err := remove(in, k); err != nil {
		return err
	}
	had, exists := m.memory.rows[key]
	if !exists {
		return nil
	}
	delete(m.memory.rows, key)
	return m.outdated(key, had, serviceRow{})
}

// Prune makes the maps hold these frontends and no others. It reads them anew, so
// that what somebody else changed is put right too.
func (m *ServiceMap) Prune(desired []table.Frontend) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.memory = nil
	if err := m.remember(); err != nil {
		return fmt.Errorf("frontends: %w", err)
	}
	keep := make(map[table.FrontendKey]*table.Frontend, len(desired))
	for i := range desired {
		keep[desired[i].Key] = &desired[i]
	}
	var errs []error
	for key := range m.memory.rows {
		if keep[key] == nil {
			errs = append(errs, m.delete(key))
		}
	}
	for key, f := range keep {
		if m.holds(f) {
			continue
		}
		if err := m.upsert(f); err != nil {
			errs = append(errs, fmt.Errorf("frontend %s of service %s: %w", key, f.Name(), err))
		}
	}
	return errors.Join(append(errs, m.pruneBackends(), m.pruneSets(), m.pruneSources(), m.pruneTables())...)
}

// holds tells whether the kernel has a frontend as it is to be.
func (m *ServiceMap) holds(f *table.Frontend) bool {
	want, err := m.encode(f)
	if err != nil {
		return false // upsert will say why
	}
	had, exists := m.memory.rows[f.Key]
	want.value.Set = had.value.Set
	if !exists || want.value != had.value || !m.hasTable(want.value) || !slices.Equal(want.ids, had.ids) || !slices.Equal(want.sources, had.sources) {
		return false
	}
	for _, b := range f.Backends {
		if m.memory.backends[b.ID] != m.encodeBackend(b) {
			return false
		}
	}
	return true
}

// TakeGone returns which backends frontends have lost since the last call.
func (m *ServiceMap) TakeGone() []Gone {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.gone
	m.gone = nil
	return g
}

// Count returns how many frontends there are, and how many backends they name.
func (m *ServiceMap) Count() (frontends, backends int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.memory == nil {
		return 0, 0
	}
	return len(m.memory.rows), len(m.memory.refs)
}

// putBackends writes those backends that the kernel does not have yet.
func (m *ServiceMap) putBackends(refs []table.BackendRef) error {
	var ids []uint32
	var values []object.DatapathWeftBackend
	for _, b := range refs {
		if v := m.encodeBackend(b); m.memory.backends[b.ID] != v {
			ids, values = append(ids, b.ID), append(values, v)
		}
	}
	return m.write(ids, values)
}

// release takes one reference back from each backend, and clears those that have
// none left. Their generations stay, so that the next use of the id has another.
func (m *ServiceMap) release(ids []uint32) error {
	var free []uint32
	var values []object.DatapathWeftBackend
	for _, id := range ids {
		m.memory.refs[id]--
		if m.memory.refs[id] > 0 {
			continue
		}
		delete(m.memory.refs, id)
		if old := m.memory.backends[id]; old.Proto != 0 && !m.kept(old) {
			free, values = append(free, id), append(values, object.DatapathWeftBackend{Generation: old.Generation})
		}
	}
	return m.write(free, values)
}

// write puts backends into the kernel and remembers that.
func (m *ServiceMap) write(ids []uint32, values []object.DatapathWeftBackend) error {
	if len(ids) == 0 {
		return nil
	}
	if _, err := m.backends.BatchUpdate(ids, values, nil); err != nil {
		return fmt.Errorf("map weft_be: %w", err)
	}
	for i, id := range ids {
		m.memory.backends[id] = values[i]
	}
	return nil
}

// putSet writes a set that nobody names yet.
func (m *ServiceMap) putSet(ids []uint32) (uint32, error) {
	m.memory.lastSet++
	if m.memory.lastSet == 0 {
		m.memory.lastSet = 1
	}
	set := m.memory.lastSet
	keys, chunks := setChunks(set, ids)
	if _, err := m.sets.BatchUpdate(keys, chunks, nil); err != nil {
		if errors.Is(err, syscall.E2BIG) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.ENOMEM) {
			err = fmt.Errorf("%w: it holds %d times %d backends of frontends with more than %d; enlarge it (bpf-lb-map-max)",
				ErrFull, m.sets.MaxEntries(), chunkBackends, inlineBackends)
		}
		return set, fmt.Errorf("map weft_svcset: %w", err)
	}
	return set, nil
}

func (m *ServiceMap) removeSet(set uint32, backends int) error {
	var errs []error
	for chunk := range (backends + chunkBackends - 1) / chunkBackends {
		errs = append(errs, remove(m.sets, object.DatapathWeftSvcsetKey{Set: set, Chunk: uint32(chunk)}))
	}
	return errors.Join(errs...)
}

// put writes the row alone.
func (m *ServiceMap) put(key table.FrontendKey, v object.DatapathWeftSvc) error {
	k, in := m.row(key)
	err := put(in, k, v)
	if errors.Is(err, ErrFull) {
		err = fmt.Errorf("%w (bpf-lb-map-max)", err)
	}
	return err
}

// remember reads what the kernel holds, once.
func (m *ServiceMap) remember() error {
	if m.memory != nil {
		return nil
	}
	rows, backends, err := m.read()
	if err != nil {
		return err
	}
	mem := &serviceMemory{rows: rows, backends: backends, refs: map[uint32]int{}, sources: map[source]int{}}
	for _, r := range rows {
		mem.lastSet = max(mem.lastSet, r.value.Set)
		for _, id := range r.ids {
			mem.refs[id]++
		}
		for _, p := range r.sources {
			mem.sources[source{r.value.Service, p}]++
		}
	}
	keys, _, err := dump[object.DatapathWeftSvcsetKey, object.DatapathWeftSvcChunk](m.sets)
	if err != nil {
		return err
	}
	for _, k := range keys { // those that nobody names: an agent was killed half-way
		mem.lastSet = max(mem.lastSet, k.Set)
	}
	if mem.tables, err = m.readTables(rows); err != nil {
		return err
	}
	m.memory = mem
	return nil
}

// pruneBackends clears the backends that no row names.
func (m *ServiceMap) pruneBackends() error {
	var ids []uint32
	var values []object.DatapathWeftBackend
	for id, b := range m.memory.backends {
		if b.Proto != 0 && m.memory.refs[id] == 0 && !m.kept(b) {
			ids, values = append(ids, id), append(values, object.DatapathWeftBackend{Generation: b.Generation})
		}
	}
	return m.write(ids, values)
}

// pruneSets deletes the sets that no row names.
func (m *ServiceMap) pruneSets() error {
	named := map[uint32]bool{}
	for _, r := range m.memory.rows {
		named[r.value.Set] = true
	}
	keys, _, err := dump[object.DatapathWeftSvcsetKey, object.DatapathWeftSvcChunk](m.sets)
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range keys {
		if !named[k.Set] {
			errs = append(errs, remove(m.sets, k))
		}
	}
	return errors.Join(errs...)
}

// List returns all frontends, as far as the kernel knows them: their addresses,
// not the names of their services. It reads the maps and not the memory of them.
func (m *ServiceMap) List() ([]table.Frontend, error) {
	rows, backends, err := m.read()
	if err != nil {
		return nil, err
	}
	out := make([]table.Frontend, 0, len(rows))
	for key, r := range rows {
		out = append(out, decodeFrontend(key, r, backends))
	}
	slices.SortFunc(out, func(a, b table.Frontend) int { return compareKeys(a.Key, b.Key) })
	return out, nil
}

func compareKeys(a, b table.FrontendKey) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Scope, b.Scope))
}
