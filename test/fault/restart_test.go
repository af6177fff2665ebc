// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// nodeWatch records what happens to the nodes' readiness. A flip between two
// events shows in the time of the condition's last transition.
type nodeWatch struct {
	mu     sync.Mutex
	events int
	last   map[string]string
	flips  []string
}

// look is what must not change, in one line.
func look(n *labtest.Node) string {
	var parts []string
	for _, kind := range []string{"Ready", "NetworkUnavailable"} {
		c, ok := n.Condition(kind)
		if !ok {
			parts = append(parts, kind+" missing")
			continue
		}
		parts = append(parts, fmt.Sprintf("%s=%s since %s", kind, c.Status, c.LastTransitionTime.Format(time.TimeOnly)))
	}
	for _, taint := range n.Spec.Taints {
		parts = append(parts, "taint "+taint.Key+":"+taint.Effect)
	}
	return strings.Join(parts, ", ")
}

func (w *nodeWatch) take(n *labtest.Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events++
	now := look(n)
	if was, ok := w.last[n.Name()]; ok && was != now {
		w.flips = append(w.flips, fmt.Sprintf("%s node %s: %s, before: %s", time.Now().UTC().Format("15:04:05.000"), n.Name(), now, was))
	}
	w.last[n.Name()] = now
}

// watchNodes follows all nodes until stop is called, which returns the changes.
// A watch that ends early is begun again: its first events are the present.
func watchNodes(t *testing.T, l *labtest.Lab) (w *nodeWatch, stop func() []string) {
	t.Helper()
	w = &nodeWatch{last: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		for {
			if err := w.follow(ctx, l); ctx.Err() != nil || err != nil {
				done <- err
				return
			}
		}
	}()
	var once sync.Once
	stop = func() []string {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("watch of nodes: %v", err)
			}
		})
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Clone(w.flips)
	}
	t.Cleanup(func() { stop() })
	labtest.Eventually(t, 20*time.Second, "first events of the watch", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.events == 0 {
			return errors.New("none yet")
		}
		return nil
	})
	return w, stop
}

func (w *nodeWatch) follow(ctx context.Context, l *labtest.Lab) error {
	cmd := l.Command(ctx, labtest.KubectlArgs("get", "nodes", "--watch", "-o", "json")...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	dec := json.NewDecoder(out)
	for {
		var n labtest.Node
		if err = dec.Decode(&n); err != nil {
			break
		}
		if n.Metadata.Name != "" {
			w.take(&n)
		}
	}
	_ = cmd.Wait() // it is interrupted, or ended by itself
	if !errors.Is(err, io.EOF) && ctx.Err() == nil {
		return err
	}
	return nil
}

// Guards against an agent that takes its node's readiness away when it starts
// (DATAPATH rule 18). The first start of a container after its end is at once,
// the following ones wait longer and longer; so each agent is ended in turn by
// SIGKILL, by SIGTERM and by deletion of its pod, which starts the count anew.
func TestRestartsKeepNodesReady(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 1)
	restarts := envInt(t, "WEFT_RESTARTS", 6) // 50 are promised: make test-full
	for i := range nodes {
		if c, _ := nodes[i].Condition("Ready"); c.Status != "True" {
			t.Fatalf("node %s is not ready to begin with: %s", nodes[i].Name(), look(&nodes[i]))
		}
	}
	w, stop := watchNodes(t, l)
	seen := map[string]int{}
	for n := range restarts {
		node := nodes[n%len(nodes)].Name()
		how := []string{"SIGKILL", "deletion", "SIGTERM", "deletion"}[n/len(nodes)%4]
		restart(t, l, node, how)
		seen[how]++
	}
	// Kubelet looks every five seconds, and reports what has changed: what the
	// last start did shows by then.
	<-time.After(12 * time.Second)
	if flips := stop(); len(flips) > 0 {
		t.Errorf("%d changes of readiness in %d restarts:\n%s", len(flips), restarts, strings.Join(flips, "\n"))
	}
	t.Logf("%d restarts (%v), nodes as before: %v", restarts, seen, slices.Sorted(maps.Values(w.last)))
}

func restart(t *testing.T, l *labtest.Lab, node, how string) {
	t.Helper()
	if how == "deletion" {
		if err := restartAgentPod(l, node); err != nil {
			t.Fatalf("agent of %s: %v", node, err)
		}
		return
	}
	old := agentPID(t, l, node)
	l.Shell(t, node, "kill -"+strings.TrimPrefix(how, "SIG")+" "+old)
	waitNewAgent(t, l, node, old)
}

// Guards against a watch that sees nothing: a condition that flips and comes
// back shows in the time of its transition, a taint by itself.
func TestWatchSeesFlips(t *testing.T) {
	w := &nodeWatch{last: map[string]string{}}
	take := func(status, since, taint string) {
		var n labtest.Node
		text := fmt.Sprintf(`{"metadata":{"name":"n1"},"spec":{"taints":[%s]},"status":{"conditions":[
			{"type":"Ready","status":%q,"lastTransitionTime":"2026-01-01T00:00:%sZ"}]}}`, taint, status, since)
		if err := json.Unmarshal([]byte(text), &n); err != nil {
			t.Fatal(err)
		}
		w.take(&n)
	}
	take("True", "01", "")
	take("True", "01", "")
	if len(w.flips) != 0 {
		t.Errorf("nothing happened: %v", w.flips)
	}
	take("True", "09", "") // was False in between
	take("True", "09", `{"key":"node.cilium.io/agent-not-ready","effect":"NoExecute"}`)
	if len(w.flips) != 2 {
		t.Errorf("two changes, seen: %v", w.flips)
	}
}
