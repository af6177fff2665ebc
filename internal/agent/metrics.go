// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"github.com/cilium/statedb"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weft-net/weft/internal/arrival"
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
	latency    *prometheus.HistogramVec
	publish    prometheus.Histogram
}

// onTheWay are the buckets of what should take milliseconds, and minutes while
// something is wrong.
func onTheWay() []float64 {
	return []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .25, 1, 5, 30, 120}
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
	m.latency = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "weft_event_to_kernel_duration_seconds",
		Help: "Time from the arrival of an event of the API server until what follows from it is in the kernel, by desired table.", Buckets: onTheWay(),
	}, []string{"table"})
	m.publish = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "weft_endpoint_publish_duration_seconds",
		Help: "Time from the change of an endpoint until its CiliumEndpoint is at the API server.", Buckets: onTheWay(),
	})
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "weft_build_info", Help: "Always 1; the version stands in the label.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	for _, c := range []prometheus.Collector{
		m.operations, m.wait, m.swept, m.natSwept, m.events, m.startup, m.latency, m.publish, info,
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

// toKernel measures the loop of a desired table.
func (m *metrics) toKernel(table string, log *arrival.Log) reconcile.Latency {
	h := m.latency.WithLabelValues(table)
	return reconcile.Latency{Arrived: log.At, Taken: log.Forget, Observe: func(d time.Duration) { h.Observe(d.Seconds()) }}
}

// toServer measures the loop of what is written to the API server; it begins
// when the loop sees the change.
func (m *metrics) toServer() reconcile.Latency {
	return reconcile.Latency{
		Arrived: func(statedb.Revision) time.Time { return time.Now() },
		Observe: func(d time.Duration) { m.publish.Observe(d.Seconds()) },
	}
}
