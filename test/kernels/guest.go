// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// plan is what the machine under test is to run.
type plan struct {
	Tests []testRun `json:"tests"`
}

// testRun is one test binary.
type testRun struct {
	Package string   `json:"package"` // within the repository
	Binary  string   `json:"binary"`  // its name under /tests
	Args    []string `json:"args"`
}

// mark begins the lines that part what the guest says from what tests say.
const mark = "weft-kernels: "

// guest is the first process of the machine under test. It never returns.
func guest() {
	err := guestRun()
	if err != nil {
		fmt.Println(mark+"guest:", err)
	}
	unix.Sync()
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Println(mark+"power off:", err)
	select {}
}

func guestRun() error {
	for _, m := range []struct{ fs, at string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"devtmpfs", "/dev"},
		{"tmpfs", "/tmp"},
		{"tmpfs", "/run"},
		{"bpf", "/sys/fs/bpf"},
		{"cgroup2", "/sys/fs/cgroup"},
		{"tracefs", "/sys/kernel/tracing"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
		if err := unix.Mount(m.fs, m.at, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	for _, kv := range [][2]string{{"PATH", "/usr/sbin"}, {"HOME", "/root"}, {"TMPDIR", "/tmp"}, {"WEFT_TEST_KUBE_BIN", kubernetes}} {
		if err := os.Setenv(kv[0], kv[1]); err != nil {
			return err
		}
	}
	// The kernel loads modules by itself, as on any node.
	if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte("/usr/sbin/modprobe"), 0o644); err != nil {
		return err
	}
	out, err := openSerial("/dev/ttyS1")
	if err != nil {
		return err
	}
	defer out.Close()
	raw, err := os.ReadFile("/plan.json")
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	for _, t := range p.Tests {
		if err := runTest(t, out); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(out, "\n%sdone\n", mark)
	return err
}

// openSerial opens a line that carries bytes as they are.
func openSerial(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
		t.Iflag = 0
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// runTest runs one binary, as go test would: in a folder of its package's name.
func runTest(t testRun, out io.Writer) error {
	dir := filepath.Join("/src", t.Package)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "\n%sbegin %s\n", mark, t.Package); err != nil {
		return err
	}
	fmt.Println(mark + strings.Join(append([]string{t.Binary}, t.Args...), " "))
	cmd := exec.Command("/tests/"+t.Binary, t.Args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return fmt.Errorf("%s: %w", t.Binary, err)
	}
	_, err = fmt.Fprintf(out, "\n%send %s %d\n", mark, t.Package, cmd.ProcessState.ExitCode())
	return err
}
