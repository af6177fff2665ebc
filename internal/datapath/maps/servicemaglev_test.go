// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/service/maglev"
	"github.com/weft-net/weft/internal/service/oracle"
	"github.com/weft-net/weft/internal/table"
)

// tableSizes has room for three tables of 2039 slots.
func tableSizes() maps.Sizes {
	sizes := lbSizes
	sizes.Maglev = 9
	return sizes
}

var testTable = maglev.Table{Size: 2039, Seed: maglev.Seed{1, 2, 3}}

// spread is a frontend whose connections from outside are spread by a table.
func spread(addr string, ids ...uint32) table.Frontend {
	f := frontend(addr, ids...)
	f.Type, f.Flags = table.FrontendLoadBalancer, f.Flags|table.FrontendMaglev
	return f
}

// slotsOf returns the backend of each slot of a frontend's table, as programs find them.
func slotsOf(t *testing.T, s *maps.Set, f table.Frontend) []netip.AddrPort {
	t.Helper()
	var row object.DatapathWeftSvc
	a, b := f.Key.Addr.Addr(), f.Key.Addr.Port()
	if a.Is4() {
		raw := a.As4()
		key := []byte{raw[0], raw[1], raw[2], raw[3], byte(b >> 8), byte(b), f.Key.Proto, f.Key.Scope}
		must(t, s.Raw(object.DatapathMapWeftSvc4).Lookup(key, &row))
	} else {
		raw := a.As16()
		key := append(raw[:], byte(b>>8), byte(b), f.Key.Proto, f.Key.Scope)
		must(t, s.Raw(object.DatapathMapWeftSvc6).Lookup(key, &row))
	}
	var out []netip.AddrPort
	refs := slices.Clone(f.Backends)
	slices.SortFunc(refs, func(a, b table.BackendRef) int { return int(a.ID) - int(b.ID) })
	for i := range row.Slots {
		var c object.DatapathWeftMaglevChunk
		n := uint32(len(c.Slots))
		must(t, s.Raw(object.DatapathMapWeftMaglev).Lookup(object.DatapathWeftMaglevKey{Table: row.Table, Chunk: i / n}, &c))
		out = append(out, refs[c.Slots[i%n]].Addr)
	}
	return out
}

func wantTable(t *testing.T, s *maps.Set, f table.Frontend) {
	t.Helper()
	var addrs []netip.AddrPort
	for _, b := range f.Backends {
		addrs = append(addrs, b.Addr)
	}
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	if !slices.Equal(slotsOf(t, s, f), oracle.Maglev(testTable, addrs, f.Key.Proto)) {
		t.Errorf("%s has another table than its backends make", f.Key)
	}
}

func newMaglevSet(t *testing.T) *maps.Set {
	t.Helper()
	s := newSetOf(t, tableSizes())
	s.Services.SetMaglev(testTable)
	return s
}

// Guards against tables that are not those of their backends, in both families and
// whether these are in the row or in a set; that are made twice for two frontends of one
// service; or that stay when nobody names them.
func TestMaglevTables(t *testing.T) {
	s := newMaglevSet(t)
	chunks := func(want int) {
		t.Helper()
		if got := entriesOf(t, s, object.DatapathMapWeftMaglev); got != want {
			t.Errorf("%d parts of tables, want %d", got, want)
		}
	}
	for _, addr := range []string{"192.0.2.%d:80", "[2001:db8::%d]:80"} {
		a, b := spread(fmt.Sprintf(addr, 1)), spread(fmt.Sprintf(addr, 2))
		v6 := a.Key.Addr.Addr().Is6()
		for _, ids := range [][]uint32{{9, 2, 5}, upTo(12), upTo(300), {2, 1}} {
			a.Backends, b.Backends = backendsOf(v6, table.ProtoTCP, ids...), backendsOf(v6, table.ProtoTCP, ids...)
			must(t, s.Services.Upsert(a))
			must(t, s.Services.Upsert(b))
			wantTable(t, s, a)
			wantTable(t, s, b)
			chunks(3)
		}
		a.Backends = a.Backends[:1] // one needs none
		must(t, s.Services.Upsert(a))
		chunks(3)
		wantTable(t, s, b)
		b.Flags &^= table.FrontendMaglev
		must(t, s.Services.Upsert(b))
		chunks(0)
		b.Flags |= table.FrontendMaglev
		must(t, s.Services.Upsert(b))
		chunks(3)
		must(t, s.Services.Delete(b.Key))
		chunks(0)
		must(t, s.Services.Delete(a.Key))
	}
}

// Guards against an agent that starts anew and leaves a service without its table for a
// moment, loses count of who names it, or leaves what a killed one left; and against
// tables that somebody else changed.
func TestMaglevTablesRestart(t *testing.T) {
	s := newMaglevSet(t)
	a, b, c := spread("192.0.2.1:80", 1, 2, 3), spread("192.0.2.2:80", 1, 2, 3), spread("192.0.2.3:80", 4, 5)
	for _, f := range []table.Frontend{a, b, c} {
		must(t, s.Services.Upsert(f))
	}
	m := s.Raw(object.DatapathMapWeftMaglev)
	orphan := object.DatapathWeftMaglevKey{Table: 4711}
	must(t, m.Put(orphan, object.DatapathWeftMaglevChunk{}))
	s = again(t, s)
	s.Services.SetMaglev(testTable)
	must(t, s.Services.Upsert(a)) // as it is
	must(t, s.Services.Delete(a.Key))
	wantTable(t, s, b)
	must(t, s.Services.Prune([]table.Frontend{b, c}))
	m = s.Raw(object.DatapathMapWeftMaglev)
	var v object.DatapathWeftMaglevChunk
	if err := m.Lookup(orphan, &v); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("a part of a table that no row names: %v", err)
	}
	var key object.DatapathWeftMaglevKey
	for it := m.Iterate(); it.Next(&key, &v); { // one part of each
		if key.Chunk == 1 {
			v.Slots[7]++
			must(t, m.Put(key, v))
		}
	}
	for it := m.Iterate(); it.Next(&key, &v); {
		if key.Chunk == 2 {
			must(t, m.Delete(key))
			break
		}
	}
	must(t, s.Services.Prune([]table.Frontend{b, c}))
	wantTable(t, s, b)
	wantTable(t, s, c)
	other := testTable
	other.Seed[0]++
	s.Services.SetMaglev(other)
	must(t, s.Services.Prune([]table.Frontend{b, c}))
	if n := entriesOf(t, s, object.DatapathMapWeftMaglev); n != 6 {
		t.Errorf("%d parts after another seed, want those of two tables", n)
	}
	must(t, s.Services.Clear())
	if n := entriesOf(t, s, object.DatapathMapWeftMaglev); n != 0 {
		t.Errorf("%d parts of tables are left in cleared maps", n)
	}
}

// Guards against a table without room that takes its frontend along, or others.
func TestMaglevTablesWithoutRoom(t *testing.T) {
	s := newMaglevSet(t)
	if n := s.Services.MaglevRoom(testTable.Size); n != 2 {
		t.Errorf("room for %d tables in use, want two, and one to be put in the place of another", n)
	}
	var all []table.Frontend
	for i := range uint32(4) {
		f := spread(fmt.Sprintf("192.0.2.%d:80", i+1), 2*i+1, 2*i+2)
		all = append(all, f)
		err := s.Services.Upsert(f)
		if i < 3 {
			must(t, err)
		} else if !errors.Is(err, maps.ErrFull) || !strings.Contains(err.Error(), "spread at random") {
			t.Errorf("the fourth table: %v", err)
		}
	}
	wantServices(t, s, all...)
	if slots := slotsOf(t, s, all[3]); slots != nil {
		t.Error("the fourth has a table")
	}
	changed := all[0]
	changed.Backends = changed.Backends[:1]
	must(t, s.Services.Upsert(changed))
	must(t, s.Services.Prune([]table.Frontend{changed, all[1], all[2], all[3]}))
	wantTable(t, s, all[3])
	wantTable(t, s, all[1])
}

// Guards against a list by which nodes cannot be compared: the same table must be called
// the same, whatever ids the backends have, and another one otherwise.
func TestMaglevList(t *testing.T) {
	names := map[string]bool{}
	for _, ids := range [][]uint32{{1, 2, 3}, {9, 8, 7}, {1, 2}} {
		s := newMaglevSet(t)
		f := spread("192.0.2.1:80", ids...)
		for i := range f.Backends {
			f.Backends[i].Addr = netip.MustParseAddrPort(fmt.Sprintf("10.1.0.%d:8080", i+1))
		}
		must(t, s.Services.Upsert(f))
		rows, err := s.Services.Maglev()
		must(t, err)
		sum := 0
		for i, r := range rows {
			sum += r.Has
			names[r.Table] = true
			if want := f.Backends[i].Addr.String() + "/TCP"; r.Backend != want || r.Frontend != "192.0.2.1:80/TCP" || r.Slots != testTable.Size {
				t.Errorf("%+v, want backend %s", r, want)
			}
		}
		lb, err := s.Services.LB()
		must(t, err)
		if len(lb) == 0 || !slices.Contains(lb[0].Flags, "maglev") {
			t.Errorf("the frontend is listed without its algorithm: %+v", lb)
		}
		if len(rows) != len(ids) || sum != testTable.Size {
			t.Errorf("%d backends have %d slots of %d", len(rows), sum, testTable.Size)
		}
	}
	if len(names) != 2 {
		t.Errorf("three tables, two of them the same, are called %v", names)
	}
}

// What 1,000 services with tables cost.
func BenchmarkMaglev(b *testing.B) {
	const services, each = 1000, 10
	big := lbSizes
	big.Services, big.Backends, big.Maglev = 1<<16, 1<<17, 1<<16
	fs := make([]table.Frontend, services)
	for i := range fs {
		f := spread("192.0.2.1:80")
		f.Key.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 80)
		var ids []uint32
		for j := range each {
			ids = append(ids, uint32(i*each+j+1))
		}
		f.Backends = backendsOf(false, table.ProtoTCP, ids...)
		fs[i] = f
	}
	for b.Loop() {
		s := newSetOf(b, big)
		s.Services.SetMaglev(maglev.Table{Size: maglev.DefaultSize})
		start := time.Now()
		for _, f := range fs {
			must(b, s.Services.Upsert(f))
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "empty_ms")
		start = time.Now()
		must(b, s.Services.Prune(fs))
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "prune_ms")
		changed := fs[7]
		changed.Backends = changed.Backends[:each-1]
		start = time.Now()
		must(b, s.Services.Upsert(changed))
		b.ReportMetric(float64(time.Since(start).Microseconds()), "change_us")
	}
}
