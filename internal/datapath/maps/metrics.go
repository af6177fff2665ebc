// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"strconv"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// codesPerHook is CODES_PER_HOOK of bpf/lib/reasons.h.
const codesPerHook = 256

// MetricRow is one counter, summed over all CPUs.
type MetricRow struct {
	Hook    string       `json:"hook"`
	Class   reason.Class `json:"class"`  // verdict, note or drop
	Reason  string       `json:"reason"` // name of the verdict, note or drop reason
	Packets uint64       `json:"packets"`
	Bytes   uint64       `json:"bytes"` // from the network header on
}

// TableHeader names the columns of TableRow.
func (MetricRow) TableHeader() []string {
	return []string{"HOOK", "CLASS", "REASON", "PACKETS", "BYTES"}
}

// TableRow renders the row under TableHeader.
func (r MetricRow) TableRow() []string {
	return []string{r.Hook, string(r.Class), r.Reason, strconv.FormatUint(r.Packets, 10), strconv.FormatUint(r.Bytes, 10)}
}

// MetricsMap is weft_metrics.
type MetricsMap struct{ m *ebpf.Map }

// List returns the counters that are not zero, by hook and code. They start at
// zero when the map is made and survive restarts of the agent.
func (m *MetricsMap) List() ([]MetricRow, error) {
	rows := []MetricRow{}
	var perCPU []object.DatapathWeftMetric
	for _, h := range reason.Hooks() {
		for _, i := range reason.All() {
			if err := m.m.Lookup(uint32(h)*codesPerHook+uint32(i.Code), &perCPU); err != nil {
				return nil, fmt.Errorf("map weft_metrics: %s %s: %w", h, i.Name, err)
			}
			r := MetricRow{Hook: h.String(), Class: i.Code.Class(), Reason: i.Name}
			for _, c := range perCPU {
				r.Packets += c.Packets
				r.Bytes += c.Bytes
			}
			if r.Packets != 0 {
				rows = append(rows, r)
			}
		}
	}
	return rows, nil
}

// Total returns how many packets a code was counted for, at all hooks together.
func (m *MetricsMap) Total(code reason.Code) (n uint64, err error) {
	var perCPU []object.DatapathWeftMetric
	for _, h := range reason.Hooks() {
		if err := m.m.Lookup(uint32(h)*codesPerHook+uint32(code), &perCPU); err != nil {
			return 0, fmt.Errorf("map weft_metrics: %s: %w", h, err)
		}
		for _, c := range perCPU {
			n += c.Packets
		}
	}
	return n, nil
}
