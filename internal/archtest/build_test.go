// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// maxPlugin is what the CNI plugin may weigh, in bytes (DESIGN): it is read and
// executed for each pod.
const maxPlugin = 8 << 20

func needCommand(t *testing.T, pkg string) {
	t.Helper()
	if testing.Short() {
		t.Skip("compiles a program; not in -short")
	}
	if _, err := os.Stat(filepath.Join(root, pkg, "main.go")); err != nil {
		t.Skipf("%s is not there yet", pkg)
	}
}

func build(t *testing.T, env []string, args ...string) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), append([]string{"CGO_ENABLED=0"}, env...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %v: %v\n%s", args, err, out)
	}
}

// Fault: the CLI no longer compiles for a laptop that does not run Linux.
func TestCLIBuildsForDarwin(t *testing.T) {
	needCommand(t, "cmd/weft")
	build(t, []string{"GOOS=darwin", "GOARCH=arm64"}, "-o", os.DevNull, "./cmd/weft")
}

// Fault: an import makes the plugin heavy or dynamic.
func TestPluginIsSmallAndStatic(t *testing.T) {
	needCommand(t, "cmd/weft-cni")
	out := filepath.Join(t.TempDir(), "weft-cni")
	build(t, nil, "-trimpath", "-ldflags", "-s -w", "-o", out, "./cmd/weft-cni")
	fi, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() > maxPlugin {
		t.Errorf("weft-cni weighs %d bytes, more than %d", fi.Size(), maxPlugin)
	}
	t.Logf("weft-cni weighs %.1f MiB", float64(fi.Size())/(1<<20))
}

// Fault: a decision that nobody finds.
func TestDecisionsAreListed(t *testing.T) {
	index, err := os.ReadFile(filepath.Join(root, "docs/decisions/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(root, "docs/decisions/[0-9][0-9][0-9][0-9]-*.md"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no decisions found: %v", err)
	}
	seen := map[string]string{}
	for _, n := range names {
		n = filepath.Base(n)
		if !bytes.Contains(index, []byte("]("+n+")")) {
			t.Errorf("docs/decisions/README.md does not list %s", n)
		}
		if other, ok := seen[n[:4]]; ok {
			t.Errorf("%s and %s have the same number", n, other)
		}
		seen[n[:4]] = n
	}
}
