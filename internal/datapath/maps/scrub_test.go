// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	weftmaps "github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
)

// raw is an IPv4 address as the maps hold it.
func raw(a string) uint32 {
	b := netip.MustParseAddr(a).As4()
	return binary.NativeEndian.Uint32(b[:])
}

// ticksNow is the programs' clock.
func ticksNow(t *testing.T) uint32 {
	t.Helper()
	var ts unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts))
	return uint32(ts.Nano() >> 30)
}

// TestScrub guards against entries that stay though nothing of ours can have
// written them, and against true ones that go with them.
func TestScrub(t *testing.T) {
	s := newSet(t)
	must(t, s.Config.Set(weftmaps.DefaultConfig()))
	must(t, s.Endpoints.Upsert(row(1, 10))) // 10.1.0.5, generation 3
	must(t, s.Endpoints.SetNetDevices([]int{2}))
	now := ticksNow(t)
	pod, other := raw("10.1.0.5"), raw("10.1.0.6")
	const opener = 1 // CT_OPENER_HI: the second of the pair
	conns := map[string]struct {
		pair [2]uint32
		v    object.DatapathWeftCt
		stay bool
	}{
		"of a pod":                   {[2]uint32{pod, other}, object.DatapathWeftCt{Expires: now + 60, SrcEndpoint: 1, SrcGeneration: 3}, true},
		"to a pod":                   {[2]uint32{pod, other}, object.DatapathWeftCt{Expires: now + 60, Flags: opener, DstEndpoint: 1, DstGeneration: 3}, true},
		"as long as one can":         {[2]uint32{pod, other}, object.DatapathWeftCt{Expires: now + 7450, SrcEndpoint: 1, SrcGeneration: 3}, true},
		"of the host, masqueraded":   {[2]uint32{other, other}, object.DatapathWeftCt{Expires: now + 60, Nat: 1 << 16}, true},
		"longer than any":            {[2]uint32{pod, other}, object.DatapathWeftCt{Expires: now + 9000, SrcEndpoint: 1, SrcGeneration: 3}, false},
		"of the pod before":          {[2]uint32{pod, other}, object.DatapathWeftCt{Expires: now + 60, SrcEndpoint: 1, SrcGeneration: 2}, false},
		"of no endpoint":             {[2]uint32{pod, other}, object.DatapathWeftCt{Expires: now + 60, SrcEndpoint: 77, SrcGeneration: 3}, false},
		"of an endpoint without row": {[2]uint32{pod, other}, object.DatapathWeftCt{Expires: now + 60, SrcEndpoint: 77}, false},
		"of another's address":       {[2]uint32{other, pod}, object.DatapathWeftCt{Expires: now + 60, SrcEndpoint: 1, SrcGeneration: 3}, false},
		"to no endpoint":             {[2]uint32{pod, other}, object.DatapathWeftCt{Expires: now + 60, SrcEndpoint: 1, SrcGeneration: 3, DstEndpoint: 9}, false},
		"of nobody":                  {[2]uint32{other, other}, object.DatapathWeftCt{Expires: now + 60}, false},
	}
	check := map[string]func() bool{}
	want := map[string]bool{}
	gone := weftmaps.Scrubbed{}
	plant := func(what, name string, key, value any, stay bool) {
		t.Helper()
		m := s.Raw(name)
		must(t, m.Update(key, value, ebpf.UpdateAny))
		want[name+": "+what] = stay
		check[name+": "+what] = func() bool { b, _ := m.LookupBytes(key); return b != nil }
	}
	port := uint16(0)
	for _, what := range slices.Sorted(maps.Keys(conns)) {
		c := conns[what]
		for _, name := range []string{"weft_ct4", "weft_ctn4"} {
			port++
			plant(what, name, object.DatapathWeftCt4Key{Addr: c.pair, Port: [2]uint16{port, port}, Proto: 6}, c.v, c.stay)
			if !c.stay {
				gone.Conntrack++
			}
		}
	}
	for i, c := range []struct {
		what string
		v    object.DatapathWeftNat
		stay bool
	}{
		{"of a pod", object.DatapathWeftNat{Expires: now + 60, Endpoint: 1, Generation: 3, Addr: object.DatapathV6addr{W: [4]uint32{pod}}}, true},
		{"of the host", object.DatapathWeftNat{Expires: now + 60, Addr: object.DatapathV6addr{W: [4]uint32{other}}}, true},
		{"of the pod before", object.DatapathWeftNat{Expires: now + 60, Endpoint: 1, Generation: 2, Addr: object.DatapathV6addr{W: [4]uint32{pod}}}, false},
		{"of another's address", object.DatapathWeftNat{Expires: now + 60, Endpoint: 1, Generation: 3, Addr: object.DatapathV6addr{W: [4]uint32{other}}}, false},
		{"longer than any", object.DatapathWeftNat{Expires: now + 9000, Addr: object.DatapathV6addr{W: [4]uint32{other}}}, false},
	} {
		plant(c.what, "weft_nat4", object.DatapathWeftNat4Key{Peer: other, Port: uint16(i), Proto: 17}, c.v, c.stay)
		if !c.stay {
			gone.NAT++
		}
	}
	plant("of a pod", "weft_dev", uint32(10), object.DatapathWeftDevice{Kind: 1, Endpoint: 1}, true)
	plant("of the node", "weft_dev", uint32(2), object.DatapathWeftDevice{Kind: 2}, true)
	plant("of no endpoint", "weft_dev", uint32(11), object.DatapathWeftDevice{Kind: 1, Endpoint: 9}, false)
	plant("not the endpoint's", "weft_dev", uint32(12), object.DatapathWeftDevice{Kind: 1, Endpoint: 1}, false)
	plant("of no kind", "weft_dev", uint32(13), object.DatapathWeftDevice{Kind: 77, Endpoint: 1}, false)
	gone.Devices = 3
	plant("young", "weft_frag4", object.DatapathWeftFrag4Key{Id: 1}, object.DatapathWeftFrag{Expires: now + 20}, true)
	plant("over", "weft_frag4", object.DatapathWeftFrag4Key{Id: 2}, object.DatapathWeftFrag{Expires: now - 1}, false)
	plant("longer than any", "weft_frag4", object.DatapathWeftFrag4Key{Id: 3}, object.DatapathWeftFrag{Expires: now + 100}, false)
	gone.Fragments = 1 // what expired is no garbage
	plant("a network", "weft_net4", object.DatapathWeftNet4Key{Prefixlen: 24, Addr: raw("10.2.0.0")}, object.DatapathWeftIpcache{Kind: 4}, true)
	plant("an address", "weft_net4", object.DatapathWeftNet4Key{Prefixlen: 32, Addr: other}, object.DatapathWeftIpcache{Kind: 4}, false)
	gone.Networks = 1

	got, err := s.Scrub()
	must(t, err)
	if got != gone {
		t.Errorf("removed %+v, want %+v", got, gone)
	}
	for what, there := range check {
		if there() != want[what] {
			t.Errorf("%s: there %v, want %v", what, there(), want[what])
		}
	}
	if again, err := s.Scrub(); err != nil || again.Total() != 0 {
		t.Errorf("a second time: %+v %v", again, err)
	}
}

// BenchmarkScrub tells what a look through a full table costs.
func BenchmarkScrub(b *testing.B) {
	for _, n := range []int{1 << 12, 1 << 17} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			s := newSetOf(b, weftmaps.Sizes{CT: n, CTNew: 1024, Fragments: 64, IPCache: 4, Networks: 4, Events: 4096})
			must(b, s.Config.Set(weftmaps.DefaultConfig()))
			must(b, s.Endpoints.Upsert(row(1, 10)))
			for i := range n / 2 {
				k := object.DatapathWeftCt4Key{Addr: [2]uint32{raw("10.1.0.5"), uint32(i)}, Proto: 6}
				must(b, s.Raw("weft_ct4").Put(k, object.DatapathWeftCt{Expires: 1, SrcEndpoint: 1, SrcGeneration: 3}))
			}
			for b.Loop() {
				if got, err := s.Scrub(); err != nil || got.Total() != 0 {
					b.Fatal(got, err)
				}
			}
		})
	}
}
