// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/internal/host"
	"github.com/weft-net/weft/lab/internal/kube"
	"github.com/weft-net/weft/lab/internal/plan"
)

// Exec runs a command in a host with this process' standard streams. In a
// node and the control plane it enters all namespaces; the hosts outside are
// only network namespaces, and so is the router. The error is an
// *exec.ExitError when the command ended by itself.
func (l *Lab) Exec(ctx context.Context, name string, argv []string) error {
	if name != router {
		h, err := l.rec.Host(name)
		if err != nil {
			return err
		}
		if h.Kind != plan.Outside {
			cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
			cmd.Env = append(withoutPath(os.Environ()), "PATH="+host.Path)
			return l.inHost(name, cmd)
		}
	}
	return l.become(name, argv, os.Environ())
}

func withoutPath(env []string) []string {
	var keep []string
	for _, e := range env {
		if !strings.HasPrefix(e, "PATH=") {
			keep = append(keep, e)
		}
	}
	return keep
}

// Run replaces this process by a command in the control plane's network
// namespace, with KUBECONFIG set and kubectl on PATH. Files and the working
// directory are the machine's.
func (l *Lab) Run(argv []string) error {
	path := filepath.Dir(l.cluster.Cache.Bin("kubernetes", "kubectl")) + ":" + os.Getenv("PATH")
	env := append(withoutPath(os.Environ()), "PATH="+path, "KUBECONFIG="+l.Kubeconfig())
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	return l.become(l.cluster.Control.Name, argv, env)
}

// Kubectl replaces this process by kubectl.
func (l *Lab) Kubectl(args []string) error {
	return l.Run(append([]string{l.cluster.Cache.Bin("kubernetes", "kubectl")}, args...))
}

// Kubeconfig is the path of the admin's kubeconfig.
func (l *Lab) Kubeconfig() string { return l.cluster.Kubeconfig(kube.Admin) }

// become moves this process into the lab's cgroup2 group, so that Down finds
// what it leaves running, and into a network namespace, and executes argv.
func (l *Lab) become(name string, argv, env []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("command: %w", err)
	}
	group, err := l.cgroup2()
	if err != nil {
		return err
	}
	procs := filepath.Join(group, runGroup, "cgroup.procs")
	if err := os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return fmt.Errorf("join the lab: %w", err)
	}
	runtime.LockOSThread()
	ns, err := os.Open(l.netns(name))
	if err != nil {
		return fmt.Errorf("host %s: %w", name, err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("host %s: %w", name, err)
	}
	err = unix.Exec(path, argv, env)
	if errors.Is(err, unix.ENOEXEC) {
		return fmt.Errorf("command %s is not a program; scripts name theirs after #! in the first line", path)
	}
	return fmt.Errorf("command %s: %w", path, err)
}
