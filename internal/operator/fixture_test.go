// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/transport"
	"sigs.k8s.io/yaml"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
	"github.com/weft-net/weft/internal/operator/kube"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// klog flushes from a goroutine of its own, from its init on.
		goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

const (
	nodesPath       = "/api/v1/nodes"
	ciliumNodesPath = "/apis/cilium.io/v2/ciliumnodes"
	ledgersPath     = "/apis/weft.dev/v1alpha1/podcidrledgers"
	reservedPath    = "/apis/weft.dev/v1alpha1/reservedcidrs"
)

// cluster is a real API server with Weft's definitions and no nodes.
type cluster struct {
	*apiservertest.Server
	t testing.TB
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	s := apiservertest.Start(t)
	s.InstallCRDs(crds)
	return &cluster{s, t}
}

// crds are the definitions that the chart installs.
const crds = "../../install/helm/weft/crds"

// fresh is a cluster that has nothing of the tests before this one.
func fresh(t *testing.T, s *apiservertest.Server) *cluster {
	t.Helper()
	for _, path := range []string{nodesPath, ciliumNodesPath, ledgersPath, reservedPath, poolsPath, "/api/v1/namespaces/default/events", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"} {
		if code, b := s.Call(t, http.MethodDelete, path, nil); code != http.StatusOK && code != http.StatusNotFound {
			t.Fatalf("delete %s: %d: %s", path, code, b)
		}
	}
	return &cluster{s, t}
}

// pool24 are settings with one pool of the given ranges in blocks of /24.
func pool24(cidrs string) map[string]string {
	return map[string]string{"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": cidrs, "cluster-pool-quarantine": "0s", "nodes-gc-interval": "1s"}
}

// writeSettings lays settings down as the kubelet mounts a ConfigMap.
func writeSettings(t testing.TB, dir string, values map[string]string) {
	t.Helper()
	data := filepath.Join(dir, "..data_"+strconv.FormatInt(time.Now().UnixNano(), 10))
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	for k, v := range values {
		if err := os.WriteFile(filepath.Join(data, k), []byte(v), 0o644); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(dir, k)
		_ = os.Remove(link)
		if err := os.Symlink(filepath.Join("..data", k), link); err != nil {
			t.Fatal(err)
		}
	}
	tmp := filepath.Join(dir, "..tmp")
	if err := os.Symlink(filepath.Base(data), tmp); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

// process is an operator in this process, without its listeners.
type process struct {
	*operator
	dir    string
	cancel context.CancelFunc
	done   chan struct{}
}

// operatorConfig is what tests vary.
type operatorConfig struct {
	name     string
	settings map[string]string
	alone    bool // leads without asking: the fence has to be the ledger
	before   func(context.Context)
	wrap     transport.WrapperFunc
}

func (c *cluster) operator(cfg operatorConfig) *process {
	c.t.Helper()
	p := &process{dir: c.t.TempDir(), done: make(chan struct{})}
	cfg.settings["k8s-api-server"] = c.URL
	writeSettings(c.t, p.dir, cfg.settings)
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("operator", cfg.name)
	}
	o, err := newOperator(Options{
		ConfigDir: p.dir, CredentialsDir: c.CredentialsDir, Namespace: "kube-system", Identity: cfg.name, Version: "test", Log: log,
		Terms: kube.Terms{Lease: 12 * time.Second, Renew: 10 * time.Second, Retry: 200 * time.Millisecond}, Wrap: cfg.wrap,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	o.beforeWrite = cfg.before
	p.operator = o
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return o.settings.run(ctx) })
	g.Go(func() error { return o.report.run(ctx) })
	g.Go(func() error { return o.cache.Run(ctx) })
	g.Go(func() error {
		if cfg.alone {
			return o.lead(ctx)
		}
		return o.elector.Run(ctx, o.lead)
	})
	go func() {
		defer close(p.done)
		if err := g.Wait(); err != nil {
			c.t.Errorf("operator %s: %v", cfg.name, err)
		}
		o.client.Close()
	}()
	c.t.Cleanup(p.stop)
	return p
}

// stop ends the operator as a signal does.
func (p *process) stop() {
	p.cancel()
	<-p.done
}

// eventually waits until ok: another process cannot be watched.
func eventually(t testing.TB, what string, most time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(most)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s", most, what)
		case <-tick.C:
		}
	}
}

type object = map[string]any

// node makes a Node, as a kubelet does, and returns its UID.
func (c *cluster) node(name, addr string) string {
	c.t.Helper()
	var out metav1.PartialObjectMetadata
	c.Do(c.t, http.MethodPost, nodesPath, object{
		"apiVersion": "v1", "kind": "Node", "metadata": object{"name": name},
	}, &out)
	c.Do(c.t, http.MethodPatch, nodesPath+"/"+name+"/status", object{"status": object{"addresses": []object{{"type": "InternalIP", "address": addr}}}}, nil)
	return string(out.UID)
}

// ciliumNode is what an agent publishes of its node at its start.
func ciliumNode(name, uid, addr string, seen int, routes ...weftv1.NodeRoute) *ciliumv2.CiliumNode {
	raw, _ := json.Marshal(append([]weftv1.NodeRoute{{CIDR: netip.PrefixFrom(netip.MustParseAddr(addr), 24).Masked().String(), Dev: "eth0"}}, routes...))
	n := &ciliumv2.CiliumNode{
		TypeMeta: metav1.TypeMeta{APIVersion: "cilium.io/v2", Kind: "CiliumNode"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{ciliumv2.PartOfLabel: ciliumv2.PartOfValue},
			Annotations: map[string]string{weftv1.NodeRoutesAnnotation: string(raw), weftv1.ReleaseSeenAnnotation: strconv.Itoa(seen)},
		},
	}
	n.Spec.Addresses = []ciliumv2.NodeAddress{{Type: ciliumv2.NodeInternalIP, IP: addr}}
	if uid != "" {
		n.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(uid)}}
	}
	return n
}

// forever is a release number that an agent claims to have seen when the test is
// not about quarantine.
const forever = 1 << 40

// join makes a node whose agent has published its routes.
func (c *cluster) join(name, addr string, routes ...weftv1.NodeRoute) {
	c.t.Helper()
	c.Do(c.t, http.MethodPost, ciliumNodesPath, ciliumNode(name, c.node(name, addr), addr, forever, routes...), nil)
}

func (c *cluster) ciliumNode(name string) *ciliumv2.CiliumNode {
	c.t.Helper()
	var n ciliumv2.CiliumNode
	c.Do(c.t, http.MethodGet, ciliumNodesPath+"/"+name, nil, &n)
	return &n
}

// waitRanges waits until a node has ranges.
func (c *cluster) waitRanges(name string) []string {
	c.t.Helper()
	var got []string
	eventually(c.t, "node "+name+" has ranges", 30*time.Second, func() bool {
		got = c.ciliumNode(name).Spec.IPAM.PodCIDRs
		return len(got) > 0
	})
	return got
}

// waitError waits until the operator's word on a node contains text.
func (c *cluster) waitError(name, text string) string {
	c.t.Helper()
	got := ""
	eventually(c.t, "the error of node "+name+" says "+text, 45*time.Second, func() bool {
		got = c.ciliumNode(name).Status.IPAM.OperatorStatus.Error
		return strings.Contains(got, text) && (text != "" || got == "")
	})
	return got
}

func (c *cluster) ledger() *weftv1.PodCIDRLedger {
	c.t.Helper()
	var l weftv1.PodCIDRLedger
	c.Do(c.t, http.MethodGet, ledgersPath+"/"+weftv1.DefaultPool, nil, &l)
	return &l
}

// consistent fails if two nodes have one address, or a CiliumNode has something
// else than the ledger.
func (c *cluster) consistent() {
	c.t.Helper()
	l := c.ledger()
	var list ciliumv2.CiliumNodeList
	c.Do(c.t, http.MethodGet, ciliumNodesPath, nil, &list)
	type grant struct {
		node string
		cidr netip.Prefix
	}
	var all []grant
	for node, cidrs := range l.Spec.Grants {
		for _, s := range cidrs {
			p := netip.MustParsePrefix(string(s))
			for _, g := range all {
				if g.cidr.Overlaps(p) {
					c.t.Errorf("nodes %s and %s have %s and %s", g.node, node, g.cidr, p)
				}
			}
			all = append(all, grant{node, p})
		}
	}
	for _, n := range list.Items {
		var want []string
		for _, s := range l.Spec.Grants[n.Name] {
			want = append(want, string(s))
		}
		if n.Labels[ciliumv2.PartOfLabel] == ciliumv2.PartOfValue && !slices.Equal(want, n.Spec.IPAM.PodCIDRs) {
			c.t.Errorf("node %s: CiliumNode has %v, the ledger %v", n.Name, n.Spec.IPAM.PodCIDRs, want)
		}
	}
}

// gone removes a Node, and its CiliumNode as Kubernetes' garbage collector does.
func (c *cluster) gone(name string) {
	c.t.Helper()
	c.Do(c.t, http.MethodDelete, nodesPath+"/"+name, nil, nil)
	c.Do(c.t, http.MethodDelete, ciliumNodesPath+"/"+name, nil, nil)
}

// waitEvent waits for an event of a node whose message contains text.
func (c *cluster) waitEvent(node, reason, text string) {
	c.t.Helper()
	eventually(c.t, "an event "+reason+" of node "+node+" says "+text, 20*time.Second, func() bool {
		var list corev1.EventList
		c.Do(c.t, http.MethodGet, "/api/v1/namespaces/default/events", nil, &list)
		return slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.Name == node && e.Reason == reason && strings.Contains(e.Message, text)
		})
	})
}

// applyRoles makes the chart's roles for the operator, as Helm renders them.
func (c *cluster) applyRoles(mode string) {
	c.t.Helper()
	helm, err := filepath.Abs("../../build/tools/helm")
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := os.Stat(helm); err != nil {
		c.t.Skip("needs build/tools/helm: run make tools")
	}
	out, err := exec.CommandContext(c.t.Context(), helm, "template", "weft", "../../install/helm/weft", "--namespace=kube-system", "--show-only=templates/operator.yaml",
		"--set", "ipam.mode="+mode+",ipam.operator.clusterPoolIPv4PodCIDRList=10.10.0.0/23").Output()
	if err != nil {
		c.t.Fatalf("helm template: %v", err)
	}
	const rbac = "/apis/rbac.authorization.k8s.io/v1"
	paths := map[string]string{
		"ClusterRole": rbac + "/clusterroles", "ClusterRoleBinding": rbac + "/clusterrolebindings",
		"Role": rbac + "/namespaces/kube-system/roles", "RoleBinding": rbac + "/namespaces/kube-system/rolebindings",
	}
	for doc := range strings.SplitSeq(string(out), "\n---") {
		j, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			c.t.Fatal(err)
		}
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(j, &o); err != nil || paths[o.Kind] == "" {
			continue
		}
		_, _ = c.Call(c.t, http.MethodDelete, paths[o.Kind]+"/"+o.Name, nil)
		c.Do(c.t, http.MethodPost, paths[o.Kind], string(j), nil)
	}
}
