// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"time"

	"github.com/weft-net/weft/internal/datapath/reason"
)

// ProgramRun is how often a program ran, and how long in all.
type ProgramRun struct {
	Program string
	Runs    uint64
	Time    time.Duration
}

// ProgramRuns returns the kernel's account of the programs since they were loaded,
// in the order of hooks, those of sockets last. The kernel keeps it only while the sysctl
// kernel.bpf_stats_enabled is on, as it costs two looks at the clock a packet;
// programs that did not run while it was on are left out.
func (d *Datapath) ProgramRuns() ([]ProgramRun, error) {
	var out []ProgramRun
	var names []string
	for _, h := range reason.Hooks() {
		names = append(names, h.String())
	}
	for _, h := range socketHooks() {
		names = append(names, h.program)
	}
	for _, name := range names {
		p := d.programs[name]
		if p == nil {
			continue
		}
		s, err := p.Stats()
		if err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
		if s.RunCount > 0 {
			out = append(out, ProgramRun{Program: name, Runs: s.RunCount, Time: s.Runtime})
		}
	}
	return out, nil
}
