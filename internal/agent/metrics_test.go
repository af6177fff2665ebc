// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/reconcile"
	"github.com/weft-net/weft/internal/service"
)

// fullRegistry is the agent's registry, with parts that have something to say on
// everything.
func fullRegistry(t *testing.T) *prometheus.Registry {
	t.Helper()
	m, err := newMetrics("v1")
	if err != nil {
		t.Fatal(err)
	}
	m.observe("add", time.Millisecond, 0, nil)
	m.events.WithLabelValues("drop").Inc()
	m.toKernel("ipcache", nil).Observe(time.Millisecond)
	m.toServer().Observe(time.Millisecond)
	yes := func() bool { return true }
	n := func() int { return 1 }
	row, soon := mapRow("weft_ep", 1, 2, maps.Refuses), time.Hour
	row.FullIn = &soon
	if err := m.registry.Register(newCollector(readings{
		endpoints: n, nodes: n, remotePods: n, proven: yes, connected: yes, translated: n,
		ipam:        func() ipam.Status { return ipam.Status{Ranges: []ipam.RangeStatus{{Prefix: cidr("10.0.0.0/24")}}} },
		rangeLasts:  func(ipam.RangeStatus) (time.Duration, bool) { return time.Hour, true },
		reconcilers: func() []reconcile.Status { return []reconcile.Status{{Name: "x", PrunedAt: time.Unix(1e9, 0)}} },
		counters:    func() ([]maps.MetricRow, error) { return []maps.MetricRow{{Hook: "from_pod", Reason: "peer"}}, nil },
		memory:      func() ([]maps.MapRow, error) { return []maps.MapRow{{Name: "weft_ep"}}, nil },
		fill:        func() []maps.MapRow { return []maps.MapRow{row, {Name: "weft_cfg"}} },
		programs: func() ([]datapath.ProgramRun, error) {
			return []datapath.ProgramRun{{Program: "from_pod", Runs: 1, Time: time.Second}}, nil
		},
		services: func() (serviceReading, bool) {
			return serviceReading{Findings: map[service.Kind]int{service.Clash: 1}}, true
		},
		charged: func() (charged, error) { return charged{1, 2}, nil },
		peers:   func() []health.PeerResult { return []health.PeerResult{{Name: "n2", Addr: ip("10.0.0.1")}} },
	})); err != nil {
		t.Fatal(err)
	}
	return m.registry
}

// metricNames are those of a registry's metrics, as PromQL knows them.
func metricNames(t *testing.T, reg prometheus.Gatherer) map[string]bool {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, f := range families {
		out[f.GetName()] = true
	}
	return out
}

// Guards against metrics that break Prometheus' conventions, or a collector that
// forgets to describe what it collects.
func TestMetricsLint(t *testing.T) {
	reg := fullRegistry(t)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for n := range metricNames(t, reg) {
		if !strings.HasPrefix(n, "weft_") && !strings.HasPrefix(n, "go_") && !strings.HasPrefix(n, "process_") {
			t.Errorf("%s does not begin with weft_", n)
		}
	}
}

// Guards against a reading that is promised and never collected.
func TestEachMetricIsCollected(t *testing.T) {
	got := metricNames(t, fullRegistry(t))
	for name := range newCollector(readings{}).descs {
		if !got[name] {
			t.Errorf("%s is described and not collected", name)
		}
	}
}

// labelsOf are the labels of each metric.
func labelsOf(t *testing.T, reg prometheus.Gatherer) map[string]map[string]bool {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]bool{}
	for _, f := range families {
		out[f.GetName()] = map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				out[f.GetName()][l.GetName()] = true
			}
		}
	}
	return out
}

// Guards against alerts that can never fire because nothing is called what they
// ask for: neither the metric nor the label that they choose by.
func TestAlertsAskForWhatThereIs(t *testing.T) {
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	raw, err := os.ReadFile("../../install/helm/weft/files/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(raw, &rules); err != nil {
		t.Fatal(err)
	}
	known := labelsOf(t, fullRegistry(t))
	term := regexp.MustCompile(`\b((?:weft|process|go)_\w+)(?:\{([^}]*)\})?`)
	label := regexp.MustCompile(`(\w+)(?:=~|!=|!~|=)"`)
	quoted := regexp.MustCompile(`"[^"]*"`)
	asked := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			for _, m := range term.FindAllStringSubmatch(r.Expr, -1) {
				name := strings.TrimSuffix(strings.TrimSuffix(m[1], "_bucket"), "_count")
				if strings.HasPrefix(name, "weft_operator_") || strings.Contains(strings.Join(quoted.FindAllString(r.Expr, -1), " "), m[1]) {
					continue // the operator's test; a value of a label
				}
				asked++
				labels, ok := known[name]
				if !ok {
					t.Errorf("%s asks for %s, which no agent has", r.Alert, m[1])
					continue
				}
				for _, l := range label.FindAllStringSubmatch(m[2], -1) {
					if !labels[l[1]] {
						t.Errorf("%s asks for label %s of %s, which has %v", r.Alert, l[1], m[1], labels)
					}
				}
			}
		}
	}
	if asked < 20 {
		t.Errorf("only %d terms were found in the rules", asked)
	}
}

// Guards against metrics that the documentation does not know, and the reverse.
func TestMetricsAreDocumented(t *testing.T) {
	raw, err := os.ReadFile("../../docs/operations/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(weft_\\w+)` \\|").FindAllStringSubmatch(string(raw), -1) {
		if !strings.HasPrefix(m[1], "weft_operator_") {
			documented[m[1]] = true
		}
	}
	for name := range metricNames(t, fullRegistry(t)) {
		if strings.HasPrefix(name, "weft_") && !documented[name] {
			t.Errorf("%s stands in no table of docs/operations/metrics.md", name)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/operations/metrics.md tells of %s, which no agent has", name)
	}
}
