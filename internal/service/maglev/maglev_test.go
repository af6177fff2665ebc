// SPDX-License-Identifier: Apache-2.0

package maglev_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-net/weft/internal/service/maglev"
	"github.com/weft-net/weft/internal/service/oracle"
)

// pods returns n backends of a family, none twice.
func pods(n int, v6 bool) []maglev.Backend {
	out := make([]maglev.Backend, n)
	for i := range out {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		if v6 {
			a = netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})
		}
		out[i] = maglev.Backend{Addr: netip.AddrPortFrom(a, 8080), Proto: 6}
	}
	return out
}

func seed(t *testing.T, text string) maglev.Seed {
	t.Helper()
	s, err := maglev.ParseSeed(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// owners is a table with the backends instead of their numbers.
func owners(t maglev.Table, backends []maglev.Backend) []netip.AddrPort {
	slots := t.Build(backends)
	out := make([]netip.AddrPort, len(slots))
	for i, s := range slots {
		out[i] = backends[s].Addr
	}
	return out
}

// Guards against nodes that choose differently because they learned of the backends in
// another order, and against tables that are not the paper's.
func TestTableFollowsFromTheSet(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		table := maglev.Table{Size: rapid.SampledFrom(maglev.Sizes()[:3]).Draw(rt, "size")}
		copy(table.Seed[:], rapid.SliceOfN(rapid.Byte(), 12, 12).Draw(rt, "seed"))
		all := pods(rapid.IntRange(1, 40).Draw(rt, "backends"), rapid.Bool().Draw(rt, "v6"))
		var addrs []netip.AddrPort
		for _, b := range all {
			addrs = append(addrs, b.Addr)
		}
		want := oracle.Maglev(table, addrs, 6)
		got := owners(table, rapid.Permutation(all).Draw(rt, "order"))
		if !slices.Equal(got, want) {
			rt.Fatalf("a table of %d slots and %d backends is not what the paper makes of them", table.Size, len(all))
		}
	})
}

// Guards against backends that get more connections than others, and against a change of
// one that moves connections of many: the paper has a few percent where there are a hundred
// slots for each backend.
func TestBalanceAndDisruption(t *testing.T) {
	table := maglev.Table{Size: maglev.DefaultSize, Seed: seed(t, maglev.DefaultSeed)}
	for _, n := range []int{2, 3, 10, 50, 163} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			all := pods(n, false)
			before := owners(table, all)
			has := map[netip.AddrPort]int{}
			for _, b := range before {
				has[b]++
			}
			for b, slots := range has {
				if fair := table.Size / n; slots < fair || slots > fair+1 {
					t.Errorf("%s has %d slots of %d, %d would be fair", b, slots, table.Size, fair)
				}
			}
			gone := rand.IntN(n)
			after := owners(table, slices.Delete(slices.Clone(all), gone, gone+1))
			moved := 0
			for i, b := range before {
				if b != all[gone].Addr && after[i] != b {
					moved++
				}
			}
			share := float64(moved) / float64(table.Size)
			t.Logf("%.2f %% of all slots moved between backends that stay", 100*share)
			if share > 0.05 {
				t.Errorf("%d of %d slots moved between backends that stay", moved, table.Size)
			}
		})
	}
}

// Guards against a digest that is the same for two tables: the kernel would be left with
// the wrong one.
func TestDigest(t *testing.T) {
	all := pods(20, true)
	table := maglev.Table{Size: 251, Seed: seed(t, maglev.DefaultSeed)}
	other, larger := table, table
	other.Seed[11]++
	larger.Size = 509
	moved := slices.Clone(all)
	moved[3].Addr = netip.AddrPortFrom(moved[3].Addr.Addr(), 8081)
	udp := slices.Clone(all)
	udp[19].Proto = 17
	swapped := slices.Clone(all)
	swapped[0], swapped[1] = swapped[1], swapped[0] // slots hold their numbers
	seen := map[uint64]string{0: "none"}
	for _, c := range []struct {
		name   string
		digest uint64
	}{
		{"as it is", table.Digest(all)},
		{"another seed", other.Digest(all)},
		{"another size", larger.Digest(all)},
		{"one less", table.Digest(all[1:])},
		{"another port", table.Digest(moved)},
		{"another protocol", table.Digest(udp)},
		{"another order", table.Digest(swapped)},
	} {
		if was, twice := seen[c.digest]; twice {
			t.Errorf("%s has the digest of: %s", c.name, was)
		}
		seen[c.digest] = c.name
	}
}

// Guards against a seed that is taken for another one, or for none.
func TestParseSeed(t *testing.T) {
	for _, text := range []string{"", "JAeU", "!!!!", strings.Repeat("A", 17), strings.Repeat("A", 20)} {
		if s, err := maglev.ParseSeed(text); err == nil {
			t.Errorf("%q is a seed: %v", text, s)
		}
	}
	if a, b := seed(t, maglev.DefaultSeed), seed(t, "AAAAAAAAAAAAAAAA"); a.Flow() == b.Flow() {
		t.Error("two seeds lead flows to the same slots")
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, size := range []int{maglev.DefaultSize, 131071} {
		for _, n := range []int{10, 100, 1000} {
			b.Run(fmt.Sprintf("slots=%d/backends=%d", size, n), func(b *testing.B) {
				table, all := maglev.Table{Size: size}, pods(n, false)
				b.ReportAllocs()
				for b.Loop() {
					table.Build(all)
				}
			})
		}
	}
}
