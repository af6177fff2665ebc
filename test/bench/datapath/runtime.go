// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// spent is what a program has cost so far, on both nodes together.
type spent struct {
	time time.Duration
	runs uint64
}

func spentBy(programs []*ebpf.Program) (s spent, err error) {
	for _, p := range programs {
		st, err := p.Stats()
		if err != nil {
			return spent{}, err
		}
		s.time += st.Runtime
		s.runs += st.RunCount
	}
	return s, nil
}

// runTimes returns the mean run time of each of the variant's programs under a
// load, in nanoseconds a packet. While the kernel keeps these times each run costs
// more, so nothing else is measured meanwhile.
func runTimes(v *variant, load func() error) (out map[string]float64, err error) {
	if v.account != nil {
		detach, e := v.account()
		if e != nil {
			return nil, e
		}
		defer func() { err = errors.Join(err, detach()) }()
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, fmt.Errorf("run time of programs: %w", err)
	}
	defer stats.Close()
	before := map[string]spent{}
	for name, ps := range v.programs {
		if before[name], err = spentBy(ps); err != nil {
			return nil, err
		}
	}
	if err := load(); err != nil {
		return nil, err
	}
	out = map[string]float64{}
	for name, ps := range v.programs {
		after, err := spentBy(ps)
		if err != nil {
			return nil, err
		}
		runs := after.runs - before[name].runs
		if runs == 0 {
			return nil, errors.New("program " + name + " did not run")
		}
		out[name] = float64(after.time-before[name].time) / float64(runs)
	}
	return out, nil
}
