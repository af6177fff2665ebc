// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
	"github.com/weft-net/weft/internal/operator/kube"
)

// fleet is many kubelets and agents, each of which writes to the API server what
// the real ones write while a node joins. They share connections and one watch.
type fleet struct {
	c      *cluster
	http   *http.Client
	cache  *kube.Cache
	mu     sync.Mutex
	wait   map[string]chan []string // by node, until it has ranges
	joined map[string][]string
}

func newFleet(c *cluster) *fleet {
	c.t.Helper()
	client, err := kube.NewClient(kube.Config{Server: c.URL, CredentialsDir: c.CredentialsDir, UserAgent: "fleet", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		c.t.Fatal(err)
	}
	f := &fleet{
		c: c, cache: kube.NewCache(client), wait: map[string]chan []string{}, joined: map[string][]string{},
		http: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
			// The certificate is the server's own and of this minute.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 32, MaxConnsPerHost: 32,
		}},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return f.cache.Run(ctx) })
	g.Go(func() error { f.dispatch(ctx); return nil })
	c.t.Cleanup(func() {
		cancel()
		_ = g.Wait()
		client.Close()
		f.http.CloseIdleConnections()
	})
	return f
}

// dispatch tells agents of their ranges as the watch brings them.
func (f *fleet) dispatch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.cache.Changed():
		}
		s := f.cache.Snapshot()
		f.mu.Lock()
		for name, ch := range f.wait {
			if cn := s.CiliumNodes[name]; cn != nil && len(cn.PodCIDRs) > 0 {
				ch <- cn.PodCIDRs
				delete(f.wait, name)
			}
		}
		f.mu.Unlock()
	}
}

// call makes one call; it goes on trying while the server is away, as agents do.
func (f *fleet) call(ctx context.Context, method, path string, in, out any) (int, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return 0, err
	}
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
		code, err := f.once(ctx, method, path, body, out)
		if err == nil && code < 500 && code != http.StatusTooManyRequests {
			return code, nil
		}
		select {
		case <-ctx.Done():
			return code, fmt.Errorf("%s %s: %d %w", method, path, code, ctx.Err())
		case <-time.After(delay):
		}
	}
}

func (f *fleet) once(ctx context.Context, method, path string, body []byte, out any) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, f.c.URL+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+apiservertest.Token)
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && out != nil && resp.StatusCode < 300 {
		err = json.Unmarshal(b, out)
	}
	return resp.StatusCode, err
}

// join is the life of a node from the kubelet's first word to its being proven.
func (f *fleet) join(ctx context.Context, name, addr string) error {
	got := make(chan []string, 1)
	f.mu.Lock()
	f.wait[name] = got
	f.mu.Unlock()
	// The kubelet registers.
	node := corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": "linux"}},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: k8s.AgentNotReadyTaint, Effect: corev1.TaintEffectNoExecute}}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}, {Type: corev1.NodeHostName, Address: name}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}},
		},
	}
	if _, err := f.call(ctx, http.MethodPost, nodesPath, node, nil); err != nil {
		return err
	}
	var made corev1.Node
	if _, err := f.call(ctx, http.MethodGet, nodesPath+"/"+name, nil, &made); err != nil {
		return err
	}
	// The agent publishes its node, routes and all.
	if _, err := f.call(ctx, http.MethodPost, ciliumNodesPath, ciliumNode(name, string(made.UID), addr, 0), nil); err != nil {
		return err
	}
	var ranges []string
	select {
	case <-ctx.Done():
		return fmt.Errorf("node %s: no ranges: %w", name, ctx.Err())
	case ranges = <-got:
	}
	// It uses what the ledger gives it, and nothing else.
	var l weftv1.PodCIDRLedger
	if _, err := f.call(ctx, http.MethodGet, ledgersPath+"/default", nil, &l); err != nil {
		return err
	}
	for _, r := range ranges {
		if !slices.Contains(l.Spec.Grants[name], weftv1.CIDR(r)) {
			return fmt.Errorf("node %s: its CiliumNode names %s, the ledger %v", name, r, l.Spec.Grants[name])
		}
	}
	f.mu.Lock()
	f.joined[name] = ranges
	f.mu.Unlock()
	return f.prove(ctx, name, ranges)
}

// prove is what an agent writes once it has ranges.
func (f *fleet) prove(ctx context.Context, name string, ranges []string) error {
	for {
		var cn ciliumv2.CiliumNode
		if _, err := f.call(ctx, http.MethodGet, ciliumNodesPath+"/"+name, nil, &cn); err != nil {
			return err
		}
		cn.Spec.HealthAddressing.IPv4 = netip.MustParsePrefix(ranges[0]).Addr().Next().String()
		code, err := f.call(ctx, http.MethodPut, ciliumNodesPath+"/"+name, cn, nil)
		if err != nil {
			return err
		}
		if code != http.StatusConflict {
			break
		}
	}
	conditions := []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()},
		{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now(), Reason: "CiliumIsUp"},
	}
	if _, err := f.call(ctx, http.MethodPatch, nodesPath+"/"+name+"/status", object{"status": object{"conditions": conditions}}, nil); err != nil {
		return err
	}
	_, err := f.call(ctx, http.MethodPatch, nodesPath+"/"+name, object{"spec": object{"taints": nil}}, nil)
	return err
}

// joinAll has n nodes join, each so long after the one before, and returns how
// long that took.
func (f *fleet) joinAll(n int, apart, most time.Duration) time.Duration {
	f.c.t.Helper()
	ctx, cancel := context.WithTimeout(f.c.t.Context(), most)
	defer cancel()
	start := time.Now()
	var g errgroup.Group
	for i := range n {
		g.Go(func() error {
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(i) * apart):
			}
			return f.join(ctx, fmt.Sprintf("node-%04d", i), fmt.Sprintf("172.16.%d.%d", i/250, 1+i%250))
		})
	}
	if err := g.Wait(); err != nil {
		f.c.t.Fatal(err)
	}
	return time.Since(start)
}

// writes counts what changed something in the API server so far, by resource,
// refused attempts included: the server's own account.
func (c *cluster) writes() map[string]float64 {
	c.t.Helper()
	_, b := c.Call(c.t, http.MethodGet, "/metrics", nil)
	out := map[string]float64{}
	line := regexp.MustCompile(`(?m)^apiserver_request_total\{(.*)\} (\S+)$`)
	label := func(labels, name string) string {
		m := regexp.MustCompile(name + `="([^"]*)"`).FindStringSubmatch(labels)
		if m == nil {
			return ""
		}
		return m[1]
	}
	for _, m := range line.FindAllSubmatch(b, -1) {
		labels := string(m[1])
		if !slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE", "APPLY"}, label(labels, "verb")) {
			continue
		}
		n, err := strconv.ParseFloat(string(m[2]), 64)
		if err != nil {
			c.t.Fatal(err)
		}
		out[label(labels, "resource")] += n
	}
	return out
}

// Fault: a cluster that grows at once overwhelms the API server or the operator,
// or leaves nodes without ranges. With WEFT_BENCH_OUT the figures go to that
// file; with WEFT_OPERATOR_BIN the operator is that program.
func TestManyNodesJoinAtOnce(t *testing.T) {
	n := 100
	if s := os.Getenv("WEFT_BENCH_NODES"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	c := newCluster(t)
	settings := pool24("10.64.0.0/10")
	settings["nodes-gc-interval"] = "5m"
	rss := func() float64 { return 0 }
	if bin := os.Getenv("WEFT_OPERATOR_BIN"); bin != "" {
		rss = c.program(bin, settings)
	} else {
		c.operator(operatorConfig{name: "a", settings: settings})
	}
	f := newFleet(c)
	before := c.writes()
	took := f.joinAll(n, 0, 2*time.Minute)
	figures := map[string]float64{"ipam_nodes": float64(n), "ipam_join_seconds": round(took.Seconds())}
	sum := 0.0
	for resource, count := range c.writes() {
		// The API server renews a Lease of its own, and the test installs nothing meanwhile.
		if d := count - before[resource]; d > 0 {
			figures["ipam_writes_"+resource] = d
			sum += d
		}
	}
	figures["ipam_writes_per_node"] = round(sum / float64(n))
	raw, err := json.Marshal(c.ledger().Spec)
	if err != nil {
		t.Fatal(err)
	}
	figures["ipam_ledger_kib"] = round(float64(len(raw)) / 1024)
	figures["ipam_operator_rss_mib"] = round(rss())
	t.Logf("%v", figures)
	c.consistent()
	if len(f.joined) != n {
		t.Errorf("%d of %d nodes have ranges", len(f.joined), n)
	}
	if figures["ipam_writes_per_node"] > 10 {
		t.Errorf("%.1f writes a node, more than 10", figures["ipam_writes_per_node"])
	}
	if took > 30*time.Second {
		t.Errorf("%s until the last node had its ranges and was proven, more than 30 s", took)
	}
	if out := os.Getenv("WEFT_BENCH_OUT"); out != "" {
		b, err := json.MarshalIndent(map[string]any{"figures": figures, "cpus": runtime.NumCPU()}, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(out, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func round(x float64) float64 { return math.Round(x*100) / 100 }

// program starts the operator as it is shipped and returns how to ask for its
// resident memory in MiB.
func (c *cluster) program(bin string, settings map[string]string) func() float64 {
	c.t.Helper()
	dir := c.t.TempDir()
	settings["k8s-api-server"] = c.URL
	settings["operator-health-port"], settings["operator-prometheus-port"] = "19234", "0"
	writeSettings(c.t, dir, settings)
	cmd := exec.CommandContext(context.Background(), bin, "--identity=bench", "--config-dir="+dir, "--credentials-dir="+c.CredentialsDir)
	log, err := os.Create(filepath.Join(c.t.TempDir(), "operator.log"))
	if err != nil {
		c.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if b, err := os.ReadFile(log.Name()); err == nil && c.t.Failed() {
			c.t.Logf("%s", b[max(0, len(b)-4000):])
		}
		_ = log.Close()
	})
	return func() float64 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		if err != nil {
			c.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "VmRSS:")
		kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		if err != nil {
			c.t.Fatal(err)
		}
		return kib / 1024
	}
}

// Fault: while the API server comes and goes, a range is given twice, a node
// gets none, or the operator gives up.
func testFlappingServer(t *testing.T, c *cluster) {
	c.operator(operatorConfig{name: "a", settings: pool24("10.64.0.0/10")})
	f := newFleet(c)
	ctx, cancel := context.WithCancel(t.Context())
	done, flaps := make(chan struct{}), 0
	go func() {
		defer close(done)
		for flaps < 5 && ctx.Err() == nil {
			c.Stop()
			c.Restart()
			flaps++
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	took := f.joinAll(50, 300*time.Millisecond, 3*time.Minute)
	cancel()
	<-done
	t.Logf("50 nodes in %s, while the server was killed %d times", took, flaps)
	if flaps < 2 {
		t.Errorf("the server was killed %d times only", flaps)
	}
	c.consistent()
	if got := len(c.ledger().Spec.Grants); got != 50 {
		t.Errorf("%d of 50 nodes are in the ledger", got)
	}
}
