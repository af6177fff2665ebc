// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/service/maglev"
	"github.com/weft-net/weft/internal/table"
)

// maglevChunk is MAGLEV_CHUNK of bpf/lib/lb.h.
const maglevChunk = len(object.DatapathWeftMaglevChunk{}.Slots)

// maglevTable is what the kernel has of a table that rows name.
type maglevTable struct {
	refs  int // rows that name it
	whole bool
}

// SetMaglev says what the tables of frontends with table.FrontendMaglev are like; of
// size 0 there are none. It is called before anything is written.
func (m *ServiceMap) SetMaglev(t maglev.Table) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.maglev = t
}

// MaglevRoom is how many tables of so many slots may be in use: some of the map is left
// for those that take the place of others.
func (m *ServiceMap) MaglevRoom(slots int) int {
	n := int(m.tables.MaxEntries()) / maglevChunks(slots)
	return max(min(n, 1), n-max(1, n/16))
}

func maglevChunks(slots int) int { return (slots + maglevChunk - 1) / maglevChunk }

// rowChunks is how many parts the table of a row has, whoever wrote the row.
func rowChunks(row object.DatapathWeftSvc) int {
	return maglevChunks(int(min(row.Slots, uint32(slices.Max(maglev.Sizes())))))
}

// byID returns backends as the slots of a table number them.
func byID(refs []table.BackendRef) []maglev.Backend {
	refs = slices.Clone(refs)
	slices.SortFunc(refs, func(a, b table.BackendRef) int { return cmp.Compare(a.ID, b.ID) })
	out := make([]maglev.Backend, len(refs))
	for i, b := range refs {
		out[i] = maglev.Backend{Addr: b.Addr, Proto: b.Proto}
	}
	return out
}

// hasTable tells whether the table that a row names is there as it was written.
func (m *ServiceMap) hasTable(row object.DatapathWeftSvc) bool {
	if row.Slots == 0 {
		return true
	}
	t := m.memory.tables[row.Table]
	return t != nil && t.whole
}

// putTable writes the table that a row is to name, unless it is there. Where there is
// no room for it, the row names none.
func (m *ServiceMap) putTable(row *object.DatapathWeftSvc, f *table.Frontend) error {
	if row.Slots == 0 {
		return nil
	}
	if !m.hasTable(*row) {
		keys, chunks := encodeTable(row.Table, m.maglev.Build(byID(f.Backends)))
		if _, err := m.tables.BatchUpdate(keys, chunks, nil); err != nil {
			if errors.Is(err, syscall.E2BIG) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.ENOMEM) {
				err = fmt.Errorf("%w: it holds %d parts of tables, and this one takes %d; enlarge it (bpf-lb-map-max)", ErrFull, m.tables.MaxEntries(), len(keys))
			}
			err = fmt.Errorf("connections are spread at random: map weft_maglev: %w", err)
			if m.memory.tables[row.Table] == nil {
				err = errors.Join(err, m.removeTable(*row))
			}
			row.Table, row.Slots, row.Seed = 0, 0, 0
			return err
		}
	}
	t := m.memory.tables[row.Table]
	if t == nil {
		t = &maglevTable{}
		m.memory.tables[row.Table] = t
	}
	t.whole = true
	t.refs++
	return nil
}

// releaseTable takes back a row's reference to its table, and removes one that has
// none left.
func (m *ServiceMap) releaseTable(row object.DatapathWeftSvc) error {
	t := m.memory.tables[row.Table]
	if row.Slots == 0 || t == nil {
		return nil
	}
	if t.refs--; t.refs > 0 {
		return nil
	}
	delete(m.memory.tables, row.Table)
	return m.removeTable(row)
}

func (m *ServiceMap) removeTable(row object.DatapathWeftSvc) error {
	var errs []error
	for chunk := range rowChunks(row) {
		errs = append(errs, remove(m.tables, object.DatapathWeftMaglevKey{Table: row.Table, Chunk: uint32(chunk)}))
	}
	return errors.Join(errs...)
}

// readTables looks at the tables that rows name: whether all of them is there, and is
// what was written.
func (m *ServiceMap) readTables(rows map[table.FrontendKey]serviceRow) (map[uint64]*maglevTable, error) {
	tables, parts, intact := map[uint64]*maglevTable{}, map[uint64]int{}, map[uint64]int{}
	for _, r := range rows {
		if r.value.Slots == 0 {
			continue
		}
		id := r.value.Table
		if tables[id] == nil {
			tables[id], parts[id] = &maglevTable{}, rowChunks(r.value)
		}
		tables[id].refs++
	}
	if len(tables) == 0 {
		return tables, nil
	}
	err := batches(m.tables, func(keys []object.DatapathWeftMaglevKey, chunks []object.DatapathWeftMaglevChunk) bool {
		for i, k := range keys {
			if int(k.Chunk) < parts[k.Table] && k.Spare == 0 && chunks[i].Sum == maglevSum(k, &chunks[i]) {
				intact[k.Table]++
			}
		}
		return true
	})
	for id, t := range tables {
		t.whole = intact[id] == parts[id]
	}
	return tables, err
}

// pruneTables deletes what no row names.
func (m *ServiceMap) pruneTables() error {
	parts := map[uint64]int{}
	for _, r := range m.memory.rows {
		if r.value.Slots != 0 {
			parts[r.value.Table] = rowChunks(r.value)
		}
	}
	_, err := purge(m.tables, func(k object.DatapathWeftMaglevKey, _ object.DatapathWeftMaglevChunk) bool {
		return int(k.Chunk) >= parts[k.Table] || k.Spare != 0
	}, 0, nil)
	return err
}

// MaglevRow is a backend of a frontend that has a Maglev table.
type MaglevRow struct {
	Frontend  string `json:"frontend"`
	ServiceID uint32 `json:"serviceID"`
	// Table is the same on all nodes that choose alike.
	Table   string `json:"table"`
	Backend string `json:"backend"`
	Has     int    `json:"has"`   // slots of the table
	Slots   int    `json:"slots"` // of all backends
}

// TableHeader names the columns of TableRow.
func (MaglevRow) TableHeader() []string {
	return []string{"SERVICE ADDRESS", "ID", "TABLE", "BACKEND ADDRESS", "SLOTS"}
}

// TableRow renders the row under TableHeader.
func (r MaglevRow) TableRow() []string {
	return []string{r.Frontend, strconv.FormatUint(uint64(r.ServiceID), 10), r.Table, r.Backend, fmt.Sprintf("%d/%d", r.Has, r.Slots)}
}

// Maglev lists the backends of frontends with tables, and what the tables give each.
func (m *ServiceMap) Maglev() ([]MaglevRow, error) {
	rows, backends, err := m.read()
	if err != nil {
		return nil, err
	}
	out := []MaglevRow{}
	for key, r := range rows {
		if r.value.Slots == 0 {
			continue
		}
		slots, err := m.slots(r.value)
		if err != nil {
			return nil, err
		}
		f := decodeFrontend(key, r, backends)
		out = append(out, shares(&f, slots)...)
	}
	slices.SortFunc(out, func(a, b MaglevRow) int {
		return cmp.Or(cmp.Compare(a.Frontend, b.Frontend), cmp.Compare(a.Backend, b.Backend))
	})
	return out, nil
}

// slots reads the table that a row names. Of one that is replaced meanwhile, some are missing.
func (m *ServiceMap) slots(row object.DatapathWeftSvc) ([]uint16, error) {
	var out []uint16
	for chunk := range rowChunks(row) {
		var c object.DatapathWeftMaglevChunk
		err := m.tables.Lookup(object.DatapathWeftMaglevKey{Table: row.Table, Chunk: uint32(chunk)}, &c)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("map weft_maglev: %w", err)
		}
		if err == nil {
			out = append(out, c.Slots[:min(maglevChunk, int(row.Slots)-chunk*maglevChunk)]...)
		}
	}
	return out, nil
}

// shares counts how many slots each backend has.
func shares(f *table.Frontend, slots []uint16) []MaglevRow {
	out := make([]MaglevRow, len(f.Backends))
	for i, b := range f.Backends {
		out[i] = MaglevRow{
			Frontend: f.Key.String(), ServiceID: f.ServiceID, Slots: len(slots), Backend: b.Addr.String() + "/" + table.ProtoName(b.Proto),
		}
	}
	sum := crc32.NewIEEE()
	for _, s := range slots {
		if int(s) < len(out) {
			out[s].Has++
			_, _ = sum.Write([]byte(out[s].Backend)) // never fails
		}
	}
	for i := range out {
		out[i].Table = fmt.Sprintf("%08x", sum.Sum32())
	}
	return out
}

// encodeTable cuts a table into entries of the map.
func encodeTable(id uint64, slots []uint16) ([]object.DatapathWeftMaglevKey, []object.DatapathWeftMaglevChunk) {
	n := maglevChunks(len(slots))
	keys, chunks := make([]object.DatapathWeftMaglevKey, n), make([]object.DatapathWeftMaglevChunk, n)
	for i := range keys {
		keys[i] = object.DatapathWeftMaglevKey{Table: id, Chunk: uint32(i)}
		copy(chunks[i].Slots[:], slots[i*maglevChunk:])
		chunks[i].Sum = maglevSum(keys[i], &chunks[i])
	}
	return keys, chunks
}

// maglevSum tells a part of a table from anything else: a table is never edited, so
// that nothing but this would notice that somebody else did.
func maglevSum(k object.DatapathWeftMaglevKey, c *object.DatapathWeftMaglevChunk) uint32 {
	b := make([]byte, 0, 12+2*maglevChunk)
	b = binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint64(b, k.Table), k.Chunk)
	for _, s := range c.Slots {
		b = binary.NativeEndian.AppendUint16(b, s)
	}
	return crc32.ChecksumIEEE(b)
}
