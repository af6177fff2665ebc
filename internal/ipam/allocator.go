// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Rest is how long a released address is kept from everyone.
const Rest = 30 * time.Second

// maxRested is how many released addresses a family remembers before it prefers
// them over addresses that nobody ever had. It bounds memory in a /64, where
// the latter never run out.
const maxRested = 4096

// ErrNoRanges is returned before any range is known.
var ErrNoRanges = errors.New("no ranges are known")

// Config of an Allocator.
type Config struct {
	Families Families
	// Claimed reports that something outside still claims the address, so that
	// it must rest on. May be nil.
	Claimed func(netip.Addr) bool
	// Remedy is what an ExhaustedError proposes; "" stands for what fits ranges
	// from Node.spec.podCIDRs.
	Remedy string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Allocator gives out addresses. It is safe for concurrent use. Each address of
// its ranges is in exactly one state: reserved, in use, resting, or fresh
// (never given since the range was set).
type Allocator struct {
	cfg Config

	mu     sync.Mutex
	ranges []*span
	used   map[netip.Addr]string // → owner
	owners map[string][]netip.Addr
	rest   map[bool]*queue // by v6
	hold   time.Time
}

// span is a range and its next fresh address; invalid once there is none.
type span struct {
	prefix netip.Prefix
	pool   string
	next   netip.Addr
}

// Range is a range and the pool that it is of, "" where there is one pool only.
type Range struct {
	Prefix netip.Prefix
	Pool   string
}

// Choice names the pool of each family's address.
type Choice struct{ V4, V6 string }

func (c Choice) of(v6 bool) string {
	if v6 {
		return c.V6
	}
	return c.V4
}

// New returns an Allocator without ranges.
func New(cfg Config) *Allocator {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Claimed == nil {
		cfg.Claimed = func(netip.Addr) bool { return false }
	}
	return &Allocator{
		cfg: cfg, used: map[netip.Addr]string{}, owners: map[string][]netip.Addr{},
		rest: map[bool]*queue{false: newQueue(), true: newQueue()},
	}
}

// SetRanges replaces the ranges, in order of preference. Addresses in use
// outside of them stay with their owners. If Validate objects, nothing changes.
func (a *Allocator) SetRanges(ranges []netip.Prefix) error {
	all := make([]Range, len(ranges))
	for i, p := range ranges {
		all[i].Prefix = p
	}
	return a.SetPools(all)
}

// SetPools is SetRanges for ranges of several pools.
func (a *Allocator) SetPools(ranges []Range) error {
	prefixes := make([]netip.Prefix, len(ranges))
	for i, r := range ranges {
		prefixes[i] = r.Prefix
	}
	if err := Validate(prefixes, a.cfg.Families); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	next := make([]*span, len(ranges))
	for i, r := range ranges {
		next[i] = &span{prefix: r.Prefix, pool: r.Pool, next: HealthAddr(r.Prefix).Next()}
		if j := slices.IndexFunc(a.ranges, func(s *span) bool { return s.prefix == r.Prefix }); j >= 0 {
			next[i].next = a.ranges[j].next
		}
	}
	a.ranges = next
	return nil
}

// Clear takes all ranges away. Addresses in use stay with their owners; none are
// given until SetRanges.
func (a *Allocator) Clear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ranges = nil
}

// Ranges returns the ranges in use, nil before the first SetRanges.
func (a *Allocator) Ranges() []netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	ps := make([]netip.Prefix, len(a.ranges))
	for i, s := range a.ranges {
		ps[i] = s.prefix
	}
	return ps
}

// Allocate gives owner one address of each family that is on, IPv4 first. An
// owner that has addresses gets the same again. Either all families succeed or
// nothing changes. The errors are ErrNoRanges, *HoldError and *ExhaustedError.
func (a *Allocator) Allocate(owner string) ([]netip.Addr, error) {
	return a.AllocateFrom(owner, Choice{})
}

// AllocateFrom is Allocate from the pools of a choice.
func (a *Allocator) AllocateFrom(owner string, pools Choice) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if have := a.owners[owner]; len(have) > 0 {
		return slices.Clone(have), nil
	}
	if len(a.ranges) == 0 {
		return nil, ErrNoRanges
	}
	now := a.cfg.Now()
	if wait := a.hold.Sub(now); wait > 0 {
		return nil, &HoldError{Wait: wait}
	}
	var got []netip.Addr
	for _, v6 := range []bool{false, true} {
		if v6 && !a.cfg.Families.V6 || !v6 && !a.cfg.Families.V4 {
			continue
		}
		addr := a.pick(v6, pools.of(v6), now)
		if !addr.IsValid() {
			return nil, a.exhausted(v6, pools.of(v6), now)
		}
		got = append(got, addr)
	}
	for _, addr := range got {
		a.take(addr, owner)
	}
	return slices.Clone(got), nil
}

// pick finds an address without taking it.
func (a *Allocator) pick(v6 bool, pool string, now time.Time) netip.Addr {
	q := a.rest[v6]
	if q.len() > maxRested {
		if addr := a.rested(q, pool, now); addr.IsValid() {
			return addr
		}
	}
	for _, s := range a.ranges {
		if s.prefix.Addr().Is6() != v6 || s.pool != pool {
			continue
		}
		if addr := a.fresh(s, q, now); addr.IsValid() {
			return addr
		}
	}
	return a.rested(q, pool, now)
}

// fresh returns the next address of s that nobody has or had. It does not move
// past the address that it returns.
func (a *Allocator) fresh(s *span, q *queue, now time.Time) netip.Addr {
	for end := final(s.prefix); s.next.IsValid() && s.next.Compare(end) <= 0; s.next = s.next.Next() {
		if _, used := a.used[s.next]; used || q.has(s.next) {
			continue
		}
		if a.cfg.Claimed(s.next) {
			q.push(s.next, now) // passed by, so it must not be forgotten
			continue
		}
		return s.next
	}
	s.next = netip.Addr{}
	return netip.Addr{}
}

// rested returns the address of a pool that has rested longest, if that is long
// enough.
func (a *Allocator) rested(q *queue, pool string, now time.Time) netip.Addr {
	for i := 0; i < q.len(); i++ {
		r := q.at(i)
		if now.Sub(r.At) < Rest {
			break
		}
		if !a.inRange(r.Addr) {
			q.remove(r.Addr)
			i--
			continue
		}
		if a.poolOf(r.Addr) == pool && !a.cfg.Claimed(r.Addr) {
			return r.Addr
		}
	}
	return netip.Addr{}
}

func (a *Allocator) take(addr netip.Addr, owner string) {
	a.rest[addr.Is6()].remove(addr)
	a.used[addr] = owner
	a.owners[owner] = append(a.owners[owner], addr)
}

// poolOf returns the pool of an address that is in a range.
func (a *Allocator) poolOf(addr netip.Addr) string {
	for _, s := range a.ranges {
		if s.prefix.Contains(addr) {
			return s.pool
		}
	}
	return ""
}

// inRange reports whether a pod could be given addr.
func (a *Allocator) inRange(addr netip.Addr) bool {
	for _, s := range a.ranges {
		if s.prefix.Contains(addr) {
			return addr.Compare(HealthAddr(s.prefix)) > 0 && addr.Compare(final(s.prefix)) <= 0
		}
	}
	return false
}

// Restore records that owner has the addresses, whether or not they are in a
// range. It fails without a change if one of them belongs to another owner.
func (a *Allocator) Restore(owner string, addrs ...netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, addr := range addrs {
		if !addr.IsValid() {
			return fmt.Errorf("restore addresses of %s: one is not an address", owner)
		}
		if o, ok := a.used[addr]; ok && o != owner {
			return fmt.Errorf("address %s: claimed by %s, held by %s", addr, owner, o)
		}
	}
	for _, addr := range addrs {
		if _, ok := a.used[addr]; !ok {
			a.take(addr, owner)
		}
	}
	return nil
}

// Release sends the addresses of owner to rest. An unknown owner is no error.
func (a *Allocator) Release(owner string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Now()
	for _, addr := range a.owners[owner] {
		delete(a.used, addr)
		a.rest[addr.Is6()].push(addr, now)
	}
	delete(a.owners, owner)
}

// Cancel takes back what was allocated to owner but never left the agent: the
// addresses need no rest. An unknown owner is no error.
func (a *Allocator) Cancel(owner string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.cfg.Now().Add(-Rest)
	for _, addr := range a.owners[owner] {
		delete(a.used, addr)
		a.rest[addr.Is6()].unshift(addr, at)
	}
	delete(a.owners, owner)
}

// Allocatable reports whether a pod could be given addr: it is in a range and
// not reserved.
func (a *Allocator) Allocatable(addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inRange(addr)
}

// Owner returns who has addr, or "".
func (a *Allocator) Owner(addr netip.Addr) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.used[addr]
}

// Hold keeps everything from being allocated until t: for a start that does
// not know what was released before it. Owners that have addresses keep them.
func (a *Allocator) Hold(t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hold = t
}

// Resting returns what rests, to be kept over a restart. Those that rested long
// enough are included, as they are still to be reused oldest first.
func (a *Allocator) Resting() []Released {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append(a.rest[false].all(), a.rest[true].all()...)
}

// RestoreResting puts the addresses to rest since the times given. What is in
// use stays so; times in the future count as now.
func (a *Allocator) RestoreResting(rs []Released) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Now()
	rs = slices.Clone(rs)
	slices.SortStableFunc(rs, func(x, y Released) int { return x.At.Compare(y.At) })
	for _, r := range rs {
		if _, used := a.used[r.Addr]; used || !r.Addr.IsValid() {
			continue
		}
		if r.At.After(now) {
			r.At = now
		}
		a.rest[r.Addr.Is6()].push(r.Addr, r.At)
	}
}
