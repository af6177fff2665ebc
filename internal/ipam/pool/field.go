// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/netip"
	"slices"
)

// field is the terrain of one family with what is held of it.
type field struct {
	*terrain

	v6 bool
	// rested are blocks to try before fresh ones, oldest release first.
	rested []netip.Prefix
	used   map[netip.Prefix]bool // rested blocks that were taken
	// barred is what neither a rested nor a fresh block may touch.
	barred spans
	// passed is what a fresh block may not touch: barred and rested.
	passed spans
	// grid and at say where the search for fresh blocks goes on.
	grid int
	at   num
	// refusal is shared by all nodes that this plan refuses.
	refusal *RefusedError
}

// prepare sorts out who holds what before blocks are taken.
func (f *field) prepare(l Ledger, claims []netip.Prefix, v6 bool) {
	f.used = map[netip.Prefix]bool{}
	barred := slices.Clone(f.blocked)
	add := func(p netip.Prefix) {
		if isV6(p) == v6 {
			barred = append(barred, spanOf(p))
		}
	}
	for _, ps := range l.Grants {
		for _, p := range ps {
			add(p)
		}
	}
	for _, r := range l.Quarantine {
		add(r.CIDR)
	}
	for _, c := range claims {
		add(c)
	}
	f.barred = merge(barred)
	passed := slices.Clone(f.barred)
	for _, r := range l.Rested {
		if isV6(r) == v6 && f.holds(r) && !f.used[r] {
			f.used[r] = true // once, though the ledger may have it twice
			f.rested = append(f.rested, r)
			passed = append(passed, spanOf(r))
		}
	}
	clear(f.used)
	f.passed = merge(passed)
	if len(f.grids) > 0 {
		f.at = f.grids[0].lo
	}
}

// holds reports whether p is a block that the pool cuts.
func (f *field) holds(p netip.Prefix) bool {
	return slices.ContainsFunc(f.grids, func(g grid) bool { return g.holds(p) })
}

// remembers reports whether a rested block is to stay in the ledger.
func (f *field) remembers(p netip.Prefix) bool { return f.holds(p) && !f.used[p] }

// take returns a block that is free and makes it taken.
func (f *field) take() (netip.Prefix, bool) {
	for len(f.rested) > 0 {
		r := f.rested[0]
		f.rested = f.rested[1:]
		if !f.barred.touch(spanOf(r)) {
			f.used[r] = true
			return r, true
		}
	}
	for f.grid < len(f.grids) {
		g := f.grids[f.grid]
		if f.at.compare(g.lo) >= 0 && f.at.compare(g.hi) <= 0 {
			if n, ok := g.free(f.at, f.passed); ok {
				f.at = n.add(ones(g.host)).next()
				if f.at.compare(n) > 0 {
					return g.block(n), true
				}
				f.at = g.hi // the last address there is
				f.grid++
				f.start()
				return g.block(n), true
			}
		}
		f.grid++
		f.start()
	}
	return netip.Prefix{}, false
}

func (f *field) start() {
	if f.grid < len(f.grids) {
		f.at = f.grids[f.grid].lo
	}
}
