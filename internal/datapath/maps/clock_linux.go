// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic returns the clock that the programs read, in ns.
func monotonic() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, err
	}
	return ts.Nano(), nil
}

// Boot returns the wall-clock time at which the clock of the programs read 0.
func Boot() (time.Time, error) {
	ns, err := monotonic()
	if err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(-time.Duration(ns)), nil
}
