// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Fault: a test that failed, hung or never ran is counted as passed.
func TestTally(t *testing.T) {
	for _, c := range []struct {
		name, records, last string
		fails               bool
	}{
		{"passed", `{"Action":"run","Package":"p","Test":"T"}
{"Action":"pass","Package":"p","Test":"T"}
{"Action":"pass","Package":"p"}`, "1 passed, 0 failed, 0 skipped", false},
		{"failed", `{"Action":"run","Package":"p","Test":"T"}
{"Action":"fail","Package":"p","Test":"T"}
{"Action":"fail","Package":"p"}
{"Action":"pass","Package":"q","Test":"T"}`, "1 passed, 2 failed, 0 skipped", true},
		{"ended in the middle", `{"Action":"run","Package":"p","Test":"T"}
{"Action":"pass","Package":"p","Test":"U"}`, "1 passed, 1 failed, 0 skipped", true},
		{"does not compile", `{"Action":"start","Package":"p"}
{"Action":"fail","Package":"p"}`, "0 passed, 1 failed, 0 skipped", true},
		{"only skipped", `{"Action":"skip","Package":"p","Test":"T"}`, "0 passed, 0 failed, 1 skipped", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "r.json")
			if err := os.WriteFile(file, []byte(c.records), 0o600); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			err := run(&out, []string{file})
			if (err != nil) != c.fails {
				t.Errorf("error %v", err)
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if lines[len(lines)-1] != c.last {
				t.Errorf("last line %q, want %q", lines[len(lines)-1], c.last)
			}
		})
	}
}
