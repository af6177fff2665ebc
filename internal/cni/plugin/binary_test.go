// SPDX-License-Identifier: Apache-2.0

package plugin_test

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const maxSize = 8 << 20

// The binary is copied to every node and executed for every pod: small, static,
// and without what makes such programs big.
func TestBinary(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles a program")
	}
	bin := filepath.Join(t.TempDir(), "weft-cni")
	const pkg = "github.com/weft-net/weft/cmd/weft-cni"
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	fi, err := os.Stat(bin)
	if err != nil || fi.Size() >= maxSize {
		t.Errorf("%d bytes, %v; the limit is %d", fi.Size(), err, maxSize)
	}
	f, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) != 0 {
		t.Errorf("not static: %v, %v", libs, err)
	}
	out, err := exec.Command("go", "list", "-deps", pkg).Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		for _, no := range []string{"net/http", "crypto/tls", "github.com/cilium/", "github.com/vishvananda/netlink", "k8s.io/", "google.golang.org/"} {
			if strings.HasPrefix(dep, no) {
				t.Errorf("imports %s", dep)
			}
		}
	}
	run := exec.Command(bin)
	run.Env = []string{"CNI_COMMAND=VERSION"}
	if out, err := run.Output(); err != nil || !strings.Contains(string(out), `"1.1.0"`) {
		t.Errorf("VERSION: %s, %v", out, err)
	}
}
