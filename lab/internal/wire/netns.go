// SPDX-License-Identifier: Apache-2.0

// Package wire makes the lab's network: namespaces, bridges, links, addresses,
// routes, and the harm that is done to them. All devices live in the lab's own
// namespaces; the machine's namespace gets none.
package wire

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NetnsDir is where iproute2 looks for named namespaces.
const NetnsDir = "/run/netns"

// NetnsPath of a lab's host.
func NetnsPath(lab, host string) string { return filepath.Join(NetnsDir, lab+"-"+host) }

// shareNetnsDir makes NetnsDir a shared mount of its own, as the first `ip netns
// add` on a machine does. If that came after ours, it would mount the folder
// over itself and bury our namespaces: names that nobody can remove any more.
func shareNetnsDir() error {
	if err := os.MkdirAll(NetnsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", NetnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := unix.Mount(NetnsDir, NetnsDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", NetnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
}

// CreateNetns makes a named network namespace, as `ip netns add` does. It
// refuses to take over one that exists.
func CreateNetns(path string) error {
	if err := shareNetnsDir(); err != nil {
		return fmt.Errorf("network namespaces: share %s: %w", NetnsDir, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("network namespace %s exists and is not this lab's; choose another --name", filepath.Base(path))
	}
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	f.Close()
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace %s: unshare: %w", path, err)
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("network namespace %s: bind: %w", path, err)
		}
		return nil
	})
}

// DeleteNetns removes the name. The namespace itself ends with its last process.
func DeleteNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("network namespace %s: unmount: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network namespace: %w", err)
	}
	return nil
}

// onOwnThread runs fn on a thread that ends afterwards, so that no other
// goroutine ever runs in a namespace that fn entered.
func onOwnThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- fn()
	}()
	return <-result
}

// In runs fn on a thread inside a network namespace: sockets and processes
// that it makes belong to it, and /proc/sys/net shows its settings.
func In(path string, fn func() error) error {
	return onOwnThread(func() error {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace %s: %w", path, err)
		}
		return fn()
	})
}

// handle opens netlink in a namespace.
func handle(path string) (*netlink.Handle, netns.NsHandle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, ns, fmt.Errorf("network namespace %s: %w", path, err)
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		ns.Close()
		return nil, ns, fmt.Errorf("network namespace %s: netlink: %w", path, err)
	}
	return h, ns, nil
}

// Sysctls writes settings below /proc/sys of a namespace. A setting that the
// kernel does not have is skipped.
func Sysctls(path string, values map[string]string) error {
	return In(path, func() error {
		for name, v := range values {
			err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(v), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("sysctl %s in %s: %w", name, filepath.Base(path), err)
			}
		}
		return nil
	})
}
