// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// What an installation leaves on a node outside of what uninstall-node may
// reach from within its pod, as the node's init sees it.
const (
	initMounts = "/proc/1/ns/mnt"
	nodeRun    = "/run/weft"
	nodeCgroup = "/run/cilium/cgroupv2" // the chart's default, made for Weft alone
)

// sweepNode removes, in the mount namespace of the node's init, the agent's
// empty run directory and the mount of cgroup2 that its init container made.
// A cgroup root elsewhere is the node's own and stays.
func sweepNode() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		done <- sweepIn(initMounts)
	}()
	return <-done
}

func sweepIn(mounts string) error {
	ns, err := os.Open(mounts)
	if err != nil {
		return fmt.Errorf("node's mounts: %w", err)
	}
	defer ns.Close()
	// A thread that shares root and working directory with others may not change
	// its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("node's mounts: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("node's mounts: %w", err)
	}
	return errors.Join(removeRun(nodeRun), removeCgroup(nodeCgroup))
}

func removeRun(dir string) error {
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("run directory: remove %s: %w", dir, err)
	}
	return nil
}

func removeCgroup(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("cgroup2 mount %s: %w", dir, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("cgroup2 mount %s: %w", dir, err)
		}
	}
	if err := unix.Rmdir(dir); err != nil {
		return fmt.Errorf("cgroup2 mount %s: remove: %w", dir, err)
	}
	// The directory above may hold what others put there.
	if err := unix.Rmdir(filepath.Dir(dir)); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("cgroup2 mount %s: remove its parent: %w", dir, err)
	}
	return nil
}
