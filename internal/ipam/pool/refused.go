// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// RefusedError says why a node does not get the blocks that it wants. Its text
// is for users: it names the pool, its size, what holds it and what to do.
type RefusedError struct {
	Pool Pool
	V6   bool
	Node string
	// Missing is how many blocks the node wants and does not get.
	Missing int
	// Usage is what the pool's blocks of the family are used for.
	Usage Usage
	// Findings are those of the family that take blocks away.
	Findings []Finding

	now     time.Time
	laggard string
}

func (e *RefusedError) Error() string {
	var sb strings.Builder
	fmt.Fprintf(&sb, "pool %s: no %s range for node %s: ", e.Pool.Name, familyName(e.V6), e.Node)
	fam := e.Pool.family(e.V6)
	if len(fam.CIDRs) == 0 {
		fmt.Fprintf(&sb, "the pool has no %s CIDR: set %s", familyName(e.V6), e.Pool.setting(e.V6))
		return sb.String()
	}
	if e.Usage.Total == 0 {
		sb.WriteString("none of its CIDRs can be used: " + e.Findings[0].Text)
		return sb.String()
	}
	for i, c := range fam.CIDRs[:min(len(fam.CIDRs), examples)] {
		if i > 0 {
			sb.WriteString(", ")
		}
		sb.WriteString(c.String())
	}
	if n := len(fam.CIDRs) - examples; n > 0 {
		fmt.Fprintf(&sb, " and %d more", n)
	}
	fmt.Fprintf(&sb, " in blocks of /%d make %s, of which %s are held by nodes, %s quarantined, %s overlap something else",
		fam.MaskSize, number(e.Usage.Total), number(e.Usage.Held), number(e.Usage.Quarantined), number(e.Usage.Blocked))
	for _, f := range e.Findings[:min(len(e.Findings), examples)] {
		sb.WriteString("; " + strings.TrimPrefix(f.Text, "pool "+e.Pool.Name+": "))
	}
	sb.WriteString(": " + e.remedy())
	return sb.String()
}

// remedy says what to do about a pool that has blocks, but no free one.
func (e *RefusedError) remedy() string {
	s := fmt.Sprintf("add a CIDR to %s", e.Pool.setting(e.V6))
	if e.Usage.Quarantined == 0 {
		return s
	}
	if wait := e.Usage.NextEnd.Sub(e.now); wait > 0 {
		return fmt.Sprintf("%s, or wait %s for the next block that leaves quarantine", s, wait.Round(time.Second))
	}
	return s + e.laggard
}

// laggard names whom a quarantine waits for.
func (p *planner) laggard() string {
	for _, r := range p.next.Quarantine {
		if p.in.Now.Sub(r.At) >= p.in.Quarantine && p.in.Seen < r.Seq {
			s := fmt.Sprintf("; release %d waits for agents that have verified %d only", r.Seq, p.in.Seen)
			if p.in.Lagging != "" {
				s += ", the one of node " + p.in.Lagging + " first: see that it runs, or delete the node"
			}
			return s
		}
	}
	return ""
}

// refuse makes the error of one node. Its costly part is made once a plan.
func (f *field) refuse(p *planner, node string, missing int) *RefusedError {
	if f.refusal == nil {
		f.refusal = &RefusedError{
			Pool: p.in.Pool, V6: f.v6, Usage: usage(p.next, p.in, f.terrain, f.v6), now: p.in.Now, laggard: p.laggard(),
		}
		for _, x := range f.findings {
			if x.Severity != Warn {
				f.refusal.Findings = append(f.refusal.Findings, x)
			}
		}
	}
	e := *f.refusal
	e.Node, e.Missing = node, missing
	return &e
}

// number writes a count; the largest stands for all beyond it.
func number(n uint64) string {
	if n == math.MaxUint64 {
		return "more than 2^63"
	}
	if n >= 1<<53 {
		return fmt.Sprintf("%.1e", float64(n))
	}
	return strconv.FormatUint(n, 10)
}
