// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
	"github.com/weft-net/weft/internal/table"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// klog flushes from a goroutine of its own, from its init on.
		goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// fixture is a client of node n1 with its tables, and the server.
type fixture struct {
	*apiservertest.Server
	client  *k8s.Client
	tables  k8s.Tables
	reflect *k8s.Reflect
}

func newFixture(t *testing.T, s *apiservertest.Server) *fixture {
	t.Helper()
	c, err := k8s.NewClient(k8s.Config{
		NodeName: "n1", Server: s.URL, CredentialsDir: s.CredentialsDir, UserAgent: "test", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	db := statedb.New()
	nodes, err := table.NewNodes(db)
	if err != nil {
		t.Fatal(err)
	}
	pods, err := table.NewRemotePods(db)
	if err != nil {
		t.Fatal(err)
	}
	tables := k8s.Tables{DB: db, Nodes: nodes, Pods: pods, Services: serviceTables(t, db)}
	return &fixture{Server: s, client: c, tables: tables, reflect: k8s.NewReflect(c, tables)}
}

// run starts the reflectors, and what else there is, until the test ends.
func (f *fixture) run(t *testing.T, more ...func(context.Context) error) {
	ctx, cancel := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	for _, fn := range append(more, f.reflect.Run) {
		g.Go(func() error { return fn(ctx) })
	}
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("run: %v", err)
		}
		f.client.Close()
	})
}

func eventually(t *testing.T, what string, cond func() (bool, any)) {
	t.Helper()
	deadline := time.NewTimer(40 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, got := cond()
		if ok {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("%s: got %v", what, got)
		case <-tick.C:
		}
	}
}

func (f *fixture) node(name string) *table.Node {
	n, _, _ := f.tables.Nodes.Get(f.tables.DB.ReadTxn(), table.NodeByName.Query(name))
	return n
}

func (f *fixture) pod(name string) *table.RemotePod {
	p, _, _ := f.tables.Pods.Get(f.tables.DB.ReadTxn(), table.RemotePodByName.Query(name))
	return p
}

// addNode makes a Node with addresses of both families and a taint of ours and
// one of somebody else.
func (f *fixture) addNode(t *testing.T, name string, i int) {
	t.Helper()
	f.Do(t, http.MethodPost, "/api/v1/nodes", corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.NodeSpec{
			PodCIDRs: []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:%d::/64", i)}, PodCIDR: fmt.Sprintf("10.244.%d.0/24", i),
			Taints: []corev1.Taint{
				{Key: k8s.AgentNotReadyTaint, Effect: corev1.TaintEffectNoExecute},
				{Key: "dedicated", Value: "db", Effect: corev1.TaintEffectNoSchedule},
			},
		},
	}, nil)
	f.Do(t, http.MethodPatch, "/api/v1/nodes/"+name+"/status", corev1.Node{Status: corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: name},
			{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.9.0.%d", i)},
			{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("fd09::%d", i)},
		},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		Images:     []corev1.ContainerImage{{Names: []string{"something/large:1"}}},
	}}, nil)
}

func endpoint(id uint16, pod, uid string) *table.Endpoint {
	return &table.Endpoint{
		ID: id, Kind: table.EndpointPod, State: table.EndpointReady, Namespace: "default", Pod: pod, PodUID: uid,
		ContainerID: fmt.Sprintf("c%d", id), IfName: "eth0", Identity: table.IdentityInit,
		IPv4: netip.AddrFrom4([4]byte{10, 244, 1, byte(id)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", id)),
	}
}

// addPod makes a pod and returns its UID.
func (f *fixture) addPod(t *testing.T, name, node string, annotations, labels map[string]string) string {
	t.Helper()
	var p corev1.Pod
	f.Do(t, http.MethodPost, "/api/v1/namespaces/default/pods", corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations, Labels: labels},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, &p)
	return string(p.UID)
}

func (f *fixture) deletePod(t *testing.T, name string) {
	f.Do(t, http.MethodDelete, "/api/v1/namespaces/default/pods/"+name, `{"gracePeriodSeconds":0}`, nil)
}

const cepPath = "/apis/cilium.io/v2/namespaces/default/ciliumendpoints"

func (f *fixture) cep(t *testing.T, name string) *ciliumv2.CiliumEndpoint {
	t.Helper()
	code, b := f.Call(t, http.MethodGet, cepPath+"/"+name, nil)
	if code == http.StatusNotFound {
		return nil
	}
	var e ciliumv2.CiliumEndpoint
	if err := json.Unmarshal(b, &e); code != http.StatusOK || err != nil {
		t.Fatalf("get CiliumEndpoint: %d %s %v", code, b, err)
	}
	return &e
}

// One server serves all cases; each has objects of its own.
func TestAgainstAPIServer(t *testing.T) {
	s := apiservertest.Start(t)
	s.InstallCRDs("../../install/helm/weft/crds")
	f := newFixture(t, s)
	f.addNode(t, "n1", 1)
	f.addNode(t, "n2", 2)
	f.Do(t, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"default"}}`, nil)
	publisher := k8s.NewPublisher(f.client, f.reflect)
	f.run(t, publisher.Run)
	writer := k8s.NewEndpointWriter(f.client, f.tables)
	waitInit(t, f)
	t.Run("rows show nodes", func(t *testing.T) { testNodeRows(t, f) })
	t.Run("own CiliumNode is kept", func(t *testing.T) { testPublish(t, f, publisher) })
	t.Run("foreign CiliumNode is left alone", func(t *testing.T) { testForeignNode(t, f, publisher) })
	t.Run("CiliumEndpoints follow endpoints", func(t *testing.T) { testEndpoints(t, f, writer) })
	t.Run("a replaced pod keeps its own object", func(t *testing.T) { testReplaced(t, f, writer) })
	t.Run("another node's object is not taken", func(t *testing.T) { testHeld(t, f, writer) })
	t.Run("static pods", func(t *testing.T) { testStatic(t, f, writer) })
	t.Run("prune", func(t *testing.T) { testPrune(t, f, writer) })
	t.Run("node is marked ready", func(t *testing.T) { testMarkReady(t, f) })
	t.Run("a running Cilium is found", func(t *testing.T) { testFindCilium(t, f) })
	t.Run("events", func(t *testing.T) { testEvents(t, f) })
	t.Run("ledger", func(t *testing.T) { testLedger(t, f) })
	t.Run("ledgers", func(t *testing.T) { testLedgers(t, f) })
	t.Run("choice of pools", func(t *testing.T) { testPoolChoice(t, f) })
	t.Run("services", func(t *testing.T) { testServices(t, f) })
	t.Run("the server goes away and comes back", func(t *testing.T) { testOutage(t, f) })
	t.Run("pods that are gone", func(t *testing.T) { testPodGone(t, f) })
}

func waitInit(t *testing.T, f *fixture) {
	t.Helper()
	eventually(t, "tables are initialised", func() (bool, any) {
		txn := f.tables.DB.ReadTxn()
		n, _ := f.tables.Nodes.Initialized(txn)
		p, _ := f.tables.Pods.Initialized(txn)
		s, _ := f.tables.Services.Services.Initialized(txn)
		e, _ := f.tables.Services.Slices.Initialized(txn)
		return n && p && s && e, f.client.Connection()
	})
}

// Guards against a node whose addresses or ranges are lost on the way.
func testNodeRows(t *testing.T, f *fixture) {
	eventually(t, "row of n1", func() (bool, any) {
		n := f.node("n1")
		return n != nil && n.Local && n.Ready && n.AgentNotReady && len(n.Addrs) == 2 && n.Addrs[0].String() == "10.9.0.1" &&
			len(n.PodCIDRs) == 2 && n.PodCIDRs[1].String() == "fd00:1::/64" && n.UID != "", n
	})
	if n := f.node("n2"); n == nil || n.Local {
		t.Errorf("n2: %+v", n)
	}
	// What another node's agent publishes joins the row of its Node.
	f.Do(t, http.MethodPost, "/apis/cilium.io/v2/ciliumnodes", ciliumv2.CiliumNode{
		TypeMeta:   metav1.TypeMeta{APIVersion: "cilium.io/v2", Kind: "CiliumNode"},
		ObjectMeta: metav1.ObjectMeta{Name: "n2"},
		Spec:       ciliumv2.NodeSpec{HealthAddressing: ciliumv2.AddressPair{IPv4: "10.244.2.1", IPv6: "fd00:2::1"}},
	}, nil)
	eventually(t, "health addresses of n2", func() (bool, any) {
		n := f.node("n2")
		return len(n.HealthIPs) == 2, n
	})
	f.Do(t, http.MethodDelete, "/apis/cilium.io/v2/ciliumnodes/n2", nil, nil)
	eventually(t, "health addresses of n2 are gone, its row is not", func() (bool, any) {
		n := f.node("n2")
		return n != nil && len(n.HealthIPs) == 0, n
	})
}

var info = k8s.NodeInfo{
	UID: "u1", BootID: "b1", Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")},
	PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")},
	HealthIPs: []netip.Addr{netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00:1::1")},
}

// Guards against a CiliumNode that is written once and then lost or changed, or
// made over and over for a Node that was deleted.
func testPublish(t *testing.T, f *fixture, p *k8s.Publisher) {
	// The Node that was to own it is gone: whatever is made is removed again.
	p.Set(info)
	eventually(t, "not made without its Node", func() (bool, any) {
		return p.Err() != nil && strings.Contains(p.Err().Error(), "its Node was deleted"), p.Err()
	})
	if code, b := f.Call(t, http.MethodGet, "/apis/cilium.io/v2/ciliumnodes/n1", nil); code != http.StatusNotFound {
		t.Errorf("made for a Node that is gone: %s", b)
	}
	own := info
	own.UID = f.node("n1").UID
	p.Set(own)
	good := func() (bool, any) {
		code, b := f.Call(t, http.MethodGet, "/apis/cilium.io/v2/ciliumnodes/n1", nil)
		var n ciliumv2.CiliumNode
		_ = json.Unmarshal(b, &n)
		return code == 200 && n.Spec.HealthAddressing.IPv6 == "fd00:1::1" && len(n.Spec.Addresses) == 2 &&
			slices.Equal(n.Spec.IPAM.PodCIDRs, []string{"10.244.1.0/24", "fd00:1::/64"}) &&
			len(n.OwnerReferences) == 1 && string(n.OwnerReferences[0].UID) == own.UID && n.Labels[ciliumv2.PartOfLabel] == ciliumv2.PartOfValue, string(b)
	}
	eventually(t, "published", good)
	f.Do(t, http.MethodPatch, "/apis/cilium.io/v2/ciliumnodes/n1", `{"spec":{"health":{"ipv6":"::2"}}}`, nil)
	eventually(t, "put right", good)
	f.Do(t, http.MethodDelete, "/apis/cilium.io/v2/ciliumnodes/n1", nil, nil)
	eventually(t, "made again", good)
	eventually(t, "own row has health addresses", func() (bool, any) { return len(f.node("n1").HealthIPs) == 2, f.node("n1") })
	eventually(t, "no error", func() (bool, any) { return p.Err() == nil, p.Err() })
}

// Guards against taking over what another network made.
func testForeignNode(t *testing.T, f *fixture, p *k8s.Publisher) {
	f.Do(t, http.MethodPatch, "/apis/cilium.io/v2/ciliumnodes/n1", `{"metadata":{"labels":{"app.kubernetes.io/part-of":null}},"spec":{"bootid":"theirs"}}`, nil)
	eventually(t, "refused", func() (bool, any) { return errors.Is(p.Err(), k8s.ErrNotOurs), p.Err() })
	var n ciliumv2.CiliumNode
	f.Do(t, http.MethodGet, "/apis/cilium.io/v2/ciliumnodes/n1", nil, &n)
	if n.Spec.BootID != "theirs" {
		t.Error("it was changed")
	}
	if msg := f.client.Connection().Message(); !strings.Contains(msg, "was not made by Weft") {
		t.Errorf("connection says %q", msg)
	}
	f.Do(t, http.MethodDelete, "/apis/cilium.io/v2/ciliumnodes/n1", nil, nil)
	eventually(t, "made", func() (bool, any) { return p.Err() == nil, p.Err() })
}

// Guards against endpoints that peers do not hear of, or hear of wrongly.
func testEndpoints(t *testing.T, f *fixture, w *k8s.EndpointWriter) {
	ctx := t.Context()
	uid := f.addPod(t, "web", "n1", nil, nil)
	ep := endpoint(7, "web", uid)
	var none *table.Endpoint
	for range 2 { // repeating is no error
		if err := w.Update(ctx, ep, none, false); err != nil {
			t.Fatal(err)
		}
	}
	e := f.cep(t, "web")
	if e == nil || e.Status.ID != 7 || e.Status.Identity.ID != 5 || e.Status.Networking.NodeIP != "10.9.0.1" || e.Labels[k8s.NodeLabel] != "n1" ||
		string(e.OwnerReferences[0].UID) != uid || e.Status.State != "ready" || e.Status.ExternalIdentifiers.ContainerID != "c7" {
		t.Fatalf("%+v", e)
	}
	eventually(t, "row", func() (bool, any) {
		p := f.pod("default/web")
		return p != nil && p.Owned && p.PodUID == uid && len(p.Addrs) == 2 && p.NodeAddr.String() == "10.9.0.1", p
	})
	changed := *ep
	changed.IPv6 = netip.MustParseAddr("fd00:1::77")
	if err := w.Update(ctx, &changed, ep, true); err != nil {
		t.Fatal(err)
	}
	if a := f.cep(t, "web").Status.Networking.Addressing[0].IPv6; a != "fd00:1::77" {
		t.Errorf("address %s", a)
	}
	health := &table.Endpoint{ID: 1, Kind: table.EndpointHealth, State: table.EndpointReady, Namespace: "weft", Pod: "health"}
	if err := errors.Join(w.Update(ctx, health, none, false), w.Delete(ctx, health)); err != nil {
		t.Errorf("health endpoint: %v", err)
	}
	for range 2 {
		if err := w.Delete(ctx, &changed); err != nil {
			t.Fatal(err)
		}
	}
	if f.cep(t, "web") != nil {
		t.Error("still there")
	}
	f.deletePod(t, "web")
	if err := w.Update(ctx, ep, none, false); err != nil || f.cep(t, "web") != nil {
		t.Errorf("endpoint of a pod that is gone: %v, %+v", err, f.cep(t, "web"))
	}
}

// Guards against a late DEL that takes away the object of the pod's successor,
// and against an object that the garbage collector deletes for its old owner.
func testReplaced(t *testing.T, f *fixture, w *k8s.EndpointWriter) {
	ctx := t.Context()
	var none *table.Endpoint
	old := endpoint(8, "db-0", f.addPod(t, "db-0", "n1", nil, nil))
	if err := w.Update(ctx, old, none, false); err != nil {
		t.Fatal(err)
	}
	first := f.cep(t, "db-0").UID
	f.deletePod(t, "db-0")
	next := endpoint(9, "db-0", f.addPod(t, "db-0", "n1", nil, nil))
	if err := w.Update(ctx, next, none, false); err != nil {
		t.Fatal(err)
	}
	e := f.cep(t, "db-0")
	if e == nil || e.UID == first || e.Status.ID != 9 || string(e.OwnerReferences[0].UID) != next.PodUID {
		t.Fatalf("%+v", e)
	}
	if err := w.Delete(ctx, old); err != nil {
		t.Fatal(err)
	}
	if e := f.cep(t, "db-0"); e == nil || e.Status.ID != 9 {
		t.Errorf("the late DEL took the successor's object: %+v", e)
	}
	if err := w.Delete(ctx, next); err != nil {
		t.Fatal(err)
	}
}

// Guards against two nodes that fight over one object, and against blaming RBAC
// for it.
func testHeld(t *testing.T, f *fixture, w *k8s.EndpointWriter) {
	uid := f.addPod(t, "moved-0", "n1", nil, nil)
	e := ciliumv2.CiliumEndpoint{
		TypeMeta: metav1.TypeMeta{APIVersion: "cilium.io/v2", Kind: "CiliumEndpoint"},
		ObjectMeta: metav1.ObjectMeta{Name: "moved-0", Labels: map[string]string{
			ciliumv2.PartOfLabel: ciliumv2.PartOfValue, k8s.NodeLabel: "n2",
		}},
		Status: ciliumv2.EndpointStatus{ID: 3},
	}
	f.Do(t, http.MethodPost, cepPath, e, nil)
	var none *table.Endpoint
	err := w.Update(t.Context(), endpoint(10, "moved-0", uid), none, false)
	held := new(k8s.HeldError)
	if !errors.As(err, &held) || held.Node != "n2" {
		t.Errorf("got %v, want an error that names n2", err)
	}
	if len(f.client.Connection().Failing) != 0 {
		t.Errorf("connection: %v", f.client.Connection().Failing)
	}
	f.Do(t, http.MethodDelete, cepPath+"/moved-0", nil, nil)
	if err := w.Update(t.Context(), endpoint(10, "moved-0", uid), none, false); err != nil || f.cep(t, "moved-0").Status.ID != 10 {
		t.Errorf("%v, %+v", err, f.cep(t, "moved-0"))
	}

	foreign := f.addPod(t, "theirs", "n1", nil, nil)
	e.ObjectMeta = metav1.ObjectMeta{Name: "theirs"}
	f.Do(t, http.MethodPost, cepPath, e, nil)
	if err := w.Update(t.Context(), endpoint(11, "theirs", foreign), none, false); !errors.Is(err, k8s.ErrNotOurs) {
		t.Errorf("got %v", err)
	}
	if err := w.Delete(t.Context(), endpoint(11, "theirs", foreign)); err != nil || f.cep(t, "theirs") == nil {
		t.Errorf("another network's object was deleted: %v", err)
	}
	f.Do(t, http.MethodDelete, cepPath+"/theirs", nil, nil)
	if err := w.Update(t.Context(), endpoint(11, "theirs", foreign), none, false); err != nil {
		t.Error(err)
	}
}

// Guards against the object of a static pod, whose UID at the runtime is not
// that of its mirror, being collected at once.
func testStatic(t *testing.T, f *fixture, w *k8s.EndpointWriter) {
	uid := f.addPod(t, "etcd-n1", "n1", map[string]string{"kubernetes.io/config.mirror": "hash"}, nil)
	var none *table.Endpoint
	if err := w.Update(t.Context(), endpoint(12, "etcd-n1", "hash"), none, false); err != nil {
		t.Fatal(err)
	}
	if e := f.cep(t, "etcd-n1"); e == nil || string(e.OwnerReferences[0].UID) != uid {
		t.Errorf("%+v, want owner %s", e, uid)
	}
}

// Guards against objects of pods that went while the agent was down staying for
// ever, and against pruning those of other nodes and networks.
func testPrune(t *testing.T, f *fixture, w *k8s.EndpointWriter) {
	var none *table.Endpoint
	keep, gone := endpoint(20, "keep", f.addPod(t, "keep", "n1", nil, nil)), endpoint(21, "gone", f.addPod(t, "gone", "n1", nil, nil))
	for _, ep := range []*table.Endpoint{keep, gone} {
		if err := w.Update(t.Context(), ep, none, false); err != nil {
			t.Fatal(err)
		}
	}
	other := ciliumv2.CiliumEndpoint{
		TypeMeta: metav1.TypeMeta{APIVersion: "cilium.io/v2", Kind: "CiliumEndpoint"},
		ObjectMeta: metav1.ObjectMeta{Name: "on-n2", Labels: map[string]string{
			ciliumv2.PartOfLabel: ciliumv2.PartOfValue, k8s.NodeLabel: "n2",
		}},
		Status: ciliumv2.EndpointStatus{Networking: &ciliumv2.EndpointNetworking{NodeIP: "10.9.0.2", Addressing: ciliumv2.AddressPairList{{IPv4: "10.244.2.9"}}}},
	}
	f.Do(t, http.MethodPost, cepPath, other, nil)
	unlabelled := other
	unlabelled.ObjectMeta = metav1.ObjectMeta{Name: "unlabelled"}
	unlabelled.Status.Networking = &ciliumv2.EndpointNetworking{NodeIP: "10.9.0.1", Addressing: ciliumv2.AddressPairList{{IPv4: "10.244.1.99"}}}
	f.Do(t, http.MethodPost, cepPath, unlabelled, nil)
	eventually(t, "rows", func() (bool, any) {
		return f.pod("default/gone") != nil && f.pod("default/on-n2") != nil && f.pod("default/unlabelled") != nil, nil
	})
	if err := w.Prune(t.Context(), []*table.Endpoint{keep}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"keep": true, "gone": false, "on-n2": true, "unlabelled": true} {
		if got := f.cep(t, name) != nil; got != want {
			t.Errorf("%s is there: %v, want %v", name, got, want)
		}
	}
}

// Guards against a taint that stays, or one of somebody else that goes.
func testMarkReady(t *testing.T, f *fixture) {
	for range 2 {
		if err := f.client.MarkReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var n corev1.Node
	f.Do(t, http.MethodGet, "/api/v1/nodes/n1", nil, &n)
	for _, taint := range n.Spec.Taints {
		if taint.Key == k8s.AgentNotReadyTaint {
			t.Errorf("taint %s is still there", taint.Key)
		}
	}
	if !slices.ContainsFunc(n.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == "dedicated" && taint.Value == "db" }) {
		t.Errorf("taints %v lack that of somebody else", n.Spec.Taints)
	}
	if !slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionFalse && c.Reason == "CiliumIsUp"
	}) {
		t.Errorf("conditions %v", n.Status.Conditions)
	}
	eventually(t, "row", func() (bool, any) { r := f.node("n1"); return r.NetworkReady && !r.AgentNotReady && r.Ready, r })
}

// Guards against two networks on one node, and against taking Weft's own pods
// for Cilium's.
func testFindCilium(t *testing.T, f *fixture) {
	f.addPod(t, "weft-own", "n2", nil, map[string]string{"k8s-app": "cilium", "app.kubernetes.io/part-of": "weft"})
	if found, err := f.client.FindCilium(t.Context()); err != nil || found != "" {
		t.Errorf("found %q, %v", found, err)
	}
	for i, labels := range []map[string]string{
		{"k8s-app": "cilium"}, {"name": "cilium-operator"}, {"io.cilium/app": "operator", "app.kubernetes.io/part-of": "cilium"},
	} {
		name := fmt.Sprintf("theirs-%d", i)
		f.addPod(t, name, "n2", nil, labels)
		found, err := f.client.FindCilium(t.Context())
		if err != nil || !strings.Contains(found, "pod default/"+name+" on node n2") {
			t.Errorf("%v: found %q, %v", labels, found, err)
		}
		f.deletePod(t, name)
	}
}

// Guards against an event that nobody can see, and against a flood of them.
func testEvents(t *testing.T, f *fixture) {
	for range 3 {
		if err := f.client.Event(t.Context(), k8s.EventWarning, "NetworkNotReady", "no ready peer answers"); err != nil {
			t.Fatal(err)
		}
	}
	var l corev1.EventList
	f.Do(t, http.MethodGet, "/api/v1/namespaces/default/events?fieldSelector=involvedObject.kind=Node,involvedObject.name=n1", nil, &l)
	n := 0
	for _, e := range l.Items {
		if e.Reason == "NetworkNotReady" && e.Message == "no ready peer answers" && e.Type == "Warning" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d events, want 1: %v", n, l.Items)
	}
}

// Guards against state that is lost with the API server, against missing what
// happened meanwhile, and against an outage that nobody can see.
func testOutage(t *testing.T, f *fixture) {
	f.Stop()
	eventually(t, "the outage is told", func() (bool, any) {
		c := f.client.Connection()
		return strings.Contains(c.Message(), "connection refused"), c.Message()
	})
	if f.node("n2") == nil || f.pod("default/on-n2") == nil {
		t.Error("rows were lost")
	}
	if err := f.client.MarkReady(t.Context()); err == nil {
		t.Error("a call without a server went well")
	}
	f.Restart()
	f.Do(t, http.MethodDelete, cepPath+"/on-n2", nil, nil)
	f.addNode(t, "n3", 3)
	eventually(t, "what happened meanwhile is seen", func() (bool, any) {
		return f.node("n3") != nil && f.pod("default/on-n2") == nil, f.client.Connection().Message()
	})
	if err := f.client.MarkReady(t.Context()); err != nil {
		t.Error(err)
	}
	eventually(t, "all is well", func() (bool, any) { m := f.client.Connection().Message(); return m == "", m })
}

// Guards against an agent that cannot start while the API server is away.
func TestClientNeedsNoServer(t *testing.T) {
	dir := t.TempDir()
	if _, err := k8s.NewClient(k8s.Config{NodeName: "n1", CredentialsDir: dir, Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "KUBERNETES_SERVICE_HOST") {
		t.Errorf("without an address: %v", err)
	}
	if _, err := k8s.NewClient(k8s.Config{NodeName: "n1", Server: "https://127.0.0.1:1", CredentialsDir: dir, Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "is the service account mounted?") {
		t.Errorf("without credentials: %v", err)
	}
}
