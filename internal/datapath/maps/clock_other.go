// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package maps

import (
	"errors"
	"time"
)

func coarse() (int64, error) { return 0, errors.ErrUnsupported }

// Boot returns the wall-clock time at which the clock of the programs read 0.
func Boot() (time.Time, error) { return time.Time{}, errors.ErrUnsupported }
