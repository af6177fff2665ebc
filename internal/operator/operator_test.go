// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
)

// TestOperator runs the operator against one real API server. Definitions come
// with the first of its parts.
func TestOperator(t *testing.T) {
	s := apiservertest.Start(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"AnyStartOrder", testAnyStartOrder},
		{"Grants", testGrants},
		{"FrozenLeaderDoesNoHarm", testFrozenLeaderDoesNoHarm},
		{"LatePatchMissesANewNode", testLatePatchMissesANewNode},
		{"LostLedgerIsRebuilt", testLostLedgerIsRebuilt},
		{"EditsByHandAndForeignObjects", testEditsByHandAndForeignObjects},
		{"DanglingNodesAndQuarantine", testDanglingNodesAndQuarantine},
		{"NoPool", testNoPool},
		{"Election", testElection},
		{"LeaderCutOff", testLeaderCutOff},
		{"ModeKubernetes", testModeKubernetes},
		{"Roles", testRoles},
		{"TwoLeadersAtRandom", testTwoLeadersAtRandom},
		{"StaleCache", testStaleCache},
		{"FlappingServer", testFlappingServer},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, fresh(t, s)) })
	}
}

// Fault: a node gets a range that something uses (its own route, a service, a
// declaration), gets one before its agent has spoken, or gets none.
func testGrants(t *testing.T, c *cluster) {
	c.Do(t, http.MethodPost, reservedPath, object{
		"apiVersion": "weft.dev/v1alpha1", "kind": "ReservedCIDR", "metadata": object{"name": "firewall"},
		"spec": object{"cidr": "10.10.1.0/24", "reason": "the firewall"},
	}, nil)
	// Blocks: .0 a route of n1, .1 reserved, .2 and .3 free; 10.96.0.0/24 are services.
	o := c.operator(operatorConfig{name: "a", settings: pool24("10.10.0.0/22 10.96.0.0/24")})
	c.join("n1", "192.168.0.1", weftv1.NodeRoute{CIDR: "10.10.0.128/25", Dev: "eth1"})
	if got := c.waitRanges("n1"); !slices.Equal(got, []string{"10.10.2.0/24"}) {
		t.Errorf("n1 got %v", got)
	}
	// Its agent dies before it publishes: that blocks it and nobody else.
	uid := c.node("n2", "192.168.0.2")
	mute := ciliumNode("n2", uid, "192.168.0.2", forever)
	delete(mute.Annotations, weftv1.NodeRoutesAnnotation)
	delete(mute.Annotations, weftv1.ReleaseSeenAnnotation)
	c.Do(t, http.MethodPost, ciliumNodesPath, mute, nil)
	c.join("n3", "192.168.0.3")
	if got := c.waitRanges("n3"); !slices.Equal(got, []string{"10.10.3.0/24"}) {
		t.Errorf("n3 got %v", got)
	}
	if got := c.ciliumNode("n2").Spec.IPAM.PodCIDRs; got != nil {
		t.Errorf("n2 got %v before its agent had told its routes", got)
	}
	c.join("n4", "192.168.0.4")
	text := c.waitError("n4", "pool default")
	for _, want := range []string{"10.10.0.0/22", "ipam.operator.clusterPoolIPv4PodCIDRList", "firewall", "10.10.0.128/25"} {
		if !strings.Contains(text, want) {
			t.Errorf("the refusal does not say %s: %s", want, text)
		}
	}
	// The pool is extended while the operator runs; the error goes.
	writeSettings(t, o.dir, with(pool24("10.10.0.0/22,10.20.0.0/23"), "k8s-api-server", c.URL))
	if got := c.waitRanges("n4"); !slices.Equal(got, []string{"10.20.0.0/24"}) {
		t.Errorf("n4 got %v", got)
	}
	c.waitError("n4", "")
	// And replaced: what nodes hold of it stays theirs.
	writeSettings(t, o.dir, with(pool24("10.30.0.0/24"), "k8s-api-server", c.URL))
	eventually(t, "the operator reads the new pool", 10*time.Second, func() bool {
		cfg, _ := o.settings.get()
		return len(cfg.Pool.IPv4CIDRs) == 1
	})
	c.join("n5", "192.168.0.5")
	if got := c.waitRanges("n5"); !slices.Equal(got, []string{"10.30.0.0/24"}) {
		t.Errorf("n5 got %v", got)
	}
	if got := c.ledger().Spec.Grants["n1"]; len(got) != 1 || got[0] != "10.10.2.0/24" {
		t.Errorf("the ledger has %v for n1 after the pool was replaced", got)
	}
	// Settings that are wrong leave the pool in force, and are told.
	writeSettings(t, o.dir, with(pool24("10.30.0.0/24 10.30.0.0/16"), "k8s-api-server", c.URL))
	eventually(t, "the operator is not ready and names the setting", 10*time.Second, func() bool {
		err := o.ready()
		return err != nil && strings.Contains(err.Error(), "cluster-pool-ipv4-cidr")
	})
	if cfg, _ := o.settings.get(); len(cfg.Pool.IPv4CIDRs) != 1 {
		t.Errorf("refused settings are in force: %v", cfg.Pool.IPv4CIDRs)
	}
	c.consistent()
}

// Fault: an operator that slept between its read and its write wakes as if it
// still led, and gives a range that another operator gave meanwhile.
func testFrozenLeaderDoesNoHarm(t *testing.T, c *cluster) {
	frozen, thaw := make(chan struct{}), make(chan struct{})
	var once sync.Once
	first := c.operator(operatorConfig{
		name: "frozen", alone: true, settings: pool24("10.10.0.0/21"),
		before: func(context.Context) {
			once.Do(func() {
				close(frozen)
				<-thaw
			})
		},
	})
	// It freezes with a plan: an empty ledger, or one with n1, is about to be written.
	c.join("n1", "192.168.0.1")
	<-frozen
	c.operator(operatorConfig{name: "awake", alone: true, settings: pool24("10.10.0.0/21")})
	for _, n := range []string{"n2", "n3", "n4"} {
		c.join(n, "192.168.0.9")
		c.waitRanges(n)
	}
	before := c.ledger()
	close(thaw)
	eventually(t, "the frozen operator finds that it is late", 10*time.Second, func() bool {
		return testutil.ToFloat64(first.stats.conflicts) >= 1
	})
	// Both go on at once.
	for _, n := range []string{"n5", "n6", "n7"} {
		c.join(n, "192.168.0.9")
		c.waitRanges(n)
	}
	c.consistent()
	for node, cidrs := range before.Spec.Grants {
		if got := c.ledger().Spec.Grants[node]; !slices.Equal(got, cidrs) {
			t.Errorf("node %s had %v and has %v", node, cidrs, got)
		}
	}
}

// Fault: an operator that slept before its write to a CiliumNode puts into a new
// node's object what the old node of that name had.
func testLatePatchMissesANewNode(t *testing.T, c *cluster) {
	o := c.operator(operatorConfig{name: "a", settings: pool24("10.10.0.0/21")})
	c.join("n1", "192.168.0.1")
	c.waitRanges("n1")
	old := o.cache.Snapshot().CiliumNodes["n1"]
	c.gone("n1")
	c.Do(t, http.MethodPost, ciliumNodesPath, ciliumNode("n1", "", "192.168.0.1", forever), nil)
	if _, err := o.cache.SetPodCIDRs(t.Context(), old, []string{"10.10.7.0/24"}); !apierrors.IsConflict(err) {
		t.Errorf("got %v, want a conflict", err)
	}
	if got := c.ciliumNode("n1").Spec.IPAM.PodCIDRs; slices.Contains(got, "10.10.7.0/24") {
		t.Errorf("the new n1 has %v", got)
	}
}

// Fault: a lost ledger makes every range free again; or of two nodes that claim
// one range both keep it; or a range that kube-controller-manager gave is taken over.
func testLostLedgerIsRebuilt(t *testing.T, c *cluster) {
	claim := func(name, cidr string) {
		n := ciliumNode(name, c.node(name, "192.168.0.9"), "192.168.0.9", forever)
		n.Spec.IPAM.PodCIDRs = []string{cidr}
		c.Do(t, http.MethodPost, ciliumNodesPath, n, nil)
	}
	claim("zz-older", "10.10.3.0/24")
	eventually(t, "a second passes: creation times are whole seconds", 5*time.Second, func() bool {
		return time.Since(c.ciliumNode("zz-older").CreationTimestamp.Time) > 2*time.Second
	})
	claim("aa-younger", "10.10.3.0/24")
	claim("n2", "10.10.0.0/24")
	c.operator(operatorConfig{name: "a", settings: pool24("10.10.0.0/21")})
	eventually(t, "the younger one has another range", 20*time.Second, func() bool {
		return !slices.Equal(c.ciliumNode("aa-younger").Spec.IPAM.PodCIDRs, []string{"10.10.3.0/24"})
	})
	c.waitEvent("aa-younger", "PodCIDRConflict", "zz-older keeps it")
	l := c.ledger().Spec.Grants
	if !slices.Equal(l["zz-older"], []weftv1.CIDR{"10.10.3.0/24"}) || !slices.Equal(l["n2"], []weftv1.CIDR{"10.10.0.0/24"}) {
		t.Errorf("ledger %v", l)
	}
	c.consistent()

	// Lost while the operator runs.
	c.Do(t, http.MethodDelete, ledgersPath+"/default", nil, nil)
	c.join("n9", "192.168.0.9")
	c.waitRanges("n9")
	for node, cidrs := range l {
		if got := c.ledger().Spec.Grants[node]; !slices.Equal(got, cidrs) {
			t.Errorf("node %s had %v and has %v", node, cidrs, got)
		}
	}
	c.consistent()
}

// Fault: what somebody writes into a CiliumNode by hand becomes its range; or an
// object that is not Weft's is changed, collected, or its range given away.
func testEditsByHandAndForeignObjects(t *testing.T, c *cluster) {
	foreign := ciliumNode("foreign", "", "192.168.7.1", forever)
	foreign.Labels = nil
	foreign.Spec.IPAM.PodCIDRs = []string{"10.10.0.0/24"}
	c.Do(t, http.MethodPost, ciliumNodesPath, foreign, nil)
	c.operator(operatorConfig{name: "a", settings: pool24("10.10.0.0/21")})
	c.join("n1", "192.168.0.1")
	if got := c.waitRanges("n1"); !slices.Equal(got, []string{"10.10.1.0/24"}) {
		t.Errorf("n1 got %v", got)
	}
	c.Do(t, http.MethodPatch, ciliumNodesPath+"/n1", object{"spec": object{"ipam": object{"podCIDRs": []string{"10.10.6.0/24"}}}}, nil)
	eventually(t, "the grant is put back", 20*time.Second, func() bool {
		return slices.Equal(c.ciliumNode("n1").Spec.IPAM.PodCIDRs, []string{"10.10.1.0/24"})
	})
	c.waitEvent("n1", "PodCIDRsRestored", "10.10.6.0/24")
	if n := c.ciliumNode("foreign"); !slices.Equal(n.Spec.IPAM.PodCIDRs, []string{"10.10.0.0/24"}) || n.Generation != 1 {
		t.Errorf("the foreign CiliumNode was changed: %+v", n.Spec)
	}
	// A ledger that is not Weft's stops everything, untouched.
	c.Do(t, http.MethodPatch, ledgersPath+"/default", object{"metadata": object{"labels": object{weftv1.PartOfLabel: "other"}}}, nil)
	version := c.ledger().ResourceVersion
	c.join("n2", "192.168.0.2")
	eventually(t, "nothing happens to the ledger", 3*time.Second, func() bool {
		return time.Since(c.ciliumNode("n2").CreationTimestamp.Time) > 2*time.Second
	})
	if got := c.ledger().ResourceVersion; got != version {
		t.Error("a ledger without Weft's label was written")
	}
}

// Fault: CiliumNodes of nodes that are gone stay for ever and keep their ranges;
// or a range is given again before it rested, or while an agent still routes it.
func testDanglingNodesAndQuarantine(t *testing.T, c *cluster) {
	settings := pool24("10.10.0.0/23")
	settings["cluster-pool-quarantine"] = "3s"
	c.operator(operatorConfig{name: "a", settings: settings})
	// n1 says that it has verified no release; n2 has seen all.
	c.Do(t, http.MethodPost, ciliumNodesPath, ciliumNode("n1", c.node("n1", "192.168.0.1"), "192.168.0.1", 0), nil)
	c.waitRanges("n1")
	c.join("n2", "192.168.0.2")
	freed := c.waitRanges("n2")
	// Nobody names the Node as owner: only the operator can collect it.
	c.Do(t, http.MethodPatch, ciliumNodesPath+"/n2", object{"metadata": object{"ownerReferences": nil}}, nil)
	c.Do(t, http.MethodDelete, nodesPath+"/n2", nil, nil)
	gone := time.Now()
	eventually(t, "the CiliumNode is removed", 20*time.Second, func() bool {
		code, _ := c.Call(t, http.MethodGet, ciliumNodesPath+"/n2", nil)
		return code == http.StatusNotFound
	})
	if d := time.Since(gone); d < time.Second {
		t.Errorf("removed after %s, before its grace of 1 s was over", d)
	}
	eventually(t, "its range rests", 10*time.Second, func() bool { return len(c.ledger().Spec.Quarantine) == 1 })
	rests := time.Now()
	c.join("n3", "192.168.0.3")
	c.waitError("n3", "1 quarantined")
	eventually(t, "the time of quarantine is over", 10*time.Second, func() bool { return time.Since(rests) > 4*time.Second })
	if got := c.ledger().Spec.Quarantine; len(got) != 1 {
		t.Errorf("quarantine ended without the word of n1's agent: %v", got)
	}
	if got := c.ciliumNode("n3").Spec.IPAM.PodCIDRs; got != nil {
		t.Fatalf("n3 got %v although the agent of n1 has not verified its release", got)
	}
	c.Do(t, http.MethodPatch, ciliumNodesPath+"/n1", object{"metadata": object{"annotations": object{weftv1.ReleaseSeenAnnotation: "1"}}}, nil)
	if got := c.waitRanges("n3"); !slices.Equal(got, freed) {
		t.Errorf("n3 got %v, want what n2 gave back, %v", got, freed)
	}
	c.consistent()
}

// Fault: without a pool the operator invents one, ends, or leaves the reader alone.
func testNoPool(t *testing.T, c *cluster) {
	o := c.operator(operatorConfig{name: "a", settings: pool24("")})
	c.join("n1", "192.168.0.1", weftv1.NodeRoute{CIDR: "10.128.0.0/16", Dev: "eth1", Via: "192.168.0.254"})
	text := c.waitError("n1", "there is no default")
	if !strings.Contains(text, "ipam.operator.clusterPoolIPv4PodCIDRList") || strings.Contains(text, "10.128.0.0/16") {
		t.Errorf("the refusal: %s", text)
	}
	proposed := regexp.MustCompile(`one of ([0-9./]+)`).FindStringSubmatch(text)
	if proposed == nil {
		t.Fatalf("the refusal proposes nothing: %s", text)
	}
	if err := o.ready(); err == nil || !strings.Contains(err.Error(), proposed[1]) {
		t.Errorf("ready says %v", err)
	}
	// What it proposes works.
	writeSettings(t, o.dir, with(pool24(proposed[1]), "k8s-api-server", c.URL))
	c.waitRanges("n1")
	c.waitError("n1", "")
	eventually(t, "the operator is ready", 5*time.Second, func() bool { return o.ready() == nil })
}

// Fault: an operator that starts before the definitions are there, or while the
// API server is away, never begins.
func testAnyStartOrder(t *testing.T, c *cluster) {
	c.Stop()
	o := c.operator(operatorConfig{name: "a", settings: pool24("10.10.0.0/21")})
	eventually(t, "it waits for the server", 10*time.Second, func() bool { return o.ready() != nil })
	c.Restart()
	eventually(t, "it waits for definitions and says so", 30*time.Second, func() bool {
		err := o.ready()
		return err != nil && strings.Contains(err.Error(), "custom resource definitions")
	})
	c.InstallCRDs(crds)
	c.join("n1", "192.168.0.1")
	c.waitRanges("n1")
}

// Fault: nobody leads after the leader ended, or both lead.
func testElection(t *testing.T, c *cluster) {
	a := c.operator(operatorConfig{name: "a", settings: pool24("10.10.0.0/21")})
	eventually(t, "a leads", 10*time.Second, a.elector.Leads)
	b := c.operator(operatorConfig{name: "b", settings: pool24("10.10.0.0/21")})
	c.join("n1", "192.168.0.1")
	c.waitRanges("n1")
	if b.elector.Leads() {
		t.Error("both lead")
	}
	eventually(t, "b is ready to take over", 10*time.Second, func() bool { return b.ready() == nil })
	start := time.Now()
	a.stop()
	eventually(t, "b leads", 20*time.Second, b.elector.Leads)
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("b took over after %s: the lease was not released", d)
	}
	c.join("n2", "192.168.0.2")
	c.waitRanges("n2")
	c.consistent()
}

// Fault: the chart's roles lack what the operator needs in a mode; it would show
// in a cluster only.
func testRoles(t *testing.T, c *cluster) {
	for mode, settings := range map[string]map[string]string{"kubernetes": {"nodes-gc-interval": "1s"}, "cluster-pool": pool24("10.10.0.0/23"), "multi-pool": {"ipam": "multi-pool", "nodes-gc-interval": "1s"}} {
		t.Run(mode, func(t *testing.T) {
			c := fresh(t, c.Server)
			c.applyRoles(mode)
			var denied atomic.Value
			o := c.operator(operatorConfig{
				name: "a", settings: settings,
				wrap: func(rt http.RoundTripper) http.RoundTripper {
					return roundTripper(func(req *http.Request) (*http.Response, error) {
						req.Header.Set("Impersonate-User", "system:serviceaccount:kube-system:cilium-operator")
						resp, err := rt.RoundTrip(req)
						if err == nil && resp.StatusCode == http.StatusForbidden {
							denied.Store(req.Method + " " + req.URL.Path)
						}
						return resp, err
					})
				},
			})
			for _, n := range []string{"n1", "n2", "n3"} {
				c.join(n, "192.168.0.1")
			}
			if mode == "multi-pool" {
				c.pool("default", "10.10.0.0/23", 24)
				c.ask("n1", map[string]int{"default": 1}, nil)
				c.waitPools("n1", "default[10.10.0.0/24]")
			}
			if mode == "cluster-pool" {
				c.waitRanges("n1")
				c.waitRanges("n2")
				c.waitError("n3", "add a CIDR")
				c.waitEvent("n3", "PodCIDRRefused", "pool default")
			}
			c.Do(t, http.MethodPatch, ciliumNodesPath+"/n1", object{"metadata": object{"ownerReferences": nil}}, nil)
			c.Do(t, http.MethodDelete, nodesPath+"/n1", nil, nil)
			c.waitEvent("n1", "CiliumNodeRemoved", "had no Node")
			if mode == "cluster-pool" {
				c.waitRanges("n3")
			}
			o.stop() // releases the lease
			if d := denied.Load(); d != nil {
				t.Errorf("denied: %v", d)
			}
		})
	}
}

// roundTripper is a function that makes a call.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// Fault: in mode kubernetes the operator touches ranges.
func testModeKubernetes(t *testing.T, c *cluster) {
	o := c.operator(operatorConfig{name: "a", settings: map[string]string{"nodes-gc-interval": "1s"}})
	c.join("n1", "192.168.0.1")
	n := ciliumNode("n2", "", "192.168.0.2", forever)
	c.Do(t, http.MethodPost, ciliumNodesPath, n, nil)
	eventually(t, "the CiliumNode without a Node is removed", 20*time.Second, func() bool {
		code, _ := c.Call(t, http.MethodGet, ciliumNodesPath+"/n2", nil)
		return code == http.StatusNotFound
	})
	if n := c.ciliumNode("n1"); n.Generation != 1 || n.Status.IPAM.OperatorStatus.Error != "" {
		t.Errorf("n1 was changed: %+v", n)
	}
	if code, _ := c.Call(t, http.MethodGet, ledgersPath+"/default", nil); code != http.StatusNotFound {
		t.Errorf("there is a ledger (%d)", code)
	}
	if err := o.ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

func with(m map[string]string, k, v string) map[string]string {
	m[k] = v
	return m
}

// Fault: under two operators that act and sleep at random while nodes come and go,
// a range passes from one node to another without rest.
func testTwoLeadersAtRandom(t *testing.T, c *cluster) {
	settings := func() map[string]string {
		return with(with(pool24("10.64.0.0/14"), "cluster-pool-quarantine", "1h"), "nodes-gc-interval", "1s")
	}
	nap := func(context.Context) {
		d := time.NewTimer(time.Duration(rand.IntN(300)) * time.Millisecond)
		defer d.Stop()
		<-d.C
	}
	a := c.operator(operatorConfig{name: "a", alone: true, settings: settings(), before: nap})
	b := c.operator(operatorConfig{name: "b", alone: true, settings: settings(), before: nap})
	holder := map[weftv1.CIDR]string{} // ever
	version := ""
	look := func() {
		code, raw := c.Call(t, http.MethodGet, ledgersPath+"/default", nil)
		var l weftv1.PodCIDRLedger
		if code != http.StatusOK || json.Unmarshal(raw, &l) != nil || l.ResourceVersion == version {
			return
		}
		version = l.ResourceVersion
		for node, cidrs := range l.Spec.Grants {
			for _, r := range cidrs {
				if was, ok := holder[r]; ok && was != node {
					t.Errorf("%s was given to %s and then to %s", r, was, node)
				}
				holder[r] = node
			}
		}
	}
	var there []string
	for i := range 60 {
		if len(there) > 3 && rand.IntN(3) == 0 {
			k := rand.IntN(len(there))
			c.Do(t, http.MethodDelete, nodesPath+"/"+there[k], nil, nil)
			_, _ = c.Call(t, http.MethodDelete, ciliumNodesPath+"/"+there[k], nil)
			there = slices.Delete(there, k, k+1)
		}
		name := fmt.Sprintf("node-%d", i)
		c.join(name, "192.168.0.1")
		there = append(there, name)
		look()
	}
	for _, name := range there {
		c.waitRanges(name)
	}
	eventually(t, "the ledger names those that are there and nobody else", 20*time.Second, func() bool {
		look()
		return len(c.ledger().Spec.Grants) == len(there)
	})
	c.consistent()
	if n := testutil.ToFloat64(a.stats.conflicts) + testutil.ToFloat64(b.stats.conflicts); n == 0 {
		t.Error("they never met: this test shows nothing")
	}
}

// Fault: an operator whose watch is stuck takes a node that it has not heard of for
// one that is gone, and has its ranges rest while its pods use them.
func testStaleCache(t *testing.T, c *cluster) {
	var stuck atomic.Bool
	old := c.operator(operatorConfig{
		name: "old", alone: true, settings: pool24("10.10.0.0/21"),
		wrap: func(rt http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				resp, err := rt.RoundTrip(req)
				if err == nil && req.URL.Query().Get("watch") != "" {
					resp.Body = &stuckBody{ReadCloser: resp.Body, stuck: &stuck, ctx: req.Context()}
				}
				return resp, err
			})
		},
	})
	c.join("n1", "192.168.0.1")
	c.waitRanges("n1")
	stuck.Store(true)
	c.operator(operatorConfig{name: "new", alone: true, settings: pool24("10.10.0.0/21")})
	c.join("n2", "192.168.0.2")
	c.waitRanges("n2")
	if old.cache.Snapshot().Nodes["n2"] != nil {
		t.Fatal("the old operator's watch is not stuck: this test shows nothing")
	}
	// It looks at everything again because its settings change.
	for i, quarantine := range []string{"1m", "2m", "3m"} {
		writeSettings(t, old.dir, with(with(pool24("10.10.0.0/21"), "k8s-api-server", c.URL), "cluster-pool-quarantine", quarantine))
		eventually(t, "the old operator reads its settings", 10*time.Second, func() bool {
			cfg, _ := old.settings.get()
			return cfg.Pool.Quarantine == time.Duration(i+1)*time.Minute
		})
	}
	if l := c.ledger().Spec; len(l.Grants["n2"]) != 1 || len(l.Quarantine) != 0 {
		t.Errorf("the ledger has %v, at rest %v", l.Grants, l.Quarantine)
	}
	c.consistent()
}

// stuckBody is the stream of a watch that brings nothing while it is stuck.
type stuckBody struct {
	io.ReadCloser

	stuck *atomic.Bool
	ctx   context.Context //nolint:containedctx // of the request that the body belongs to
}

func (b *stuckBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.stuck.Load() {
		<-b.ctx.Done()
		return 0, b.ctx.Err()
	}
	return n, err
}
