// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"time"

	"golang.org/x/sys/unix"
)

// coarse returns the clock that ticks are counted by, in ns. It is read with the
// same grain as the programs read it, so that both see a tick end together.
func coarse() (int64, error) { return clock(unix.CLOCK_MONOTONIC_COARSE) }

func clock(id int32) (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0, err
	}
	return ts.Nano(), nil
}

// Boot returns the wall-clock time at which the clock of the programs read 0.
func Boot() (time.Time, error) {
	ns, err := clock(unix.CLOCK_MONOTONIC)
	if err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(-time.Duration(ns)), nil
}
