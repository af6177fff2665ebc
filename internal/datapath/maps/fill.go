// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"sort"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
)

// WhenFull says what a map does with one entry more than it has room for.
type WhenFull string

// What full maps do. A fixed table is neither: its length is its content.
const (
	Refuses WhenFull = "refuses" // the new entry
	Evicts  WhenFull = "evicts"  // entries that were not used for longest (LRU)
)

// MapRow tells what one map holds and costs.
type MapRow struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Capacity int    `json:"capacity"` // entries; of the ring buffer: bytes
	Bytes    uint64 `json:"bytes"`    // kernel memory

	// Of maps that fill: the others, and those that are off, have none of these.
	Entries  *int     `json:"entries,omitempty"`
	Pressure *float64 `json:"pressure,omitempty"` // 0 to 1; at 1 the map refuses or evicts
	WhenFull WhenFull `json:"whenFull,omitempty"`
	// FullIn is how long until then at the growth of late, of what the agent tells;
	// nil: it does not grow, or not long enough to say.
	FullIn *time.Duration `json:"fullIn,omitempty"`
}

// TableHeader names the columns of TableRow.
func (MapRow) TableHeader() []string {
	return []string{"NAME", "TYPE", "ENTRIES", "CAPACITY", "PRESSURE", "WHEN-FULL", "FULL-IN", "BYTES"}
}

// TableRow renders the row under TableHeader.
func (r MapRow) TableRow() []string {
	entries, pressure, in := "", "", ""
	if r.Entries != nil {
		entries = strconv.Itoa(*r.Entries)
	}
	if r.Pressure != nil {
		pressure = strconv.FormatFloat(*r.Pressure, 'f', 3, 64)
	}
	if r.FullIn != nil {
		in = r.FullIn.Round(time.Minute).String()
	}
	return []string{r.Name, r.Type, entries, strconv.Itoa(r.Capacity), pressure, string(r.WhenFull), in, strconv.FormatUint(r.Bytes, 10)}
}

// Room returns how many entries a map that fills takes before it refuses or
// evicts. Free entries of an LRU map wait in batches at each CPU, up to 128 of
// them (LOCAL_FREE_TARGET of kernel/bpf/bpf_lru_list.c), where other CPUs do not
// find them: on a node of many CPUs a small map evicts long before it is full.
func (r MapRow) Room() int {
	if r.WhenFull != Evicts {
		return r.Capacity
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		cpus = 1
	}
	return r.Capacity - min(r.Capacity/2, 128*cpus)
}

// filled adds what a map holds.
func (r MapRow) filled(entries int, when WhenFull) MapRow {
	r.Entries, r.WhenFull = &entries, when
	p := min(1, float64(entries)/float64(r.Room()))
	r.Pressure = &p
	return r
}

// Memory tells the kernel memory of each map, in alphabetical order. What the
// maps hold takes a Counter.
func (s *Set) Memory() ([]MapRow, error) {
	rows := make([]MapRow, 0, len(s.raw))
	for name, m := range s.raw {
		info, err := m.Info()
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
		bytes, _ := info.Memlock()
		rows = append(rows, MapRow{Name: name, Type: m.Type().String(), Capacity: int(m.MaxEntries()), Bytes: bytes})
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].Name < rows[j].Name })
	return rows, nil
}

// Fill is Memory with what the maps hold, counted once: for a look at them
// without an agent.
func (s *Set) Fill() ([]MapRow, error) {
	c := s.NewCounter()
	defer c.Close()
	return c.Count()
}
