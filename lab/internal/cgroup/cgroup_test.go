// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// Guards against mounting a v1 hierarchy with options that name another one.
func TestV1OptionsAreThoseOfTheHierarchy(t *testing.T) {
	for super, want := range map[string]string{
		"rw,cpu,cpuacct":  "cpu,cpuacct",
		"rw,xattr,memory": "memory",
		"rw,name=systemd": "none,name=systemd",
		"rw,cpuset,clone_children,release_agent=/x": "cpuset",
	} {
		if got := v1Options(super); got != want {
			t.Errorf("%q: %q, want %q", super, got, want)
		}
	}
}

// Guards against groups or processes that outlive a lab: a tree with a process
// that ignores SIGTERM must end and vanish.
func TestMakeKillRemove(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes control groups")
	}
	list, err := Detect()
	if err != nil {
		t.Skipf("no cgroups to work with: %v", err)
	}
	at := slices.IndexFunc(list, func(h Hierarchy) bool { return h.V2 })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, h := range list {
		dir := h.Path("weft-lab-cgroup-test")
		t.Cleanup(func() { _ = Remove(context.WithoutCancel(ctx), dir) })
		if err := h.Make(dir, nil); err != nil {
			t.Fatal(err)
		}
		if err := h.Make(filepath.Join(dir, "host"), &Limits{MemoryBytes: 64 << 20, Pids: 100}); err != nil {
			t.Fatal(err)
		}
	}
	dir := list[at].Path("weft-lab-cgroup-test")
	cmd := exec.CommandContext(ctx, "sh", "-c", "trap '' TERM; exec sleep 60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, h := range list {
		procs := filepath.Join(h.Path("weft-lab-cgroup-test"), "host", "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := Kill(ctx, dir); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	for _, h := range list {
		d := h.Path("weft-lab-cgroup-test")
		if err := Remove(ctx, d); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left", d)
		}
	}
	if err := Kill(ctx, dir); err != nil {
		t.Errorf("kill of what is gone: %v", err)
	}
	if err := Remove(ctx, dir); err != nil {
		t.Errorf("remove of what is gone: %v", err)
	}
}
