// SPDX-License-Identifier: Apache-2.0

package kerneltest_test

import (
	"testing"

	"github.com/weft-net/weft/internal/datapath/kerneltest"
)

// TestOlder guards against tests that skip on every kernel, by comparing
// versions as text.
func TestOlder(t *testing.T) {
	for _, tc := range []struct {
		release, since string
		want           bool
	}{
		{"6.1.0-50-amd64", "6.6", true},
		{"6.6.0", "6.6", false},
		{"6.12.95+deb12-amd64", "6.6", false},
		{"5.10.0", "6.6", true},
		{"7.0-rc1", "6.6", false},
	} {
		if got, err := kerneltest.Older(tc.release, tc.since); err != nil || got != tc.want {
			t.Errorf("%s older than %s: %v %v", tc.release, tc.since, got, err)
		}
	}
	if _, err := kerneltest.Older("Debian", "6.6"); err == nil {
		t.Error("a release without numbers was compared")
	}
}
