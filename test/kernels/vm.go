// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machine is one boot of one kernel.
type machine struct {
	image    image
	initrd   string
	console  string // file for what the kernel says
	output   string // file for what the tests say
	memoryMB int
	cpus     int
}

// boot runs the machine until it powers itself off. It is emulated in software:
// nothing is asked of the processor, so that it runs within other machines too.
func (m machine) boot(ctx context.Context) error {
	// A processor with fast string moves has the kernel use them, and emulated each
	// byte is a step: without them the verifier takes half as long.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-cpu", "max,la57=off,erms=off,fsrm=off", "-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memoryMB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none",
		"-serial", "file:"+m.console, "-serial", "file:"+m.output,
		"-kernel", m.image.vmlinuz(), "-initrd", m.initrd,
		// Faults end the machine at once. The guards against speculation would only cost
		// time, and so would any clock but the processor's, which is the host's here.
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr tsc=reliable rdinit=/init",
	)
	var errs strings.Builder
	cmd.Stderr = &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("linux %s: ended from outside: %w", m.image.release, context.Cause(ctx))
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: install Debian's qemu-system-x86", err)
	}
	if err != nil {
		return fmt.Errorf("linux %s: qemu: %w: %s", m.image.release, err, strings.TrimSpace(errs.String()))
	}
	return nil
}
