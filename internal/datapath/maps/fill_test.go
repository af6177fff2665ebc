// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
)

// fillSizes leaves room for counts that differ from one another.
var fillSizes = maps.Sizes{CT: 4096, CTNew: 4096, NAT: 4096, NATNew: 4096, Fragments: 2048, IPCache: 4096, Networks: 2048, Events: 4096}

// populate writes n entries with keys that differ.
func populate(t testing.TB, m *ebpf.Map, n int) {
	t.Helper()
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for i := range n {
		k := key
		if m.Type() == ebpf.LPMTrie {
			binary.NativeEndian.PutUint32(key, 32) // length of the prefix
			k = key[4:]
		}
		binary.NativeEndian.PutUint32(k, uint32(i+1))
		for i := range value { // in whichever member it is that tells what is in use
			value[i] = 1
		}
		if err := m.Update(key, value, ebpf.UpdateAny); err != nil {
			t.Fatalf("%s, entry %d: %v", m, i, err)
		}
	}
}

func byName(t *testing.T, rows []maps.MapRow) map[string]maps.MapRow {
	t.Helper()
	out := map[string]maps.MapRow{}
	for _, r := range rows {
		out[r.Name] = r
	}
	if len(out) != len(maps.Names()) {
		t.Errorf("%d of %d maps are told of", len(out), len(maps.Names()))
	}
	return out
}

// Guards against a count that is another map's, that misses a kind of map, or
// that depends on who counts: the kernel's counters and a read through all
// entries must agree, as the latter is what older kernels get.
func TestFillOfEveryMap(t *testing.T) {
	s := newSetOf(t, fillSizes)
	want := map[string]int{}
	for i, name := range maps.Names() {
		switch m := s.Raw(name); m.Type() {
		case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
			want[name] = 20 + 7*i
			populate(t, m, want[name])
		case ebpf.Array:
			if m.MaxEntries() > 1 { // weft_ep, weft_natip
				want[name] = 30 + i
				populate(t, m, want[name])
			}
		}
	}
	kernel := s.NewCounter()
	defer kernel.Close()
	if err := kernel.ByKernel(); err != nil && ebpfCounts(t) {
		t.Errorf("the kernel has the function, but: %v", err)
	}
	for who, c := range map[string]*maps.Counter{"kernel": kernel, "scan": s.ScanOnly()} {
		rows, err := c.Count()
		must(t, err)
		for name, r := range byName(t, rows) {
			n, fills := want[name]
			if (r.Entries != nil) != fills || (r.Pressure != nil) != fills || (r.WhenFull != "") != fills {
				t.Errorf("%s: %s: %+v", who, name, r)
				continue
			}
			if fills && *r.Entries != n {
				t.Errorf("%s: %s holds %d entries, want %d", who, name, *r.Entries, n)
			}
		}
	}
	must(t, s.Raw(object.DatapathMapWeftIpc4).Delete(uint32(1)))
	rows, err := kernel.Count()
	must(t, err)
	if got := *byName(t, rows)[object.DatapathMapWeftIpc4].Entries; got != want[object.DatapathMapWeftIpc4]-1 {
		t.Errorf("after a deletion: %d entries", got)
	}
}

// ebpfCounts tells whether the kernel is one that counts.
func ebpfCounts(t *testing.T) bool {
	t.Helper()
	_, err := maps.KernelFunc("bpf_map_sum_elem_count")
	return err == nil
}

// Guards against alarm about what is off, and against none about what is full:
// a map that refuses is at 1 when it does, one that evicts is when it does.
func TestPressure(t *testing.T) {
	s := newSetOf(t, maps.Sizes{CT: 4096, CTNew: 1, NAT: 1, NATNew: 1, Fragments: 2048, IPCache: 64, Networks: 2048, Events: 4096})
	exact := s.Raw(object.DatapathMapWeftIpc4)
	populate(t, exact, 64)
	if err := exact.Update(uint32(1000), make([]byte, exact.ValueSize()), ebpf.UpdateAny); err == nil {
		t.Error("the map takes more than its capacity")
	}
	populate(t, s.Raw(object.DatapathMapWeftCt4), 3*4096) // turns it over twice
	populate(t, s.Raw(object.DatapathMapWeftCt6), 1024)
	rows, err := s.Fill()
	must(t, err)
	got := byName(t, rows)
	for name, p := range map[string]float64{object.DatapathMapWeftIpc4: 1, object.DatapathMapWeftCt4: 1, object.DatapathMapWeftIpc6: 0} {
		if r := got[name]; r.Pressure == nil || *r.Pressure != p {
			t.Errorf("%s: %v, want a pressure of %v", name, r.TableRow(), p)
		}
	}
	if r := got[object.DatapathMapWeftCt6]; r.Pressure == nil || *r.Pressure < 0.25 || *r.Pressure > 0.5 {
		t.Errorf("a quarter full: %v", r.TableRow())
	}
	for _, name := range []string{object.DatapathMapWeftCtn4, object.DatapathMapWeftNat4, object.DatapathMapWeftCfg, object.DatapathMapWeftEvents} {
		if r := got[name]; r.Pressure != nil || r.Entries != nil {
			t.Errorf("%s is off or fixed: %v", name, r.TableRow())
		}
	}
	if w := got[object.DatapathMapWeftCt4].WhenFull; w != maps.Evicts {
		t.Errorf("weft_ct4 %s", w)
	}
	if w := got[object.DatapathMapWeftNet4].WhenFull; w != maps.Refuses {
		t.Errorf("weft_net4 %s", w)
	}
}

// Guards against a pressure that stays below 1 while the map evicts already: one
// CPU that made a single entry keeps a batch of free ones from all others.
func TestRoomOfAMapThatEvicts(t *testing.T) {
	s := newSetOf(t, fillSizes)
	m := s.Raw(object.DatapathMapWeftCt4)
	room := maps.MapRow{Capacity: int(m.MaxEntries()), WhenFull: maps.Evicts}.Room()
	var cpus unix.CPUSet
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	must(t, unix.SchedGetaffinity(0, &cpus))
	defer func() { must(t, unix.SchedSetaffinity(0, &cpus)) }()
	if cpus.Count() < 2 {
		t.Skip("needs two CPUs")
	}
	var on []int
	for i := 0; len(on) < 2; i++ {
		if cpus.IsSet(i) {
			on = append(on, i)
		}
	}
	pin := func(cpu int) {
		t.Helper()
		var one unix.CPUSet
		one.Set(cpu)
		must(t, unix.SchedSetaffinity(0, &one))
	}
	pin(on[1])
	populate(t, m, 1)
	pin(on[0])
	populate(t, m, room)
	counts := func() int {
		t.Helper()
		rows, err := s.ScanOnly().Count()
		must(t, err)
		return *byName(t, rows)[object.DatapathMapWeftCt4].Entries
	}
	if n := counts(); n != room {
		t.Errorf("%d of %d entries are left: the map has less room than is said", n, room)
	}
	populate(t, m, int(m.MaxEntries()))
	if n := counts(); n >= int(m.MaxEntries()) {
		t.Errorf("%d entries are left: the map has more room than is said", n)
	}
}

// Guards against a number that is another function's: the kernel would refuse it
// or, worse, run it.
func TestKernelFunc(t *testing.T) {
	for _, name := range []string{"bpf_map_sum_elem_count", "bpf_dynptr_from_skb", "tcp_v4_rcv"} {
		want, err := kernelFuncByLibrary(name)
		if err != nil {
			t.Skip("no types of the kernel: ", err)
		}
		if got, err := maps.KernelFunc(name); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", name, got, err, want)
		}
	}
	if _, err := maps.KernelFunc("weft_is_no_function"); !errors.Is(err, maps.ErrNoFunc) {
		t.Errorf("a function that is not there: %v", err)
	}
}

func kernelFuncByLibrary(name string) (uint32, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return 0, err
	}
	var f *btf.Func
	if err := spec.TypeByName(name, &f); err != nil {
		return 0, err
	}
	id, err := spec.TypeID(f)
	return uint32(id), err
}

// What counting costs: all maps of a node with as many entries as they take.
func BenchmarkCount(b *testing.B) {
	s := newSetOf(b, maps.DefaultSizes())
	for _, name := range maps.Names() {
		switch m := s.Raw(name); m.Type() {
		case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
			populate(b, m, int(m.MaxEntries())*9/10)
		}
	}
	kernel := s.NewCounter()
	defer kernel.Close()
	for name, c := range map[string]*maps.Counter{"kernel": kernel, "scan": s.ScanOnly()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Count(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("load", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.NewCounter().Close()
		}
	})
}
