// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/forecast"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/rpc"
)

// How often the fill of maps and ranges is looked at, and from what it is foretold.
const (
	fillEvery    = 30 * time.Second
	fillSoon     = 3 * time.Second // once after the start, which fills the maps
	fillShare    = 100             // counting takes at most 1/fillShare of the time
	growthSpan   = 30 * time.Minute
	growthLeast  = 5 * time.Minute
	worthTelling = 7 * 24 * time.Hour // in the status; the metric knows more
)

// From where on a map or range is called nearly full.
const (
	fillWarns    = 0.8
	fillCritical = 0.95
)

// counter counts the entries of the maps. maps.Counter is one.
type counter interface {
	Count() ([]maps.MapRow, error)
	Close()
}

// fillWatch knows how full maps and this node's ranges are, and when they will be.
type fillWatch struct {
	open   func() counter
	ranges func() []ipam.RangeStatus
	log    *slog.Logger

	mu      sync.Mutex
	counter counter // nil before run
	rows    []maps.MapRow
	err     error
	windows map[string]*forecast.Window // of maps by name, of ranges by prefix
}

func newFillWatch(open func() counter, ranges func() []ipam.RangeStatus, log *slog.Logger) *fillWatch {
	return &fillWatch{open: open, ranges: ranges, log: log, windows: map[string]*forecast.Window{}}
}

// run counts until ctx ends. On a kernel that does not keep count itself a large
// map takes a tenth of a second; the pause grows with it.
func (f *fillWatch) run(ctx context.Context) error {
	c := f.open()
	defer c.Close()
	f.mu.Lock()
	f.counter = c
	f.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause := fillSoon; ; pause = fillEvery {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		start := time.Now()
		if err := f.look(start); err != nil {
			f.log.Warn("entries of the maps cannot be counted", "error", err)
		}
		timer.Reset(max(pause, fillShare*time.Since(start)))
	}
}

// look takes one sample of everything.
func (f *fillWatch) look(now time.Time) error {
	rows, err := f.counter.Count()
	ranges := f.ranges()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rows, f.err = rows, err
	known := map[string]bool{}
	sample := func(key string, used uint64) {
		known[key] = true
		w := f.windows[key]
		if w == nil {
			w = &forecast.Window{Span: growthSpan, Shortest: growthLeast}
			f.windows[key] = w
		}
		w.Add(forecast.Sample{At: now, Used: float64(used)})
	}
	for _, r := range rows {
		if r.Entries != nil {
			sample(r.Name, uint64(*r.Entries))
		}
	}
	for _, r := range ranges {
		sample(r.Prefix.String(), r.Used+r.Quarantined)
	}
	for key := range f.windows {
		if !known[key] && err == nil {
			delete(f.windows, key) // a range that was given back
		}
	}
	for i := range f.rows {
		f.foretell(&f.rows[i])
	}
	return err
}

func (f *fillWatch) foretell(r *maps.MapRow) {
	if r.Entries == nil || f.windows[r.Name] == nil {
		return
	}
	if d, ok := f.windows[r.Name].Lasts(float64(r.Room() - *r.Entries)); ok {
		r.FullIn = &d
	}
}

// Maps returns what the last look saw; nil before the first.
func (f *fillWatch) Maps() []maps.MapRow {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rows
}

// Now counts anew, for somebody who asks; what is foretold is of the last look.
func (f *fillWatch) Now() ([]maps.MapRow, error) {
	f.mu.Lock()
	c := f.counter
	f.mu.Unlock()
	if c == nil {
		return nil, errors.New("bpf maps: not counted yet: try again")
	}
	rows, err := c.Count()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range rows {
		f.foretell(&rows[i])
	}
	return rows, err
}

// RangeLasts returns how long a range of this node lasts, if that can be told.
func (f *fillWatch) RangeLasts(r ipam.RangeStatus) (time.Duration, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.windows[r.Prefix.String()]
	if w == nil || r.Total < r.Used+r.Quarantined || r.Total == math.MaxUint64 {
		return 0, false
	}
	return w.Lasts(float64(r.Total - r.Used - r.Quarantined))
}

// rangeForecast is empty where nothing worth telling is known.
func (f *fillWatch) rangeForecast(r ipam.RangeStatus) string {
	if d, ok := f.RangeLasts(r); ok && d < worthTelling {
		return "; full in about " + about(d) + " at the growth of the last half hour"
	}
	return ""
}

// Component tells the fill of each map.
func (f *fillWatch) Component() rpc.Component {
	f.mu.Lock()
	rows, err := f.rows, f.err
	f.mu.Unlock()
	c := rpc.Component{Name: "BPF maps", State: rpc.StateOK}
	if err != nil {
		c.State, c.Message = rpc.StateWarning, "not counted: "+err.Error()
		return c
	}
	fullest := -1
	for i, r := range rows {
		if r.Pressure == nil {
			continue
		}
		c.Details = append(c.Details, mapLine(r))
		if fullest < 0 || *r.Pressure > *rows[fullest].Pressure {
			fullest = i
		}
	}
	if fullest < 0 {
		c.Message = "not counted yet"
		return c
	}
	c.Message = "the fullest is " + mapLine(rows[fullest])
	if *rows[fullest].Pressure >= fillWarns {
		c.State = rpc.StateWarning
		c.Message = mapLine(rows[fullest]) + ": " + mapRemedy(rows[fullest].Name)
	}
	return c
}

// mapLine is what a reader wants to know of a map.
func mapLine(r maps.MapRow) string {
	s := fmt.Sprintf("%s: %d of %d entries (%.1f %%)", r.Name, *r.Entries, r.Room(), 100**r.Pressure)
	switch {
	case *r.Pressure >= 1 && r.WhenFull == maps.Evicts:
		return s + ", evicts those not used for longest"
	case *r.Pressure >= 1:
		return s + ", refuses new ones"
	case r.FullIn != nil && *r.FullIn < worthTelling && r.WhenFull == maps.Evicts:
		return s + ", evicts in about " + about(*r.FullIn)
	case r.FullIn != nil && *r.FullIn < worthTelling:
		return s + ", full in about " + about(*r.FullIn)
	}
	return s
}

// mapRemedy says what to do about a map that is nearly full.
func mapRemedy(name string) string {
	switch {
	case maps.IsYoung(name):
		return "somebody opens connections that nobody answers; `weft bpf ct list` shows who"
	case strings.HasPrefix(name, "weft_ct"):
		return "`weft bpf ct list` shows who holds connections; spread those pods over more nodes"
	case strings.HasPrefix(name, "weft_frag"):
		return "somebody sends many fragments; lower the size of its datagrams"
	case name == object.DatapathMapWeftNatdev, strings.HasPrefix(name, "weft_natip"):
		return "the node has more devices or addresses than Weft masquerades with; name fewer in the setting devices"
	case strings.HasPrefix(name, "weft_nat"):
		return "`weft bpf nat list` shows who holds flows to the outside; spread those pods over more nodes"
	case strings.HasPrefix(name, "weft_nomasq"):
		return "name fewer, wider ranges in nonMasqueradeCIDRs"
	case strings.HasPrefix(name, "weft_lbct"):
		return "`weft bpf lb list --connections` shows who talks to services through this node; spread those clients over more nodes"
	case name == object.DatapathMapWeftAffinity, name == object.DatapathMapWeftSk:
		return "the node has many clients of services; enlarge bpf.lbMapMax, else the oldest are forgotten"
	case strings.HasPrefix(name, "weft_svc"), name == object.DatapathMapWeftBe:
		return "the cluster has nearly as many services or backends as a node takes; enlarge bpf.lbMapMax"
	case name == object.DatapathMapWeftMaglev:
		return "`weft bpf lb maglev list` shows whose tables there are; enlarge bpf.lbMapMax, or lower maglev.tableSize"
	case name == object.DatapathMapWeftEp, name == object.DatapathMapWeftDev:
		return "the node has nearly as many pods as Weft takes; `weft endpoint list` shows them"
	}
	return "the cluster has nearly as many addresses as a node can know; `weft bpf ipcache list` shows them"
}

// about rounds a time as one says it.
func about(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(math.Round(d.Hours()/24)))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(math.Round(d.Hours())))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(math.Round(d.Minutes())))
	}
	return "a minute"
}
