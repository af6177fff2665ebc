// SPDX-License-Identifier: Apache-2.0

package pool_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/ipam/pool"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func prefixes(ss ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(ss))
	for i, s := range ss {
		out[i] = prefix(s)
	}
	return out
}

func at(seconds int) time.Time { return time.Unix(1_800_000_000+int64(seconds), 0).UTC() }

func v4Pool(mask int, cidrs ...string) pool.Pool {
	return pool.Pool{Name: "default", V4: pool.Family{CIDRs: prefixes(cidrs...), MaskSize: mask}}
}

// inputs are those of a pool without anything in its way, at time 0.
func inputs(p pool.Pool) pool.Inputs {
	return pool.Inputs{Pool: p, Now: at(0), Quarantine: pool.Quarantine, Seen: 1 << 40}
}

// wants makes the demand of nodes for one block of each family that p has.
func wants(p pool.Pool, nodes ...string) []pool.Demand {
	var out []pool.Demand
	for _, n := range nodes {
		d := pool.Demand{Node: n}
		if len(p.V4.CIDRs) > 0 {
			d.V4 = 1
		}
		if len(p.V6.CIDRs) > 0 {
			d.V6 = 1
		}
		out = append(out, d)
	}
	return out
}

// granted says what each node has, as text.
func granted(l pool.Ledger) string {
	var out []string
	for n, ps := range l.Grants {
		out = append(out, fmt.Sprintf("%s:%v", n, ps))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// Fault: a node of a dual-stack cluster gets ranges of one family only, or two
// nodes the same.
func TestGrantsBothFamilies(t *testing.T) {
	p := pool.Pool{
		Name: "default",
		V4:   pool.Family{CIDRs: prefixes("10.20.0.0/23", "10.30.0.0/24"), MaskSize: 24},
		V6:   pool.Family{CIDRs: prefixes("fd00:1::/48"), MaskSize: 64},
	}
	l, results, findings := pool.Plan(pool.Ledger{}, inputs(p), wants(p, "c", "a", "b"))
	if got, want := granted(l), "a:[10.20.0.0/24 fd00:1::/64] b:[10.20.1.0/24 fd00:1:0:1::/64] c:[10.30.0.0/24 fd00:1:0:2::/64]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if len(findings) != 0 {
		t.Errorf("findings: %v", findings)
	}
	if len(results) != 3 || results[0].Node != "a" || !slices.Equal(results[0].Granted, prefixes("10.20.0.0/24", "fd00:1::/64")) {
		t.Errorf("results: %+v", results)
	}
	again, _, _ := pool.Plan(l, inputs(p), wants(p, "a", "b", "c"))
	if !again.Equal(l) {
		t.Errorf("a second plan changed the ledger: %s", granted(again))
	}
}
