// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/internal/wire"
)

// Path is what commands inside hosts find programs by.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// RunIn runs cmd inside all namespaces of the host whose PID 1 is pid, as a
// member of the cgroup2 group, and waits for it. When its context
// ends it is told to (SIGTERM). A name without a slash is looked up inside the host.
func RunIn(pid int, group string, cmd *exec.Cmd) error {
	if leaf := filepath.Join(group, leafName); exists(leaf) {
		group = leaf
	}
	f, err := os.Open(group)
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	defer f.Close()
	// No Pdeathsig: Go compares parents' pids, which differ across the namespace.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	return wire.In(fmt.Sprintf("/proc/%d/ns/net", pid), func() error {
		if err := enter(pid); err != nil {
			return err
		}
		path, err := lookPath(cmd.Args[0])
		if err != nil {
			return err
		}
		cmd.Path, cmd.Err = path, nil
		if err := cmd.Start(); err != nil {
			return err
		}
		return cmd.Wait()
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// enter takes the calling thread, which must be locked and thrown away
// afterwards, into all namespaces of a process but its network's.
func enter(pid int) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	kinds := []string{"cgroup", "ipc", "uts", "pid", "mnt"} // mnt last: it changes what the paths mean
	for _, kind := range kinds {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("namespace %s of process %d: %w", kind, pid, err)
		}
		fds = append(fds, fd)
	}
	// A thread that shares its root and working directory cannot change the
	// mount namespace (setns(2)).
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for i, fd := range fds {
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("namespace %s of process %d: %w", kinds[i], pid, err)
		}
	}
	return nil
}

// lookPath is exec.LookPath with the host's PATH. It runs on the thread that
// is inside the host.
func lookPath(name string) (string, error) {
	if filepath.Base(name) != name {
		return name, nil
	}
	for _, dir := range filepath.SplitList(Path) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && !st.IsDir() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: not found in %s", name, Path)
}

// ExitCode of a finished command, as a shell would give it.
func ExitCode(err error) (int, bool) {
	var e *exec.ExitError
	if !errors.As(err, &e) {
		return 0, false
	}
	if ws, ok := e.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), true
	}
	return e.ExitCode(), true
}
