// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// maxQuarantine bounds the quarantine, and so the ledger's size: what vanished
// nodes held beyond it stays granted to them until there is room.
const maxQuarantine = 4096

// Growth's samples: at least growthStep apart, no older than growthSpan.
const (
	growthStep = time.Hour
	growthSpan = 7 * 24 * time.Hour
	maxGrowth  = 48
)

// Plan returns the ledger that follows from l: blocks of nodes that are not
// living are released, quarantines that are over are ended, and living nodes
// get what they want, lowest name first. The list of living nodes must be
// complete and no older than the ledger: who is not in it has gone. Results are in the order of node names; findings hold those of
// [Validate] too. Plan is deterministic and changes none of its arguments.
//
// The caller writes the ledger by compare-and-swap, if it is not Equal to l,
// and tells nodes their ranges only after that has succeeded.
func Plan(l Ledger, in Inputs, living []Demand) (Ledger, []Result, []Finding) {
	p := newPlanner(l, in, living)
	p.endQuarantines() // first, to make room
	p.release()
	p.adopt()
	results := p.grant()
	p.sample()
	return p.next, results, append(p.findings, p.kept()...)
}

type planner struct {
	in       Inputs
	next     Ledger
	living   []Demand // by name
	alive    map[string]bool
	fields   [2]*field // IPv4, IPv6
	findings []Finding
	// claims are ranges that nodes hold without the ledger's word.
	claims []netip.Prefix
	now    time.Time
}

func newPlanner(l Ledger, in Inputs, living []Demand) *planner {
	p := &planner{in: in, next: l.Clone(), living: slices.Clone(living), alive: make(map[string]bool, len(living))}
	p.next.Pool = Pool{V4: normal(in.Pool.V4), V6: normal(in.Pool.V6)}
	// Times in the ledger are whole seconds; a release is never dated too early.
	p.now = in.Now.Add(time.Second - 1).Truncate(time.Second)
	slices.SortStableFunc(p.living, func(a, b Demand) int { return cmp.Compare(a.Node, b.Node) })
	p.living = slices.CompactFunc(p.living, func(a, b Demand) bool { return a.Node == b.Node })
	for _, d := range p.living {
		p.alive[d.Node] = true
	}
	for i := range p.fields {
		p.fields[i] = &field{terrain: newTerrain(in, i == 1), v6: i == 1}
		p.findings = append(p.findings, p.fields[i].findings...)
	}
	return p
}

// normal is a family as it comes back from the API server.
func normal(f Family) Family {
	f.MaskSize = max(0, min(f.MaskSize, 128))
	f.CIDRs = slices.DeleteFunc(slices.Clone(f.CIDRs), func(c netip.Prefix) bool { return !c.IsValid() || c.Addr().Is4In6() })
	for i, c := range f.CIDRs {
		f.CIDRs[i] = c.Masked()
	}
	if len(f.CIDRs) == 0 {
		f.CIDRs = nil
	}
	return f
}

func (p *planner) field(v6 bool) *field {
	if v6 {
		return p.fields[1]
	}
	return p.fields[0]
}

// release puts into quarantine what vanished nodes held and what living ones
// give back.
func (p *planner) release() {
	for _, node := range slices.Sorted(maps.Keys(p.next.Grants)) {
		if !p.alive[node] {
			p.giveBack(node, p.next.Grants[node])
		}
	}
	for _, d := range p.living {
		if len(d.GiveBack) > 0 {
			p.giveBack(d.Node, d.GiveBack)
		}
	}
}

// giveBack releases those of the ranges that node holds.
func (p *planner) giveBack(node string, ranges []netip.Prefix) {
	var gone, kept []netip.Prefix
	for _, g := range p.next.Grants[node] {
		if slices.Contains(ranges, g) && len(p.next.Quarantine)+len(gone) < maxQuarantine {
			gone = append(gone, g)
		} else {
			kept = append(kept, g)
		}
	}
	if len(gone) == 0 {
		return
	}
	p.next.Seq++
	for _, g := range gone {
		p.next.Quarantine = append(p.next.Quarantine, Release{CIDR: g, Node: node, At: p.now, Seq: p.next.Seq})
	}
	if p.next.Grants[node] = kept; len(kept) == 0 {
		delete(p.next.Grants, node)
	}
}

// endQuarantines moves what has rested long enough, and what every agent has
// forgotten, to the rested blocks.
func (p *planner) endQuarantines() {
	var still []Release
	for _, r := range p.next.Quarantine {
		if p.in.Now.Sub(r.At) < p.in.Quarantine || p.in.Seen < r.Seq {
			still = append(still, r)
			continue
		}
		p.next.Rested = append(p.next.Rested, r.CIDR)
	}
	p.next.Quarantine = still
}

// adopt enters ranges into the ledger that living nodes use without its word,
// and keeps clear of those that it cannot take over.
func (p *planner) adopt() {
	if !slices.ContainsFunc(p.living, p.strays) {
		return
	}
	owners := map[netip.Prefix]string{}
	var held [2]spans
	for node, ps := range p.next.Grants {
		for _, g := range ps {
			owners[g] = node
			held[fam(g)] = append(held[fam(g)], spanOf(g))
		}
	}
	for i := range held {
		held[i] = merge(held[i])
	}
	for _, d := range p.living {
		var had [2]bool
		for _, g := range p.next.Grants[d.Node] {
			had[fam(g)] = true
		}
		for _, h := range d.Held {
			h = h.Masked()
			if !h.IsValid() || owners[h] == d.Node || slices.Contains(d.GiveBack, h) {
				continue
			}
			i := fam(h)
			// Blocks of the pool overlap only if they are the same one: owners tells.
			if !had[i] && owners[h] == "" && p.field(i == 1).holds(h) && !held[i].touch(spanOf(h)) && p.takeBack(d.Node, h) {
				p.next.Grants[d.Node] = ordered(append(p.next.Grants[d.Node], h))
				owners[h] = d.Node
				continue
			}
			p.claims = append(p.claims, h)
			p.findings = append(p.findings, claim(p.in.Pool, d.Node, h, owners[h]))
		}
	}
}

// strays reports whether a node holds a range that the ledger does not give to it.
func (p *planner) strays(d Demand) bool {
	return slices.ContainsFunc(d.Held, func(h netip.Prefix) bool { return !slices.Contains(p.next.Grants[d.Node], h) })
}

// takeBack removes a range from quarantine and rest. It fails if another node
// than the given one has released it, or something that overlaps it, a short
// time ago.
func (p *planner) takeBack(node string, h netip.Prefix) bool {
	for _, r := range p.next.Quarantine {
		if r.CIDR.Overlaps(h) && (r.Node != node || r.CIDR != h) {
			return false
		}
	}
	p.next.Quarantine = slices.DeleteFunc(p.next.Quarantine, func(r Release) bool { return r.CIDR == h })
	p.next.Rested = slices.DeleteFunc(p.next.Rested, func(r netip.Prefix) bool { return r.Overlaps(h) })
	return true
}

// grant gives living nodes what they want.
func (p *planner) grant() []Result {
	for i, f := range p.fields {
		f.prepare(p.next, p.claims, i == 1)
	}
	results := make([]Result, 0, len(p.living))
	for _, d := range p.living {
		res := Result{Node: d.Node}
		for i, want := range [2]int{d.V4, d.V6} {
			f := p.fields[i]
			for have := count(p.next.Grants[d.Node], i == 1); have < want; have++ {
				block, ok := f.take()
				if !ok {
					res.Refused = append(res.Refused, f.refuse(p, d.Node, want-have))
					break
				}
				p.next.Grants[d.Node] = ordered(append(p.next.Grants[d.Node], block))
				res.Granted = append(res.Granted, block)
			}
		}
		res.CIDRs = slices.Clone(p.next.Grants[d.Node])
		results = append(results, res)
	}
	// What is no block of the pool any more will not be granted by that name.
	rested := p.next.Rested[:0]
	twice := map[netip.Prefix]bool{}
	for _, r := range p.next.Rested {
		if p.field(isV6(r)).remembers(r) && !twice[r] {
			rested = append(rested, r)
		}
		twice[r] = true
	}
	if p.next.Rested = rested; len(rested) == 0 {
		p.next.Rested = nil
	}
	return results
}

// ordered puts IPv4 first and keeps the order otherwise.
func ordered(ps []netip.Prefix) []netip.Prefix {
	slices.SortStableFunc(ps, func(a, b netip.Prefix) int { return cmp.Compare(fam(a), fam(b)) })
	return ps
}

func count(ps []netip.Prefix, v6 bool) int {
	n := 0
	for _, p := range ps {
		if isV6(p) == v6 {
			n++
		}
	}
	return n
}

// fam is 0 for IPv4 and 1 for IPv6.
func fam(p netip.Prefix) int {
	if isV6(p) {
		return 1
	}
	return 0
}

// sample notes how many blocks are held, if that has changed and the last note
// is old enough.
func (p *planner) sample() {
	s := Sample{At: p.now}
	for _, ps := range p.next.Grants {
		n := count(ps, true)
		s.V4, s.V6 = s.V4+len(ps)-n, s.V6+n
	}
	g := p.next.Growth
	if n := len(g); n > 0 && (s.At.Sub(g[n-1].At) < growthStep || g[n-1].V4 == s.V4 && g[n-1].V6 == s.V6) {
		return
	}
	if s.V4 == 0 && s.V6 == 0 && len(g) == 0 {
		return
	}
	g = append(g, s)
	g = slices.DeleteFunc(g, func(x Sample) bool { return s.At.Sub(x.At) > growthSpan })
	if len(g) > maxGrowth {
		thin := g[:0]
		for i, x := range g {
			if i%2 == 0 || i == len(g)-1 {
				thin = append(thin, x)
			}
		}
		g = thin
	}
	p.next.Growth = g
}
