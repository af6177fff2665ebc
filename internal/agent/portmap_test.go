// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A portmap from before CNI 1.1 answers STATUS with an error, which containerd
// takes for a node without a network: its versions must be known.
func TestPortMapVersions(t *testing.T) {
	old := []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0"}
	for _, tc := range []struct {
		name, script string
		want         []string
	}{
		{"told", `[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0","1.1.0"]}'`, []string{"1.0.0", "1.1.0"}},
		{"fails", "exit 1", old},
		{"answers rubbish", "echo hello", old},
		{"hangs", "exec /bin/sleep 20", old},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "portmap")
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"+tc.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			if got := portMapVersions(path, slog.New(slog.DiscardHandler)); !slices.Equal(got, tc.want) {
				t.Errorf("versions %q, want %q", got, tc.want)
			}
		})
	}
	if got := portMapVersions(filepath.Join(t.TempDir(), "none"), slog.New(slog.DiscardHandler)); got != nil {
		t.Errorf("versions %q of a plugin that is not there", got)
	}
}
