// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

// As SVC_INLINE and SVC_CHUNK of bpf/lib/lb.h.
const (
	inlineBackends = len(object.DatapathWeftSvc{}.Backends)
	chunkBackends  = len(object.DatapathWeftSvcChunk{}.Backends)
)

// As BACKEND_* of bpf/lib/lb.h.
const (
	backendTerminating = 1 << 0
	backendLocal       = 1 << 1
)

// kernelFlags are those that the programs know.
const kernelFlags = table.FrontendBoth | table.FrontendLocal | table.FrontendSources | table.FrontendMaglev

// frontendTypes are the numbers of types in the rows, for those who list them.
func frontendTypes() []table.FrontendType {
	return []table.FrontendType{
		"", table.FrontendClusterIP, table.FrontendNodePort, table.FrontendLoadBalancer, table.FrontendExternalIPs, table.FrontendHostPort,
	}
}

// row returns the key of a frontend and the map that it is in.
func (m *ServiceMap) row(k table.FrontendKey) (any, *ebpf.Map) {
	a := k.Addr.Addr()
	if a.Is4() {
		return object.DatapathWeftSvc4Key{Addr: raw4(a), Port: port(k.Addr.Port()), Proto: k.Proto, Scope: k.Scope}, m.svc4
	}
	return object.DatapathWeftSvc6Key{Addr: raw6(a), Port: port(k.Addr.Port()), Proto: k.Proto, Scope: k.Scope}, m.svc6
}

// encode checks a frontend and returns its row, without the number of a set.
func (m *ServiceMap) encode(f *table.Frontend) (serviceRow, error) {
	var r serviceRow
	switch {
	case !f.Key.Addr.IsValid() || f.Key.Addr.Addr().Is4In6() || f.Key.Addr.Addr().Zone() != "":
		return r, fmt.Errorf("%s is not an address of IPv4 or IPv6 with a port", f.Key.Addr)
	case f.Key.Addr.Port() == 0 || f.Key.Proto == 0:
		return r, fmt.Errorf("port and protocol must not be 0")
	case len(f.Backends) > MostBackends:
		return r, fmt.Errorf("%d backends: %w: a frontend takes %d; use several services", len(f.Backends), ErrFull, MostBackends)
	}
	own := m.memory.rows[f.Key].ids
	for _, b := range f.Backends {
		if err := m.check(f, b, own); err != nil {
			return r, err
		}
		r.ids = append(r.ids, b.ID)
	}
	sources, err := encodeSources(f)
	if err != nil {
		return r, err
	}
	r.sources = sources
	slices.Sort(r.ids)
	if n := len(slices.Compact(slices.Clone(r.ids))); n != len(r.ids) {
		return r, fmt.Errorf("%d of its backends have an id that another one has", len(r.ids)-n)
	}
	r.value = object.DatapathWeftSvc{
		Flags: f.Flags & kernelFlags, Service: f.ServiceID, Count: uint32(len(r.ids)),
		Type: uint8(max(0, slices.Index(frontendTypes(), f.Type))),
	}
	if f.Affinity > 0 {
		r.value.Affinity = ticks(f.Affinity+duration(1)-1, 0) // not shorter than was asked for
	}
	if len(r.ids) <= inlineBackends {
		copy(r.value.Backends[:], r.ids)
	}
	if f.Flags&table.FrontendMaglev != 0 && len(r.ids) > 1 && m.maglev.Size > 0 {
		r.value.Table, r.value.Slots, r.value.Seed = m.maglev.Digest(byID(f.Backends)), uint32(m.maglev.Size), m.maglev.Seed.Flow()
	}
	return r, nil
}

// check says what is wrong with a backend of a frontend, which has the ids own in
// the kernel. An id that was given again must not lead connections of other
// frontends to the new backend; that of the frontend itself may.
func (m *ServiceMap) check(f *table.Frontend, b table.BackendRef, own []uint32) error {
	switch {
	case !b.Addr.IsValid() || b.Addr.Addr().Is4() != f.Key.Addr.Addr().Is4() || b.Addr.Addr().Is4In6():
		return fmt.Errorf("backend %s is of another family", b.Addr)
	case b.Addr.Port() == 0 || b.Proto != f.Key.Proto:
		return fmt.Errorf("backend %s has no port, or another protocol", b.Addr)
	case b.ID == 0:
		return fmt.Errorf("backend %s has no id", b.Addr)
	case b.ID >= m.backends.MaxEntries():
		return fmt.Errorf("backend %s with id %d: map weft_be: %w: it holds %d entries; enlarge it (bpf-lb-map-max)",
			b.Addr, b.ID, ErrFull, m.backends.MaxEntries())
	}
	others := m.memory.refs[b.ID]
	if _, is := slices.BinarySearch(own, b.ID); is {
		others--
	}
	if old := m.memory.backends[b.ID]; others > 0 && old.Proto != 0 && (backendAddr(old) != b.Addr || old.Proto != b.Proto) {
		return fmt.Errorf("backend %s has id %d, which other frontends name for %s: they must change first", b.Addr, b.ID, backendAddr(old))
	}
	return nil
}

// encodeBackend returns the row of a backend. Its generation is new where the id
// was somebody else's or nobody's before.
func (m *ServiceMap) encodeBackend(b table.BackendRef) object.DatapathWeftBackend {
	old := m.memory.backends[b.ID]
	v := object.DatapathWeftBackend{Addr: mapped(b.Addr.Addr()), Port: port(b.Addr.Port()), Proto: b.Proto, Generation: old.Generation}
	if old.Addr != v.Addr || old.Port != v.Port || old.Proto != v.Proto {
		v.Generation++
	}
	if b.Terminating {
		v.Flags |= backendTerminating
	}
	if b.Local {
		v.Flags |= backendLocal
	}
	return v
}

func backendAddr(v object.DatapathWeftBackend) netip.AddrPort {
	return netip.AddrPortFrom(unmapped(v.Addr), port(v.Port))
}

// setChunks cuts the backends of a set into entries of the map.
func setChunks(set uint32, ids []uint32) ([]object.DatapathWeftSvcsetKey, []object.DatapathWeftSvcChunk) {
	var keys []object.DatapathWeftSvcsetKey
	var chunks []object.DatapathWeftSvcChunk
	for part := range slices.Chunk(ids, chunkBackends) {
		var c object.DatapathWeftSvcChunk
		copy(c.Backends[:], part)
		keys = append(keys, object.DatapathWeftSvcsetKey{Set: set, Chunk: uint32(len(keys))})
		chunks = append(chunks, c)
	}
	return keys, chunks
}

// read returns all rows, and backends by id: cleared ones with their generation.
func (m *ServiceMap) read() (map[table.FrontendKey]serviceRow, map[uint32]object.DatapathWeftBackend, error) {
	keys4, rows4, err := dump[object.DatapathWeftSvc4Key, object.DatapathWeftSvc](m.svc4)
	if err != nil {
		return nil, nil, err
	}
	keys6, rows6, err := dump[object.DatapathWeftSvc6Key, object.DatapathWeftSvc](m.svc6)
	if err != nil {
		return nil, nil, err
	}
	// After the rows: what they name was written before them.
	setKeys, setRows, err := dump[object.DatapathWeftSvcsetKey, object.DatapathWeftSvcChunk](m.sets)
	if err != nil {
		return nil, nil, err
	}
	sets := make(map[object.DatapathWeftSvcsetKey]object.DatapathWeftSvcChunk, len(setKeys))
	for i, k := range setKeys {
		sets[k] = setRows[i]
	}
	rows := make(map[table.FrontendKey]serviceRow, len(keys4)+len(keys6))
	for i, k := range keys4 {
		rows[table.FrontendKey{Addr: netip.AddrPortFrom(addr4(k.Addr), port(k.Port)), Proto: k.Proto, Scope: k.Scope}] = withIDs(rows4[i], sets)
	}
	for i, k := range keys6 {
		rows[table.FrontendKey{Addr: netip.AddrPortFrom(addr6(k.Addr), port(k.Port)), Proto: k.Proto, Scope: k.Scope}] = withIDs(rows6[i], sets)
	}
	sources, err := m.readSources()
	if err != nil {
		return nil, nil, err
	}
	withSources(rows, sources)
	backends := map[uint32]object.DatapathWeftBackend{}
	err = batches(m.backends, func(ids []uint32, vals []object.DatapathWeftBackend) bool {
		for i, v := range vals {
			if v != (object.DatapathWeftBackend{}) {
				backends[ids[i]] = v
			}
		}
		return true
	})
	return rows, backends, err
}

// withIDs finds the backends of a row. Of a set that was replaced while it was
// read, some are missing.
func withIDs(v object.DatapathWeftSvc, sets map[object.DatapathWeftSvcsetKey]object.DatapathWeftSvcChunk) serviceRow {
	r := serviceRow{value: v}
	if v.Set == 0 {
		r.ids = slices.Clone(v.Backends[:min(int(v.Count), inlineBackends)])
		return r
	}
	for i := range min(v.Count, MostBackends) {
		c, ok := sets[object.DatapathWeftSvcsetKey{Set: v.Set, Chunk: i / uint32(chunkBackends)}]
		if ok {
			r.ids = append(r.ids, c.Backends[i%uint32(chunkBackends)])
		}
	}
	return r
}

func decodeFrontend(key table.FrontendKey, r serviceRow, backends map[uint32]object.DatapathWeftBackend) table.Frontend {
	f := table.Frontend{Key: key, ServiceID: r.value.Service, Flags: r.value.Flags, SourceRanges: r.sources}
	if t := frontendTypes(); int(r.value.Type) < len(t) {
		f.Type = t[r.value.Type]
	}
	if r.value.Affinity != 0 {
		f.Affinity = duration(int64(r.value.Affinity)).Round(time.Second)
	}
	for _, id := range r.ids {
		v, ok := backends[id]
		if !ok || v.Proto == 0 {
			continue
		}
		f.Backends = append(f.Backends, table.BackendRef{
			ID: id, Addr: backendAddr(v), Proto: v.Proto,
			Terminating: v.Flags&backendTerminating != 0, Local: v.Flags&backendLocal != 0,
		})
	}
	return f
}
