// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/flow"
	"github.com/weft-net/weft/internal/rpc"
)

// follow runs a command line that goes on until cancelled and hands out its
// lines.
func follow(t *testing.T, a *app, args ...string) (lines *bufio.Scanner, stop func() int) {
	t.Helper()
	r, w := io.Pipe()
	a.Out = w
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	code := make(chan int, 1)
	go func() {
		c := a.run(ctx, "weft", args)
		_ = w.Close()
		code <- c
	}()
	return bufio.NewScanner(r), func() int {
		cancel()
		_ = r.Close()
		return <-code
	}
}

// waitActive waits until n listeners watch the node.
func waitActive(t *testing.T, n *fakeNode) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !n.flows.Active(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("nobody listens")
		}
	}
}

func drop(pod string) flow.Event {
	return flow.Event{
		Type: flow.TypeDrop, Hook: "from_pod", Reason: "source-address", Pod: pod, Proto: 17,
		Src: netip.MustParseAddr("10.0.1.5"), Dst: netip.MustParseAddr("10.0.2.6"), SrcPort: 1, DstPort: 2,
	}
}

// TestMonitorMerges guards against a monitor from the laptop that misses nodes,
// does not say whose events it shows, or passes what was not asked for.
func TestMonitorMerges(t *testing.T) {
	n1, n2 := newNode(t, answers(1)), newNode(t, answers(2))
	c := newCluster(n1, n2, nil)
	var errOut bytes.Buffer
	a := newApp(Streams{In: strings.NewReader(""), Err: &errOut}, "test")
	a.paths = paths{socket: filepath.Join(t.TempDir(), "no.sock"), pins: t.TempDir()}
	a.connect = func(string, string) (cluster, error) { return c, nil }
	lines, stop := follow(t, a, "monitor", "--type", "drop", "--pod", "web", "-o", "json")
	waitActive(t, n1)
	waitActive(t, n2)
	n1.flows.Publish(flow.Event{Type: flow.TypeTrace, Pod: "default/web"})
	n1.flows.Publish(drop("default/other"))
	n1.flows.Publish(drop("default/web"))
	n2.flows.Publish(drop("default/web"))
	seen := map[string]int{}
	for len(seen) < 2 && lines.Scan() {
		var e flow.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		if e.Type != flow.TypeDrop || e.Pod != "default/web" {
			t.Errorf("not asked for: %s", lines.Text())
		}
		seen[e.Node]++
	}
	if code := stop(); seen["n1"] != 1 || seen["n2"] != 1 {
		t.Errorf("seen %v, exit code %d", seen, code)
	} else if code != ExitUsage || !strings.Contains(errOut.String(), "n3: agent's container is waiting") {
		t.Errorf("exit code %d: %s; want n3 named", code, errOut.String())
	}
}

// TestMonitorOnNode guards against lines that a human cannot read.
func TestMonitorOnNode(t *testing.T) {
	n := newNode(t, answers(1))
	a := newApp(Streams{In: strings.NewReader(""), Err: io.Discard}, "test")
	a.paths = n.paths()
	lines, stop := follow(t, a, "monitor")
	waitActive(t, n)
	n.flows.Publish(drop("default/web"))
	if !lines.Scan() || !strings.Contains(lines.Text(), "DROP from_pod default/web: 10.0.1.5:1 -> 10.0.2.6:2 UDP") || !strings.Contains(lines.Text(), "source-address") {
		t.Errorf("got %q", lines.Text())
	}
	if code := stop(); code != ExitOK {
		t.Errorf("exit code %d after ^C", code)
	}
}

// TestMonitorEndsWithItsLaptop guards against monitors that run on in the
// agent's container after the laptop has gone.
func TestMonitorEndsWithItsLaptop(t *testing.T) {
	n := newNode(t, answers(1))
	in, hold := io.Pipe()
	a := newApp(Streams{In: in, Err: io.Discard}, "test")
	a.paths = n.paths()
	lines, stop := follow(t, a, "monitor", "--until-stdin-closes")
	defer stop()
	waitActive(t, n)
	_ = hold.Close()
	ended := make(chan bool, 1)
	go func() { ended <- !lines.Scan() }()
	select {
	case ok := <-ended:
		if !ok {
			t.Errorf("got %q", lines.Text())
		}
	case <-time.After(5 * time.Second):
		t.Error("it still runs 5 s after its standard input was closed")
	}
}

// entries reads a sysdump.
func entries(t *testing.T, b []byte) map[string]string {
	t.Helper()
	gz, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(c)
	}
}

// TestSysdump guards against an archive without a node's part, that stops at
// the first failure, hides what is missing, or gives secrets away.
func TestSysdump(t *testing.T) {
	ans := answers(1)
	ans[rpc.PathBPFCT] = errors.New("map weft_ct4: permission denied")
	n1 := newNode(t, ans)
	if err := os.MkdirAll(n1.paths().cniConf, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"05-weft.conflist": `{"name":"weft","plugins":[{"type":"weft-cni"}]}`,
		"10-other.conf":    `{"type":"other","kubernetes":{"k8s_auth_token":"hunter2"}}`,
		"x.kubeconfig":     "token: hunter2",
	} {
		if err := os.WriteFile(filepath.Join(n1.paths().cniConf, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := newCluster(n1, nil)
	pods, _ := c.objects["/api/v1/namespaces/kube-system/pods"].(string)
	c.objects["/api/v1/namespaces/kube-system/pods"] = strings.Replace(pods, `"spec":{`, `"spec":{"containers":[{"name":"x","args":["--token=hunter2","--v=2"],"env":[{"name":"A","value":"hunter2"}]}],`, 1)
	c.objects["/api/v1/nodes"] = `{"items":[{"metadata":{"name":"n1","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"hunter2","plain":"kept"}}}]}`
	c.objects["/api/v1/namespaces/kube-system/pods/cilium-1/log"] = "level=INFO msg=started\nlevel=DEBUG msg=auth password=hunter2\n"
	r := laptop(t, c, "sysdump", "-f", "-")
	if r.code != ExitOK {
		t.Fatalf("exit code %d: %s", r.code, r.err)
	}
	got := entries(t, []byte(r.out))
	for name, content := range got {
		if strings.Contains(content, "hunter2") {
			t.Errorf("%s gives a secret away:\n%s", name, content)
		}
	}
	for name, want := range map[string]string{
		"nodes/n1/agent/endpoints.json": "web-1", "nodes/n1/cni/05-weft.conflist": "weft-cni", "nodes/n1/cni/10-other.conf": redacted,
		"nodes/n1/agent.log": "msg=started", "kubernetes/nodes.json": "kept", "kubernetes/pods.json": "--v=2",
	} {
		if !strings.Contains(got[name], want) {
			t.Errorf("%s: want %q in %q", name, want, got[name])
		}
	}
	for _, path := range []string{"/secrets", "secrets?"} {
		if strings.Contains(strings.Join(c.did, "\n"), path) {
			t.Errorf("asked for %s", path)
		}
	}
	var manifest []item
	if err := json.Unmarshal([]byte(got[manifestName]), &manifest); err != nil {
		t.Fatal(err)
	}
	why := map[string]string{}
	for _, it := range manifest {
		why[it.Path] = it.Error
	}
	for name, want := range map[string]string{
		"nodes/n1/agent/bpf-ct.json": "permission denied", "nodes/n1/cni/x.kubeconfig": "credentials", "nodes/n2/sysdump": "CrashLoopBackOff", "kubernetes/events.json": "not found",
	} {
		if !strings.Contains(why[name], want) {
			t.Errorf("manifest: %s: %q, want %q", name, why[name], want)
		}
	}
}

// TestArchiveBounds guards against a node that fills the laptop's disk or
// writes outside the archive's directory.
func TestArchiveBounds(t *testing.T) {
	now := func() time.Time { return time.Unix(0, 0) }
	var inner bytes.Buffer
	node := newArchive(&inner, now)
	node.add("../../../etc/passwd", []byte("x"), nil)
	node.add("large", make([]byte, maxItem+10), nil)
	if _, err := node.close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ar := newArchive(&out, now)
	if err := ar.merge("nodes/n1", &inner); err != nil {
		t.Fatal(err)
	}
	incomplete, err := ar.close()
	if err != nil || incomplete != 1 {
		t.Errorf("%d incomplete, %v", incomplete, err)
	}
	got := entries(t, out.Bytes())
	if got["nodes/n1/etc/passwd"] != "x" || len(got["nodes/n1/large"]) != maxItem {
		t.Errorf("got %d entries, large has %d bytes", len(got), len(got["nodes/n1/large"]))
	}
}
