// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/reconcile"
)

// readings are what a scrape asks the parts for.
type readings struct {
	endpoints   func() int
	nodes       func() int
	remotePods  func() int
	ipam        func() ipam.Status
	reconcilers func() []reconcile.Status
	counters    func() ([]maps.MetricRow, error)
	memory      func() ([]maps.MapRow, error)
	fill        func() []maps.MapRow // of the last look: counting is not a scrape's work
	rangeLasts  func(ipam.RangeStatus) (time.Duration, bool)
	programs    func() ([]datapath.ProgramRun, error)
	charged     func() (charged, error)
	peers       func() []health.PeerResult
	proven      func() bool
	connected   func() bool
	translated  func() int
	services    func() (serviceReading, bool)
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
		{"weft_ipam_addresses", "Addresses of a range of this node, by state.", []string{"range", "pool", "state"}},
		{"weft_ipam_capacity_addresses", "Addresses of a range of this node that pods can get.", []string{"range", "pool"}},
		{"weft_ipam_exhaustion_seconds", "How long the free addresses of a range of this node last at the growth of the last half hour; absent while it does not grow.", []string{"range", "pool"}},
		{"weft_reconciler_objects", "Rows that a reconciler answers for.", []string{"reconciler"}},
		{"weft_reconciler_failing_objects", "Rows whose last attempt failed.", []string{"reconciler"}},
		{"weft_reconciler_operations_total", "Calls of a reconciler that went well.", []string{"reconciler", "operation"}},
		{"weft_reconciler_errors_total", "Calls of a reconciler that failed.", []string{"reconciler"}},
		{"weft_reconciler_retries_total", "Calls of a reconciler for what had failed before.", []string{"reconciler"}},
		{"weft_reconciler_pruned_timestamp_seconds", "When a reconciler last compared all of its target with all that is wanted, and that went well.", []string{"reconciler"}},
		{"weft_datapath_packets_total", "Packets that the datapath decided on.", []string{"hook", "class", "reason"}},
		{"weft_datapath_bytes_total", "Bytes of those packets, from the network header on.", []string{"hook", "class", "reason"}},
		{"weft_map_memory_bytes", "Kernel memory of a BPF map.", []string{"map"}},
		{"weft_map_capacity", "Entries that a BPF map can hold; of the ring buffer, bytes.", []string{"map"}},
		{"weft_map_entries", "Entries of a BPF map, as counted last.", []string{"map", "when_full"}},
		{"weft_map_pressure", "How full a BPF map is, from 0 to 1: there it refuses new entries, or evicts those not used for longest.", []string{"map", "when_full"}},
		{"weft_map_exhaustion_seconds", "Time until the pressure of a BPF map is 1 at the growth of the last half hour; absent while it does not grow.", []string{"map", "when_full"}},
		{"weft_program_runs_total", "Runs of a BPF program since it was loaded, while the sysctl kernel.bpf_stats_enabled was on; absent before.", []string{"program"}},
		{"weft_program_run_seconds_total", "Time of those runs.", []string{"program"}},
		{"weft_agent_memory_bytes", "Memory that the kernel charges to the agent's container: the agent's own and that of the BPF maps.", nil},
		{"weft_agent_memory_limit_bytes", "Limit of that memory; absent where there is none.", nil},
		{"weft_peer_reachable", "1 if the last probe of a peer's health address was answered.", []string{"peer", "address"}},
		{"weft_peer_round_trip_seconds", "Round trip of the last probe that was answered.", []string{"peer", "address"}},
		{"weft_nat_entries", "Masqueraded flows, and ports that the host holds among theirs, as counted last.", nil},
		{"weft_services", "Services with frontends, where connections are balanced at the socket; absent where they are not.", nil},
		{"weft_service_frontends", "Frontends of Services: rows of the kernel's maps.", nil},
		{"weft_service_backends", "Backends that some Service names.", nil},
		{"weft_service_findings", "What could not be done for Services, by kind: what cannot be read (BadInput), what another Service has (Clash), what has no place (Overflow).", []string{"kind"}},
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
	if s, ok := c.r.services(); ok {
		gauge("weft_services", float64(s.Services))
		gauge("weft_service_frontends", float64(s.Frontends))
		gauge("weft_service_backends", float64(s.Backends))
		for kind, n := range s.Findings {
			gauge("weft_service_findings", float64(n), string(kind))
		}
	}
	for _, r := range c.r.ipam().Ranges {
		gauge("weft_ipam_addresses", float64(r.Used), r.Prefix.String(), r.Pool, "used")
		gauge("weft_ipam_addresses", float64(r.Quarantined), r.Prefix.String(), r.Pool, "quarantined")
		gauge("weft_ipam_capacity_addresses", float64(r.Total), r.Prefix.String(), r.Pool)
		if d, ok := c.r.rangeLasts(r); ok {
			gauge("weft_ipam_exhaustion_seconds", d.Seconds(), r.Prefix.String(), r.Pool)
		}
	}
	for _, s := range c.r.reconcilers() {
		gauge("weft_reconciler_objects", float64(s.Objects), s.Name)
		gauge("weft_reconciler_failing_objects", float64(s.Failing), s.Name)
		count("weft_reconciler_operations_total", s.Updates, s.Name, "update")
		count("weft_reconciler_operations_total", s.Deletes, s.Name, "delete")
		count("weft_reconciler_operations_total", s.Prunes, s.Name, "prune")
		count("weft_reconciler_errors_total", s.Errors, s.Name)
		count("weft_reconciler_retries_total", s.Retries, s.Name)
		if !s.PrunedAt.IsZero() {
			gauge("weft_reconciler_pruned_timestamp_seconds", float64(s.PrunedAt.UnixMilli())/1e3, s.Name)
		}
	}
	for _, p := range c.r.peers() {
		gauge("weft_peer_reachable", number(p.Error == ""), p.Name, p.Addr.String())
		if p.Error == "" {
			gauge("weft_peer_round_trip_seconds", p.RTT.Seconds(), p.Name, p.Addr.String())
		}
	}
	if m, err := c.r.charged(); err == nil {
		gauge("weft_agent_memory_bytes", float64(m.used))
		if m.limit > 0 {
			gauge("weft_agent_memory_limit_bytes", float64(m.limit))
		}
	}
	c.collectDatapath(ch, gauge, count)
}

// collectDatapath reads the kernel. A map that cannot be read is missing from the
// scrape; the Datapath component says why.
func (c *collector) collectDatapath(ch chan<- prometheus.Metric, gauge func(string, float64, ...string), count func(string, uint64, ...string)) {
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
	for _, r := range c.r.fill() {
		if r.Entries == nil {
			continue
		}
		gauge("weft_map_entries", float64(*r.Entries), r.Name, string(r.WhenFull))
		gauge("weft_map_pressure", *r.Pressure, r.Name, string(r.WhenFull))
		if r.FullIn != nil {
			gauge("weft_map_exhaustion_seconds", r.FullIn.Seconds(), r.Name, string(r.WhenFull))
		}
	}
	if runs, err := c.r.programs(); err == nil {
		for _, r := range runs {
			count("weft_program_runs_total", r.Runs, r.Program)
			ch <- prometheus.MustNewConstMetric(c.descs["weft_program_run_seconds_total"], prometheus.CounterValue, r.Time.Seconds(), r.Program)
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
