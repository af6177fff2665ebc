// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/ipam/pool"
	"github.com/weft-net/weft/internal/operator/kube"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// Fault: something that uses a range is not looked at, and pods get it.
func TestHazards(t *testing.T) {
	v := view{
		cfg: config.DefaultOperator(),
		ranges: kube.Ranges{
			Services: []kube.Range{{CIDR: "10.96.0.0/16", Where: "ServiceCIDR kubernetes"}, {CIDR: "fd00::1", Where: "service default/kubernetes"}},
			Reserved: []weftv1.ReservedCIDR{{ObjectMeta: metav1.ObjectMeta{Name: "fw"}, Spec: weftv1.ReservedCIDRSpec{CIDR: "10.9.0.0/24", Reason: "the firewall"}}},
		},
		ledger: pool.Ledger{Grants: map[string][]netip.Prefix{"n2": {pfx("10.244.2.0/24")}}},
		snap: kube.Snapshot{
			Nodes: map[string]*kube.Node{
				"n1": {Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("192.168.0.1")}, PodCIDRs: []netip.Prefix{pfx("10.244.1.0/24")}},
				// What it has of kube-controller-manager is its grant, too.
				"n2": {Name: "n2", PodCIDRs: []netip.Prefix{pfx("10.244.2.0/24")}},
			},
			CiliumNodes: map[string]*kube.CiliumNode{
				"n1": {Name: "n1", Owned: true, Published: true, Routes: []weftv1.NodeRoute{{CIDR: "10.7.0.0/16", Dev: "eth1"}, {CIDR: "10.8.0.0/16", Dev: "eth0", Via: "192.168.0.254"}}},
				"n3": {Name: "n3", PodCIDRs: []string{"10.99.0.0/24"}, Addrs: []netip.Addr{netip.MustParseAddr("fd00::9")}},
			},
		},
	}
	var got []string
	for _, h := range v.hazards() {
		got = append(got, fmt.Sprintf("%s %s (%s)", h.Kind, h.CIDR, h.Where))
	}
	slices.Sort(got)
	want := []string{
		"ReservedCIDR 10.9.0.0/24 (fw (the firewall))",
		"connected subnet 10.7.0.0/16 (node n1, device eth1)",
		"node address 192.168.0.1/32 (node n1)",
		"node address fd00::9/128 (node n3)",
		"node's range 10.244.1.0/24 (node n1, spec.podCIDRs)",
		"node's range 10.99.0.0/24 (ciliumnodes n3, which is not Weft's)",
		"route 10.8.0.0/16 (node n1, device eth0, via 192.168.0.254)",
		"service CIDR 10.96.0.0/16 (ServiceCIDR kubernetes)",
		"service CIDR fd00::1/128 (service default/kubernetes)",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// Fault: a quarantine ends although an agent has not verified the release; or it
// never ends because of a machine that broke long ago or an agent that never spoke.
func TestWhoseWordReleasesWaitFor(t *testing.T) {
	now := time.Now()
	nodes := map[string]*kube.Node{"a": {Name: "a"}, "b": {Name: "b", Silent: now.Add(-time.Minute)}, "c": {Name: "c", Silent: now.Add(-2 * time.Hour)}, "d": {Name: "d"}}
	for _, tc := range []struct {
		name string
		cns  []kube.CiliumNode
		want uint64
		who  string
	}{
		{"the lowest counts", []kube.CiliumNode{{Name: "a", Owned: true, Published: true, Seen: 7}, {Name: "d", Owned: true, Published: true, Seen: 5}}, 5, "d"},
		{"a node that is silent for a moment counts", []kube.CiliumNode{{Name: "a", Owned: true, Published: true, Seen: 7}, {Name: "b", Owned: true, Published: true, Seen: 3}}, 3, "b"},
		{"one that is silent for hours does not", []kube.CiliumNode{{Name: "a", Owned: true, Published: true, Seen: 7}, {Name: "c", Owned: true, Published: true, Seen: 3}}, 7, "a"},
		{"an agent that never told its routes does not", []kube.CiliumNode{{Name: "a", Owned: true, Published: true, Seen: 7}, {Name: "d", Owned: true}}, 7, "a"},
		{"an agent whose Node was deleted counts", []kube.CiliumNode{{Name: "a", Owned: true, Published: true, Seen: 7}, {Name: "x", Owned: true, Published: true, Seen: 2}}, 2, "x"},
		{"what is not ours does not", []kube.CiliumNode{{Name: "a", Owned: true, Published: true, Seen: 7}, {Name: "d", Published: true}}, 7, "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := view{now: now, snap: kube.Snapshot{Nodes: nodes, CiliumNodes: map[string]*kube.CiliumNode{}}}
			for i := range tc.cns {
				v.snap.CiliumNodes[tc.cns[i].Name] = &tc.cns[i]
			}
			if got, who := v.seen(); got != tc.want || who != tc.who {
				t.Errorf("got %d of %s, want %d of %s", got, who, tc.want, tc.who)
			}
		})
	}
}

// Fault: metrics that break Prometheus' conventions, or that stay when the lead goes.
func TestMetrics(t *testing.T) {
	yes := func() bool { return true }
	s, err := newStats("v1", yes, yes)
	if err != nil {
		t.Fatal(err)
	}
	in := pool.Inputs{Pool: pool.Pool{Name: "default", V4: pool.Family{CIDRs: []netip.Prefix{pfx("10.10.0.0/23")}, MaskSize: 24}}, Now: time.Now()}
	next, results, _ := pool.Plan(pool.Ledger{}, in, []pool.Demand{{Node: "a", V4: 1}, {Node: "b", V4: 1}, {Node: "c", V4: 1}})
	s.planned(in, next, results)
	s.written(100)
	s.round(time.Second, nil)
	problems, err := testutil.GatherAndLint(s.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if got := testutil.ToFloat64(s.blocks.WithLabelValues("default", "ipv4", "held")); got != 2 {
		t.Errorf("%v blocks held, want 2", got)
	}
	if got := testutil.ToFloat64(s.refused.WithLabelValues("default", "ipv4", "exhausted")); got != 1 {
		t.Errorf("%v nodes refused, want 1", got)
	}
	s.forget()
	if n := testutil.CollectAndCount(s.blocks) + testutil.CollectAndCount(s.refused); n != 0 {
		t.Errorf("%d series of the pool stay when the lead is lost", n)
	}
}
