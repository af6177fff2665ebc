// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// toolPath is where the test's own program lies inside a node: its first
// argument is then a verb of the tool.
const toolPath = "/run/weft-fault/tool"

// TestMain runs the tests, or, inside a node, one verb of the tool.
func TestMain(m *testing.M) {
	if exe, err := os.Executable(); err == nil && exe == toolPath {
		if err := tool(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "tool:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inNode runs a verb of the tool inside a node and returns what it printed.
func inNode(t testing.TB, l *labtest.Lab, node string, args ...string) string {
	t.Helper()
	pushTool(t, l, node)
	return l.Exec(t, node, append([]string{toolPath}, args...)...)
}

func pushTool(t testing.TB, l *labtest.Lab, node string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l.Push(t, node, exe, toolPath)
	l.PushWeft(t, node)
}

// enoughTime fails a test that go test's own limit would end in its middle:
// then nothing would be put back.
func enoughTime(t *testing.T, need time.Duration) {
	t.Helper()
	if end, ok := t.Deadline(); ok && time.Until(end) < need {
		t.Fatalf("only %s are left, this may take %s: run go test with a longer -timeout", time.Until(end).Round(time.Second), need)
	}
}
