// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/reconcile"
)

// Guards against metrics that break Prometheus' conventions, or a collector that
// forgets to describe what it collects.
func TestMetricsLint(t *testing.T) {
	m, err := newMetrics("v1")
	if err != nil {
		t.Fatal(err)
	}
	m.observe("add", time.Millisecond, 0, nil)
	m.events.WithLabelValues("drop").Inc()
	yes := func() bool { return true }
	n := func() int { return 1 }
	if err := m.registry.Register(newCollector(readings{
		endpoints: n, nodes: n, remotePods: n, proven: yes, connected: yes, translated: n,
		ipam:        func() ipam.Status { return ipam.Status{Ranges: []ipam.RangeStatus{{Prefix: cidr("10.0.0.0/24")}}} },
		reconcilers: func() []reconcile.Status { return []reconcile.Status{{Name: "x"}} },
		counters:    func() ([]maps.MetricRow, error) { return []maps.MetricRow{{Hook: "from_pod", Reason: "peer"}}, nil },
		memory:      func() ([]maps.MapRow, error) { return []maps.MapRow{{Name: "weft_ep"}}, nil },
		peers:       func() []health.PeerResult { return []health.PeerResult{{Name: "n2", Addr: ip("10.0.0.1")}} },
	})); err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if n := f.GetName(); !strings.HasPrefix(n, "weft_") && !strings.HasPrefix(n, "go_") && !strings.HasPrefix(n, "process_") {
			t.Errorf("%s does not begin with weft_", n)
		}
	}
}
