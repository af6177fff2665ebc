// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package load is what the benchmarks load a path with, and how they count what
// that costs.
package load

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where the ends of a load run. Left to the scheduler, one connection's two ends
// share a core in one second and not in the next, which makes twice the difference
// of anything measured here.
const (
	ClientCPU = 0
	ServerCPU = 1
)

// Pin readies a thread of the load: real-time priority, so that what else runs on
// the machine waits, and not the load. A nice value would not do: a fair scheduler
// lets others finish their turn. Processes that the thread starts inherit both.
func Pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("run on core %d: %w", cpu, err)
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("real-time priority: %w", err)
	}
	return nil
}

// Processors reads the processor time that the load took: of this process, of
// those that it started for it, and of the kernel's threads that work off packets
// when there are too many. What the kernel does for a packet while it sends or
// receives, all programs and devices included, is part of the sender's or
// receiver's time. What others on the machine do is not in it.
type Processors struct{ pids []int }

// NewProcessors counts this process, the kernel's threads for packets and pids.
func NewProcessors(pids ...int) (Processors, error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return Processors{}, err
	}
	p := Processors{append(pids, os.Getpid())}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(comm), "ksoftirqd/") {
			continue // it may have ended meanwhile
		}
		pid, err := strconv.Atoi(strings.Split(name, "/")[2])
		if err != nil {
			return Processors{}, err
		}
		p.pids = append(p.pids, pid)
	}
	return p, nil
}

// Used returns the time used so far, in the scheduler's own nanoseconds.
func (p Processors) Used() (time.Duration, error) {
	var sum time.Duration
	for _, pid := range p.pids {
		var ts unix.Timespec
		// The clock of another process, CPUCLOCK_SCHED: clock_getcpuclockid(3).
		if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
			return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}
