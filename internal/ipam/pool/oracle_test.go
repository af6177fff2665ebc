// SPDX-License-Identifier: Apache-2.0

package pool_test

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/ipam/pool"
)

// The oracle is the slow, obviously right allocator: it looks at every address
// of every block, one after the other, and only works for small pools.

// addresses lists all addresses of p.
func addresses(p netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for a := p.Masked().Addr(); p.Contains(a); a = a.Next() {
		out = append(out, a)
	}
	return out
}

// usable lists the CIDRs of a family from which blocks are cut.
func usable(f pool.Family, v6 bool) []netip.Prefix {
	longest := 30
	if v6 {
		longest = 126
	}
	var out []netip.Prefix
	taken := map[netip.Addr]bool{}
	for _, c := range f.CIDRs {
		all := addresses(c)
		if f.MaskSize < c.Bits() || f.MaskSize > longest || c.Addr().Is6() != v6 || slices.ContainsFunc(all, func(a netip.Addr) bool { return taken[a] }) {
			continue
		}
		for _, a := range all {
			taken[a] = true
		}
		out = append(out, c)
	}
	return out
}

// blocksOf lists all blocks that a family offers, in order, whoever holds them.
func blocksOf(f pool.Family, v6 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range usable(f, v6) {
		for _, a := range addresses(c) {
			if b, _ := a.Prefix(f.MaskSize); b.Addr() == a {
				out = append(out, b)
			}
		}
	}
	return out
}

// bad tells which addresses of the pool's CIDRs hazards take away.
func bad(in pool.Inputs, f pool.Family, v6 bool) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	mark := func(p netip.Prefix, kind pool.HazardKind) {
		for _, c := range usable(f, v6) {
			if p.Bits() == 0 || p.Addr().Is6() != v6 || kind == pool.Route && p.Bits() < c.Bits() {
				continue
			}
			for _, a := range addresses(c) {
				accepted := slices.ContainsFunc(in.Acknowledged, func(k netip.Prefix) bool { return k.Contains(a) })
				if p.Contains(a) && !(accepted && (kind == pool.Route || kind == pool.Connected)) {
					out[a] = true
				}
			}
		}
	}
	for _, h := range in.Hazards {
		mark(h.CIDR, h.Kind)
	}
	for _, o := range in.Others {
		for _, c := range append(slices.Clone(o.V4.CIDRs), o.V6.CIDRs...) {
			mark(c, pool.OtherPool)
		}
	}
	return out
}

// ended reports whether a quarantine is over.
func ended(r pool.Release, in pool.Inputs) bool {
	return in.Now.Sub(r.At) >= in.Quarantine && in.Seen >= r.Seq
}

// check compares what Plan made of a ledger with what it should have made.
func check(before, after pool.Ledger, in pool.Inputs, living []pool.Demand, results []pool.Result) error {
	demand := map[string]pool.Demand{}
	for _, d := range living {
		demand[d.Node] = d
	}
	if err := checkKept(before, after, in, demand); err != nil {
		return err
	}
	if err := checkTakenOver(before, after, in, living); err != nil {
		return err
	}
	// Everything that is in somebody's hands before the first grant.
	held := map[netip.Addr]string{}
	hold := func(p netip.Prefix, who string) {
		for _, a := range addresses(p) {
			held[a] = who
		}
	}
	for _, r := range after.Quarantine {
		hold(r.CIDR, "quarantine")
	}
	rested := slices.Clone(before.Rested)
	for _, r := range before.Quarantine {
		if ended(r, in) {
			rested = append(rested, r.CIDR)
		}
	}
	granted := map[netip.Prefix]bool{}
	for _, res := range results {
		for _, g := range res.Granted {
			granted[g] = true
		}
	}
	for node, ps := range after.Grants {
		for _, p := range ps {
			if granted[p] {
				continue
			}
			for _, a := range addresses(p) {
				if h := held[a]; h != "" {
					return fmt.Errorf("%s of node %s: %s is in %s too", p, node, a, h)
				}
			}
			hold(p, "node "+node)
			rested = slices.DeleteFunc(rested, func(r netip.Prefix) bool { return r.Overlaps(p) })
		}
	}
	for _, d := range living {
		for _, h := range d.Held {
			if !slices.Contains(d.GiveBack, h) {
				hold(h, "claim of "+d.Node)
			}
		}
	}
	return checkGrants(in, results, demand, held, rested)
}

// checkGrants replays the grants one by one: each must be the block that the
// oracle would have taken, and a refusal means that the oracle finds none.
func checkGrants(in pool.Inputs, results []pool.Result, demand map[string]pool.Demand, held map[netip.Addr]string, rested []netip.Prefix) error {
	fams := map[bool]pool.Family{false: in.Pool.V4, true: in.Pool.V6}
	for _, v6 := range []bool{false, true} {
		blocks, avoid := blocksOf(fams[v6], v6), bad(in, fams[v6], v6)
		free := func(b netip.Prefix) bool {
			return slices.Contains(blocks, b) &&
				!slices.ContainsFunc(addresses(b), func(a netip.Addr) bool { return avoid[a] || held[a] != "" })
		}
		pick := func() (netip.Prefix, bool) {
			if i := slices.IndexFunc(rested, free); i >= 0 {
				return rested[i], true
			}
			// Rested ones that something touches are passed by, not forgotten.
			i := slices.IndexFunc(blocks, free)
			if i < 0 {
				return netip.Prefix{}, false
			}
			return blocks[i], true
		}
		for _, res := range results {
			have, want := 0, demand[res.Node].V4
			if v6 {
				want = demand[res.Node].V6
			}
			for _, p := range res.CIDRs {
				if p.Addr().Is6() == v6 {
					have++
				}
			}
			for _, g := range res.Granted {
				if g.Addr().Is6() != v6 {
					continue
				}
				expected, ok := pick()
				if !ok || expected != g {
					return fmt.Errorf("node %s got %s, the oracle gives %s (%v)", res.Node, g, expected, ok)
				}
				for _, a := range addresses(g) {
					held[a] = "node " + res.Node
				}
			}
			refused := slices.ContainsFunc(res.Refused, func(e *pool.RefusedError) bool { return e.V6 == v6 })
			if b, ok := pick(); have < want && ok {
				return fmt.Errorf("node %s has %d of %d, though %s is free", res.Node, have, want, b)
			}
			if refused != (have < want) {
				return fmt.Errorf("node %s has %d of %d, refused: %v", res.Node, have, want, refused)
			}
		}
	}
	return nil
}

// checkKept: nothing is taken from who lives, and nothing is forgotten.
func checkKept(before, after pool.Ledger, in pool.Inputs, demand map[string]pool.Demand) error {
	quarantined := func(p netip.Prefix, node string) bool {
		return slices.ContainsFunc(after.Quarantine, func(r pool.Release) bool {
			return r.CIDR == p && r.Node == node && r.Seq > before.Seq && r.Seq <= after.Seq && !r.At.Before(in.Now)
		})
	}
	for node, ps := range before.Grants {
		d, lives := demand[node]
		for _, p := range ps {
			has := slices.Contains(after.Grants[node], p)
			gives := !lives || slices.Contains(d.GiveBack, p)
			if gives && (has || !quarantined(p, node)) {
				return fmt.Errorf("%s, which node %s gave up, is not quarantined", p, node)
			}
			if !gives && !has {
				return fmt.Errorf("%s was taken from node %s, which lives", p, node)
			}
		}
	}
	boundary := func(p netip.Prefix) bool {
		return slices.Contains(blocksOf(in.Pool.V4, false), p) || slices.Contains(blocksOf(in.Pool.V6, true), p)
	}
	inHands := func(p netip.Prefix) bool {
		for _, ps := range after.Grants {
			if slices.Contains(ps, p) {
				return true
			}
		}
		return slices.Contains(after.Rested, p)
	}
	for _, r := range before.Quarantine {
		still := slices.Contains(after.Quarantine, r)
		mine := slices.Contains(after.Grants[r.Node], r.CIDR) && slices.Contains(demand[r.Node].Held, r.CIDR)
		switch {
		case !ended(r, in) && !still && !mine:
			return fmt.Errorf("%s left quarantine after %s, release %d, seen %d", r.CIDR, in.Now.Sub(r.At), r.Seq, in.Seen)
		case ended(r, in) && still:
			return fmt.Errorf("%s is quarantined for ever", r.CIDR)
		case ended(r, in) && boundary(r.CIDR) && !inHands(r.CIDR):
			return fmt.Errorf("%s was lost after its quarantine", r.CIDR)
		}
	}
	for _, p := range before.Rested {
		if boundary(p) && !inHands(p) {
			return fmt.Errorf("%s was lost while it rested", p)
		}
	}
	return nil
}

// checkTakenOver: what a node uses and nobody else has a word about becomes its
// own, if it has nothing else.
func checkTakenOver(before, after pool.Ledger, in pool.Inputs, living []pool.Demand) error {
	blocks := append(blocksOf(in.Pool.V4, false), blocksOf(in.Pool.V6, true)...)
	for _, d := range living {
		for _, h := range d.Held {
			others := slices.ContainsFunc(after.Quarantine, func(r pool.Release) bool { return r.CIDR.Overlaps(h) })
			for node, ps := range before.Grants {
				others = others || slices.ContainsFunc(ps, func(p netip.Prefix) bool {
					return p.Overlaps(h) || node == d.Node && p.Addr().Is6() == h.Addr().Is6()
				})
			}
			for _, o := range living {
				others = others || o.Node != d.Node && slices.ContainsFunc(o.Held, h.Overlaps)
			}
			if !others && slices.Contains(blocks, h) && !slices.Contains(d.GiveBack, h) && !slices.Contains(after.Grants[d.Node], h) {
				return fmt.Errorf("node %s uses %s, which nobody else has, and does not get it", d.Node, h)
			}
		}
	}
	return nil
}

// use is what really happens on the nodes, whatever the ledger says.
type use struct {
	living map[string]bool
	// ranges are what a node has ever configured since it joined.
	ranges map[string][]netip.Prefix
	// seen is the last release that the node's agent has verified.
	seen map[string]uint64
	// rest is the last release of an address.
	rest map[netip.Addr]pool.Release
}

// grant checks a new grant, which the API server has accepted, against what
// really happens.
func (u *use) grant(node string, p netip.Prefix, now time.Time, quarantine time.Duration) error {
	for other, ps := range u.ranges {
		for _, q := range ps {
			if other != node && q.Overlaps(p) {
				return fmt.Errorf("node %s got %s, but node %s uses %s", node, p, other, q)
			}
		}
	}
	for _, a := range addresses(p) {
		r, ok := u.rest[a]
		if !ok || r.Node == node && slices.Contains(u.ranges[node], p) {
			continue
		}
		if now.Sub(r.At) < quarantine {
			return fmt.Errorf("node %s got %s, which node %s released %s ago", node, p, r.Node, now.Sub(r.At))
		}
	}
	return nil
}
