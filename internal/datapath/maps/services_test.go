// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

var lbSizes = maps.Sizes{
	CT: 1, CTNew: 1, NAT: 1, NATNew: 1, Fragments: 1, IPCache: 4, Networks: 4, Events: 4096,
	Services: 64, Backends: 1024, Affinity: 128, Sockets: 128,
}

// backendsOf returns backends with these ids, whose addresses say which.
func backendsOf(v6 bool, proto uint8, ids ...uint32) []table.BackendRef {
	var out []table.BackendRef
	for _, id := range ids {
		a := netip.AddrFrom4([4]byte{10, 1, byte(id >> 8), byte(id)})
		if v6 {
			a = netip.AddrFrom16([16]byte{0xfd, 14: byte(id >> 8), 15: byte(id)})
		}
		out = append(out, table.BackendRef{ID: id, Addr: netip.AddrPortFrom(a, 8080), Proto: proto})
	}
	return out
}

func upTo(n uint32) []uint32 {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(i) + 1
	}
	return ids
}

func frontend(addr string, ids ...uint32) table.Frontend {
	a := netip.MustParseAddrPort(addr)
	return table.Frontend{
		Key: table.FrontendKey{Addr: a, Proto: table.ProtoTCP}, Namespace: "default", Service: "web", Type: table.FrontendClusterIP,
		ServiceID: 7, Flags: table.FrontendBoth, Backends: backendsOf(a.Addr().Is6(), table.ProtoTCP, ids...),
	}
}

// inKernel is what of a frontend the kernel knows.
func inKernel(f table.Frontend) table.Frontend {
	f.Namespace, f.Service, f.PortName = "", "", ""
	return f
}

func wantServices(t *testing.T, s *maps.Set, want ...table.Frontend) {
	t.Helper()
	for i := range want {
		want[i] = inKernel(want[i])
	}
	got, err := s.Services.List()
	must(t, err)
	byKey := func(a, b table.Frontend) int { return strings.Compare(a.Key.String(), b.Key.String()) }
	slices.SortFunc(want, byKey)
	slices.SortFunc(got, byKey)
	if d := cmp.Diff(want, got, compare, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("frontends (-want +got):\n%s", d)
	}
}

// entriesOf counts what a map holds.
func entriesOf(t *testing.T, s *maps.Set, name string) int {
	t.Helper()
	rows, err := s.Fill()
	must(t, err)
	return *byName(t, rows)[name].Entries
}

// Guards against rows that change on their way through the kernel, in each shape:
// without backends, within the row, in a set, from one to the other, both families.
func TestServices(t *testing.T) {
	s := newSetOf(t, lbSizes)
	for _, addr := range []string{"10.96.0.1:80", "[fd00:96::1]:80", "0.0.0.0:30080", "[::]:30080"} {
		f := frontend(addr)
		f.Affinity, f.Type = 1071*time.Second, table.FrontendNodePort // one that ticks do not round
		for _, n := range []uint32{0, 1, 12, 13, 40, 300, 299, 13, 12, 2, 0} {
			f.Backends = backendsOf(f.Key.Addr.Addr().Is6(), table.ProtoTCP, upTo(n)...)
			if n > 1 {
				f.Backends[1].Terminating, f.Backends[0].Local = true, true
			}
			must(t, s.Services.Upsert(f))
			got, err := s.Services.List()
			must(t, err)
			if len(got) == 1 && got[0].Affinity >= f.Affinity && got[0].Affinity < f.Affinity+2*time.Second {
				got[0].Affinity = f.Affinity
			}
			if d := cmp.Diff([]table.Frontend{inKernel(f)}, got, compare, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				t.Fatalf("%s with %d backends (-want +got):\n%s", addr, n, d)
			}
			if got, want := entriesOf(t, s, object.DatapathMapWeftBe), int(n); got != want {
				t.Errorf("%s with %d backends: the map holds %d", addr, n, got)
			}
			chunks := 0
			if n > 12 {
				chunks = (int(n) + 15) / 16
			}
			if got := entriesOf(t, s, object.DatapathMapWeftSvcset); got != chunks {
				t.Errorf("%s with %d backends: %d chunks of sets are left, want %d", addr, n, got, chunks)
			}
		}
		must(t, s.Services.Delete(f.Key))
		must(t, s.Services.Delete(f.Key))
		wantServices(t, s)
	}
}

// Guards against a backend that goes while another service has it, and one that
// stays although no service has it.
func TestBackendsAreShared(t *testing.T) {
	s := newSetOf(t, lbSizes)
	a, b := frontend("10.96.0.1:80", 1, 2, 3), frontend("10.96.0.2:80", 3, 4)
	must(t, s.Services.Upsert(a))
	must(t, s.Services.Upsert(b))
	a.Backends = backendsOf(false, table.ProtoTCP, 1)
	must(t, s.Services.Upsert(a))
	wantServices(t, s, a, b)
	if n := entriesOf(t, s, object.DatapathMapWeftBe); n != 3 { // 1, 3, 4
		t.Errorf("%d backends", n)
	}
	want := []maps.Gone{{Frontend: a.Key, Backend: netip.MustParseAddrPort("10.1.0.2:8080")}, {Frontend: a.Key, Backend: netip.MustParseAddrPort("10.1.0.3:8080")}}
	if got := s.Services.TakeGone(); !slices.Equal(got, want) {
		t.Errorf("gone: %v, want %v", got, want)
	}
	must(t, s.Services.Delete(b.Key))
	if n := entriesOf(t, s, object.DatapathMapWeftBe); n != 1 {
		t.Errorf("after a deletion: %d backends", n)
	}
	if fs, bs := s.Services.Count(); fs != 1 || bs != 1 {
		t.Errorf("counted: %d frontends, %d backends", fs, bs)
	}
}

// Guards against a client that keeps, by session affinity, an id that has become
// somebody else's: each use of an id has its own generation, across restarts too.
func TestGenerationOfBackends(t *testing.T) {
	s := newSetOf(t, lbSizes)
	generation := func() uint32 {
		var v object.DatapathWeftBackend
		must(t, s.Raw(object.DatapathMapWeftBe).Lookup(uint32(1), &v))
		return v.Generation
	}
	f := frontend("10.96.0.1:80", 1)
	must(t, s.Services.Upsert(f))
	first := generation()
	f.Backends[0].Terminating = true
	must(t, s.Services.Upsert(f))
	if g := generation(); g != first {
		t.Errorf("a backend that changed its state has generation %d, had %d", g, first)
	}
	must(t, s.Services.Delete(f.Key))
	s = again(t, s)
	f.Backends[0].Addr = netip.MustParseAddrPort("10.1.0.99:8080")
	must(t, s.Services.Upsert(f))
	if g := generation(); g == first {
		t.Errorf("another backend has the generation %d too", g)
	}
}

// Guards against connections of one service that are sent to a backend of another,
// as an id was given again before all who had it were changed.
func TestBackendIDsThatMove(t *testing.T) {
	s := newSetOf(t, lbSizes)
	a, b := frontend("10.96.0.1:80", 1, 2), frontend("10.96.0.2:80", 3)
	must(t, s.Services.Upsert(a))
	must(t, s.Services.Upsert(b))
	moved := b
	moved.Backends = backendsOf(false, table.ProtoTCP, 1)
	moved.Backends[0].Addr = netip.MustParseAddrPort("10.1.0.99:8080")
	if err := s.Services.Upsert(moved); err == nil || !strings.Contains(err.Error(), "10.1.0.1:8080") {
		t.Errorf("an id that another frontend has for 10.1.0.1:8080: %v", err)
	}
	wantServices(t, s, a, b)
	a.Backends = a.Backends[1:]
	must(t, s.Services.Upsert(a))
	must(t, s.Services.Upsert(moved))
	wantServices(t, s, a, moved)
	s.Services.TakeGone()
	moved.Backends[0].Addr = netip.MustParseAddrPort("10.1.0.98:8080") // nobody else has it
	must(t, s.Services.Upsert(moved))
	wantServices(t, s, a, moved)
	want := []maps.Gone{{Frontend: moved.Key, Backend: netip.MustParseAddrPort("10.1.0.99:8080")}}
	if got := s.Services.TakeGone(); !slices.Equal(got, want) {
		t.Errorf("gone: %v, want %v", got, want)
	}
}

// Guards against what a hand wrote about clients of services being believed, and
// against living ones losing their backend to the one who clears up.
func TestScrubClients(t *testing.T) {
	s := newSetOf(t, lbSizes)
	must(t, s.Config.Set(maps.DefaultConfig()))
	sk, affinity := s.Raw(object.DatapathMapWeftSk), s.Raw(object.DatapathMapWeftAffinity)
	v4 := func(last uint32) object.DatapathV6addr {
		return object.DatapathV6addr{W: [4]uint32{0, 0, 0xffff0000, 0x0a | last<<24}} // as it lies in memory, little endian
	}
	socket := object.DatapathWeftSkKey{Cookie: 7, Addr: v4(1), Port: 80}
	must(t, sk.Put(socket, object.DatapathWeftWanted{Addr: v4(2), Port: 80, Proto: table.ProtoTCP}))
	client := object.DatapathWeftAffinityKey{Service: 1, Kind: 1}
	must(t, affinity.Put(client, object.DatapathWeftChosen{Backend: 1, Generation: 3}))
	other := object.DatapathV6addr{W: [4]uint32{0xfd, 1, 2, 3}}
	for i, v := range []object.DatapathWeftWanted{
		{Addr: v4(2), Port: 80, Proto: 77}, {Addr: v4(2), Proto: table.ProtoTCP}, {Addr: other, Port: 80, Proto: table.ProtoTCP}, {Addr: v4(2), Port: 80, Proto: table.ProtoUDP, Spare: 1},
	} {
		must(t, sk.Put(object.DatapathWeftSkKey{Cookie: uint64(100 + i), Addr: v4(1), Port: 80}, v))
	}
	for i, v := range []object.DatapathWeftChosen{{}, {Backend: 1 << 20}, {Backend: 1, Used: 1 << 31}} {
		must(t, affinity.Put(object.DatapathWeftAffinityKey{Service: uint32(10 + i), Kind: 1}, v))
	}
	must(t, affinity.Put(object.DatapathWeftAffinityKey{Service: 20, Kind: 9}, object.DatapathWeftChosen{Backend: 1}))
	done, err := s.Scrub()
	must(t, err)
	if done.Clients != 8 {
		t.Errorf("%d clients were removed, want 8", done.Clients)
	}
	var w object.DatapathWeftWanted
	must(t, sk.Lookup(socket, &w))
	var c object.DatapathWeftChosen
	must(t, affinity.Lookup(client, &c))
	must(t, s.Services.Upsert(frontend("10.96.0.1:80", 1, 2)))
	must(t, s.Services.Clear())
	for _, name := range []string{object.DatapathMapWeftSvc4, object.DatapathMapWeftBe, object.DatapathMapWeftSk, object.DatapathMapWeftAffinity} {
		if n := entriesOf(t, s, name); n != 0 {
			t.Errorf("map %s has %d entries after all was cleared", name, n)
		}
	}
}

// again wraps the same maps anew, as an agent that starts again does.
func again(t *testing.T, s *maps.Set) *maps.Set {
	t.Helper()
	raw := map[string]*ebpf.Map{}
	for _, name := range maps.Names() {
		m, err := s.Raw(name).Clone()
		must(t, err)
		raw[name] = m
	}
	fresh, err := maps.NewSet(raw)
	must(t, err)
	t.Cleanup(func() { must(t, fresh.Close()) })
	return fresh
}

// Guards against an agent that, started again, forgets who names which backend, or
// leaves what a killed one wrote and nobody names: a backend, a set, a row.
func TestServicesAfterRestart(t *testing.T) {
	s := newSetOf(t, lbSizes)
	a, b, c := frontend("10.96.0.1:80", upTo(40)...), frontend("[fd00:96::1]:80", 50, 51), frontend("10.96.0.3:80", 1, 60)
	for _, f := range []table.Frontend{a, b, c} {
		must(t, s.Services.Upsert(f))
	}
	// Killed between set and row, and between backend and row.
	must(t, s.Raw(object.DatapathMapWeftSvcset).Put(object.DatapathWeftSvcsetKey{Set: 900}, object.DatapathWeftSvcChunk{}))
	must(t, s.Raw(object.DatapathMapWeftBe).Put(uint32(70), object.DatapathWeftBackend{Proto: 6, Generation: 4}))

	s = again(t, s)
	b.Backends = b.Backends[:1]
	must(t, s.Services.Upsert(b))
	wantServices(t, s, a, b, c)
	a2 := a
	a2.Backends = backendsOf(false, table.ProtoTCP, upTo(39)...)
	must(t, s.Services.Prune([]table.Frontend{a2, b}))
	wantServices(t, s, a2, b)
	if n := entriesOf(t, s, object.DatapathMapWeftBe); n != 40 { // 1 to 39, and 50
		t.Errorf("%d backends are left, want 40", n)
	}
	if n := entriesOf(t, s, object.DatapathMapWeftSvcset); n != 3 {
		t.Errorf("%d chunks of sets are left, want 3", n)
	}
	var old object.DatapathWeftSvcChunk
	must(t, s.Services.Upsert(a))
	if err := s.Raw(object.DatapathMapWeftSvcset).Lookup(object.DatapathWeftSvcsetKey{Set: 1}, &old); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("the number of an old set was used again: %v", err)
	}
}

// Guards against a prune that trusts its memory of maps that somebody else changed.
func TestServicesMended(t *testing.T) {
	s := newSetOf(t, lbSizes)
	a, b := frontend("10.96.0.1:80", 1), frontend("10.96.0.2:80", 2)
	must(t, s.Services.Upsert(a))
	must(t, s.Services.Upsert(b))
	must(t, s.Raw(object.DatapathMapWeftSvc4).Delete(object.DatapathWeftSvc4Key{Addr: 0x0100600a, Port: 0x5000, Proto: 6}))
	must(t, s.Raw(object.DatapathMapWeftBe).Put(uint32(2), object.DatapathWeftBackend{}))
	wantServices(t, s, func() table.Frontend { b := b; b.Backends = nil; return b }()) // the test sees what it did
	must(t, s.Services.Prune([]table.Frontend{a, b}))
	wantServices(t, s, a, b)
}

// Guards against a service too many that takes others with it (DATAPATH rule 12):
// it is refused by name, what it wrote is taken back, and all others are changed
// and deleted as before.
func TestServiceThatDoesNotFit(t *testing.T) {
	small := lbSizes
	small.Services, small.Backends = 4, 64
	s := newSetOf(t, small)
	refused := func(f table.Frontend, words ...string) {
		t.Helper()
		err := s.Services.Upsert(f)
		if !errors.Is(err, maps.ErrFull) {
			t.Errorf("%s: %v, want one that says full", f.Key, err)
			return
		}
		for _, w := range append(words, f.Key.String(), "default/web") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("the error does not name %s: %v", w, err)
			}
		}
	}
	var fs []table.Frontend
	for i := range uint32(3) {
		fs = append(fs, frontend(fmt.Sprintf("10.96.0.%d:80", i+1), i+1))
		must(t, s.Services.Upsert(fs[i]))
	}
	refused(frontend("10.96.0.9:80", 64), "weft_be", "64", "bpf-lb-map-max")
	refused(frontend("10.96.0.9:80", func() []uint32 { ids := upTo(63); return append(ids, 64) }()...), "weft_be")
	big := frontend("10.96.0.4:80", upTo(40)...) // three chunks
	must(t, s.Services.Upsert(big))
	fs = append(fs, big)
	refused(frontend("10.96.0.5:80", 50), "weft_svc4", "bpf-lb-map-max")
	wider := fs[0]
	wider.Backends = backendsOf(false, table.ProtoTCP, append(upTo(30), 55)...) // two more chunks
	refused(wider, "weft_svcset")
	wantServices(t, s, fs...)
	if n := entriesOf(t, s, object.DatapathMapWeftBe); n != 40 {
		t.Errorf("%d backends, want those 40 that frontends name", n)
	}
	if n := entriesOf(t, s, object.DatapathMapWeftSvcset); n != 3 {
		t.Errorf("%d chunks, want 3", n)
	}
	fs[1].Backends = backendsOf(false, table.ProtoTCP, 60)
	must(t, s.Services.Upsert(fs[1]))
	must(t, s.Services.Delete(fs[0].Key))
	must(t, s.Services.Upsert(frontend("10.96.0.5:80", 50)))
	wantServices(t, s, fs[1], fs[2], fs[3], frontend("10.96.0.5:80", 50))
}

// Guards against rows that the programs would misread.
func TestServiceRefused(t *testing.T) {
	s := newSetOf(t, lbSizes)
	must(t, s.Services.Upsert(frontend("10.96.0.200:80", 9)))
	for want, change := range map[string]func(*table.Frontend){
		"not an address":    func(f *table.Frontend) { f.Key.Addr = netip.MustParseAddrPort("[::ffff:10.0.0.1]:80") },
		"must not be 0":     func(f *table.Frontend) { f.Key.Addr = netip.MustParseAddrPort("10.96.0.1:0") },
		"another family":    func(f *table.Frontend) { f.Backends[0].Addr = netip.MustParseAddrPort("[fd00::1]:80") },
		"another protocol":  func(f *table.Frontend) { f.Backends[0].Proto = table.ProtoUDP },
		"has no id":         func(f *table.Frontend) { f.Backends[0].ID = 0 },
		"another one has":   func(f *table.Frontend) { f.Backends[0].ID = f.Backends[1].ID },
		"must change first": func(f *table.Frontend) { f.Backends[0].ID = 9 },
	} {
		f := frontend("10.96.0.1:80", 1, 2)
		change(&f)
		if err := s.Services.Upsert(f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	wantServices(t, s, frontend("10.96.0.200:80", 9))
}

// Guards against any order of changes, refusals and restarts after which the
// kernel holds something else than was asked for last.
func TestServicesRandom(t *testing.T) {
	const ids = 200
	s := newSetOf(t, lbSizes)
	want := map[string]table.Frontend{}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 1500 {
		addr := fmt.Sprintf("10.96.0.%d:80", r.IntN(30)+1)
		switch op := r.IntN(20); {
		case op < 12:
			set := upTo(ids)
			r.Shuffle(len(set), func(i, j int) { set[i], set[j] = set[j], set[i] })
			n := r.IntN(16)
			if op < 2 {
				n = r.IntN(80)
			}
			set = set[:n]
			slices.Sort(set)
			f := frontend(addr, set...)
			if err := s.Services.Upsert(f); err == nil {
				want[addr] = f
			} else if !errors.Is(err, maps.ErrFull) { // of sets
				t.Fatal(err)
			}
		case op < 17:
			must(t, s.Services.Delete(frontend(addr).Key))
			delete(want, addr)
		case op < 18:
			s = again(t, s)
		default:
			var all []table.Frontend
			for _, f := range want {
				all = append(all, f)
			}
			must(t, s.Services.Prune(all))
		}
	}
	var all []table.Frontend
	named := map[uint32]bool{}
	chunks := 0
	for _, f := range want {
		all = append(all, f)
		for _, b := range f.Backends {
			named[b.ID] = true
		}
		if len(f.Backends) > 12 {
			chunks += (len(f.Backends) + 15) / 16
		}
	}
	wantServices(t, s, all...)
	if n := entriesOf(t, s, object.DatapathMapWeftBe); n != len(named) {
		t.Errorf("%d backends, want %d", n, len(named))
	}
	if n := entriesOf(t, s, object.DatapathMapWeftSvcset); n != chunks {
		t.Errorf("%d chunks, want %d", n, chunks)
	}
}

// BenchmarkServices programs 10,000 services with 10 backends of their own each,
// from empty, then changes one, reads all back as an agent that starts does, and
// prunes.
func BenchmarkServices(b *testing.B) {
	const services, each = 10000, 10
	big := lbSizes
	big.Services, big.Backends = 1<<16, 1<<17
	fs := make([]table.Frontend, services)
	for i := range fs {
		f := frontend("10.96.0.1:80")
		f.Key.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80)
		for j := range each {
			id := uint32(i*each + j + 1)
			f.Backends = append(f.Backends, table.BackendRef{
				ID: id, Proto: table.ProtoTCP,
				Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(id >> 16), byte(id >> 8), byte(id)}), 8080),
			})
		}
		fs[i] = f
	}
	for b.Loop() {
		s := newSetOf(b, big)
		start := time.Now()
		for _, f := range fs {
			must(b, s.Services.Upsert(f))
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "empty_ms")
		fs[7].Backends = fs[7].Backends[:each-1]
		start = time.Now()
		must(b, s.Services.Upsert(fs[7]))
		b.ReportMetric(float64(time.Since(start).Microseconds()), "change_us")
		start = time.Now()
		must(b, s.Services.Prune(fs))
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "prune_ms")
	}
}
