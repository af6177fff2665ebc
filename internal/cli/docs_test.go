// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the files that tests compare with")

// TestDocs guards against commands and flags that the documentation does not
// have, and against documented ones that do not exist.
func TestDocs(t *testing.T) {
	const file = "../../docs/cli.md"
	var b bytes.Buffer
	if err := WriteDocs(&b); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, b.Bytes()) {
		t.Errorf("docs/cli.md differs from the command tree; run `go test ./internal/cli -run TestDocs -update`")
	}
}
