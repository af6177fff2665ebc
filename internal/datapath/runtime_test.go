// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// Guards against run times of one program under another's name, and against
// zeros where nothing was measured.
func TestProgramRuns(t *testing.T) {
	d := open(t, datapath.Options{IPv4: true, IPv6: true})
	run := func(h reason.Hook, times int) {
		t.Helper()
		for range times {
			if _, err := d.Program(h).Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	before, err := d.ProgramRuns()
	if err != nil || len(before) != 0 {
		t.Errorf("programs that never ran: %+v, %v", before, err)
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	run(reason.FromPod, 3)
	run(reason.ToNet, 5)
	got, err := d.ProgramRuns()
	if err != nil {
		t.Fatal(err)
	}
	runs := map[string]uint64{}
	for _, r := range got {
		runs[r.Program] = r.Runs
		if r.Time <= 0 {
			t.Errorf("%s ran %d times in no time", r.Program, r.Runs)
		}
	}
	if len(runs) != 2 || runs["from_pod"] != 3 || runs["to_net"] != 5 {
		t.Errorf("runs %v", runs)
	}
}

// Guards against a look at the maps that works for their owner alone: without an
// agent they are opened for reading, and are counted all the same.
func TestFillOfPinnedMaps(t *testing.T) {
	root := newRoot(t)
	d := open(t, datapath.Options{IPv4: true, IPv6: true, Root: root})
	if err := d.Maps().IPCache.Upsert(maps.IPCacheRow{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Identity: 5, Kind: 4}); err != nil {
		t.Fatal(err)
	}
	s, err := datapath.OpenMaps(root)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	rows, err := s.Fill()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		switch {
		case r.Name == "weft_ipc4" && (r.Entries == nil || *r.Entries != 1):
			t.Errorf("one entry: %v", r.TableRow())
		case r.Name == "weft_ct4" && (r.Entries == nil || *r.Entries != 0):
			t.Errorf("no entry: %v", r.TableRow())
		case r.Name == "weft_nat4" && r.Entries != nil:
			t.Errorf("masquerade is off: %v", r.TableRow())
		}
	}
	own := d.Maps().NewCounter()
	defer own.Close()
	c := s.NewCounter()
	defer c.Close()
	if err := c.ByKernel(); err != nil && own.ByKernel() == nil {
		t.Errorf("maps opened for reading are not counted by the kernel: %v", err)
	}
}
