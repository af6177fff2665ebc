// SPDX-License-Identifier: Apache-2.0

package connectivity_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/connectivity"
)

var errGone = errors.New("gone")

// keptCluster is an API server that holds what a run with Keep left. It fails
// every write, and its probes pass every cell.
type keptCluster struct {
	objects map[string]string
	token   string
	mu      sync.Mutex
	writes  []string
	ran     map[string]int
}

func (k *keptCluster) Get(_ context.Context, path string, out any) error {
	path, _, _ = strings.Cut(path, "?")
	text, ok := k.objects[path]
	if !ok {
		return errGone
	}
	return json.Unmarshal([]byte(text), out)
}

func (k *keptCluster) Do(_ context.Context, method, path string, _, _ any) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.writes = append(k.writes, method+" "+path)
	return errors.New("no writes")
}

func (k *keptCluster) Exec(_ context.Context, pod string, _ []string, in io.Reader, out, _ io.Writer) error {
	var plan connectivity.ProbePlan
	if err := json.NewDecoder(in).Decode(&plan); err != nil {
		return err
	}
	if plan.Token != k.token {
		return errors.New("wrong token")
	}
	k.mu.Lock()
	k.ran[pod] += len(plan.Cells)
	k.mu.Unlock()
	enc := json.NewEncoder(out)
	for _, c := range plan.Cells {
		if err := enc.Encode(connectivity.Result{ID: c.ID}); err != nil {
			return err
		}
	}
	return nil
}

func (k *keptCluster) Gone(err error) bool { return errors.Is(err, errGone) }

type silent struct{}

func (silent) Stage(string)        {}
func (silent) Cells(int, int, int) {}

func newKeptCluster() *keptCluster {
	k := &keptCluster{token: connectivity.NewToken().String(), ran: map[string]int{}, objects: map[string]string{
		"/api/v1/nodes": `{"items":[{"metadata":{"name":"n1"},"spec":{"podCIDRs":["10.0.1.0/24"]}},{"metadata":{"name":"n2"},"spec":{"podCIDRs":["10.0.2.0/24"]}}]}`,
		"/api/v1/namespaces/default/services/kubernetes": `{"spec":{"clusterIPs":["10.96.0.1"],"ports":[{"name":"https","port":443}]}}`,
	}}
	const ns = "/api/v1/namespaces/weft-connectivity"
	k.objects[ns] = `{"metadata":{"labels":{"app.kubernetes.io/part-of":"weft-connectivity","weft.dev/connectivity-run":"abcd"}}}`
	k.objects["/apis/apps/v1/namespaces/weft-connectivity/daemonsets/probe-a"] = fmt.Sprintf(
		`{"spec":{"template":{"spec":{"containers":[{"env":[{"name":%q,"value":%q},{"name":%q,"value":"4748"}]}]}}}}`,
		connectivity.EnvToken, k.token, connectivity.EnvPort)
	var pods []string
	for i, role := range []string{"probe-a", "probe-b", "probe-host"} {
		pods = append(pods, fmt.Sprintf(`{"metadata":{"name":"%s-x","labels":{"weft.dev/connectivity-role":%q}},"spec":{"nodeName":"n1"},
			"status":{"podIPs":[{"ip":"10.0.1.%d"}],"containerStatuses":[{"state":{"running":{}}}]}}`, role, role, i+10))
	}
	k.objects[ns+"/pods"] = `{"items":[` + strings.Join(pods, ",") + `]}`
	k.objects[ns+"/services"] = `{"items":[{"metadata":{"name":"hairpin-0","annotations":{"weft.dev/connectivity-node":"n1"}},"spec":{"clusterIPs":["10.96.7.7"]}}]}`
	return k
}

func options() connectivity.Options {
	return connectivity.Options{Reuse: true, Port: 4747, CellTimeout: time.Second, Timeout: 10 * time.Second}
}

// Guards against a second run that starts, changes or deletes anything: the
// network may be broken, and the probes are wanted again.
func TestReuseWritesNothing(t *testing.T) {
	k := newKeptCluster()
	rep, err := connectivity.Run(t.Context(), k, options(), silent{})
	if err != nil {
		t.Fatal(err)
	}
	if len(k.writes) > 0 {
		t.Errorf("written: %v", k.writes)
	}
	if rep.Run != "abcd" || rep.Failed > 0 || k.ran["probe-a-x"] == 0 {
		t.Errorf("run %q, %d passed, %d failed, cells by probe %v", rep.Run, rep.Passed, rep.Failed, k.ran)
	}
	for _, row := range rep.Rows {
		if row.From.Node == "n2" || row.To.Node == "n2" {
			t.Errorf("node n2 has no probes, but %s is in the report", row.Pair())
		}
		if row.Path == connectivity.PodToPodSameNode && row.Outcome == connectivity.Passed && row.Proto != connectivity.ICMP && row.Port != 4748 {
			t.Errorf("port %d, the probes listen on 4748", row.Port)
		}
	}
}

// Guards against a test that passes because there was nobody to ask.
func TestReuseWithoutProbesIsRefused(t *testing.T) {
	k := newKeptCluster()
	delete(k.objects, "/api/v1/namespaces/weft-connectivity")
	if _, err := connectivity.Run(t.Context(), k, options(), silent{}); err == nil || !strings.Contains(err.Error(), "--keep") {
		t.Errorf("without namespace: %v; want a word on --keep", err)
	}
	k = newKeptCluster()
	k.objects["/api/v1/namespaces/weft-connectivity/pods"] = `{"items":[]}`
	if _, err := connectivity.Run(t.Context(), k, options(), silent{}); err == nil || !strings.Contains(err.Error(), "--keep") {
		t.Errorf("without pods: %v; want a word on --keep", err)
	}
}

// Guards against a node that drops out of the test, unheard, with its probes.
func TestReuseMissesLostProbes(t *testing.T) {
	k := newKeptCluster()
	list := k.objects["/api/v1/namespaces/weft-connectivity/services"]
	k.objects["/api/v1/namespaces/weft-connectivity/services"] = strings.Replace(list, `{"items":[`,
		`{"items":[{"metadata":{"name":"hairpin-1","annotations":{"weft.dev/connectivity-node":"n2"}},"spec":{"clusterIPs":["10.96.7.8"]}},`, 1)
	rep, err := connectivity.Run(t.Context(), k, options(), silent{})
	if err != nil {
		t.Fatal(err)
	}
	if rep.OK() {
		t.Fatalf("%s, though n2 has lost its probes", rep.Summary())
	}
	for _, row := range rep.Rows {
		if row.Outcome == connectivity.Failed && row.From.Node != "n2" && row.To.Node != "n2" {
			t.Errorf("blamed %s: %s", row.Pair(), row.Error)
		}
		if row.Path == connectivity.Hairpin && row.From.Node == "n1" && row.Outcome == connectivity.Passed && row.Addr.String() != "10.96.7.7" {
			t.Errorf("n1's pod went through the Service at %s", row.Addr)
		}
	}
}
