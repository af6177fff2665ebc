// SPDX-License-Identifier: Apache-2.0

// Package kerneltest says when a test may skip what its kernel lacks: on a
// kernel that is older than the feature. On a newer one the probe is wrong, or
// what it probes is, and the test fails. Only tests compare versions.
package kerneltest

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Need skips the test if a feature is missing (err is what its probe said), and
// fails it on a kernel that is not older than since, as in "6.6".
func Need(t testing.TB, feature, since string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	older, perr := Older(release, since)
	if perr != nil {
		t.Fatal(perr)
	}
	if !older {
		t.Fatalf("%s: %v, though Linux has it since %s and this is %s", feature, err, since, release)
	}
	t.Skipf("needs %s, Linux %s: %v", feature, since, err)
}

// Older compares a kernel's release, as uname has it, with a version.
func Older(release, since string) (bool, error) {
	var have, want [2]int
	if _, err := fmt.Sscanf(release, "%d.%d", &have[0], &have[1]); err != nil {
		return false, fmt.Errorf("release %q: %w", release, err)
	}
	if _, err := fmt.Sscanf(since, "%d.%d", &want[0], &want[1]); err != nil {
		return false, fmt.Errorf("version %q: %w", since, err)
	}
	return have[0] < want[0] || (have[0] == want[0] && have[1] < want[1]), nil
}
