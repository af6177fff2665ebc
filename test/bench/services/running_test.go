// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func reading(t *testing.T, h prometheus.Histogram) *dto.Histogram {
	t.Helper()
	var m dto.Metric
	if err := h.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetHistogram()
}

// Guards against a quantile in which what was noted before the first reading
// counts, and against one that is made up where all is slower than the last bucket.
func TestQuantileBetweenReadings(t *testing.T) {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "h", Buckets: []float64{.001, .002, .005}})
	for range 1000 {
		h.Observe(.0045) // the start of the agent
	}
	before := reading(t, h)
	for range 98 {
		h.Observe(.0005)
	}
	h.Observe(.0015)
	h.Observe(.0015)
	after := reading(t, h)
	for q, want := range map[float64]float64{0.49: 0.5, 0.99: 1.5} {
		if got, err := between(before, after, q); err != nil || math.Abs(got-want) > 1e-9 {
			t.Errorf("quantile %v is %v ms, %v, want %v", q, got, err, want)
		}
	}
	for range 100 {
		h.Observe(1)
	}
	if got, err := between(after, reading(t, h), 0.99); err == nil {
		t.Errorf("quantile of what is beyond all buckets is %v, want an error", got)
	}
}

// Guards against a key that is none of the kernel's, whose row would never change.
func TestRowKey(t *testing.T) {
	want := []byte{10, 96, 0, 7, 0, 80, 6, 0}
	if got := rowKey(netip.MustParseAddrPort("10.96.0.7:80")); !slices.Equal(got, want) {
		t.Errorf("key %v, want %v", got, want)
	}
}

// Guards against more objects at once than etcd takes, and against
// Services that share a name or an address.
func TestFillersDiffer(t *testing.T) {
	seen := map[string]bool{}
	for i := range 10000 {
		puts, err := filler(i)
		if err != nil {
			t.Fatal(err)
		}
		if len(puts)*aTime > 128 {
			t.Fatalf("%d objects at once", len(puts)*aTime)
		}
		for _, p := range puts {
			if key := string(p.RequestPut.Key); seen[key] {
				t.Fatalf("%s twice", key)
			} else {
				seen[key] = true
			}
		}
	}
}
