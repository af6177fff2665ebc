// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/rpc"
)

// fakeCounter returns rows that a test chose.
type fakeCounter struct {
	rows   func() []maps.MapRow
	err    error
	took   time.Duration
	counts int
	closed bool
}

func (c *fakeCounter) Count() ([]maps.MapRow, error) {
	c.counts++
	time.Sleep(c.took) // of the test's own clock
	if c.err != nil {
		return nil, c.err
	}
	return c.rows(), nil
}

func (c *fakeCounter) Close() { c.closed = true }

func mapRow(name string, entries, capacity int, when maps.WhenFull) maps.MapRow {
	p := float64(entries) / float64(capacity)
	return maps.MapRow{Name: name, Capacity: capacity, Entries: &entries, Pressure: &p, WhenFull: when}
}

func watchOf(c *fakeCounter, ranges ...ipam.RangeStatus) *fillWatch {
	f := newFillWatch(func() counter { return c }, func() []ipam.RangeStatus { return ranges }, slog.New(slog.DiscardHandler))
	f.counter = c
	return f
}

// Guards against a map that runs full and nobody is told: when, what happens then,
// and what to do, before it happens.
func TestFillIsTold(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	entries := 0
	c := &fakeCounter{rows: func() []maps.MapRow {
		return []maps.MapRow{
			{Name: "weft_cfg", Capacity: 1}, mapRow("weft_ct4", entries/10, 1000, maps.Evicts), mapRow("weft_ipc4", entries, 1000, maps.Refuses),
		}
	}}
	f := watchOf(c)
	if got := f.Component(); got.State != rpc.StateOK || got.Message != "not counted yet" {
		t.Errorf("before the first look: %+v", got)
	}
	for i := range 60 {
		entries = 14 * i
		if err := f.look(start.Add(time.Duration(i) * time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	got := f.Component()
	want := "weft_ipc4: 826 of 1000 entries (82.6 %), full in about 12 minutes: the cluster has nearly as many addresses"
	if got.State != rpc.StateWarning || !strings.HasPrefix(got.Message, want) {
		t.Errorf("%s: %s; want it to begin with %s", got.State, got.Message, want)
	}
	if len(got.Details) != 2 || !strings.HasPrefix(got.Details[0], "weft_ct4: 82 of ") || !strings.Contains(got.Details[0], ", evicts in about ") {
		t.Errorf("details %q", got.Details)
	}
	if rows := f.Maps(); rows[2].FullIn == nil || (*rows[2].FullIn-174*time.Minute/14).Abs() > time.Second || rows[0].FullIn != nil {
		t.Errorf("rows %+v", rows)
	}
	entries = 1000
	rows, err := f.Now()
	if err != nil || *rows[2].Entries != 1000 || *f.Maps()[2].Entries != 826 {
		t.Errorf("who asks is told what is there now: %+v, %v", rows, err)
	}
	if err := f.look(start.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := f.Component(); !strings.Contains(got.Message, "(100.0 %), refuses new ones: ") {
		t.Errorf("full: %s", got.Message)
	}
	c.err = errors.New("no")
	if err := f.look(start.Add(time.Hour + time.Minute)); err == nil {
		t.Error("a count that failed is no error")
	}
	if got := f.Component(); got.State != rpc.StateWarning || got.Message != "not counted: no" || f.Maps() != nil {
		t.Errorf("a count that failed: %+v, and old rows are shown: %v", got, f.Maps())
	}
}

// Guards against a map without a remedy, and one for another map.
func TestEachMapHasARemedy(t *testing.T) {
	for name, want := range map[string]string{
		"weft_ct6": "bpf ct list", "weft_ctn4": "nobody answers", "weft_nat4": "bpf nat list", "weft_natn6": "nobody answers",
		"weft_natip": "devices", "weft_natdev": "devices", "weft_frag4": "fragments", "weft_nomasq6": "nonMasqueradeCIDRs",
		"weft_ep": "endpoint list", "weft_dev": "endpoint list", "weft_ipc6": "ipcache list", "weft_net4": "ipcache list", "weft_maglev": "maglev.tableSize",
	} {
		if got := mapRemedy(name); !strings.Contains(got, want) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// Guards against a range of the node that runs full without a word, and a range
// that was given back and is still foretold when it comes again.
func TestRangeForecast(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	f := watchOf(&fakeCounter{rows: func() []maps.MapRow { return nil }})
	r := ipam.RangeStatus{Prefix: cidr("10.244.1.0/24"), Total: 253}
	ranges := []ipam.RangeStatus{r}
	f.ranges = func() []ipam.RangeStatus { return ranges }
	for i := range 21 {
		ranges[0].Used, ranges[0].Quarantined = uint64(9*i), uint64(i)
		if err := f.look(start.Add(time.Duration(i) * time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if d, ok := f.RangeLasts(ranges[0]); !ok || (d-318*time.Second).Abs() > time.Second {
		t.Errorf("53 free, 10 a minute: %s, %t", d, ok)
	}
	if got := f.rangeForecast(ranges[0]); got != "; full in about 5 minutes at the growth of the last half hour" {
		t.Errorf("told as %q", got)
	}
	back := ranges[0]
	ranges = nil
	if err := f.look(start.Add(21 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if d, ok := f.RangeLasts(back); ok {
		t.Errorf("a range that was given back lasts %s", d)
	}
}

// Guards against counting that takes the node's time: on a kernel that does not
// keep count, a look of two seconds is followed by more than three minutes without.
func TestCountingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for took, most := range map[time.Duration]int{0: 121, 2 * time.Second: 18} {
			c := &fakeCounter{took: took, rows: func() []maps.MapRow { return nil }}
			f := watchOf(c)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); _ = f.run(ctx) }()
			time.Sleep(time.Hour) // of the test's own clock
			synctest.Wait()
			cancel()
			<-done
			if c.counts > most || c.counts < most-2 || !c.closed {
				t.Errorf("looks of %s: %d in an hour, want about %d; closed %t", took, c.counts, most, c.closed)
			}
		}
	})
}

// Guards against times that nobody can read at a glance.
func TestAbout(t *testing.T) {
	for d, want := range map[time.Duration]string{
		10 * time.Second: "a minute", 150 * time.Second: "3 minutes", 119 * time.Minute: "119 minutes",
		26 * time.Hour: "26 hours", 60 * time.Hour: "3 days",
	} {
		if got := about(d); got != want {
			t.Errorf("%s is told as %s, want %s", d, got, want)
		}
	}
}
