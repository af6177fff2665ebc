// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// cell is one row of `weft connectivity test -o json`.
type cell struct {
	Path    string `json:"path"`
	Family  string `json:"family"`
	Proto   string `json:"proto"`
	Size    string `json:"size"`
	From    party  `json:"from"`
	To      party  `json:"to"`
	Addr    string `json:"addr"`
	Port    uint16 `json:"port"`
	Outcome string `json:"outcome"`
	Error   string `json:"error"`
	Why     string `json:"why"`
}

type party struct {
	Kind string `json:"kind"`
	Node string `json:"node"`
	Name string `json:"name"`
}

func (p party) String() string { return strings.Trim(p.Kind+" "+p.Node+"/"+p.Name, "/") }

func (c cell) String() string {
	s := fmt.Sprintf("%s %s %s %s: %s -> %s (%s): %s", c.Path, c.Family, c.Proto, c.Size, c.From, c.To, c.Addr, c.Outcome)
	return strings.TrimSuffix(s+": "+c.Error, ": ")
}

// cells selects cells. Zero fields select all; Path is a pattern as of
// path.Match, From and To are nodes.
type cells struct{ Path, Family, Proto, Size, From, To string }

func (m cells) String() string {
	var parts []string
	for _, f := range []string{m.Path, m.Family, m.Proto, m.Size} {
		if f != "" {
			parts = append(parts, f)
		}
	}
	return fmt.Sprintf("cells %s from %q to %q", strings.Join(parts, " "), m.From, m.To)
}

func (m cells) selects(c *cell) bool {
	if ok, err := path.Match(m.Path, c.Path); m.Path != "" && (err != nil || !ok) {
		return false
	}
	for _, f := range [][2]string{{m.Family, c.Family}, {m.Proto, c.Proto}, {m.Size, c.Size}, {m.From, c.From.Node}, {m.To, c.To.Node}} {
		if f[0] != "" && f[0] != f[1] {
			return false
		}
	}
	return true
}

// report is the outcome of one run of the connectivity test.
type report struct {
	Passed  int `json:"passed"`
	Failed  int `json:"failed"`
	Skipped int `json:"skipped"`
	Network struct {
		Routing    string          `json:"routing"`
		Masquerade map[string]bool `json:"masquerade"` // by family
	} `json:"network"`
	Cells []cell `json:"cells"`
	run   labtest.Result
}

// failures lists some of the cells that failed.
func (r *report) failures() string {
	var b strings.Builder
	n := 0
	for i := range r.Cells {
		if c := &r.Cells[i]; c.Outcome == "failed" {
			if n++; n <= 40 {
				fmt.Fprintln(&b, " ", c)
			}
		}
	}
	if n > 40 {
		fmt.Fprintf(&b, "  and %d more\n", n-40)
	}
	return b.String()
}

// count tells how many of the selected cells had an outcome.
func (r *report) count(m cells, outcome string) int {
	n := 0
	for i := range r.Cells {
		if c := &r.Cells[i]; m.selects(c) && c.Outcome == outcome {
			n++
		}
	}
	return n
}

// fixture is the lab with the probes of a connectivity test left in it, so that
// a test with them begins at once, and needs nothing that may be broken.
type fixture struct {
	lab   *labtest.Lab
	nodes []labtest.Node
	a     map[string]*labtest.Pod     // by node, the probe that most cells begin at
	b     map[string]*labtest.Pod     // by node, its neighbour
	port  uint16                      // on which the probes answer
	masq  bool                        // pods are masqueraded, in both families
	eps   map[string]labtest.Endpoint // by pod, what its node's agent knows of it
}

// runLimit bounds one run of the connectivity test, most of whose cells fail.
const runLimit = 3 * time.Minute

// probes is the namespace of the connectivity test's probes.
const probes = "weft-connectivity"

func newFixture(t *testing.T) *fixture {
	t.Helper()
	l := labtest.Open(t)
	f := &fixture{lab: l, nodes: l.Nodes(t, 2), a: map[string]*labtest.Pod{}, b: map[string]*labtest.Pod{}, eps: map[string]labtest.Endpoint{}}
	clean := func() {
		if _, err := l.TryKubectl("delete", "namespace", probes, "--ignore-not-found", "--timeout=50s"); err != nil {
			t.Errorf("the probes could not be removed: %v", err)
		}
	}
	clean()
	t.Cleanup(clean)
	rep, err := f.run("--keep")
	if err != nil {
		t.Fatal(err)
	}
	if rep.run.Code != 0 || rep.Failed != 0 {
		t.Fatalf("the network is broken before any test broke it: exit code %d\n%s", rep.run.Code, rep.failures())
	}
	f.masq = rep.Network.Masquerade["IPv4"] && rep.Network.Masquerade["IPv6"]
	f.findProbes(t, rep)
	return f
}

// findProbes looks up the pods that the report's cells are about.
func (f *fixture) findProbes(t *testing.T, rep *report) {
	t.Helper()
	var pods labtest.PodList
	f.lab.Get(t, &pods, "pods", "--all-namespaces")
	find := func(p party) *labtest.Pod {
		for i := range pods.Items {
			if pod := &pods.Items[i]; pod.Metadata.Name == p.Name && pod.Spec.NodeName == p.Node {
				return pod
			}
		}
		t.Fatalf("the test used %s, which is no pod", p)
		return nil
	}
	for i := range rep.Cells {
		if c := &rep.Cells[i]; c.Path == "pod-to-pod-same-node" && f.a[c.From.Node] == nil {
			f.a[c.From.Node], f.b[c.From.Node] = find(c.From), find(c.To)
			f.port = max(f.port, c.Port)
		}
	}
	for i := range f.nodes {
		if n := f.nodes[i].Name(); f.a[n] == nil {
			t.Fatalf("the test has no probes on node %s", n)
		}
		for _, e := range endpoints(t, f.lab, f.nodes[i].Name()) {
			if e.Namespace == probes {
				f.eps[e.Pod] = e
			}
		}
	}
}

// test runs the connectivity test with the probes that are there, whatever it
// finds.
func (f *fixture) test(t *testing.T) *report {
	t.Helper()
	rep, err := f.run("--reuse")
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// outsideHost is the lab's host outside of the cluster that the test runs on.
const outsideHost = "client"

// weft runs the connectivity test where it can try everything.
func (f *fixture) weft(ctx context.Context, args ...string) (labtest.Result, error) {
	return f.lab.WeftAt(ctx, outsideHost, append([]string{"connectivity", "test", "--from-outside"}, args...)...)
}

func (f *fixture) run(args ...string) (*report, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), runLimit, fmt.Errorf("no end within %s", runLimit))
	defer cancel()
	// A node whose agent stands still has no answer; nobody needs to wait for it.
	r, err := f.weft(ctx, append([]string{"-o", "json", "--node-timeout", "4s"}, args...)...)
	if err != nil {
		return nil, err
	}
	rep := &report{run: r}
	if err := json.Unmarshal([]byte(r.Stdout), rep); err != nil {
		return nil, fmt.Errorf("%w: %s", err, r)
	}
	return rep, nil
}

// whole fails the test unless everything passes again within limit.
func (f *fixture) whole(t *testing.T, limit time.Duration) {
	t.Helper()
	err := labtest.Retry(limit, func() error {
		rep, err := f.run("--reuse")
		if err == nil && (rep.run.Code != 0 || rep.Failed > 0) {
			err = fmt.Errorf("exit code %d\n%s", rep.run.Code, rep.failures())
		}
		return err
	})
	if err != nil {
		t.Fatalf("the network is not whole again after %s: %v", limit, err)
	}
}

// endpoint is what the node's agent knows of a probe. It was asked before any
// test stopped it.
func (f *fixture) endpoint(t *testing.T, p *labtest.Pod) labtest.Endpoint {
	t.Helper()
	ep, ok := f.eps[p.Metadata.Name]
	if !ok {
		t.Fatalf("the agent of %s does not know pod %s", p.Spec.NodeName, p.Metadata.Name)
	}
	return ep
}
