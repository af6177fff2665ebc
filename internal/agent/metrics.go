// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/reconcile"
)

// metrics are the instruments that are moved by events; everything else is read
// from the parts when it is scraped.
type metrics struct {
	registry   *prometheus.Registry
	operations *prometheus.HistogramVec
	wait       prometheus.Histogram
	swept      prometheus.Counter
	natSwept   prometheus.Counter
	events     *prometheus.CounterVec
	startup    prometheus.Gauge
}

func newMetrics(version string) (*metrics, error) {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "weft_endpoint_operation_duration_seconds", Help: "Time from request to reply of operations on endpoints.",
			Buckets: []float64{.001, .002, .005, .01, .02, .04, .08, .16, .5, 1, 5, 25},
		}, []string{"operation", "outcome"}),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weft_endpoint_operation_wait_seconds", Help: "Part of an operation's time that it stood in line for others.",
			Buckets: []float64{.001, .005, .02, .08, .5, 5},
		}),
		swept: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_conntrack_swept_entries_total", Help: "Expired conntrack entries removed.",
		}),
		natSwept: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_nat_swept_entries_total", Help: "Expired translations of masqueraded flows removed.",
		}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_datapath_events_total", Help: "Records read from the datapath's ring buffer.",
		}, []string{"type"}),
		startup: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "weft_agent_startup_duration_seconds", Help: "Time from the agent's start until the CNI was served on a verified datapath.",
		}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "weft_build_info", Help: "Always 1; the version stands in the label.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	for _, c := range []prometheus.Collector{
		m.operations, m.wait, m.swept, m.natSwept, m.events, m.startup, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := m.registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// observe is the endpoint manager's Observer.
func (m *metrics) observe(op string, took, wait time.Duration, err error) {
	outcome := "success"
	if err != nil {
		outcome = "error"
	}
	m.operations.WithLabelValues(op, outcome).Observe(took.Seconds())
	m.wait.Observe(wait.Seconds())
}

// readings are what a scrape asks the parts for. A nil func is left out.
type readings struct {
	endpoints   func() int
	nodes       func() int
	remotePods  func() int
	ipam        func() ipam.Status
	reconcilers func() []reconcile.Status
	counters    func() ([]maps.MetricRow, error)
	memory      func() ([]maps.MapRow, error)
	peers       func() []health.PeerResult
	proven      func() bool
	connected   func() bool
	translated  func() int
}

// collector turns readings into metrics.
type collector struct {
	r     readings
	descs map[string]*prometheus.Desc
}

func newCollector(r readings) *collector {
	c := &collector{r: r, descs: map[string]*prometheus.Desc{}}
	for _, d := range []struct {
		name, help string
		labels     []string
	}{
		{"weft_endpoints", "Endpoints of this node.", nil},
		{"weft_nodes", "Nodes of the cluster that this agent knows.", nil},
		{"weft_remote_pods", "CiliumEndpoints of the cluster that this agent knows.", nil},
		{"weft_ipam_addresses", "Addresses of a range of this node, by state.", []string{"range", "state"}},
		{"weft_ipam_capacity_addresses", "Addresses of a range of this node that pods can get.", []string{"range"}},
		{"weft_reconciler_objects", "Rows that a reconciler answers for.", []string{"reconciler"}},
		{"weft_reconciler_failing_objects", "Rows whose last attempt failed.", []string{"reconciler"}},
		{"weft_reconciler_operations_total", "Calls of a reconciler that went well.", []string{"reconciler", "operation"}},
		{"weft_reconciler_errors_total", "Calls of a reconciler that failed.", []string{"reconciler"}},
		{"weft_datapath_packets_total", "Packets that the datapath decided on.", []string{"hook", "class", "reason"}},
		{"weft_datapath_bytes_total", "Bytes of those packets, from the network header on.", []string{"hook", "class", "reason"}},
		{"weft_map_memory_bytes", "Kernel memory of a BPF map.", []string{"map"}},
		{"weft_map_capacity", "Entries that a BPF map can hold; of the ring buffer, bytes.", []string{"map"}},
		{"weft_peer_reachable", "1 if the last probe of a peer's health address was answered.", []string{"peer", "address"}},
		{"weft_peer_round_trip_seconds", "Round trip of the last probe that was answered.", []string{"peer", "address"}},
		{"weft_nat_entries", "Masqueraded flows, and ports that the host holds among theirs, as counted last.", nil},
		{"weft_node_proven", "1 if this node takes pods.", nil},
		{"weft_kubernetes_connected", "1 if no call to the API server fails at present.", nil},
	} {
		c.descs[d.name] = prometheus.NewDesc(d.name, d.help, d.labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(name string, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], prometheus.GaugeValue, v, labels...)
	}
	count := func(name string, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], prometheus.CounterValue, float64(v), labels...)
	}
	gauge("weft_endpoints", float64(c.r.endpoints()))
	gauge("weft_nodes", float64(c.r.nodes()))
	gauge("weft_remote_pods", float64(c.r.remotePods()))
	gauge("weft_node_proven", number(c.r.proven()))
	gauge("weft_kubernetes_connected", number(c.r.connected()))
	gauge("weft_nat_entries", float64(c.r.translated()))
	for _, r := range c.r.ipam().Ranges {
		gauge("weft_ipam_addresses", float64(r.Used), r.Prefix.String(), "used")
		gauge("weft_ipam_addresses", float64(r.Quarantined), r.Prefix.String(), "quarantined")
		gauge("weft_ipam_capacity_addresses", float64(r.Total), r.Prefix.String())
	}
	for _, s := range c.r.reconcilers() {
		gauge("weft_reconciler_objects", float64(s.Objects), s.Name)
		gauge("weft_reconciler_failing_objects", float64(s.Failing), s.Name)
		count("weft_reconciler_operations_total", s.Updates, s.Name, "update")
		count("weft_reconciler_operations_total", s.Deletes, s.Name, "delete")
		count("weft_reconciler_operations_total", s.Prunes, s.Name, "prune")
		count("weft_reconciler_errors_total", s.Errors, s.Name)
	}
	for _, p := range c.r.peers() {
		gauge("weft_peer_reachable", number(p.Error == ""), p.Name, p.Addr.String())
		if p.Error == "" {
			gauge("weft_peer_round_trip_seconds", p.RTT.Seconds(), p.Name, p.Addr.String())
		}
	}
	c.collectMaps(gauge, count)
}

// collectMaps reads the kernel. A map that cannot be read is missing from the
// scrape; the Datapath component says why.
func (c *collector) collectMaps(gauge func(string, float64, ...string), count func(string, uint64, ...string)) {
	if rows, err := c.r.counters(); err == nil {
		for _, r := range rows {
			count("weft_datapath_packets_total", r.Packets, r.Hook, string(r.Class), r.Reason)
			count("weft_datapath_bytes_total", r.Bytes, r.Hook, string(r.Class), r.Reason)
		}
	}
	if rows, err := c.r.memory(); err == nil {
		for _, r := range rows {
			gauge("weft_map_memory_bytes", float64(r.Bytes), r.Name)
			gauge("weft_map_capacity", float64(r.Capacity), r.Name)
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
