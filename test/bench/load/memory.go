// SPDX-License-Identifier: Apache-2.0

//go:build linux

package load

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// settleFor is how long a process is left alone before its memory is read:
	// what its start or the work before left behind is collected by then.
	settleFor   = 8 * time.Second
	rssReadings = 10
)

// RSS returns the resident memory of a process in MiB, files mapped included:
// the median of some readings, once the process was left alone for a while.
func RSS(pid int) (float64, error) {
	timer := time.NewTimer(settleFor)
	<-timer.C
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var readings []float64
	for range rssReadings {
		<-tick.C
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		kib, err := field(string(b), "VmRSS:")
		if err != nil {
			return 0, err
		}
		readings = append(readings, float64(kib)/1024)
	}
	slices.Sort(readings)
	return readings[len(readings)/2], nil
}

func field(status, name string) (int, error) {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, name); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")))
		}
	}
	return 0, errors.New("no " + name)
}
