// SPDX-License-Identifier: Apache-2.0

package pool_test

import (
	"encoding/json"
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

// inputs are those of a pool without anything in its way, at time 0, where
// agents have verified every release.
func inputs(p pool.Pool, hazards ...pool.Hazard) pool.Inputs {
	return pool.Inputs{Pool: p, Now: at(0), Quarantine: pool.Quarantine, Seen: 1 << 40, Hazards: hazards}
}

// wants makes the demand of nodes for one block of each family that p has.
func wants(p pool.Pool, nodes ...string) []pool.Demand {
	var out []pool.Demand
	for _, n := range nodes {
		d := pool.Demand{Node: n}
		if p.V4.MaskSize > 0 {
			d.V4 = 1
		}
		if p.V6.MaskSize > 0 {
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

func texts(fs []pool.Finding) string {
	var out []string
	for _, f := range fs {
		out = append(out, f.Severity.String()+": "+f.Text)
	}
	return strings.Join(out, "\n")
}

func mustContain(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, w := range wants {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not say %q", text, w)
		}
	}
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

// Fault (seed 002): nodes come and go; an allocator that only climbs reaches
// the subnet of a firewall that lies inside the pool, and cuts it off. Once
// the subnet is known it is never granted; and what was released is used again
// before anything else.
func TestFirewallInsideThePool(t *testing.T) {
	p := v4Pool(24, "10.0.0.0/8")
	firewall := pool.Hazard{CIDR: prefix("10.0.3.64/26"), Kind: pool.Reserved, Where: "firewall: behind the default route"}
	for _, guarded := range []bool{true, false} {
		in := inputs(p)
		if guarded {
			in.Hazards = []pool.Hazard{firewall}
		}
		var l pool.Ledger
		highest, hit := netip.Addr{}, false
		for day := range 40 {
			in.Now = at(day * 86400)
			l, _, _ = pool.Plan(l, in, wants(p, fmt.Sprintf("n%d", day), fmt.Sprintf("n%d", day+1), "static"))
			for _, ps := range l.Grants {
				if hit = hit || ps[0].Overlaps(firewall.CIDR); ps[0].Addr().Compare(highest) > 0 {
					highest = ps[0].Addr()
				}
			}
		}
		if hit == guarded {
			t.Errorf("guarded %v: the firewall's subnet was granted: %v", guarded, hit)
		}
		// Three nodes at a time, a fourth range rests.
		if highest.Compare(netip.MustParseAddr("10.0.4.0")) > 0 {
			t.Errorf("guarded %v: climbed to %s", guarded, highest)
		}
	}
}

// Fault: a range is granted again while peers still route it to the node that
// is gone: the time is not over, or an agent has not looked yet. And: the range
// that was released last is used first, so that it rests least.
func TestQuarantineAndOrderOfReuse(t *testing.T) {
	p := v4Pool(24, "10.0.0.0/22") // four blocks
	in := inputs(p)
	l, _, _ := pool.Plan(pool.Ledger{}, in, wants(p, "a", "b", "c"))
	in.Now = at(10)
	l, _, _ = pool.Plan(l, in, wants(p, "a", "c")) // b goes first
	in.Now = at(20)
	l, _, _ = pool.Plan(l, in, wants(p, "c")) // then a
	if l.Seq != 2 || len(l.Quarantine) != 2 {
		t.Fatalf("ledger %+v", l)
	}
	in.Now = at(609)
	l, _, _ = pool.Plan(l, in, wants(p, "c", "d"))
	if got := granted(l); got != "c:[10.0.2.0/24] d:[10.0.3.0/24]" {
		t.Errorf("9 minutes 59 after the first release: %s", got)
	}
	in.Now, in.Seen, in.Lagging = at(3600), 0, "c"
	_, results, _ := pool.Plan(l, in, wants(p, "c", "d", "e"))
	if len(results[2].Granted) > 0 {
		t.Errorf("granted %v before an agent has seen its release", results[2].Granted)
	}
	mustContain(t, results[2].Refused[0].Error(), "2 quarantined", "release 1 waits for agents that have verified 0 only", "the one of node c")
	in.Seen = 2
	l, _, _ = pool.Plan(l, in, wants(p, "c", "d", "e", "f"))
	if got := granted(l); got != "c:[10.0.2.0/24] d:[10.0.3.0/24] e:[10.0.1.0/24] f:[10.0.0.0/24]" {
		t.Errorf("after all have seen both: %s", got)
	}
}

// Fault: a leader with an old view has released what a living node uses; the
// node gets another range, and its pods lose theirs.
func TestNodeTakesBackWhatItUses(t *testing.T) {
	p := v4Pool(24, "10.0.0.0/16")
	in := inputs(p)
	l, _, _ := pool.Plan(pool.Ledger{}, in, wants(p, "a", "b"))
	l, _, _ = pool.Plan(l, in, wants(p, "b")) // does not know of a
	back := wants(p, "a", "b")
	back[0].Held = prefixes("10.0.0.0/24")
	l, _, _ = pool.Plan(l, in, back)
	if got := granted(l); got != "a:[10.0.0.0/24] b:[10.0.1.0/24]" || len(l.Quarantine) != 0 {
		t.Errorf("%s, quarantine %v", got, l.Quarantine)
	}
}

// Fault: a CiliumNode that was edited by hand, or by a node that was taken
// over, gets the range of another node, or moves its own.
func TestHandEditedCiliumNode(t *testing.T) {
	p := v4Pool(24, "10.0.0.0/16")
	in := inputs(p)
	l, _, _ := pool.Plan(pool.Ledger{}, in, wants(p, "a", "b"))
	edited := wants(p, "a", "b", "c")
	edited[0].Held = prefixes("10.0.2.0/24") // would be c's
	edited[2].Held = prefixes("10.0.1.0/24") // is b's
	l, _, findings := pool.Plan(l, in, edited)
	if got := granted(l); got != "a:[10.0.0.0/24] b:[10.0.1.0/24] c:[10.0.3.0/24]" {
		t.Error(got)
	}
	smaller := inputs(v4Pool(26, "10.0.0.0/16"))
	part := wants(smaller.Pool, "a", "b", "c", "d")
	part[3].Held = prefixes("10.0.1.64/26") // a part of b's
	if next, _, _ := pool.Plan(l, smaller, part); !strings.Contains(granted(next), "d:[10.0.2.0/26]") {
		t.Error(granted(next))
	}
	gone, _, _ := pool.Plan(l, in, wants(p, "a"))
	thief := wants(p, "a", "e")
	thief[1].Held = prefixes("10.0.1.0/24") // b has just given it back
	if next, _, _ := pool.Plan(gone, in, thief); strings.Contains(granted(next), "e:[10.0.1.0/24]") || len(next.Quarantine) == 0 {
		t.Error(granted(next))
	}
	mustContain(t, texts(findings), "CiliumNode a names 10.0.2.0/24, which the ledger does not give to it: nobody else", "CiliumNode c names 10.0.1.0/24", "but to node b")
}

// Fault: an edit of the pool takes ranges from nodes whose pods use them, or
// forgets them, so that they are granted twice when the pool is put back.
func TestPoolEditsKeepWhatIsInUse(t *testing.T) {
	in := inputs(v4Pool(24, "10.0.0.0/16"))
	l, _, _ := pool.Plan(pool.Ledger{}, in, wants(in.Pool, "a", "b"))
	in.Pool = v4Pool(25, "10.9.0.0/16")
	l, _, findings := pool.Plan(l, in, wants(in.Pool, "a", "b", "c"))
	if got := granted(l); got != "a:[10.0.0.0/24] b:[10.0.1.0/24] c:[10.9.0.0/25]" {
		t.Error(got)
	}
	mustContain(t, texts(findings), "10.0.0.0/24 of node a, 10.0.1.0/24 of node b is no block of the pool any more", "kept", "drain it and delete its Node object")
	in.Pool = v4Pool(25, "10.0.0.0/16") // smaller blocks of the first range
	l, _, _ = pool.Plan(l, in, wants(in.Pool, "a", "b", "c", "d"))
	if got := granted(l); got != "a:[10.0.0.0/24] b:[10.0.1.0/24] c:[10.9.0.0/25] d:[10.0.2.0/25]" {
		t.Error(got)
	}
	// A node that goes rests in the size that it had.
	l, _, _ = pool.Plan(l, in, wants(in.Pool, "b", "c", "d"))
	in.Now = at(3600)
	l, _, _ = pool.Plan(l, in, wants(in.Pool, "b", "c", "d", "e", "f", "g"))
	if got := granted(l); !strings.Contains(got, "e:[10.0.0.0/25] f:[10.0.0.128/25] g:[10.0.2.128/25]") {
		t.Error(got)
	}
}

// Fault: a second leader, paused between its read and its write, for which the
// API server says no; and one that planned with a pool that has been edited
// since: the edit alone must change the ledger.
func TestPoolEditChangesTheLedger(t *testing.T) {
	in := inputs(v4Pool(24, "10.0.0.0/16"))
	l, _, _ := pool.Plan(pool.Ledger{}, in, wants(in.Pool, "a"))
	in.Pool = v4Pool(24, "10.1.0.0/16")
	if next, _, _ := pool.Plan(l, in, wants(in.Pool, "a")); next.Equal(l) {
		t.Error("a leader with the old pool could still write")
	}
}

// Fault: a hazard that turns up later takes away what nodes use.
func TestHazardOverGrantedRange(t *testing.T) {
	p := v4Pool(24, "10.0.0.0/22")
	in := inputs(p)
	l, _, _ := pool.Plan(pool.Ledger{}, in, wants(p, "a", "b"))
	in.Hazards = []pool.Hazard{{CIDR: prefix("10.0.1.128/25"), Kind: pool.Connected, Where: "node z, device eth1"}}
	next, _, findings := pool.Plan(l, in, wants(p, "a", "b"))
	if !next.Equal(l) {
		t.Error("the ledger changed")
	}
	mustContain(t, texts(findings), "10.0.1.0/24 of node b overlaps connected subnet 10.0.1.128/25 (node z, device eth1): kept",
		"acknowledge 10.0.1.128/25 in ipam.operator.acknowledgedOverlaps")
	in.Acknowledged = prefixes("10.0.1.0/24")
	if _, _, findings = pool.Plan(l, in, wants(p, "a", "b")); len(findings) > 0 {
		t.Errorf("acknowledged, but: %s", texts(findings))
	}
}

// Fault: a ledger that was edited by hand gives one range to two nodes, and
// nobody says so.
func TestHandEditedLedger(t *testing.T) {
	p := v4Pool(24, "10.0.0.0/16")
	l := pool.Ledger{Grants: map[string][]netip.Prefix{"a": prefixes("10.0.0.0/24"), "b": prefixes("10.0.0.0/25")}}
	next, _, findings := pool.Plan(l, inputs(p), wants(p, "a", "b", "c"))
	if got := granted(next); got != "a:[10.0.0.0/24] b:[10.0.0.0/25] c:[10.0.1.0/24]" {
		t.Error(got)
	}
	mustContain(t, texts(findings), "gives 10.0.0.0/25 to node b and 10.0.0.0/24 to node a, which overlap")
}

// Fault: a refusal of which nobody can tell what to do.
func TestRefusalsNameThePoolAndTheRemedy(t *testing.T) {
	p := v4Pool(26, "10.0.0.0/24")
	in := inputs(p, pool.Hazard{CIDR: prefix("10.0.0.192/28"), Kind: pool.Route, Where: "node z, device tun0, via 10.9.9.9"})
	l, _, _ := pool.Plan(pool.Ledger{}, in, wants(p, "a", "b"))
	in.Now = at(60)
	l, results, _ := pool.Plan(l, in, wants(p, "b", "c", "d"))
	if len(results) != 3 || len(results[2].Refused) != 1 {
		t.Fatalf("results %+v of %s", results, granted(l))
	}
	mustContain(t, results[2].Refused[0].Error(), "pool default: no IPv4 range for node d", "10.0.0.0/24 in blocks of /26 make 4", "2 are held",
		"1 quarantined", "1 overlap", "route 10.0.0.192/28 (node z, device tun0, via 10.9.9.9)", "add a CIDR to ipam.operator.clusterPoolIPv4PodCIDRList",
		"wait 10m0s")

	none := pool.Pool{Name: "blue", Object: "CiliumPodIPPool blue"}
	_, results, _ = pool.Plan(pool.Ledger{}, inputs(none), []pool.Demand{{Node: "a", V6: 1}})
	mustContain(t, results[0].Refused[0].Error(), "pool blue: no IPv6 range for node a", "has no IPv6 CIDR: set spec.ipv6.cidrs of CiliumPodIPPool blue")

	small := v4Pool(24, "10.0.0.0/25")
	_, results, _ = pool.Plan(pool.Ledger{}, inputs(small), wants(small, "a"))
	mustContain(t, results[0].Refused[0].Error(), "none of its CIDRs can be used", "10.0.0.0/25: is smaller than one block")
}

// Fault: 5,000 nodes vanish at once, and the ledger outgrows what the API
// server takes, so that nothing works any more.
func TestMassReleaseKeepsTheLedgerSmall(t *testing.T) {
	p := pool.Pool{
		Name: "default",
		V4:   pool.Family{CIDRs: prefixes("10.0.0.0/8"), MaskSize: 24}, V6: pool.Family{CIDRs: prefixes("fd12:3456:789a::/48"), MaskSize: 64},
	}
	var nodes []string
	for i := range 5000 {
		nodes = append(nodes, fmt.Sprintf("ip-10-100-%d-%d.eu-central-1.compute.internal", 100+i/256, i%256))
	}
	in := inputs(p)
	l, _, _ := pool.Plan(pool.Ledger{}, in, wants(p, nodes...))
	largest := 0
	for round := range 5 {
		in.Now = at(round * 700)
		var findings []pool.Finding
		l, _, findings = pool.Plan(l, in, wants(p, "last"))
		raw, err := json.Marshal(l.Spec())
		if err != nil {
			t.Fatal(err)
		}
		if largest = max(largest, len(raw)); round == 0 {
			mustContain(t, texts(findings), "4096 blocks are quarantined")
		}
	}
	if largest > 1<<20 {
		t.Errorf("the ledger grew to %d bytes", largest)
	}
	if len(l.Grants) != 1 || len(l.Quarantine) != 0 || len(l.Rested) != 10_000 {
		t.Errorf("%d grants, %d quarantined, %d rested", len(l.Grants), len(l.Quarantine), len(l.Rested))
	}
}

// Fault: what a node of a named pool gives back stays with it, or is granted
// again at once.
func TestGiveBack(t *testing.T) {
	p := v4Pool(28, "10.0.0.0/24")
	in := inputs(p)
	l, _, _ := pool.Plan(pool.Ledger{}, in, []pool.Demand{{Node: "a", V4: 3}})
	l, results, _ := pool.Plan(l, in, []pool.Demand{{Node: "a", V4: 2, GiveBack: prefixes("10.0.0.16/28", "10.7.0.0/24")}, {Node: "b", V4: 1}})
	if got := granted(l); got != "a:[10.0.0.0/28 10.0.0.32/28] b:[10.0.0.48/28]" {
		t.Error(got)
	}
	if len(l.Quarantine) != 1 || l.Quarantine[0].CIDR != prefix("10.0.0.16/28") || !slices.Equal(results[0].CIDRs, prefixes("10.0.0.0/28", "10.0.0.32/28")) {
		t.Errorf("quarantine %v, results %+v", l.Quarantine, results)
	}
}
