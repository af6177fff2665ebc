// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package sandbox lets a benchmark play a node, or several, without touching the
// machine: it runs in namespaces of its own, and what it makes ends with it.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// BPFFS is where Mount puts a bpffs.
const BPFFS = "/sys/fs/bpf"

// Run runs this program again, with env set, in network and mount namespaces of
// its own, and in what other namespaces flags say (CLONE_NEW*). With CLONE_NEWPID
// the child is the first process of its namespace, and all it started ends with it.
func Run(env string, flags uintptr) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make namespaces and load programs")
	}
	runtime.LockOSThread() // Pdeathsig is about the thread that starts the child
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), env+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | flags, Pdeathsig: syscall.SIGKILL,
	}
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, os.Interrupt, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		<-sigs
		_ = cmd.Process.Kill()
	}()
	return cmd.Wait()
}

// Mount gives the namespaces what a node has: mounts that the root does not see,
// and nothing of the machine's in /run and in the bpffs.
func Mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	for _, m := range []struct{ kind, path string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"bpf", BPFFS}, {"tmpfs", "/run"},
	} {
		if err := unix.Mount(m.kind, m.path, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.path, err)
		}
	}
	// On some systems /var/run is a directory and not a link to /run.
	if p, err := filepath.EvalSymlinks("/var/run"); err != nil || p != "/run" {
		if err := unix.Mount("/run", "/var/run", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount /var/run: %w", err)
		}
	}
	return nil
}

// Netns makes a network namespace that `ip netns` knows, and returns its path.
func Netns(name string) (string, error) {
	const dir = "/run/netns"
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return "", err
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
		return "", fmt.Errorf("network namespace %s: %w", name, err)
	}
	return path, nil
}
