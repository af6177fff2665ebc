// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/ipam"
)

// Severity says what a finding means for the blocks of a pool.
type Severity int

// Severities of findings.
const (
	// Refuse: no block of the CIDR is granted.
	Refuse Severity = iota + 1
	// Withhold: some blocks of the CIDR are not granted.
	Withhold
	// Warn: all blocks are granted.
	Warn
)

func (s Severity) String() string {
	switch s {
	case Refuse:
		return "refused"
	case Withhold:
		return "withheld"
	case Warn:
		return "warning"
	}
	return "finding"
}

// Finding is something about a pool that its user should know.
type Finding struct {
	Severity Severity
	Pool     string
	// CIDR is a range of the pool or of one of its nodes; invalid where the
	// finding is about the pool as a whole.
	CIDR netip.Prefix
	// Hazard is what it collides with; zero where it is wrong by itself.
	Hazard Hazard
	// Text is a sentence that names all of these and says what to do.
	Text string
}

func (f Finding) String() string { return f.Text }

// Validate says what of a pool cannot be used, and why. Its answer is what Plan
// goes by. Only Others, Hazards and Acknowledged of the inputs are needed
// besides the Pool.
func Validate(in Inputs) []Finding {
	return append(newTerrain(in, false).findings, newTerrain(in, true).findings...)
}

// terrain is what a pool offers in one family, whoever holds it.
type terrain struct {
	grids    []grid
	uses     []use
	blocked  spans // by hazards, within the grids
	findings []Finding
}

func newTerrain(in Inputs, v6 bool) *terrain {
	t := &terrain{uses: gather(in, v6)}
	acks := acknowledged(in.Acknowledged, v6)
	fam := in.Pool.family(v6)
	var earlier []netip.Prefix
	for _, c := range fam.CIDRs {
		if text := unusable(in.Pool, v6, c, earlier); text != "" {
			t.findings = append(t.findings, Finding{Severity: Refuse, Pool: in.Pool.Name, CIDR: c, Text: fmt.Sprintf("pool %s: CIDR %s: %s", in.Pool.Name, c, text)})
			continue
		}
		earlier = append(earlier, c)
		g := newGrid(c, fam.MaskSize)
		t.grids = append(t.grids, g)
		t.survey(in.Pool, c, g, acks)
	}
	t.blocked = merge(t.blocked)
	return t
}

// unusable says why no block can be cut from c, whatever else there is.
func unusable(p Pool, v6 bool, c netip.Prefix, earlier []netip.Prefix) string {
	mask, longest := p.family(v6).MaskSize, 30
	if v6 {
		longest = 126
	}
	switch {
	case !c.IsValid():
		return fmt.Sprintf("is not a CIDR: correct %s", p.setting(v6))
	case c.Addr().Is4In6():
		return fmt.Sprintf("is IPv4-mapped: write it as IPv4 in %s", p.setting(false))
	case isV6(c) != v6:
		return fmt.Sprintf("is not %s: move it from %s to %s", familyName(v6), p.setting(v6), p.setting(!v6))
	case c.Masked() != c:
		return fmt.Sprintf("has bits set beyond its length: write %s in %s", c.Masked(), p.setting(v6))
	case mask <= 0:
		return fmt.Sprintf("the size of its blocks is not set: set %s", p.maskSetting(v6))
	case mask > longest:
		return fmt.Sprintf("blocks of /%d leave no address for pods: set %s to %d or less", mask, p.maskSetting(v6), longest)
	case mask < c.Bits():
		return fmt.Sprintf("is smaller than one block, which is a /%d: set %s to %d or more, or give it a larger range", mask, p.maskSetting(v6), c.Bits())
	}
	if why := ipam.Forbidden(c); why != "" {
		return why + ": choose another range in " + p.setting(v6)
	}
	for _, e := range earlier {
		if e.Overlaps(c) {
			return fmt.Sprintf("overlaps %s of the same pool: take one of them out of %s", e, p.setting(v6))
		}
	}
	return ""
}

// use is a hazard and how often it was seen.
type use struct {
	Hazard

	times int
}

// gather returns the hazards of one family, each once, those that take most
// first.
func gather(in Inputs, v6 bool) []use {
	type key struct {
		cidr netip.Prefix
		kind HazardKind
	}
	seen := make(map[key]int, len(in.Hazards))
	var out []use
	add := func(h Hazard) {
		h.CIDR = h.CIDR.Masked()
		if !h.CIDR.IsValid() || isV6(h.CIDR) != v6 || h.CIDR.Bits() == 0 {
			return // a default route says nothing
		}
		k := key{h.CIDR, h.Kind}
		i, ok := seen[k]
		if !ok {
			i = len(out)
			seen[k] = i
			out = append(out, use{Hazard: h})
		}
		if h.Where < out[i].Where {
			out[i].Where = h.Where // whatever the order of the inputs
		}
		out[i].times++
	}
	for _, h := range in.Hazards {
		add(h)
	}
	for _, o := range in.Others {
		for _, c := range o.family(v6).CIDRs {
			add(Hazard{CIDR: c, Kind: OtherPool, Where: "pool " + o.Name})
		}
	}
	slices.SortFunc(out, func(a, b use) int {
		return cmp.Or(cmp.Compare(a.CIDR.Bits(), b.CIDR.Bits()), a.CIDR.Addr().Compare(b.CIDR.Addr()), cmp.Compare(a.Kind, b.Kind))
	})
	return out
}

func acknowledged(ps []netip.Prefix, v6 bool) spans {
	var out spans
	for _, p := range ps {
		if p.IsValid() && isV6(p) == v6 {
			out = append(out, spanOf(p))
		}
	}
	return merge(out)
}

// survey blocks what hazards take of one CIDR and reports it.
func (t *terrain) survey(p Pool, c netip.Prefix, g grid, acks spans) {
	var subnets spans // what findings speak of already
	reported, more := 0, 0
	for _, h := range t.uses {
		if !h.CIDR.Overlaps(c) {
			continue
		}
		wider := h.CIDR.Bits() < c.Bits()
		common := g.span
		if !wider {
			common = spanOf(h.CIDR)
		}
		left := spans{common}
		if h.Kind.acknowledgeable() {
			left = acks.without(common)
		}
		if len(left) == 0 {
			continue
		}
		harmless := wider && h.Kind == Route
		if !harmless {
			t.blocked = append(t.blocked, left...)
		}
		if h.Kind == NodeAddress && subnets.touch(common) {
			continue // its subnet has been named
		}
		if h.Kind == Connected {
			subnets = merge(append(subnets, common))
		}
		if reported == maxHits {
			more++
			continue
		}
		reported++
		f := Finding{Severity: Warn, Pool: p.Name, CIDR: c, Hazard: h.Hazard}
		if harmless {
			f.Text = fmt.Sprintf("pool %s: CIDR %s lies within %s: pods' routes win over it on every node; if nothing that pods or nodes talk to is in %s, acknowledge it in %s",
				p.Name, c, h.describe(), c, AcknowledgeSetting)
		} else {
			f.Severity, f.Text = taken(p, c, g, h, left)
		}
		t.findings = append(t.findings, f)
	}
	if more > 0 {
		t.findings = append(t.findings, Finding{
			Severity: Withhold, Pool: p.Name, CIDR: c,
			Text: fmt.Sprintf("pool %s: CIDR %s overlaps %d more ranges, which are not listed", p.Name, c, more),
		})
	}
}

// taken says how much of a CIDR a hazard takes.
func taken(p Pool, c netip.Prefix, g grid, h use, left spans) (Severity, string) {
	lost, all := g.touched(merge(left)), g.blocks()
	text := fmt.Sprintf("pool %s: CIDR %s overlaps %s: ", p.Name, c, h.describe())
	if lost == all {
		return Refuse, text + "none of its blocks is granted; " + remedy(p, isV6(c), h.Hazard)
	}
	return Withhold, text + fmt.Sprintf("%s of its %s blocks of /%d are not granted", number(lost), number(all), g.mask)
}

// remedy says how to get rid of a hazard that takes a whole CIDR.
func remedy(p Pool, v6 bool, h Hazard) string {
	switch {
	case h.Kind == OtherPool:
		return fmt.Sprintf("take the range out of %s or of the other pool", p.setting(v6))
	case h.Kind.acknowledgeable():
		return fmt.Sprintf("choose another range in %s or, if pods may hide what is there, acknowledge %s in %s", p.setting(v6), h.CIDR, AcknowledgeSetting)
	default:
		return "choose another range in " + p.setting(v6)
	}
}

// describe names the range, what it is and where it was seen.
func (u use) describe() string {
	s := fmt.Sprintf("%s %s", u.Kind, u.CIDR)
	if u.Where != "" {
		s += " (" + u.Where
		if u.times > 1 && (u.Kind == Route || u.Kind == Connected) {
			s += fmt.Sprintf(", and %d more", u.times-1)
		}
		s += ")"
	}
	return s
}
