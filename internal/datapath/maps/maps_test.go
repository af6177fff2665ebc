// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-net/weft/internal/datapath/kerneltest"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

var sizes = maps.Sizes{CT: 1024, CTNew: 1024, Fragments: 64, IPCache: 4, Networks: 4, Events: 4096}

func newSet(t *testing.T) *maps.Set {
	t.Helper()
	return newSetOf(t, sizes)
}

func newSetOf(t testing.TB, sizes maps.Sizes) *maps.Set {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes BPF maps")
	}
	spec, err := object.LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range sizes.Entries() {
		spec.Maps[name].MaxEntries = uint32(n)
	}
	raw := map[string]*ebpf.Map{}
	for _, name := range maps.Names() {
		if raw[name], err = ebpf.NewMap(spec.Maps[name]); err != nil {
			t.Fatalf("map %s: %v", name, err)
		}
	}
	s, err := maps.NewSet(raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var compare = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}

func row(id uint16, ifindex int) maps.EndpointRow {
	return maps.EndpointRow{
		ID: id, IfIndex: ifindex, MAC: "02:00:00:00:00:0a", HostMAC: "02:00:00:00:00:0b", MTU: 1500, Generation: 3,
		IPv4: netip.MustParseAddr("10.1.0.5"), IPv6: netip.MustParseAddr("fd00::5"), Identity: 300, Revision: 2,
	}
}

// TestEndpoints guards against rows that change on their way through the
// kernel, and against a device that leads to an endpoint that is gone.
func TestEndpoints(t *testing.T) {
	s := newSet(t)
	first, second := row(1, 10), row(4095, 20)
	second.IPv4 = netip.Addr{}
	must(t, s.Endpoints.Upsert(second))
	must(t, s.Endpoints.Upsert(first))
	want := func(rows []maps.EndpointRow, devices map[int]uint16) {
		t.Helper()
		got, err := s.Endpoints.List()
		must(t, err)
		if d := cmp.Diff(rows, got, compare); d != "" {
			t.Errorf("rows (-want +got):\n%s", d)
		}
		dev, err := s.Endpoints.Devices()
		must(t, err)
		if d := cmp.Diff(devices, dev, compare); d != "" {
			t.Errorf("devices (-want +got):\n%s", d)
		}
	}
	want([]maps.EndpointRow{first, second}, map[int]uint16{10: 1, 20: 4095})
	first.IfIndex = 30 // a new device
	must(t, s.Endpoints.Upsert(first))
	want([]maps.EndpointRow{first, second}, map[int]uint16{30: 1, 20: 4095})
	must(t, s.Endpoints.SetNetDevices([]int{2, 3}))
	want([]maps.EndpointRow{first, second}, map[int]uint16{30: 1, 20: 4095, 2: 0, 3: 0})
	must(t, s.Endpoints.SetNetDevices([]int{3}))
	want([]maps.EndpointRow{first, second}, map[int]uint16{30: 1, 20: 4095, 3: 0})
	must(t, s.Endpoints.SetNetDevices(nil))
	// The index of a deleted device is given to another endpoint's before the row goes.
	third := row(7, 30)
	must(t, s.Endpoints.Upsert(third))
	must(t, s.Endpoints.Delete(1))
	want([]maps.EndpointRow{third, second}, map[int]uint16{30: 7, 20: 4095})
	must(t, s.Endpoints.Delete(7))
	must(t, s.Endpoints.Delete(7))
	must(t, s.Endpoints.Delete(4095))
	want(nil, nil)
}

// TestEndpointRefused guards against rows that the programs would misread.
func TestEndpointRefused(t *testing.T) {
	s := newSet(t)
	for want, change := range map[string]func(*maps.EndpointRow){
		"id must be":       func(r *maps.EndpointRow) { r.ID = 0 },
		"1 to 4095":        func(r *maps.EndpointRow) { r.ID = maps.MaxEndpoints },
		"generation":       func(r *maps.EndpointRow) { r.Generation = 0 },
		"interface index":  func(r *maps.EndpointRow) { r.IfIndex = 0 },
		"MTU 0":            func(r *maps.EndpointRow) { r.MTU = 0 },
		`MAC "x"`:          func(r *maps.EndpointRow) { r.MAC = "x" },
		"host MAC \"02:00": func(r *maps.EndpointRow) { r.HostMAC = "02:00:00:00:00:00:00:00" },
	} {
		r := row(1, 10)
		change(&r)
		if err := s.Endpoints.Upsert(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	if rows, err := s.Endpoints.List(); err != nil || len(rows) != 0 {
		t.Errorf("rows after refusals: %v %v", rows, err)
	}
}

// TestIPCache guards against rows that change on their way through the kernel,
// and against a full map taking others down with it.
func TestIPCache(t *testing.T) {
	s := newSet(t)
	want := []maps.IPCacheRow{
		{Prefix: netip.MustParsePrefix("10.1.0.5/32"), Identity: 5, Kind: table.KindLocalPod, EndpointID: 9},
		{Prefix: netip.MustParsePrefix("10.2.0.0/24"), Identity: 5, Kind: table.KindRemotePod},
		{Prefix: netip.MustParsePrefix("10.9.0.1/32"), Identity: 1, Kind: table.KindHost},
		{Prefix: netip.MustParsePrefix("fd00::/64"), Identity: 5, Kind: table.KindRemotePod},
		{Prefix: netip.MustParsePrefix("fd00::5/128"), Identity: 5, Kind: table.KindLocalPod, EndpointID: 9},
	}
	for i := range want {
		must(t, s.IPCache.Upsert(want[len(want)-1-i]))
	}
	check := func() {
		t.Helper()
		got, err := s.IPCache.List()
		must(t, err)
		if d := cmp.Diff(want, got, compare); d != "" {
			t.Errorf("rows (-want +got):\n%s", d)
		}
	}
	check()
	unmasked := want[1]
	unmasked.Prefix = netip.MustParsePrefix("10.2.0.77/24")
	must(t, s.IPCache.Upsert(unmasked))
	check()
	n := 0
	for ; ; n++ {
		r := maps.IPCacheRow{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 3, 0, byte(n)}), 32), Identity: 5}
		if err := s.IPCache.Upsert(r); err != nil {
			if !errors.Is(err, maps.ErrFull) || !strings.Contains(err.Error(), "enlarge") {
				t.Errorf("error of a full map: %v", err)
			}
			break
		}
		if n > 1000 {
			t.Fatal("a map of 4 entries took 1000")
		}
	}
	must(t, s.IPCache.Upsert(want[0])) // what is there can be changed
	for i := range n {
		must(t, s.IPCache.Delete(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 3, 0, byte(i)}), 32)))
	}
	check()
	for _, r := range want {
		must(t, s.IPCache.Delete(r.Prefix))
		must(t, s.IPCache.Delete(r.Prefix))
	}
	want = nil
	check()
	if err := s.IPCache.Upsert(maps.IPCacheRow{}); err == nil {
		t.Error("took a row without a prefix")
	}
}

// TestConfig guards against settings that come out of the map as others.
func TestConfig(t *testing.T) {
	s := newSet(t)
	for _, want := range []maps.Config{maps.DefaultConfig(), {
		Trace: maps.TraceAll, EventRate: 7, ICMPRate: 9, NodeIPv4: netip.MustParseAddr("10.9.0.1"), NodeIPv6: netip.MustParseAddr("fd00::1"),
		Timeouts: maps.Timeouts{
			Established: time.Hour, SYN: time.Minute, Closing: 5 * time.Second, Answered: 20 * time.Second,
			AnsweredStack: 30 * time.Second, Unanswered: 40 * time.Second, Fragment: 50 * time.Second, NATHold: 9 * time.Second,
		},
		Masquerade: maps.Masquerade{IPv6: true, PortMin: 50000, PortMax: 50100},
	}} {
		must(t, s.Config.Set(want))
		got, err := s.Config.Get()
		must(t, err)
		near := cmp.Comparer(func(a, b time.Duration) bool { return (a - b).Abs() < 1100*time.Millisecond })
		if d := cmp.Diff(want, got, compare, near); d != "" {
			t.Errorf("config (-want +got):\n%s", d)
		}
	}
	must(t, s.Config.Set(maps.Config{}))
	if got, err := s.Config.Get(); err != nil || got.Timeouts.Established < 2*time.Hour || got.EventRate == 0 {
		t.Errorf("zero config: %+v %v", got, err)
	}
}

// putCT writes connections of one address, half of them expired.
func putCT(t *testing.T, s *maps.Set, mapName string, count int) {
	t.Helper()
	for i := range count {
		v := object.DatapathWeftCt{Expires: uint32(i%2) * (1 << 31)}
		k := object.DatapathWeftCt4Key{Addr: [2]uint32{0x0500010a, uint32(i + 1)}, Proto: 6} // 10.1.0.5
		must(t, s.Raw(mapName).Put(k, v))
	}
}

// TestSweep guards against collecting connections that live, and against one
// call running for ever.
func TestSweep(t *testing.T) {
	s := newSet(t)
	putCT(t, s, "weft_ct4", 400)
	putCT(t, s, "weft_ctn4", 100)
	if n, err := s.CT.Sweep(30); err != nil || n != 30 {
		t.Errorf("bounded sweep: %d %v, want 30", n, err)
	}
	if n, err := s.CT.Sweep(0); err != nil || n != 220 {
		t.Errorf("sweep: %d %v, want 220", n, err)
	}
	rows, err := s.CT.List(0)
	must(t, err)
	if len(rows) != 250 {
		t.Errorf("%d connections left, want 250", len(rows))
	}
	if rows, err := s.CT.List(7); err != nil || len(rows) != 7 {
		t.Errorf("bounded list: %d %v", len(rows), err)
	}
}

// TestPurge guards against a new pod finding connections of the last one that
// had its address (DATAPATH rule 6), and against purging others'.
func TestPurge(t *testing.T) {
	s := newSet(t)
	putCT(t, s, "weft_ct4", 100)
	putCT(t, s, "weft_ctn4", 50)
	other := object.DatapathWeftCt4Key{Addr: [2]uint32{1, 2}, Proto: 6}
	must(t, s.Raw("weft_ct4").Put(other, object.DatapathWeftCt{}))
	six := object.DatapathWeftCt6Key{Addr: [2]object.DatapathV6addr{{W: [4]uint32{1}}, {W: [4]uint32{0x000000fd, 0, 0, 0x05000000}}}}
	must(t, s.Raw("weft_ct6").Put(six, object.DatapathWeftCt{}))
	if n, err := s.CT.PurgeAddrs(netip.MustParseAddr("10.1.0.6"), netip.Addr{}); err != nil || n != 0 {
		t.Errorf("purged %d connections of another: %v", n, err)
	}
	if n, err := s.CT.PurgeAddrs(netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00::5")); err != nil || n != 151 {
		t.Errorf("purged %d, want 151: %v", n, err)
	}
	if n, err := s.CT.Flush(); err != nil || n != 1 {
		t.Errorf("%d connections were left, want 1: %v", n, err)
	}
}

// TestMemory guards against maps whose cost nobody sees.
func TestMemory(t *testing.T) {
	s := newSet(t)
	rows, err := s.Memory()
	must(t, err)
	if len(rows) != len(maps.Names()) {
		t.Errorf("%d of %d maps", len(rows), len(maps.Names()))
	}
	for _, r := range rows {
		if r.Name == "weft_ct4" && (r.Bytes < 1024*64 || r.Capacity != 1024) {
			t.Errorf("row %+v", r)
		}
		if len(r.TableRow()) != len(r.TableHeader()) {
			t.Errorf("row %v under header %v", r.TableRow(), r.TableHeader())
		}
	}
}

// wholeMemory tells whether the kernel says what maps take with all that they
// need. Older ones multiply the size of an entry.
func wholeMemory(t *testing.T) error {
	t.Helper()
	const entries, entry = 4096, 16
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: entry / 2, ValueSize: entry / 2, MaxEntries: entries})
	must(t, err)
	defer m.Close()
	info, err := m.Info()
	must(t, err)
	if n, ok := info.Memlock(); !ok || n <= entries*entry {
		return fmt.Errorf("%d entries of %d bytes take %d, says the kernel", entries, entry, n)
	}
	return nil
}

// TestWaysChange guards against connections that go on in the way that they
// remember after the ipcache or the configuration has come to say another one.
func TestWaysChange(t *testing.T) {
	s := newSet(t)
	generation := func() uint64 {
		t.Helper()
		b, err := s.Raw("weft_ways").LookupBytes(uint32(0))
		must(t, err)
		return binary.NativeEndian.Uint64(b) & 0xffffffff
	}
	node, other := netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("10.9.0.3")
	pods, pod := netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("10.2.0.7/32")
	row := func(p netip.Prefix, tunnel netip.Addr, by bool) func() error {
		return func() error {
			return s.IPCache.Upsert(maps.IPCacheRow{Prefix: p, Identity: 5, Kind: table.KindRemotePod, Tunnel: tunnel, ByTunnel: by})
		}
	}
	for _, step := range []struct {
		what  string
		do    func() error
		moves bool
	}{
		{"pods by the network, as before", row(pods, netip.Addr{}, false), false},
		{"pods by the overlay", row(pods, node, true), true},
		{"the same again", row(pods, node, true), false},
		{"one pod as its range", row(pod, node, true), false},
		{"one pod at another node", row(pod, other, true), true},
		{"that pod gone: as its range again", func() error { return s.IPCache.Delete(pod) }, true},
		{"known by the overlay, sent by the network", row(pods, node, false), true},
		{"the range gone", func() error { return s.IPCache.Delete(pods) }, true},
		{"nothing is there", func() error { return s.IPCache.Delete(pods) }, false},
		{"a configuration", func() error { return s.Config.Set(maps.DefaultConfig()) }, true},
		{"said by somebody", s.Ways.Changed, true},
	} {
		before := generation()
		must(t, step.do())
		if moved := generation() != before; moved != step.moves {
			t.Errorf("%s: connections forget their ways: %v, want %v", step.what, moved, step.moves)
		}
	}
}

// TestDefaultMemory guards against maps that cost more than DefaultSizes says.
func TestDefaultMemory(t *testing.T) {
	set := newSetOf(t, maps.DefaultSizes())
	services := []string{"weft_affinity", "weft_be", "weft_sk", "weft_svc4", "weft_svc6", "weft_svcset"}
	kerneltest.Need(t, "what a map takes in all", "6.4", wholeMemory(t))
	rows, err := set.Memory()
	must(t, err)
	var sum, forServices, outside float64
	for _, r := range rows {
		if strings.HasPrefix(r.Name, "weft_lbct") || strings.HasPrefix(r.Name, "weft_natc") {
			outside += float64(r.Bytes) / (1 << 20)
		} else if slices.Contains(services, r.Name) {
			forServices += float64(r.Bytes) / (1 << 20)
		} else {
			sum += float64(r.Bytes) / (1 << 20)
		}
	}
	if sum < 71 || sum > 81 {
		t.Errorf("all maps take %.1f MiB, want about 76", sum)
	}
	if forServices < 17 || forServices > 23 {
		t.Errorf("services take %.1f MiB more, want about 20", forServices)
	}
	if outside < 25 || outside > 32 {
		t.Errorf("services from outside take %.1f MiB more, want about 28", outside)
	}
}

// TestRender guards against tables whose columns do not match their headers.
func TestRender(t *testing.T) {
	for _, r := range []interface {
		TableHeader() []string
		TableRow() []string
	}{
		row(1, 2),
		maps.IPCacheRow{EndpointID: 1},
		maps.MetricRow{},
		maps.LBConnRow{},
		maps.NATRow{Owner: netip.MustParseAddr("10.0.0.1")},
		maps.CTRow{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")},
	} {
		if len(r.TableRow()) != len(r.TableHeader()) {
			t.Errorf("row %v under header %v", r.TableRow(), r.TableHeader())
		}
	}
}

// TestConstantsEqualC guards against Go and C meaning different things by a number.
func TestConstantsEqualC(t *testing.T) {
	src, err := os.ReadFile("../../../bpf/lib/types.h")
	must(t, err)
	for name, want := range map[string]int{
		"KIND_HOST": int(table.KindHost), "KIND_NODE": int(table.KindNode), "KIND_LOCAL_POD": int(table.KindLocalPod),
		"KIND_REMOTE_POD": int(table.KindRemotePod), "IDENTITY_HOST": int(table.IdentityHost), "IDENTITY_WORLD": int(table.IdentityWorld),
		"MAX_ENDPOINTS": maps.MaxEndpoints, "TRACE_NEW": int(maps.TraceNew), "TRACE_ALL": int(maps.TraceAll),
	} {
		m := regexp.MustCompile(`\b` + name + `(?: =)? (\d+)`).FindSubmatch(src)
		if m == nil {
			t.Errorf("types.h lacks %s", name)
			continue
		}
		if got, _ := strconv.Atoi(string(m[1])); got != want {
			t.Errorf("%s is %d in C, %d in Go", name, got, want)
		}
	}
}
