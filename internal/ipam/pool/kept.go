// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// examples is how many nodes a finding names before it only counts.
const examples = 3

// holding is a block and who has it.
type holding struct {
	span

	cidr netip.Prefix
	node string
}

// holdings returns the grants of one family, sorted by address.
func (l Ledger) holdings(v6 bool) []holding {
	var out []holding
	for node, ps := range l.Grants {
		for _, p := range ps {
			if isV6(p) == v6 {
				out = append(out, holding{spanOf(p), p, node})
			}
		}
	}
	slices.SortFunc(out, func(a, b holding) int {
		return cmp.Or(a.lo.compare(b.lo), a.hi.compare(b.hi), cmp.Compare(a.node, b.node))
	})
	return out
}

// kept reports grants that would not be made today: they stay, but somebody
// should know.
func (p *planner) kept() []Finding {
	var out []Finding
	for i, f := range p.fields {
		hs := p.next.holdings(i == 1)
		out = append(out, p.outside(f, hs)...)
		out = append(out, p.overlapping(hs)...)
		out = append(out, p.hit(f, hs)...)
	}
	if len(p.next.Quarantine) >= maxQuarantine {
		out = append(out, Finding{Severity: Warn, Pool: p.in.Pool.Name, Text: fmt.Sprintf(
			"pool %s: %d blocks are quarantined, which is the most that the ledger takes: nodes that are gone keep theirs until some are freed%s",
			p.in.Pool.Name, len(p.next.Quarantine), p.laggard())})
	}
	return out
}

// outside reports what an edit of the pool has orphaned.
func (p *planner) outside(f *field, hs []holding) []Finding {
	hs = slices.DeleteFunc(slices.Clone(hs), func(h holding) bool { return f.holds(h.cidr) })
	if len(hs) == 0 {
		return nil
	}
	return []Finding{{
		Severity: Warn, Pool: p.in.Pool.Name, CIDR: hs[0].cidr,
		Text: fmt.Sprintf("pool %s: %s is no block of the pool any more (%s): kept until the node goes; to renumber it, drain it and delete its Node object",
			p.in.Pool.Name, enumerate(hs), p.in.Pool.setting(f.v6)),
	}}
}

// overlapping reports what only an edit of the ledger by hand can bring about.
func (p *planner) overlapping(hs []holding) []Finding {
	var out []Finding
	for i := 1; i < len(hs) && len(out) < examples; i++ {
		a, b := hs[i-1], hs[i]
		if a.overlaps(b.span) {
			out = append(out, Finding{
				Severity: Warn, Pool: p.in.Pool.Name, CIDR: b.cidr,
				Hazard: Hazard{CIDR: a.cidr, Kind: NodeRange, Where: "node " + a.node},
				Text: fmt.Sprintf("pool %s: the ledger gives %s to node %s and %s to node %s, which overlap: drain one of them and delete its Node object",
					p.in.Pool.Name, a.cidr, a.node, b.cidr, b.node),
			})
		}
	}
	return out
}

// hit reports grants that a hazard touches.
func (p *planner) hit(f *field, hs []holding) []Finding {
	if len(hs) == 0 {
		return nil
	}
	var out []Finding
	acks := acknowledged(p.in.Acknowledged, f.v6)
	for _, u := range f.uses {
		s := spanOf(u.CIDR)
		i, _ := slices.BinarySearchFunc(hs, s.lo, func(h holding, n num) int { return h.hi.compare(n) })
		var touched []holding
		for ; i < len(hs) && hs[i].lo.compare(s.hi) <= 0; i++ {
			common := spanOf(narrower(u.CIDR, hs[i].cidr))
			accepted := u.Kind.acknowledgeable() && len(acks.without(common)) == 0
			harmless := u.Kind == Route && u.CIDR.Bits() < hs[i].cidr.Bits() && !f.blocked.touch(common)
			if !accepted && !harmless {
				touched = append(touched, hs[i])
			}
		}
		if len(touched) == 0 {
			continue
		}
		if len(out) == maxHits {
			return append(out, Finding{Severity: Warn, Pool: p.in.Pool.Name, Text: fmt.Sprintf("pool %s: more overlaps of granted ranges are not listed", p.in.Pool.Name)})
		}
		text := fmt.Sprintf("pool %s: %s overlaps %s: kept, but what is there may not be reachable from pods; drain the node and delete its Node object",
			p.in.Pool.Name, enumerate(touched), u.describe())
		if u.Kind.acknowledgeable() {
			text += fmt.Sprintf(", or acknowledge %s in %s", u.CIDR, AcknowledgeSetting)
		}
		out = append(out, Finding{Severity: Warn, Pool: p.in.Pool.Name, CIDR: touched[0].cidr, Hazard: u.Hazard, Text: text})
	}
	return out
}

// maxHits bounds the findings about the hazards of one CIDR, and those about
// granted ranges, in a family.
const maxHits = 32

func narrower(a, b netip.Prefix) netip.Prefix {
	if a.Bits() > b.Bits() {
		return a
	}
	return b
}

// enumerate names the first few.
func enumerate(hs []holding) string {
	var sb strings.Builder
	for i, h := range hs[:min(len(hs), examples)] {
		if i > 0 {
			sb.WriteString(", ")
		}
		sb.WriteString(h.cidr.String() + " of node " + h.node)
	}
	if n := len(hs) - examples; n > 0 {
		fmt.Fprintf(&sb, " and %d more", n)
	}
	return sb.String()
}

// claim reports a range that a node uses without the ledger's word.
func claim(pool Pool, node string, h netip.Prefix, owner string) Finding {
	f := Finding{Severity: Warn, Pool: pool.Name, CIDR: h, Hazard: Hazard{CIDR: h, Kind: NodeRange, Where: "node " + node}}
	f.Text = fmt.Sprintf("pool %s: CiliumNode %s names %s, which the ledger does not give to it", pool.Name, node, h)
	if owner != "" {
		f.Text += " but to node " + owner
	}
	f.Text += ": nobody else gets it; the operator corrects the CiliumNode"
	return f
}
