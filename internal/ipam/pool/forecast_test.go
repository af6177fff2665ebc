// SPDX-License-Identifier: Apache-2.0

package pool_test

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/ipam/pool"
)

// Fault: `weft ipam show` counts what is not there, or names a next range that
// is not the next one.
func TestForecast(t *testing.T) {
	p := v4Pool(24, "10.0.0.0/20", "10.1.0.0/23") // 16 and 2 blocks
	in := inputs(p, pool.Hazard{CIDR: prefix("10.0.4.0/23"), Kind: pool.Reserved}, pool.Hazard{CIDR: prefix("10.0.5.64/26"), Kind: pool.Connected})
	l, _, _ := pool.Plan(pool.Ledger{}, in, wants(p, "a", "b", "c", "d"))
	in.Now = at(60)
	l, _, _ = pool.Plan(l, in, wants(p, "b", "c", "d"))
	v4, v6 := pool.Forecast(l, in)
	want := pool.Usage{Total: 18, Held: 3, Quarantined: 1, Blocked: 2, Free: 12, Next: prefix("10.0.6.0/24"), NextEnd: at(660)}
	if v4 != want {
		t.Errorf("got %+v, want %+v", v4, want)
	}
	if v6 != (pool.Usage{}) {
		t.Errorf("IPv6 is off: %+v", v6)
	}
	if end := l.NextEnd(in.Quarantine); !end.Equal(at(660)) {
		t.Errorf("next end %s", end)
	}
	in.Now = at(660)
	l, _, _ = pool.Plan(l, in, wants(p, "b", "c", "d"))
	v4, _ = pool.Forecast(l, in)
	if v4.Next != prefix("10.0.0.0/24") || v4.Rested != 1 || v4.Free != 13 {
		t.Errorf("a block has rested: %+v", v4)
	}
	in.Pool = v4Pool(24, "10.1.0.0/23")
	v4, _ = pool.Forecast(l, in)
	if v4.Outside != 3 || v4.Total != 2 || v4.Held != 0 {
		t.Errorf("after an edit: %+v", v4)
	}
}

// Fault: a pool runs full over a week, and nobody is told before the last day.
func TestTimeToExhaustion(t *testing.T) {
	p := v4Pool(24, "10.0.0.0/16")
	in := inputs(p)
	var l pool.Ledger
	var nodes []string
	for hour := range 24 * 30 { // a node every six hours
		if hour%6 == 0 {
			nodes = append(nodes, fmt.Sprint("n", hour))
		}
		in.Now = at(3600 * hour)
		l, _, _ = pool.Plan(l, in, wants(p, nodes...))
	}
	v4, _ := pool.Forecast(l, in)
	want := time.Duration(v4.Free) * 6 * time.Hour
	if d := v4.Exhausted - want; v4.Exhausted == 0 || d.Abs() > want/20 {
		t.Errorf("%d blocks are free, one goes each 6 hours: forecast %s, want about %s", v4.Free, v4.Exhausted, want)
	}
	if n := len(l.Growth); n > 64 {
		t.Errorf("%d samples are kept", n)
	}
	// A pool that does not grow is never exhausted.
	for day := range 10 {
		in.Now = in.Now.Add(24 * time.Hour)
		l, _, _ = pool.Plan(l, in, wants(p, nodes[:len(nodes)-day%2]...))
	}
	if v4, _ = pool.Forecast(l, in); v4.Exhausted != 0 {
		t.Errorf("exhausted in %s without growth", v4.Exhausted)
	}
}

// Fault: sizes beyond 2^20, 2^32 or 2^64 blocks overflow, or are walked through.
func TestHugePools(t *testing.T) {
	for _, c := range []struct {
		p     pool.Pool
		total uint64
	}{
		{v4Pool(24, "10.0.0.0/8"), 1 << 16},
		{v4Pool(30, "10.0.0.0/8"), 1 << 22},
		{pool.Pool{V6: pool.Family{CIDRs: prefixes("fd00::/48"), MaskSize: 64}}, 1 << 16},
		{pool.Pool{V6: pool.Family{CIDRs: prefixes("fd00::/48"), MaskSize: 112}}, math.MaxUint64},
		{pool.Pool{V6: pool.Family{CIDRs: prefixes("fd00::/48"), MaskSize: 111}}, 1 << 63},
		{pool.Pool{V6: pool.Family{CIDRs: prefixes("fd00::/8"), MaskSize: 126}}, math.MaxUint64},
		{pool.Pool{V6: pool.Family{CIDRs: prefixes("fc00::/7", "2000::/3"), MaskSize: 64}}, 1<<57 + 1<<61},
	} {
		fam := c.p.V4
		if len(fam.CIDRs) == 0 {
			fam = c.p.V6
		}
		// All of it but the last block is taken away.
		last := lastBlock(fam.CIDRs[len(fam.CIDRs)-1], fam.MaskSize)
		in := inputs(c.p)
		for _, cidr := range fam.CIDRs {
			for b := cidr; b.Bits() < fam.MaskSize; {
				low := netip.PrefixFrom(b.Addr(), b.Bits()+1)
				high := lastBlock(b, b.Bits()+1)
				in.Hazards = append(in.Hazards, pool.Hazard{CIDR: low, Kind: pool.Reserved})
				b = high
			}
		}
		in.Hazards = append(in.Hazards, pool.Hazard{CIDR: lastBlock(fam.CIDRs[0], fam.MaskSize), Kind: pool.Reserved})
		if len(fam.CIDRs) == 1 {
			in.Hazards = in.Hazards[:len(in.Hazards)-1]
		}
		v4, v6 := pool.Forecast(pool.Ledger{}, in)
		u := v4
		if fam.CIDRs[0].Addr().Is6() {
			u = v6
		}
		if u.Total != c.total || u.Next != last {
			t.Errorf("%v /%d: %d blocks, next %s; want %d, %s", fam.CIDRs, fam.MaskSize, u.Total, u.Next, c.total, last)
		}
		if c.total < math.MaxUint64 && u.Free != 1 {
			t.Errorf("%v /%d: %d free", fam.CIDRs, fam.MaskSize, u.Free)
		}
		whole := inputs(c.p)
		for _, cidr := range fam.CIDRs {
			whole.Hazards = append(whole.Hazards, pool.Hazard{CIDR: cidr, Kind: pool.Reserved})
		}
		if v4, v6 := pool.Forecast(pool.Ledger{}, whole); v4.Free != 0 || v6.Free != 0 || v4.Next.IsValid() || v6.Next.IsValid() {
			t.Errorf("%v /%d: all is reserved, but %d and %d are free", fam.CIDRs, fam.MaskSize, v4.Free, v6.Free)
		}
		_, results, _ := pool.Plan(pool.Ledger{}, in, wants(c.p, "a", "b"))
		if len(results[0].Granted) != 1 || results[0].Granted[0] != last || len(results[1].Refused) != 1 {
			t.Errorf("%v /%d: %+v", fam.CIDRs, fam.MaskSize, results)
		}
	}
}

// lastBlock is the last block of p with that prefix length.
func lastBlock(p netip.Prefix, bits int) netip.Prefix {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < bits; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, bits)
}

// Fault: a suggestion that would be refused once it is followed.
func TestFreeSuggestions(t *testing.T) {
	taken := prefixes("10.128.0.0/9", "192.168.128.0/24", "172.16.0.0/12", "fd00::/9", "0.0.0.0/0")
	got := pool.Free(taken, false, 18, 5)
	if want := prefixes("192.168.192.0/18", "100.96.0.0/18", "100.96.64.0/18", "100.96.128.0/18", "100.96.192.0/18"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	six := pool.Free(taken, true, 48, 3)
	if len(six) != 3 {
		t.Fatal(six)
	}
	for _, p := range append(got, six...) {
		fam := pool.Family{CIDRs: []netip.Prefix{p}, MaskSize: 24}
		in := pool.Inputs{Pool: pool.Pool{V4: fam}}
		if p.Addr().Is6() {
			fam.MaskSize = 64
			in.Pool = pool.Pool{V6: fam}
		}
		for _, h := range taken {
			in.Hazards = append(in.Hazards, pool.Hazard{CIDR: h, Kind: pool.Connected})
		}
		if f := pool.Validate(in); len(f) > 0 {
			t.Errorf("suggested %s, but: %s", p, texts(f))
		}
	}
	if got := pool.Free(prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"), false, 16, 3); len(got) > 0 {
		t.Errorf("suggested %v out of nothing", got)
	}
	if first, second := pool.Free(nil, true, 48, 1), pool.Free(taken, true, 48, 1); slices.Equal(first, second) {
		t.Errorf("two networks get the same %v", first)
	}
}

func clusterOf(n int) (pool.Inputs, []pool.Demand) {
	p := pool.Pool{
		Name: "default",
		V4:   pool.Family{CIDRs: prefixes("10.0.0.0/8"), MaskSize: 24}, V6: pool.Family{CIDRs: prefixes("fd00::/48"), MaskSize: 64},
	}
	in := inputs(p)
	var nodes []string
	for i := range n {
		name := fmt.Sprintf("node-%d", i)
		nodes = append(nodes, name)
		addr := netip.AddrFrom4([4]byte{10, 77, byte(i >> 8), byte(i)})
		in.Hazards = append(in.Hazards,
			pool.Hazard{CIDR: netip.PrefixFrom(addr, 32), Kind: pool.NodeAddress, Where: "node " + name},
			pool.Hazard{CIDR: prefix("10.77.0.0/16"), Kind: pool.Connected, Where: "node " + name + ", device eth0"},
			pool.Hazard{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}), 30).Masked(), Kind: pool.Route, Where: "node " + name})
	}
	return in, wants(p, nodes...)
}

// Fault: a plan that walks all blocks, or all pairs of nodes.
func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{500, 5000} {
		in, living := clusterOf(n)
		b.Run(fmt.Sprintf("join/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				pool.Plan(pool.Ledger{}, in, living)
			}
		})
		l, _, _ := pool.Plan(pool.Ledger{}, in, living)
		b.Run(fmt.Sprintf("steady/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				pool.Plan(l, in, living)
			}
		})
		b.Run(fmt.Sprintf("leave/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				pool.Plan(l, in, living[:n/2])
			}
		})
		b.Run(fmt.Sprintf("adopt/%d", n), func(b *testing.B) {
			held := slices.Clone(living)
			for i := range held {
				held[i].Held = l.Grants[held[i].Node]
			}
			b.ReportAllocs()
			for b.Loop() {
				pool.Plan(pool.Ledger{}, in, held)
			}
		})
	}
}
