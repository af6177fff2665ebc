// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/forecast"
)

// Usage is what a pool's blocks of one family are used for. Counts saturate at
// the largest uint64. A block that is several of these counts as the first of
// Held, Quarantined, Blocked; Free is what remains.
type Usage struct {
	// Total counts the blocks that the pool's usable CIDRs have.
	Total uint64
	// Held counts blocks of nodes.
	Held uint64
	// Quarantined counts released blocks that nobody may have yet.
	Quarantined uint64
	// Blocked counts blocks that a hazard takes away.
	Blocked uint64
	// Free counts what can be granted now, Rested included.
	Free uint64
	// Rested counts free blocks that were used before.
	Rested uint64
	// Outside counts ranges that nodes hold and that are no blocks of the pool.
	Outside uint64
	// Next is what is granted next; invalid if there is none.
	Next netip.Prefix
	// NextEnd is when the next quarantine may end, agents permitting.
	NextEnd time.Time
	// Exhausted is how long the free blocks will last at the growth of the last
	// days; 0 where the pool does not grow or nothing is known of it yet.
	Exhausted time.Duration
}

// minGrowth is the shortest time from which a forecast is made.
const minGrowth = time.Hour

// Forecast says how full a pool is, what it grants next and how long it lasts.
func Forecast(l Ledger, in Inputs) (v4, v6 Usage) {
	return usage(l, in, newTerrain(in, false), false), usage(l, in, newTerrain(in, true), true)
}

func usage(l Ledger, in Inputs, t *terrain, v6 bool) Usage {
	var u Usage
	var held, resting spans
	f := &field{terrain: t, v6: v6}
	for _, ps := range l.Grants {
		for _, p := range ps {
			if isV6(p) != v6 {
				continue
			}
			held = append(held, spanOf(p))
			if !f.holds(p) {
				u.Outside++
			}
		}
	}
	for _, r := range l.Quarantine {
		if isV6(r.CIDR) == v6 {
			resting = append(resting, spanOf(r.CIDR))
			if end := r.At.Add(in.Quarantine); u.NextEnd.IsZero() || end.Before(u.NextEnd) {
				u.NextEnd = end
			}
		}
	}
	ranges := len(held)
	held = merge(held)
	heldOrResting := merge(append(append(spans{}, held...), resting...))
	all := merge(append(append(spans{}, heldOrResting...), t.blocked...))
	for _, g := range t.grids {
		blocks, h, hr, a := g.blocks(), g.touched(held), g.touched(heldOrResting), g.touched(all)
		u.Total = plus(u.Total, blocks)
		u.Held = plus(u.Held, h)
		u.Quarantined = plus(u.Quarantined, hr-h)
		u.Blocked = plus(u.Blocked, a-hr)
		if blocks == math.MaxUint64 && a < blocks {
			a = 0 // what is taken of so many does not show
		}
		u.Free = plus(u.Free, blocks-a)
	}
	for _, r := range l.Rested {
		if isV6(r) == v6 && f.holds(r) && !all.touch(spanOf(r)) {
			u.Rested++
		}
	}
	f.prepare(l, nil, v6)
	u.Next, _ = f.take()
	u.Exhausted = lasts(l.Growth, in.Now, u.Free, ranges, v6)
	return u
}

func plus(a, b uint64) uint64 {
	if a+b < a {
		return ^uint64(0)
	}
	return a + b
}

// lasts forecasts from the samples and what is held now, as the last sample may
// be an hour old.
func lasts(growth []Sample, now time.Time, free uint64, held int, v6 bool) time.Duration {
	samples := make([]forecast.Sample, 0, len(growth)+1)
	for _, g := range growth {
		n := g.V4
		if v6 {
			n = g.V6
		}
		samples = append(samples, forecast.Sample{At: g.At, Used: float64(n)})
	}
	left, _ := forecast.Lasts(append(samples, forecast.Sample{At: now, Used: float64(held)}), float64(free), minGrowth)
	return left
}
