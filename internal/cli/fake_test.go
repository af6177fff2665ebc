// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/cli/kube"
	"github.com/weft-net/weft/internal/flow"
	"github.com/weft-net/weft/internal/rpc"
)

// fakeNode is a node whose agent answers on a real socket.
type fakeNode struct {
	socket string
	flows  *flow.Broadcaster
	proxy  *fakeProxy
}

// newNode serves the answers, by path, until the test ends.
func newNode(t *testing.T, answers map[string]any) *fakeNode {
	t.Helper()
	n := &fakeNode{socket: filepath.Join(t.TempDir(), "weft.sock"), flows: &flow.Broadcaster{}}
	srv := &rpc.Server{Queries: map[string]rpc.Query{}, Flows: n.flows, Log: slog.New(slog.DiscardHandler)}
	for path, v := range answers {
		srv.Queries[path] = func(context.Context, url.Values) (any, error) {
			if err, ok := v.(error); ok {
				return nil, err
			}
			return v, nil
		}
	}
	l, err := rpc.Listen(n.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent's server: %v", err)
		}
	})
	return n
}

// fakeCluster is an API server whose exec runs the CLI in this process, as the
// agent's container would.
type fakeCluster struct {
	nodes   map[string]*fakeNode // by pod
	hang    map[string]bool      // pods whose exec never answers
	objects map[string]any       // by path without query
	execs   func(r kube.ExecRequest) error

	mu      sync.Mutex
	did     []string // DELETE and exec, in order
	created []any
}

func (f *fakeCluster) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.did = append(f.did, s)
}

func (f *fakeCluster) Get(ctx context.Context, path string, out any) error {
	b, err := f.Raw(ctx, path, 1<<20)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, out)
}

func (f *fakeCluster) Raw(_ context.Context, path string, _ int64) ([]byte, error) {
	path, query, _ := strings.Cut(path, "?")
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.objects[path+"?"+query]
	if !ok {
		v, ok = f.objects[path]
	}
	if !ok {
		return nil, &kube.StatusError{Code: http.StatusNotFound, Reason: "NotFound", Message: path + " not found"}
	}
	if s, ok := v.(string); ok {
		return []byte(s), nil
	}
	return json.Marshal(v)
}

func (f *fakeCluster) Do(_ context.Context, method, path string, in, _ any) error {
	f.note(method + " " + path)
	f.mu.Lock()
	defer f.mu.Unlock()
	const agents, cleaners = "/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dcilium%2Capp.kubernetes.io%2Fpart-of%3Dweft", "/api/v1/namespaces/kube-system/pods?labelSelector=app.kubernetes.io%2Fname%3Dweft-uninstall"
	switch {
	case method == http.MethodDelete && strings.HasSuffix(path, "/daemonsets/cilium"):
		f.objects[agents] = `{"items":[]}`
	case method == http.MethodDelete && strings.HasSuffix(path, "/daemonsets/weft-uninstall"):
		f.objects[cleaners] = `{"items":[]}`
	case method == http.MethodPost && strings.HasSuffix(path, "/daemonsets"):
		f.created = append(f.created, in)
		f.objects[path+"/weft-uninstall"] = fmt.Sprintf(`{"metadata":{"annotations":{"meta.helm.sh/release-name":"weft"}},"status":{"desiredNumberScheduled":%d}}`, len(f.nodes))
		var pods []string
		for i := range len(f.nodes) {
			pods = append(pods, fmt.Sprintf(`{"metadata":{"name":"clean-%d"},"spec":{"nodeName":"n%d"},"status":{"containerStatuses":[{"name":"cilium-agent","state":{"running":{}}}]}}`, i+1, i+1))
		}
		f.objects[cleaners] = `{"items":[` + strings.Join(pods, ",") + `]}`
	}
	if method == http.MethodDelete {
		delete(f.objects, path)
	}
	return nil
}

func (f *fakeCluster) Exec(ctx context.Context, r kube.ExecRequest) error {
	f.note("exec " + r.Pod + " " + strings.Join(r.Command, " "))
	if f.execs != nil {
		return f.execs(r)
	}
	n := f.nodes[r.Pod]
	switch {
	case f.hang[r.Pod]:
		<-ctx.Done()
		return context.Cause(ctx)
	case r.Container != agentContainer:
		return fmt.Errorf("exec in container %q", r.Container)
	case r.Command[0] != "weft":
		return fmt.Errorf("%s: no such program", r.Command[0])
	case n == nil:
		return fmt.Errorf("pod %s not found", r.Pod)
	}
	s := Streams{In: r.Stdin, Out: r.Stdout, Err: r.Stderr}
	if s.Err == nil {
		s.Err = io.Discard
	}
	a := newApp(s, "test")
	a.paths, a.proxy = n.paths(), n.proxy
	if code := a.run(ctx, "weft", r.Command[1:]); code != 0 {
		return &kube.ExitError{Code: code}
	}
	return nil
}

func (n *fakeNode) paths() paths {
	dir := filepath.Dir(n.socket)
	return paths{socket: n.socket, pins: filepath.Join(dir, "bpf"), endpoints: filepath.Join(dir, "endpoints.json"), cniConf: filepath.Join(dir, "cni")}
}

// newCluster makes a cluster of the nodes, named n1, n2, ... Agents of nil
// nodes do not run.
func newCluster(nodes ...*fakeNode) *fakeCluster {
	f := &fakeCluster{nodes: map[string]*fakeNode{}, hang: map[string]bool{}, objects: map[string]any{}}
	var pods []string
	ready := 0
	for i, n := range nodes {
		pod := fmt.Sprintf("cilium-%d", i+1)
		state := `{"waiting":{"reason":"CrashLoopBackOff"}}`
		if n != nil {
			f.nodes[pod] = n
			state = `{"running":{}}`
			ready++
		}
		pods = append(pods, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"nodeName":"n%d"},"status":{"phase":"Running","containerStatuses":[{"name":"cilium-agent","state":%s}]}}`, pod, i+1, state))
	}
	f.objects["/api/v1/namespaces/kube-system/pods"] = `{"items":[` + strings.Join(pods, ",") + `]}`
	f.objects["/apis/apps/v1/namespaces/kube-system/daemonsets/cilium"] = fmt.Sprintf(
		`{"metadata":{"name":"cilium","labels":{"app.kubernetes.io/part-of":"weft"},"annotations":{"meta.helm.sh/release-name":"weft"}},
		"spec":{"template":{"spec":{"containers":[{"name":"cilium-agent","image":"weft:test"}]}}},
		"status":{"desiredNumberScheduled":%d,"numberReady":%d}}`, len(nodes), ready)
	return f
}

// result is what a command line did.
type result struct {
	code     int
	out, err string
}

// laptop runs a command line away from the cluster.
func laptop(t *testing.T, f *fakeCluster, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	a := newApp(Streams{In: strings.NewReader(""), Out: &out, Err: &errOut}, "test")
	dir := t.TempDir()
	a.paths = paths{socket: filepath.Join(dir, "no.sock"), pins: filepath.Join(dir, "bpf")}
	a.connect = func(string, string) (cluster, error) { return f, nil }
	return runApp(t, a, &out, &errOut, args)
}

// node runs a command line on the node.
func (n *fakeNode) run(t *testing.T, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	a := newApp(Streams{In: strings.NewReader(""), Out: &out, Err: &errOut}, "test")
	a.paths, a.proxy = n.paths(), n.proxy
	return runApp(t, a, &out, &errOut, args)
}

func runApp(t *testing.T, a *app, out, errOut *bytes.Buffer, args []string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	code := a.run(ctx, "weft", args)
	return result{code: code, out: out.String(), err: errOut.String()}
}
