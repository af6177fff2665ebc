// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	weftv1alpha1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/table"
)

// chosen answers for all pods of a name.
type chosen map[string][2]string

func (c chosen) PoolChoice(_ context.Context, _, pod string) (v4, v6 string, err error) {
	x, ok := c[pod]
	if !ok {
		return "", "", errors.New("no such pod")
	}
	return x[0], x[1], nil
}

// poolsOn is a node of two pools with a clock of its own, and its allocator.
func poolsOn(t *testing.T, ahead string, c choices) (*multiPool, *ipam.Allocator, *time.Time) {
	t.Helper()
	m, err := newMultiPool(config.MultiPool{PreAllocation: ahead}, families{v4: true}, c, func() {})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_000_000, 0)
	m.now = func() time.Time { return now }
	a := ipam.New(ipam.Config{Families: ipam.Families{V4: true}, Now: func() time.Time { return now }, Remedy: "ask"})
	return m, a, &now
}

func asked(m *multiPool) string {
	var out []string
	for _, r := range m.requested {
		out = append(out, fmt.Sprintf("%s=%d/%d", r.Pool, r.Needed.IPv4Addrs, r.Needed.IPv6Addrs))
	}
	return strings.Join(out, " ")
}

// Guards against a pod that gets an address of a pool that it did not choose, or
// one for which nobody ever asks the operator.
func TestPodsChoosePools(t *testing.T) {
	m, a, now := poolsOn(t, "default=8", chosen{"plain": {}, "blue": {"blue", "blue"}})
	if got := asked(m); got != "default=8/0" {
		t.Errorf("at the start: asked for %s", got)
	}
	if err := a.SetPools([]ipam.Range{{Prefix: cidr("10.8.1.0/28"), Pool: "default"}}); err != nil {
		t.Fatal(err)
	}
	add := func(pod, owner string) (netip.Addr, error) {
		c, err := m.Choose(t.Context(), "ns", pod)
		if err != nil {
			return netip.Addr{}, err
		}
		ips, err := a.AllocateFrom(owner, c)
		m.Outcome("ns", pod, c, err)
		m.count(a.Status())
		if err != nil {
			return netip.Addr{}, err
		}
		return ips[0], nil
	}
	if ip, err := add("plain", "1"); err != nil || !cidr("10.8.1.0/28").Contains(ip) {
		t.Errorf("got %s, %v", ip, err)
	}
	if got := asked(m); got != "default=16/0" {
		t.Errorf("one in use: asked for %s", got)
	}
	_, err := add("blue", "2")
	if err == nil || !strings.Contains(err.Error(), "no IPv4 range of pool blue yet: ask") {
		t.Errorf("without a range of blue: %v", err)
	}
	if got := asked(m); got != "blue=1/0 default=16/0" {
		t.Errorf("one waits: asked for %s", got)
	}
	if err := a.SetPools([]ipam.Range{{Prefix: cidr("10.8.1.0/28"), Pool: "default"}, {Prefix: cidr("10.9.0.0/29"), Pool: "blue"}}); err != nil {
		t.Fatal(err)
	}
	if ip, err := add("blue", "2"); err != nil || !cidr("10.9.0.0/29").Contains(ip) {
		t.Errorf("got %s, %v", ip, err)
	}
	if got := asked(m); got != "blue=1/0 default=16/0" {
		t.Errorf("it is served: asked for %s", got)
	}
	// What rested is given to pods of its own pool only.
	a.Release("2")
	*now = now.Add(time.Hour)
	for i := range 12 {
		if ip, err := add("plain", fmt.Sprint("p", i)); err != nil || !cidr("10.8.1.0/28").Contains(ip) {
			t.Fatalf("pod %d got %s, %v", i, ip, err)
		}
	}
	if _, err := add("plain", "last"); err == nil || !strings.Contains(err.Error(), "pool default is exhausted on this node") {
		t.Errorf("default is full: %v", err)
	}
	if _, err := add("unknown", "x"); err == nil {
		t.Error("a pod of which nothing is known got an address")
	}
}

// Guards against ranges that stay with a node for ever, or go while they are in
// use, are needed, or hold the address of the health endpoint; and against one on
// its way back that is used again.
func TestGivingRangesBack(t *testing.T) {
	m, a, now := poolsOn(t, "default=4", chosen{})
	first, second, blue, busy := cidr("10.8.1.0/29"), cidr("10.8.2.0/29"), cidr("10.9.0.0/29"), cidr("10.9.0.8/29")
	ranges := []ipam.Range{{Prefix: first, Pool: "default"}, {Prefix: second, Pool: "default"}, {Prefix: blue, Pool: "blue"}, {Prefix: busy, Pool: "blue"}}
	if err := a.SetPools(ranges); err != nil {
		t.Fatal(err)
	}
	if err := a.Restore("pod", netip.MustParseAddr("10.9.0.11")); err != nil {
		t.Fatal(err)
	}
	m.count(a.Status())
	if len(m.giving) > 0 {
		t.Errorf("gives %v back at once", m.giving)
	}
	*now = now.Add(spareFor)
	if !m.count(a.Status()) {
		t.Error("nothing to tell")
	}
	// 5 addresses a range: 4 of default are needed, 1 of blue.
	if got := m.annotations(map[string]uint64{"blue": 3}); got[weftv1alpha1.GiveBackAnnotation] != `["10.8.2.0/29","10.9.0.0/29"]` ||
		got[weftv1alpha1.ReleaseSeenPoolsAnnotation] != `{"blue":3}` {
		t.Errorf("annotations %v", got)
	}
	all := []netip.Prefix{busy, blue, second, first}
	l := &k8s.Ledger{Pools: map[netip.Prefix]string{first: "default", second: "default", blue: "blue", busy: "blue"}}
	if got := m.arrange(l, slices.Clone(all), all); !slices.Equal(got, []netip.Prefix{first, busy}) {
		t.Errorf("uses %v", got)
	}
	// The operator took them; later it may give them again.
	m.arrange(l, []netip.Prefix{first, busy}, []netip.Prefix{first, busy})
	if got := m.arrange(l, slices.Clone(all), all); !slices.Equal(got, []netip.Prefix{second, first, busy, blue}) && len(got) != 4 {
		t.Errorf("uses %v", got)
	}
}

// Guards against ranges of several ledgers that are mixed up: a release that is
// seen in one pool must not count as seen in another.
func TestSeenByPool(t *testing.T) {
	l := ledgerOf("1", 9, map[string][]netip.Prefix{"n1": {cidr("10.8.1.0/24")}},
		k8s.LedgerRelease{CIDR: cidr("10.9.0.0/24"), Node: "n2", Seq: 4, Pool: "blue"})
	l.Seqs, l.Pools = map[string]uint64{"default": 5, "blue": 4}, map[netip.Prefix]string{cidr("10.8.1.0/24"): "default"}
	p := newPoolNode("n1", config.ClusterPool{}, families{v4: true}, &paper{l: l}, func(string, string) {}, slog.New(slog.DiscardHandler))
	var err error
	if p.multi, err = newMultiPool(config.MultiPool{}, families{v4: true}, chosen{}, p.kick); err != nil {
		t.Fatal(err)
	}
	p.Look(t.Context(), func() (holder, error) { return func(netip.Prefix) string { return "a route" }, nil })
	if got := p.Annotations()[weftv1alpha1.ReleaseSeenPoolsAnnotation]; got != `{"blue":3,"default":5}` {
		t.Errorf("seen %s", got)
	}
	got, err := p.Ranges(t.Context(), &table.Node{Name: "n1", PodCIDRs: []netip.Prefix{cidr("10.8.1.0/24")}}, nil)
	if err != nil || !slices.Equal(p.pooled(got), []ipam.Range{{Prefix: cidr("10.8.1.0/24"), Pool: "default"}}) {
		t.Errorf("%v, %v", p.pooled(got), err)
	}
}
