// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/rpc"
)

// scrape reads the metrics of an agent as Prometheus does: name and labels → value;
// of a histogram, the count.
func (s *started) scrape() map[string]float64 {
	s.t.Helper()
	b, err := s.get(rpc.PathMetrics)
	if err != nil {
		s.t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(string(b)))
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[string]float64{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			key := []string{name}
			for _, l := range m.GetLabel() {
				key = append(key, l.GetValue())
			}
			out[strings.Join(key, "/")] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

// Guards against an agent that does not know itself: how full its maps are, how
// long an event takes to the kernel, when all was compared last, what it may use.
func TestNodeObservesItself(t *testing.T) {
	if !node(t) {
		return
	}
	o, _ := newNode(t, map[string]string{})
	api := serveAPI(t, &o)
	addNode(t, api, "n1", 1)
	addNode(t, api, "n2", 2)
	api.Do(t, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"default"}}`, nil)
	if err := Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	eventually(t, "proven", func() (bool, any) { c := s.component("Node proof"); return c.State == rpc.StateOK, c })
	eventually(t, "full rounds", func() (bool, any) {
		m := s.scrape()
		return m["weft_reconciler_pruned_timestamp_seconds/ipcache"] > 1.7e9 && m["weft_reconciler_pruned_timestamp_seconds/routes"] > 1.7e9, m
	})
	before := s.scrape()
	for _, series := range []string{
		"weft_map_pressure/weft_ct4/evicts", "weft_map_pressure/weft_ipc4/refuses", "weft_map_entries/weft_net4/refuses", "weft_map_capacity/weft_ipc4",
		"weft_map_memory_bytes/weft_ct4", "weft_reconciler_failing_objects/ipcache", "weft_reconciler_retries_total/routes",
		"weft_event_to_kernel_duration_seconds/routes", "weft_endpoint_publish_duration_seconds", "process_resident_memory_bytes",
		"weft_ipam_capacity_addresses//10.244.1.0/24",
	} {
		if _, ok := before[series]; !ok {
			t.Errorf("no %s", series)
		}
	}
	if before["weft_event_to_kernel_duration_seconds/routes"] == 0 {
		t.Error("node n2 is known by an event, and its route has no latency")
	}
	held := func() (n int) {
		for _, r := range fetch[[]maps.MapRow](s, rpc.PathBPFMaps) {
			if r.Name == "weft_ipc4" {
				n = *r.Entries
			}
		}
		return n
	}
	had := held()
	api.Do(t, http.MethodPost, "/apis/cilium.io/v2/namespaces/default/ciliumendpoints", `{"apiVersion":"cilium.io/v2","kind":"CiliumEndpoint",
		"metadata":{"name":"far"},"status":{"networking":{"node":"10.9.0.2","addressing":[{"ipv4":"10.244.2.77"}]}}}`, nil)
	eventually(t, "far is in the kernel", func() (bool, any) { n := held(); return n == had+1, n })
	const series = "weft_event_to_kernel_duration_seconds/ipcache"
	eventually(t, "far has a latency", func() (bool, any) { got := s.scrape()[series]; return got >= before[series]+1, got })

	c := s.component("BPF maps")
	if c.State != rpc.StateOK || !strings.Contains(fmt.Sprint(c.Details), "weft_ipc4: ") {
		t.Errorf("status: %+v", c)
	}
	if c := s.component("Modules"); !strings.Contains(fmt.Sprint(c.Details), "last full round ") {
		t.Errorf("status: %+v", c)
	}
	s.end()
}
