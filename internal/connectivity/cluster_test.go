// SPDX-License-Identifier: Apache-2.0

package connectivity_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/internal/connectivity"
)

const nsPath = "/api/v1/namespaces/weft-connectivity"

// liveCluster is an API server of two nodes that starts the pods of the
// DaemonSets it is given. Its probes pass every cell.
type liveCluster struct {
	mu        sync.Mutex
	namespace *corev1.Namespace
	sets      []string                                       // created DaemonSets
	stuck     string                                         // pod that never runs
	refuse    string                                         // part of a path that cannot be created
	onExec    func(pod string, plan *connectivity.ProbePlan) // before cells run
	outcome   func(pod string, c *connectivity.Cell) string  // error of a cell
	cut       func(pod string) error                         // error of exec after half of the cells
	created   map[string]int
	deaf      string // pod whose exec never answers
}

func (l *liveCluster) Gone(err error) bool { return errors.Is(err, errGone) }

func (l *liveCluster) Get(_ context.Context, path string, out any) error {
	path, _, _ = strings.Cut(path, "?")
	l.mu.Lock()
	defer l.mu.Unlock()
	var text string
	switch path {
	case "/api/v1/nodes":
		text = `{"items":[
			{"metadata":{"name":"n2"},"spec":{"podCIDRs":["10.0.2.0/24"]},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.2"},{"type":"Hostname","address":"n2"}]}},
			{"metadata":{"name":"n1"},"spec":{"podCIDRs":["10.0.1.0/24"]},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}]}`
	case "/api/v1/namespaces/default/services/kubernetes":
		text = `{"spec":{"clusterIPs":["10.96.0.1"],"ports":[{"name":"https","port":443}]}}`
	case nsPath:
		if l.namespace == nil {
			return errGone
		}
		b, err := json.Marshal(l.namespace)
		if err != nil {
			return err
		}
		text = string(b)
	case nsPath + "/pods":
		text = l.pods()
	default:
		return errGone
	}
	return json.Unmarshal([]byte(text), out)
}

func (l *liveCluster) pods() string {
	var pods []string
	for i, set := range l.sets {
		for n := 1; n <= 2; n++ {
			name := fmt.Sprintf("%s-n%d", set, n)
			state := `{"running":{}}`
			if name == l.stuck {
				state = `{"waiting":{"reason":"ContainerCreating"}}`
			}
			pods = append(pods, fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"weft.dev/connectivity-role":%q}},"spec":{"nodeName":"n%d"},
				"status":{"phase":"Pending","podIPs":[{"ip":"10.0.%d.%d"}],"containerStatuses":[{"state":%s}]}}`, name, set, n, n, i+10, state))
		}
	}
	return `{"items":[` + strings.Join(pods, ",") + `]}`
}

func (l *liveCluster) Do(ctx context.Context, method, path string, in, out any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if method == http.MethodDelete {
		if path != nsPath || l.namespace == nil {
			return errGone
		}
		l.namespace, l.sets = nil, nil
		return nil
	}
	if l.refuse != "" && strings.Contains(path, l.refuse) {
		return errors.New("quota exceeded")
	}
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	var o struct {
		Kind     string
		Metadata struct {
			Name   string
			Labels map[string]string
		}
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return err
	}
	if l.created == nil {
		l.created = map[string]int{}
	}
	l.created[o.Kind]++
	switch o.Kind {
	case "Namespace":
		l.namespace = &corev1.Namespace{}
		l.namespace.Labels = o.Metadata.Labels
	case "DaemonSet":
		l.sets = append(l.sets, o.Metadata.Name)
	case "Service":
		return json.Unmarshal([]byte(`{"spec":{"clusterIPs":["10.96.7.7"]}}`), out)
	}
	return nil
}

func (l *liveCluster) Exec(ctx context.Context, pod string, _ []string, in io.Reader, out, errOut io.Writer) error {
	var plan connectivity.ProbePlan
	if err := json.NewDecoder(in).Decode(&plan); err != nil {
		return err
	}
	if l.onExec != nil {
		l.onExec(pod, &plan)
	}
	if pod == l.deaf && len(plan.Cells) > 0 {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	enc := json.NewEncoder(out)
	for i := range plan.Cells {
		if l.cut != nil && i == len(plan.Cells)/2 {
			if err := l.cut(pod); err != nil {
				fmt.Fprintln(errOut, err)
				return errors.New("exit code 137")
			}
		}
		r := connectivity.Result{ID: plan.Cells[i].ID}
		if l.outcome != nil {
			r.Error = l.outcome(pod, &plan.Cells[i])
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func runOptions() connectivity.Options {
	return connectivity.Options{Image: "weft:test", Port: 4747, CellTimeout: time.Second, Timeout: 5 * time.Minute}
}

// TestRunCleansUp guards against a namespace that stays behind: after success,
// failed cells, an object that cannot be made, and ^C in the middle.
func TestRunCleansUp(t *testing.T) {
	for _, tc := range []struct {
		name   string
		breaks func(l *liveCluster, interrupt func())
		err    string
	}{
		{"sound", func(*liveCluster, func()) {}, ""},
		{"failed cells", func(l *liveCluster, _ func()) {
			l.outcome = func(string, *connectivity.Cell) string { return "lost" }
		}, ""},
		{"daemonset refused", func(l *liveCluster, _ func()) { l.refuse = "/daemonsets" }, "quota exceeded"},
		{"service refused", func(l *liveCluster, _ func()) { l.refuse = "/services" }, "quota exceeded"},
		{"slice refused", func(l *liveCluster, _ func()) { l.refuse = "/endpointslices" }, "quota exceeded"},
		{"interrupted", func(l *liveCluster, interrupt func()) {
			l.onExec = func(_ string, p *connectivity.ProbePlan) {
				if len(p.Cells) > 0 {
					interrupt()
				}
			}
		}, "interrupted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				l := &liveCluster{}
				tc.breaks(l, cancel)
				rep, err := connectivity.Run(ctx, l, runOptions(), silent{})
				if (err == nil) != (tc.err == "") || (err != nil && !strings.Contains(err.Error(), tc.err)) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				if (rep == nil) != (tc.err != "") {
					t.Errorf("report %v beside error %v", rep, err)
				}
				if l.created["Namespace"] != 1 {
					t.Errorf("created %v", l.created)
				}
				if l.namespace != nil {
					t.Error("the namespace is still there")
				}
			})
		})
	}
}

// TestRunCounts guards against cells that run nowhere or pass unasked.
func TestRunCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &liveCluster{outcome: func(pod string, c *connectivity.Cell) string {
			if pod == "probe-host-n2" && c.Path == connectivity.HostToOtherPod && c.Proto == connectivity.UDP {
				return "lost"
			}
			return ""
		}}
		rep, err := connectivity.Run(t.Context(), l, runOptions(), silent{})
		if err != nil {
			t.Fatal(err)
		}
		// Two nodes, IPv4 only: 7 pairs a node of 12 cells, without ICMP of the
		// hairpin, and one handshake a node. DNS is absent.
		if run := rep.Passed + rep.Failed; run != 2*(7*12-4+1) || rep.Failed != 4 {
			t.Errorf("%s, %d failed", rep.Summary(), rep.Failed)
		}
		for _, row := range rep.Rows {
			if row.Outcome == connectivity.Failed && row.From.Node != "n2" {
				t.Errorf("blamed %s", row.Pair())
			}
		}
	})
}

// TestProbeThatDoesNotStart guards against a node without probes being left
// out, and against a wait without end.
func TestProbeThatDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &liveCluster{stuck: "probe-a-n2"}
		rep, err := connectivity.Run(t.Context(), l, runOptions(), silent{})
		if err != nil {
			t.Fatal(err)
		}
		if rep.Failed == 0 || rep.Passed == 0 {
			t.Errorf("%s: want n2's cells to fail and the others to pass", rep.Summary())
		}
		for _, row := range rep.Rows {
			touches := row.From.Name == "probe-a-n2" || row.To.Name == "probe-a-n2" || (row.Path == connectivity.Hairpin && row.From.Node == "n2")
			if row.Outcome == connectivity.Failed && (!touches || !strings.Contains(row.Error, "ContainerCreating")) {
				t.Errorf("%s: %s", row.Pair(), row.Error)
			}
			if row.Outcome == connectivity.Passed && touches {
				t.Errorf("%s passed", row.Pair())
			}
		}
	})
}

// TestProbeThatDies guards against results that are missing being taken for passed.
func TestProbeThatDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &liveCluster{cut: func(pod string) error {
			if pod == "probe-a-n1" {
				return errors.New("Error: out of memory")
			}
			return nil
		}}
		rep, err := connectivity.Run(t.Context(), l, runOptions(), silent{})
		if err != nil {
			t.Fatal(err)
		}
		if rep.Failed == 0 {
			t.Fatal("nothing failed")
		}
		for _, row := range rep.Rows {
			if row.Outcome == connectivity.Failed && (row.From.Name != "probe-a-n1" || !strings.Contains(row.Error, "out of memory")) {
				t.Errorf("%s: %s", row.Pair(), row.Error)
			}
		}
	})
}

// TestProbeThatIsNotHeard guards against a test that hangs on a node that the
// API server cannot reach, as over a path that swallows large packets.
func TestProbeThatIsNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &liveCluster{deaf: "probe-a-n2"}
		start := time.Now()
		rep, err := connectivity.Run(t.Context(), l, runOptions(), silent{})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("took %s", took)
		}
		if rep.Failed == 0 || rep.Passed == 0 {
			t.Error(rep.Summary())
		}
		for _, row := range rep.Rows {
			if row.Outcome == connectivity.Failed && (row.From.Name != "probe-a-n2" || !strings.Contains(row.Error, "nothing came back for")) {
				t.Errorf("%s: %s", row.Pair(), row.Error)
			}
		}
	})
}

// TestNamespaceOfOthers guards against deleting a namespace that is not the
// test's, or another test's that runs.
func TestNamespaceOfOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		labels map[string]string
		age    time.Duration
		err    string
	}{
		"not ours":      {nil, time.Hour, "not the test's"},
		"running":       {map[string]string{"app.kubernetes.io/part-of": "weft-connectivity"}, time.Minute, "another test runs"},
		"left by crash": {map[string]string{"app.kubernetes.io/part-of": "weft-connectivity"}, time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &liveCluster{namespace: &corev1.Namespace{}}
				l.namespace.Labels = tc.labels
				l.namespace.CreationTimestamp.Time = time.Now().Add(-tc.age)
				_, err := connectivity.Run(t.Context(), l, runOptions(), silent{})
				if (err == nil) != (tc.err == "") || (err != nil && !strings.Contains(err.Error(), tc.err)) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				if (l.namespace != nil) != (tc.err != "") {
					t.Errorf("namespace: %v", l.namespace)
				}
			})
		})
	}
}
