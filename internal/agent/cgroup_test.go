// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"testing"
)

// Guards against an alarm about file pages that the kernel drops at once, and a
// limit that is not there. In a container of its own cgroup namespace the path is /.
func TestMemoryOf(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/cgroup", "12:cpuset:/\n0::/pods/agent\n")
	write("sys/pods/agent/memory.current", "100000\n")
	write("sys/pods/agent/memory.stat", "anon 1\nfile 5\ninactive_file 30000\nactive_file 7\n")
	write("sys/pods/agent/memory.max", "max\n")
	proc, root := filepath.Join(dir, "proc"), filepath.Join(dir, "sys")
	if got, err := memoryOf(proc, root); err != nil || got != (charged{used: 70000}) {
		t.Errorf("without a limit: %+v, %v", got, err)
	}
	write("sys/pods/agent/memory.max", "536870912\n")
	if got, err := memoryOf(proc, root); err != nil || got != (charged{used: 70000, limit: 512 << 20}) {
		t.Errorf("with a limit: %+v, %v", got, err)
	}
	write("proc/cgroup", "12:cpuset:/\n")
	if got, err := memoryOf(proc, root); err == nil {
		t.Errorf("without cgroup2: %+v", got)
	}
	write("proc/cgroup", "0::/\n") // the root has no account
	if got, err := memoryOf(proc, root); err == nil {
		t.Errorf("outside of any cgroup: %+v", got)
	}
}
