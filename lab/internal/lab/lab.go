// SPDX-License-Identifier: Apache-2.0

// Package lab brings labs up and down and changes them.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/weft-net/weft/lab/internal/build"
	"github.com/weft-net/weft/lab/internal/cgroup"
	"github.com/weft-net/weft/lab/internal/host"
	"github.com/weft-net/weft/lab/internal/kube"
	"github.com/weft-net/weft/lab/internal/pki"
	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/state"
	"github.com/weft-net/weft/lab/internal/wire"
)

// router is the name of the namespace that holds all bridges.
const router = "router"

// runGroup is the cgroup2 group of what users start through the lab.
const runGroup = "run"

const lockLimit = 30 * time.Second

// Lab is one lab, open for work.
type Lab struct {
	dir     state.Dir
	rec     *state.Lab
	cluster *kube.Cluster
	report  *reporter
}

// reporter prints one line a step, with the time since the beginning.
type reporter struct {
	mu  sync.Mutex
	out io.Writer
	t0  time.Time
}

func newReporter(out io.Writer) *reporter { return &reporter{out: out, t0: time.Now()} }

func (r *reporter) line(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "[%5.1fs] %s\n", time.Since(r.t0).Seconds(), fmt.Sprintf(format, args...))
}

// Open finds a lab that is up.
func Open(name string, out io.Writer) (*Lab, error) {
	dir := state.ForLab(name)
	rec, err := dir.Load()
	if err != nil {
		return nil, err
	}
	cache, err := build.Open()
	if err != nil {
		return nil, err
	}
	return newLab(dir, rec, cache, out), nil
}

func newLab(dir state.Dir, rec *state.Lab, cache *build.Cache, out io.Writer) *Lab {
	l := &Lab{dir: dir, rec: rec, report: newReporter(out)}
	l.cluster = &kube.Cluster{Options: rec.Options, Control: rec.Hosts[0], Dir: string(dir), PKI: pki.Store{Dir: dir.Path("pki")}, Cache: cache}
	return l
}

// change runs fn under the lab's lock on its latest record, and saves it.
func change(ctx context.Context, name string, out io.Writer, fn func(*Lab) error) error {
	dir := state.ForLab(name)
	if !dir.Exists() {
		_, err := dir.Load()
		return err
	}
	lock, err := dir.Lock(ctx, lockLimit)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	l, err := Open(name, out)
	if err != nil {
		return err
	}
	if !l.rec.Ready {
		return fmt.Errorf("lab %s did not come up whole: run `weft-lab down --name %s`", name, name)
	}
	if err := fn(l); err != nil {
		return err
	}
	return l.dir.Save(l.rec)
}

func (l *Lab) netns(host string) string { return wire.NetnsPath(l.rec.Options.Name, host) }

func (l *Lab) hostDir(name string) string { return l.dir.Path("hosts", name) }

// cgroup2 is the lab's group in the cgroup2 hierarchy.
func (l *Lab) cgroup2() (string, error) {
	hierarchies, err := cgroup.Detect()
	if err != nil {
		return "", err
	}
	for _, h := range hierarchies {
		if h.V2 {
			return l.rec.Cgroups[h.Mount], nil
		}
	}
	return "", errors.New("cgroup2: not mounted")
}

// inHost runs a command inside a host that has a PID 1.
func (l *Lab) inHost(name string, cmd *exec.Cmd) error {
	pid, err := host.InitPid(l.hostDir(name))
	if err != nil {
		return err
	}
	group, err := l.cgroup2()
	if err != nil {
		return err
	}
	return host.RunIn(pid, filepath.Join(group, name), cmd)
}

func (l *Lab) node(name string) (plan.Host, error) {
	h, err := l.rec.Host(name)
	if err != nil {
		return h, err
	}
	if h.Kind != plan.Node {
		return h, fmt.Errorf("host %s is not a node", name)
	}
	return h, nil
}
