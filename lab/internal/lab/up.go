// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/internal/build"
	"github.com/weft-net/weft/lab/internal/cgroup"
	"github.com/weft-net/weft/lab/internal/host"
	"github.com/weft-net/weft/lab/internal/kube"
	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/state"
	"github.com/weft-net/weft/lab/internal/wire"
)

// How long each step of up may take. On two idle cores each takes a tenth.
const (
	apiLimit        = 120 * time.Second
	containerdLimit = 60 * time.Second
	importLimit     = 180 * time.Second
	registerLimit   = 120 * time.Second
	readyLimit      = 180 * time.Second
)

// Memory and processes of one host. A busy control plane takes 1 GiB.
const (
	hostMemory = 4 << 30
	hostPids   = 16384
)

// UpOptions are the options of up that are not part of the lab's plan.
type UpOptions struct {
	Replace bool // take away a lab of this name first
	Out     io.Writer
}

// Up makes a lab. When it fails, what it made stays for inspection until Down.
func Up(ctx context.Context, o plan.Options, u UpOptions) error {
	hosts, err := o.Hosts()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("weft-lab up makes namespaces and needs root: run it with sudo")
	}
	cache, err := build.Open()
	if err != nil {
		return err
	}
	dir := state.ForLab(o.Name)
	lock, err := dir.Lock(ctx, lockLimit)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if err := state.PrepareMachine(ctx); err != nil {
		return err
	}
	if dir.Exists() {
		if !u.Replace {
			return fmt.Errorf("lab %s exists: run `weft-lab down --name %s` first, or up with --replace", o.Name, o.Name)
		}
		if err := takeDown(ctx, dir, newReporter(u.Out)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir.Path("kubeconfig"), 0o711); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	rec := &state.Lab{Options: o, Hosts: hosts, Cgroups: map[string]string{}, Links: map[string]state.Impairments{}}
	l := newLab(dir, rec, cache, u.Out)
	if err := l.up(ctx); err != nil {
		return fmt.Errorf("lab %s: %w\n(what there is stays for inspection in %s; `weft-lab down --name %s` takes it away)", o.Name, err, dir, o.Name)
	}
	return nil
}

func (l *Lab) up(ctx context.Context) error {
	if err := l.makeGroups(); err != nil {
		return err
	}
	if err := l.dir.Save(l.rec); err != nil {
		return err
	}
	if err := l.makeNetwork(); err != nil {
		return err
	}
	l.report.line("network of %d hosts made", len(l.rec.Hosts))
	if err := l.cluster.Credentials(); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.startControlPlane(gctx) })
	for _, n := range l.rec.Nodes() {
		g.Go(func() error { return l.startNode(gctx, n) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := l.joinNodes(ctx, l.rec.Nodes()); err != nil {
		return err
	}
	if l.rec.Options.DNS {
		if err := l.installDNS(ctx); err != nil {
			return err
		}
	}
	l.rec.Ready = true
	if err := l.dir.Save(l.rec); err != nil {
		return err
	}
	l.report.line("lab %s is up", l.rec.Options.Name)
	return nil
}

// makeGroups makes the lab's control groups: one in each hierarchy, and in it
// one a host. Each is in the journal before it exists.
func (l *Lab) makeGroups() error {
	hierarchies, err := cgroup.Detect()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		dir := h.Path("weft-lab-" + l.rec.Options.Name)
		if _, err := os.Stat(dir); err == nil {
			return fmt.Errorf("cgroup %s exists and is not this lab's; remove it or choose another --name", dir)
		}
		if err := l.dir.Journal(state.Entry{Kind: state.KindCgroup, Value: dir}); err != nil {
			return err
		}
		if err := l.journalControllers(h, filepath.Dir(dir)); err != nil {
			return err
		}
		if err := h.Make(dir, nil); err != nil {
			return err
		}
		l.rec.Cgroups[h.Mount] = dir
		if h.V2 {
			if err := h.Make(filepath.Join(dir, runGroup), nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// journalControllers notes what the root group will hand down because of us.
func (l *Lab) journalControllers(h cgroup.Hierarchy, root string) error {
	if !h.Pure {
		return nil
	}
	list, err := cgroup.Withheld(root)
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := l.dir.Journal(state.Entry{Kind: state.KindController, Value: root + " " + c}); err != nil {
			return err
		}
	}
	return nil
}

// groupsOf makes a host's group in every hierarchy.
func (l *Lab) groupsOf(h plan.Host) ([]host.CgroupSpec, error) {
	hierarchies, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	var specs []host.CgroupSpec
	for _, hi := range hierarchies {
		parent, ok := l.rec.Cgroups[hi.Mount]
		if !ok {
			continue
		}
		dir := filepath.Join(parent, h.Name)
		if err := hi.Make(dir, &cgroup.Limits{MemoryBytes: hostMemory, Pids: hostPids}); err != nil {
			return nil, err
		}
		specs = append(specs, host.CgroupSpec{Dir: dir, Mount: hi.Mount, V2: hi.V2, Options: hi.Options, Pure: hi.Pure})
	}
	return specs, nil
}

func (l *Lab) makeNetns(name string) error {
	path := l.netns(name)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("network namespace %s exists and is not this lab's; choose another --name", filepath.Base(path))
	}
	if err := l.dir.Journal(state.Entry{Kind: state.KindNetns, Value: path}); err != nil {
		return err
	}
	return wire.CreateNetns(path)
}

func (l *Lab) makeNetwork() error {
	if _, err := os.Stat(wire.NetnsDir); errors.Is(err, fs.ErrNotExist) {
		if err := l.dir.Journal(state.Entry{Kind: state.KindDir, Value: wire.NetnsDir}); err != nil {
			return err
		}
		if err := os.Mkdir(wire.NetnsDir, 0o755); err != nil {
			return fmt.Errorf("network namespaces: %w", err)
		}
	}
	if err := l.makeNetns(router); err != nil {
		return err
	}
	if err := wire.SetUpRouter(l.netns(router), l.rec.Options.AllSubnets(), l.rec.Options.MTU); err != nil {
		return err
	}
	for _, h := range l.rec.Hosts {
		if err := l.attachHost(h); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) attachHost(h plan.Host) error {
	if err := l.makeNetns(h.Name); err != nil {
		return err
	}
	return wire.Attach(l.netns(router), l.netns(h.Name), l.rec.Options, h)
}

// spec is what all hosts with a PID 1 have in common.
func (l *Lab) spec(h plan.Host) (*host.Spec, error) {
	groups, err := l.groupsOf(h)
	if err != nil {
		return nil, err
	}
	dir := l.hostDir(h.Name)
	s := &host.Spec{Hostname: h.Name, Dir: dir, Cgroups: groups, Files: map[string]string{}}
	for _, d := range []string{"var-lib", "var-log"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("host %s: %w", h.Name, err)
		}
	}
	s.Binds = []host.Bind{
		{From: filepath.Join(dir, "var-lib"), To: "/var/lib"},
		{From: filepath.Join(dir, "var-log"), To: "/var/log"},
		{From: string(l.dir), To: string(l.dir)},
		{From: l.cluster.Cache.Dir, To: l.cluster.Cache.Dir, ReadOnly: true},
	}
	return s, nil
}

func (l *Lab) startControlPlane(ctx context.Context) error {
	cp := l.cluster.Control
	s, err := l.spec(cp)
	if err != nil {
		return err
	}
	s.Files["/etc/hosts"] = "127.0.0.1 localhost\n::1 localhost\n"
	s.Programs = l.cluster.ControlPrograms()
	if err := host.Start(s, l.netns(cp.Name)); err != nil {
		return err
	}
	client, err := l.cluster.NewClient(l.netns(cp.Name))
	if err != nil {
		return err
	}
	logs := filepath.Join(l.hostDir(cp.Name), "log")
	err = waitFor(ctx, apiLimit, "kube-apiserver", filepath.Join(logs, "kube-apiserver.log"), func(ctx context.Context) (bool, string) {
		return l.answers(ctx, cp.Name, client, "/readyz")
	})
	if err != nil {
		return err
	}
	err = waitFor(ctx, apiLimit, "kube-controller-manager", filepath.Join(logs, "kube-controller-manager.log"), func(ctx context.Context) (bool, string) {
		return l.answers(ctx, cp.Name, client, "/api/v1/namespaces/default/serviceaccounts/default")
	})
	if err != nil {
		return err
	}
	l.report.line("control plane is up")
	return nil
}

func (l *Lab) answers(ctx context.Context, hostName string, c *kube.Client, path string) (bool, string) {
	if err := c.Get(ctx, path, nil); err != nil {
		if _, perr := host.InitPid(l.hostDir(hostName)); perr != nil {
			return false, perr.Error()
		}
		return false, err.Error() + l.trouble(hostName)
	}
	return true, ""
}

// restrictOOM: without CAP_SYS_RESOURCE nobody may lower an oom_score_adj, and
// containerd must not try.
func restrictOOM() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return true
	}
	return d[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0
}
