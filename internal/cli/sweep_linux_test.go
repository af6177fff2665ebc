// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSweepCgroup guards against a mount that an uninstall leaves behind, and
// against removing what others put beside it.
func TestSweepCgroup(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts in a namespace of its own")
	}
	dir := t.TempDir()
	ours := filepath.Join(dir, "cilium", "cgroupv2")
	if err := os.MkdirAll(ours, 0o755); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the mounts end with the thread
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("cgroup2", ours, "cgroup2", 0, ""); err != nil {
				return err
			}
			return removeCgroup(ours)
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cilium")); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
	if err := removeCgroup(ours); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "cilium", "other"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(ours, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeCgroup(ours); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cilium", "other")); err != nil {
		t.Errorf("another's directory: %v", err)
	}
	if err := removeRun(filepath.Join(dir, "cilium")); err == nil {
		t.Error("a run directory that is not empty went unheard")
	}
}
