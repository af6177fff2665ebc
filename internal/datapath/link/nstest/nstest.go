// SPDX-License-Identifier: Apache-2.0

// Package nstest runs tests against the real kernel without touching the
// machine: the whole test binary runs in network and mount namespaces of its
// own, and pods' namespaces are made inside of those. When the process ends, all
// of it is gone, however it ends.
package nstest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const marker = "WEFT_NSTEST"

// Main is for TestMain: os.Exit(nstest.Main(m.Run)). Without root it runs the
// tests where they are; those that call Require then skip themselves.
func Main(run func() int) int {
	if os.Geteuid() != 0 {
		return run()
	}
	if os.Getenv(marker) != "" {
		// The main thread must not be one that a test switches: it cannot end,
		// and what is read through /proc/self is what it sees.
		runtime.LockOSThread()
		err := mainThread()
		if err == nil {
			err = prepare()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "nstest:", err)
			return 1
		}
		return run()
	}
	runtime.LockOSThread() // Pdeathsig is about the thread that starts the child
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() > 0 {
			return cmd.ProcessState.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	return 0
}

// mainThread begins the process anew, in its namespaces, if the scheduler has
// moved the caller's goroutine away from the main thread already: a machine that
// is slow or busy has it do so before anything can be locked.
func mainThread() error {
	if unix.Gettid() == os.Getpid() {
		return nil
	}
	return fmt.Errorf("execute itself again: %w", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// Require skips the test where the process is not in namespaces of its own.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv(marker) == "" {
		t.Skip("needs root, to make network namespaces")
	}
}

// Netns makes a network namespace, as a container runtime does, and returns its
// path. It ends with the test.
func Netns(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { Unmount(t, path) })
	return path
}

// Unmount takes a mount away, and with a namespace's the namespace, if nothing
// else holds it. Nothing mounted is no error.
func Unmount(t testing.TB, path string) {
	t.Helper()
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		t.Errorf("unmount %s: %v", path, err)
	}
}

// Mount mounts a file system for the time of the test and returns where.
func Mount(t testing.TB, fstype, data string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(fstype, dir, fstype, 0, data); err != nil {
		t.Fatalf("mount %s: %v", fstype, err)
	}
	t.Cleanup(func() { Unmount(t, dir) })
	return dir
}

// Inside runs f on a thread in the namespace, and ends the thread with it.
// Sockets that f makes stay in the namespace.
func Inside(t testing.TB, path string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		ended := errors.New("the test was ended there") // by t.Fatal, which ends the goroutine
		err := ended
		defer func() { done <- err }()
		runtime.LockOSThread()
		var fd int
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			err = ended
			err = f()
		}
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %s: %v", path, err)
	}
}

// Bridge makes a bridge that is up and has the addresses, as a device that the
// node's own addresses are on. It ends with the test.
func Bridge(t testing.TB, name string, prefixes ...string) {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = name
	br := &netlink.Bridge{LinkAttrs: la}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatalf("bridge %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(br); err != nil {
			t.Logf("bridge %s: %v", name, err)
		}
	})
	if err := netlink.LinkSetUp(br); err != nil {
		t.Fatalf("bridge %s: %v", name, err)
	}
	sub, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	if err := sub.SetReceiveTimeout(&unix.Timeval{Sec: 2}); err != nil {
		t.Fatal(err)
	}
	for _, p := range prefixes {
		ip, n, err := net.ParseCIDR(p)
		if err != nil {
			t.Fatal(err)
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: n.Mask}}
		if ip.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(br, addr); err != nil {
			t.Fatalf("bridge %s: address %s: %v", name, p, err)
		}
		// A worker of the kernel makes IPv6 addresses local, and tells.
		for {
			if rs, err := netlink.RouteGet(ip); err == nil && rs[0].Type == unix.RTN_LOCAL {
				break
			}
			if _, _, err := sub.Receive(); err != nil {
				t.Fatalf("bridge %s: address %s does not become local: %v", name, p, err)
			}
		}
	}
}
