// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weft-net/weft/internal/ipam/pool"
)

// stats are the operator's metrics. Gauges hold what the last round saw; an
// operator that does not lead shows none of a pool.
type stats struct {
	registry  *prometheus.Registry
	blocks    *prometheus.GaugeVec
	exhausted *prometheus.GaugeVec
	refused   *prometheus.GaugeVec
	findings  prometheus.Gauge
	ledger    prometheus.Gauge
	conflicts prometheus.Counter
	writes    prometheus.Counter
	rounds    *prometheus.HistogramVec
	removed   prometheus.Counter
}

func newStats(version string, leads, valid func() bool) (*stats, error) {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	s := &stats{
		registry:  prometheus.NewRegistry(),
		blocks:    gauge("weft_operator_ipam_blocks", "Blocks of a pool by what they are used for; held, quarantined, blocked and free add up to the pool.", "pool", "family", "state"),
		exhausted: gauge("weft_operator_ipam_exhaustion_seconds", "How long the free blocks of a pool last at the growth of the last days; absent while it does not grow.", "pool", "family"),
		refused:   gauge("weft_operator_ipam_refused_nodes", "Nodes that wait for a range and get none, by reason.", "pool", "family", "reason"),
		findings:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_operator_ipam_findings", Help: "Overlaps and other oddities of the pool that stand; the log and events name them."}),
		ledger:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_operator_ipam_ledger_size_bytes", Help: "Size of the ledger as it was last written."}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_operator_ipam_ledger_conflicts_total", Help: "Writes of the ledger that another operator overtook."}),
		writes:    prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_operator_ipam_ledger_writes_total", Help: "Writes of the ledger."}),
		rounds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "weft_operator_round_duration_seconds", Help: "Time that a look at all nodes took.", Buckets: []float64{.01, .05, .2, 1, 5, 20},
		}, []string{"outcome"}),
		removed: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_operator_removed_ciliumnodes_total", Help: "CiliumNodes removed because their Node was gone."}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "weft_operator_build_info", Help: "Always 1; the version stands in the label.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	yes := func(name, help string, f func() bool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(one(f())) })
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		s.blocks, s.exhausted, s.refused, s.findings, s.ledger, s.conflicts, s.writes, s.rounds, s.removed, info,
		yes("weft_operator_leading", "1 if this operator leads.", leads),
		yes("weft_operator_settings_valid", "1 if the settings on disk are in force.", valid),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		errs = append(errs, s.registry.Register(c))
	}
	return s, errors.Join(errs...)
}

// planned shows what a plan came to.
func (s *stats) planned(in pool.Inputs, l pool.Ledger, results []pool.Result) {
	name := in.Pool.Name
	v4, v6 := pool.Forecast(l, in)
	for family, u := range map[string]pool.Usage{"ipv4": v4, "ipv6": v6} {
		for state, n := range map[string]uint64{
			"held": u.Held, "quarantined": u.Quarantined, "blocked": u.Blocked, "free": u.Free,
		} {
			if u.Total == 0 && u.Outside == 0 {
				s.blocks.DeleteLabelValues(name, family, state)
				continue
			}
			s.blocks.WithLabelValues(name, family, state).Set(float64(n))
		}
		if u.Exhausted > 0 {
			s.exhausted.WithLabelValues(name, family).Set(u.Exhausted.Seconds())
		} else {
			s.exhausted.DeleteLabelValues(name, family)
		}
	}
	s.refused.DeletePartialMatch(prometheus.Labels{"pool": name})
	for _, r := range results {
		for _, e := range r.Refused {
			s.refused.WithLabelValues(name, familyOf(e.V6), reason(e)).Inc()
		}
	}
}

func familyOf(v6 bool) string {
	if v6 {
		return "ipv6"
	}
	return "ipv4"
}

// reason is one word for why a range is refused.
func reason(e *pool.RefusedError) string {
	switch {
	case e.Usage.Total == 0 || e.Usage.Blocked == e.Usage.Total:
		return "overlap"
	case e.Usage.Quarantined > 0:
		return "quarantined"
	default:
		return "exhausted"
	}
}

func (s *stats) written(size int) {
	s.writes.Inc()
	s.ledger.Set(float64(size))
}

// forget takes back what only a leader knows.
func (s *stats) forget() {
	s.blocks.Reset()
	s.exhausted.Reset()
	s.refused.Reset()
	s.findings.Set(0)
}

func (s *stats) round(took time.Duration, err error) {
	outcome := "success"
	if err != nil {
		outcome = "error"
	}
	s.rounds.WithLabelValues(outcome).Observe(took.Seconds())
}
