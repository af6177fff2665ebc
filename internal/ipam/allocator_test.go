// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-net/weft/internal/ipam"
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newAllocator(t interface{ Fatal(...any) }, fam ipam.Families, ranges ...string) (*ipam.Allocator, *clock) {
	c := &clock{t: time.Unix(1_000_000, 0)}
	a := ipam.New(ipam.Config{Families: fam, Now: c.now})
	if err := a.SetRanges(prefixes(ranges...)); err != nil {
		t.Fatal(err)
	}
	return a, c
}

func prefixes(ss ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(ss))
	for i, s := range ss {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

var dual = ipam.Families{V4: true, V6: true}

// An allocation that fails in one family must not keep an address of the other.
func TestAllocateBothOrNone(t *testing.T) {
	a, _ := newAllocator(t, dual, "10.0.0.0/24", "fd00::/126") // two IPv6 addresses for pods
	for i := range 2 {
		got, err := a.Allocate(strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		if want := []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i+2)), netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+2))}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	_, err := a.Allocate("third")
	var ex *ipam.ExhaustedError
	if !errors.As(err, &ex) || !ex.V6 {
		t.Fatalf("got %v, want IPv6 exhausted", err)
	}
	if st := a.Status(); st.Ranges[0].Used != 2 || st.Ranges[1].Used != 2 {
		t.Errorf("a failed allocation kept an address: %+v", st)
	}
}

// The operator sees in the event of a pod which pool is full, how full, and what to do.
func TestExhaustedNamesPoolAndRemedy(t *testing.T) {
	a, c := newAllocator(t, ipam.Families{V4: true}, "10.0.0.0/29", "10.0.1.0/30")
	for i := range 6 {
		if _, err := a.Allocate(strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
	}
	a.Release("3")
	c.t = c.t.Add(10 * time.Second)
	_, err := a.Allocate("more")
	if err == nil {
		t.Fatal("allocated from a full pool")
	}
	for _, want := range []string{"10.0.0.0/29", "10.0.1.0/30", "6 addresses", "5 in use", "1 quarantined", "free in 20s", "add nodes"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	c.t = c.t.Add(20 * time.Second)
	if _, err := a.Allocate("more"); err != nil {
		t.Errorf("after 30 s: %v", err)
	}
}

// A node of a pool must not be told to change kube-controller-manager.
func TestExhaustedRemedyOfAPool(t *testing.T) {
	a := ipam.New(ipam.Config{Families: ipam.Families{V4: true}, Remedy: "in pool default each node has a /30 of 10.0.0.0/16"})
	if err := a.SetRanges(prefixes("10.0.1.0/30")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Allocate("one"); err != nil {
		t.Fatal(err)
	}
	_, err := a.Allocate("two")
	if err == nil || !strings.Contains(err.Error(), "pool default each node has a /30 of 10.0.0.0/16") || strings.Contains(err.Error(), "kube-controller-manager") {
		t.Errorf("got %v", err)
	}
}

// A range that was taken away must give no address, and take none from a pod.
func TestClear(t *testing.T) {
	a, _ := newAllocator(t, ipam.Families{V4: true}, "10.0.0.0/24")
	got, err := a.Allocate("x")
	if err != nil {
		t.Fatal(err)
	}
	a.Clear()
	if _, err := a.Allocate("y"); !errors.Is(err, ipam.ErrNoRanges) {
		t.Errorf("got %v, want ErrNoRanges", err)
	}
	if st := a.Status(); a.Owner(got[0]) != "x" || st.Outside != 1 {
		t.Errorf("%s belongs to %q, status %+v", got[0], a.Owner(got[0]), st)
	}
	if err := a.SetRanges(prefixes("10.0.0.0/24")); err != nil {
		t.Fatal(err)
	}
	if next, err := a.Allocate("y"); err != nil || next[0] == got[0] {
		t.Errorf("given %v, %v though x has it", next, err)
	}
}

// A start with an unreadable state must not give an address that was released a
// second before.
func TestHold(t *testing.T) {
	a, c := newAllocator(t, ipam.Families{V4: true}, "10.0.0.0/24")
	a.Hold(c.t.Add(7 * time.Second))
	var hold *ipam.HoldError
	if _, err := a.Allocate("x"); !errors.As(err, &hold) || !strings.Contains(err.Error(), "7s") {
		t.Fatalf("got %v, want a hold of 7s", err)
	}
	c.t = c.t.Add(7 * time.Second)
	if _, err := a.Allocate("x"); err != nil {
		t.Fatal(err)
	}
}

// What failed before the pod could send must not use up the quarantine: a full
// disk makes ADDs fail again and again.
func TestCancelNeedsNoRest(t *testing.T) {
	a, _ := newAllocator(t, ipam.Families{V4: true}, "10.0.0.0/30")
	for range 10 {
		got, err := a.Allocate("x")
		if err != nil {
			t.Fatal(err)
		}
		if got[0] != netip.MustParseAddr("10.0.0.2") {
			t.Fatalf("got %v", got)
		}
		a.Cancel("x")
	}
}

// An address that a CiliumEndpoint of a dead pod still claims must rest on,
// whether it was ever given out by this agent or not.
func TestClaimedAddressesRestOn(t *testing.T) {
	claimed := map[netip.Addr]bool{netip.MustParseAddr("10.0.0.2"): true}
	c := &clock{t: time.Unix(1_000_000, 0)}
	a := ipam.New(ipam.Config{Families: ipam.Families{V4: true}, Now: c.now, Claimed: func(a netip.Addr) bool { return claimed[a] }})
	if err := a.SetRanges(prefixes("10.0.0.0/29")); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		got, err := a.Allocate(strconv.Itoa(i))
		if err != nil || claimed[got[0]] {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	c.t = c.t.Add(time.Hour)
	if got, err := a.Allocate("x"); err == nil {
		t.Fatalf("gave %v, which is claimed", got)
	}
	if q := a.Status().Ranges[0].Quarantined; q != 1 {
		t.Errorf("%d quarantined, want 1", q)
	}
	delete(claimed, netip.MustParseAddr("10.0.0.2"))
	if got, err := a.Allocate("x"); err != nil || got[0] != netip.MustParseAddr("10.0.0.2") {
		t.Fatalf("got %v, %v", got, err)
	}
}

// Changing a node's range must not forget running pods outside of it, nor give
// their addresses to others when the range comes back.
func TestSetRangesKeepsWhatIsInUse(t *testing.T) {
	a, _ := newAllocator(t, ipam.Families{V4: true}, "10.0.0.0/29")
	first, err := a.Allocate("old")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.SetRanges(prefixes("10.0.1.0/29")); err != nil {
		t.Fatal(err)
	}
	if st := a.Status(); st.Outside != 1 || st.Ranges[0].Used != 0 {
		t.Errorf("status %+v", st)
	}
	if err := a.SetRanges(prefixes("10.0.0.0/29")); err != nil {
		t.Fatal(err)
	}
	second, err := a.Allocate("new")
	if err != nil || second[0] == first[0] {
		t.Fatalf("got %v, %v; %v is in use", second, err, first)
	}
	if again, err := a.Allocate("old"); err != nil || again[0] != first[0] {
		t.Fatalf("got %v, %v", again, err)
	}
}

// A bad range must leave the good ones at work.
func TestBadRangesChangeNothing(t *testing.T) {
	a, _ := newAllocator(t, ipam.Families{V4: true}, "10.0.0.0/24")
	if err := a.SetRanges(prefixes("10.1.0.0/31")); err == nil {
		t.Fatal("took a /31")
	}
	if got, err := a.Allocate("x"); err != nil || got[0].String() != "10.0.0.2" {
		t.Fatalf("got %v, %v", got, err)
	}
}

func TestValidate(t *testing.T) {
	v4, v6 := ipam.Families{V4: true}, ipam.Families{V6: true}
	for _, c := range []struct {
		name   string
		fam    ipam.Families
		ranges []string
		want   string // part of the error, empty for none
	}{
		{"plain", dual, []string{"10.0.0.0/24", "fd00::/64"}, ""},
		{"several of a family", v4, []string{"10.0.0.0/24", "10.0.1.0/30"}, ""},
		{"host route", v4, []string{"10.0.0.1/32"}, "pod CIDR 10.0.0.1/32: is too small"},
		{"point to point", v4, []string{"10.0.0.0/31"}, "use a /30 or larger"},
		{"IPv6 host route", v6, []string{"fd00::1/128"}, "use a /126 or larger"},
		{"two IPv6 addresses", v6, []string{"fd00::/127"}, "is too small"},
		{"host bits", v4, []string{"10.0.0.1/24"}, "write 10.0.0.0/24"},
		{"the same twice", v4, []string{"10.0.0.0/24", "10.0.0.0/24"}, "overlaps pod CIDR 10.0.0.0/24"},
		{"one inside another", v4, []string{"10.0.0.0/16", "10.0.3.0/24"}, "pod CIDR 10.0.3.0/24: overlaps pod CIDR 10.0.0.0/16"},
		{"IPv6 while off", v4, []string{"10.0.0.0/24", "fd00::/64"}, "is IPv6, which is off: set ipv6.enabled=true"},
		{"IPv4 while off", v6, []string{"10.0.0.0/24"}, "is IPv4, which is off"},
		{"IPv6 missing", dual, []string{"10.0.0.0/24"}, "IPv6 is on, but no pod CIDR"},
		{"none", v4, nil, "IPv4 is on, but no pod CIDR"},
		{"loopback", v4, []string{"127.0.1.0/24"}, "loopback"},
		{"link-local", v4, []string{"169.254.0.0/24"}, "link-local"},
		{"multicast", v6, []string{"ff02::/64"}, "multicast"},
		{"everything", v4, []string{"0.0.0.0/0"}, "never a pod's"},
		{"mapped", v6, []string{"::ffff:10.0.0.0/120"}, "IPv4-mapped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := ipam.Validate(prefixes(c.ranges...), c.fam)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if err := ipam.Validate([]netip.Prefix{{}}, v4); err == nil {
		t.Error("took an invalid prefix")
	}
}

// A /64 must neither be counted up nor remember each address that was ever released.
func TestHugeRangeIsBounded(t *testing.T) {
	a, c := newAllocator(t, ipam.Families{V6: true}, "fd00::/64")
	if got := a.Status().Ranges[0].Total; got != math.MaxUint64 {
		t.Errorf("total %d", got)
	}
	for i := range 20_000 {
		if _, err := a.Allocate(strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
		a.Release(strconv.Itoa(i))
		c.t = c.t.Add(time.Second)
	}
	if n := len(a.Resting()); n > 4200 {
		t.Errorf("%d released addresses are remembered", n)
	}
}

// oracle is the slow, obviously right allocator: it looks at every address.
type oracle struct {
	ranges   []netip.Prefix
	used     map[netip.Addr]string
	released map[netip.Addr]time.Time
	// forgotten may have been dropped from memory, as they had rested enough
	// while no range held them: they count as released or as fresh.
	forgotten map[netip.Addr]bool
}

func (o *oracle) forget(now time.Time) {
	for a, at := range o.released {
		if !o.usable(a) && now.Sub(at) >= ipam.Rest {
			o.forgotten[a] = true
		}
	}
}

func (o *oracle) usable(a netip.Addr) bool {
	for _, p := range o.ranges {
		if !p.Contains(a) || a == p.Addr() || a == p.Addr().Next() {
			continue
		}
		if a.Is4() && !p.Contains(a.Next()) {
			continue // broadcast
		}
		return true
	}
	return false
}

func (o *oracle) free(v6 bool, now time.Time) (fresh, rested, either []netip.Addr) {
	for _, p := range o.ranges {
		if p.Addr().Is6() != v6 {
			continue
		}
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			if _, used := o.used[a]; used || !o.usable(a) {
				continue
			}
			at, was := o.released[a]
			switch {
			case o.forgotten[a]:
				either = append(either, a)
			case !was:
				fresh = append(fresh, a)
			case now.Sub(at) >= ipam.Rest:
				rested = append(rested, a)
			}
		}
	}
	return fresh, rested, either
}

// check tells whether a may be given now.
func (o *oracle) check(a netip.Addr, now time.Time) error {
	if !o.usable(a) {
		return fmt.Errorf("%s is reserved or in no range", a)
	}
	if owner, used := o.used[a]; used {
		return fmt.Errorf("%s is in use by %s", a, owner)
	}
	at, was := o.released[a]
	if !was || o.forgotten[a] {
		return nil // forgotten ones have rested
	}
	if now.Sub(at) < ipam.Rest {
		return fmt.Errorf("%s rested only %s", a, now.Sub(at))
	}
	fresh, rested, _ := o.free(a.Is6(), now)
	if len(fresh) > 0 {
		return fmt.Errorf("%s was reused while %s was never given", a, fresh[0])
	}
	for _, b := range rested {
		if o.released[b].Before(at) {
			return fmt.Errorf("%s was reused before %s, which rested longer", a, b)
		}
	}
	return nil
}

// Any sequence of operations must agree with the oracle: no address twice, none
// reserved, none before its rest, oldest first, and exhausted only if it is.
func TestAgainstOracle(t *testing.T) {
	pools := [][]string{
		{"10.0.0.0/29", "fd00::/125"},
		{"10.0.0.0/29", "10.0.9.0/30", "fd00::/126", "fd01::/126"},
		{"10.0.0.0/30", "fd00::/125"},
	}
	rapid.Check(t, func(t *rapid.T) {
		a, c := newAllocator(t, dual, pools[0]...)
		o := &oracle{ranges: prefixes(pools[0]...), used: map[netip.Addr]string{}, released: map[netip.Addr]time.Time{}, forgotten: map[netip.Addr]bool{}}
		owners, n := map[string][]netip.Addr{}, 0
		someone := func(t *rapid.T) string {
			names := make([]string, 0, len(owners))
			for k := range owners {
				names = append(names, k)
			}
			if len(names) == 0 {
				t.Skip("nobody")
			}
			slices.Sort(names)
			return rapid.SampledFrom(names).Draw(t, "owner")
		}
		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				n++
				owner := strconv.Itoa(n)
				got, err := a.Allocate(owner)
				if err != nil {
					for _, v6 := range []bool{false, true} {
						if fresh, rested, either := o.free(v6, c.t); len(fresh)+len(rested)+len(either) == 0 {
							return
						}
					}
					t.Fatalf("not exhausted, but: %v", err)
				}
				if len(got) != 2 || got[0].Is6() || !got[1].Is6() {
					t.Fatalf("got %v, want one of each family", got)
				}
				for _, addr := range got {
					if err := o.check(addr, c.t); err != nil {
						t.Fatal(err)
					}
				}
				for _, addr := range got {
					o.used[addr] = owner
					delete(o.released, addr)
					delete(o.forgotten, addr)
				}
				owners[owner] = got
			},
			"release": func(t *rapid.T) {
				owner := someone(t)
				a.Release(owner)
				for _, addr := range owners[owner] {
					delete(o.used, addr)
					o.released[addr] = c.t
				}
				delete(owners, owner)
			},
			"again": func(t *rapid.T) {
				owner := someone(t)
				if got, err := a.Allocate(owner); err != nil || !slices.Equal(got, owners[owner]) {
					t.Fatalf("got %v, %v, want %v again", got, err, owners[owner])
				}
			},
			"wait": func(t *rapid.T) {
				c.t = c.t.Add(time.Duration(rapid.IntRange(1, 20).Draw(t, "seconds")) * time.Second)
			},
			"ranges": func(t *rapid.T) {
				o.ranges = prefixes(rapid.SampledFrom(pools).Draw(t, "pools")...)
				if err := a.SetRanges(o.ranges); err != nil {
					t.Fatal(err)
				}
			},
			"restart": func(t *rapid.T) {
				resting := a.Resting()
				ranges := a.Ranges()
				a = ipam.New(ipam.Config{Families: dual, Now: c.now})
				for owner, addrs := range owners {
					if err := a.Restore(owner, addrs...); err != nil {
						t.Fatal(err)
					}
				}
				a.RestoreResting(resting)
				if err := a.SetRanges(ranges); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) { // counts agree
				o.forget(c.t)
				st := a.Status()
				var used, resting uint64
				for _, r := range st.Ranges {
					used, resting = used+r.Used, resting+r.Quarantined
				}
				if int(used+st.Outside) != len(o.used) {
					t.Fatalf("%d in use and %d outside, want %d together", used, st.Outside, len(o.used))
				}
				want := uint64(0)
				for addr, at := range o.released {
					if o.usable(addr) && c.t.Sub(at) < ipam.Rest {
						want++
					}
				}
				if resting != want {
					t.Fatalf("%d quarantined, want %d", resting, want)
				}
			},
		})
	})
}

// Two pods with one address is the worst that can happen to either.
func TestRestoreRefusesSharedAddress(t *testing.T) {
	a, _ := newAllocator(t, ipam.Families{V4: true}, "10.0.0.0/24")
	x := netip.MustParseAddr("10.0.0.7")
	if err := a.Restore("a", x); err != nil {
		t.Fatal(err)
	}
	if err := a.Restore("b", netip.MustParseAddr("10.0.0.8"), x); err == nil || !strings.Contains(err.Error(), "held by a") {
		t.Fatalf("got %v", err)
	}
	if o := a.Owner(netip.MustParseAddr("10.0.0.8")); o != "" {
		t.Errorf("a refused restore took 10.0.0.8 for %s", o)
	}
	if err := a.Restore("a", x); err != nil {
		t.Errorf("the owner itself: %v", err)
	}
}
