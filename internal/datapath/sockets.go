// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/weft-net/weft/internal/datapath/object"
)

// SocketLB says whether sockets that want to talk to a service are sent to one of
// its backends when they connect, or with each datagram.
type SocketLB struct {
	Enabled           bool
	HostNamespaceOnly bool   // sockets of pods are left alone
	BindNodePorts     bool   // the node's own sockets may bind ports that are NodePorts
	Cgroup            string // where the node's cgroup2 hierarchy is mounted
}

// ErrNoSockets is wrapped where the kernel lacks what the programs of sockets need.
var ErrNoSockets = errors.New("the kernel cannot send sockets to backends")

// socketHook is a program of sockets and where it is attached.
type socketHook struct {
	program string
	attach  ebpf.AttachType
}

// socketHooks are in the order in which they are attached: who is sent to a backend
// must find the way back already there.
func socketHooks() []socketHook {
	return []socketHook{
		{"sock_recvmsg4", ebpf.AttachCGroupUDP4Recvmsg},
		{"sock_recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
		{"sock_getpeername4", ebpf.AttachCgroupInet4GetPeername},
		{"sock_getpeername6", ebpf.AttachCgroupInet6GetPeername},
		{"sock_bind4", ebpf.AttachCGroupInet4Bind},
		{"sock_bind6", ebpf.AttachCGroupInet6Bind},
		{"sock_sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
		{"sock_sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
		{"sock_connect4", ebpf.AttachCGroupInet4Connect},
		{"sock_connect6", ebpf.AttachCGroupInet6Connect},
	}
}

// linkName is the name of the hook's pin.
func (h socketHook) linkName() string { return "cgroup_" + strings.TrimPrefix(h.program, "sock_") }

// socketPrograms leaves the programs of sockets out where they are off, or the
// kernel has no room for them, and tells them what is fixed.
func socketPrograms(o Options, spec *ebpf.CollectionSpec, missing error) error {
	if !o.SocketLB.Enabled || missing != nil {
		for _, h := range socketHooks() {
			delete(spec.Programs, h.program)
		}
		return nil
	}
	cookie, err := netnsCookie()
	if err != nil {
		return err
	}
	for name, v := range map[string]any{
		object.DatapathVarHostNetnsCookie:    cookie,
		object.DatapathVarSockHostOnly:       o.SocketLB.HostNamespaceOnly,
		object.DatapathVarSockBindProtection: !o.SocketLB.BindNodePorts,
	} {
		if err := spec.Variables[name].Set(v); err != nil {
			return fmt.Errorf("constant %s: %w", name, err)
		}
	}
	return nil
}

// findSockets adds the links of the node's cgroup to what there is to switch.
func (t *takeover) findSockets(root string) error {
	for _, h := range socketHooks() {
		path := filepath.Join(root, linksDir, h.linkName())
		l, err := link.LoadPinnedLink(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("link %s: %w", h.linkName(), err)
		}
		info, err := l.Info()
		if err != nil {
			return errors.Join(fmt.Errorf("link %s: %w", h.linkName(), err), l.Close())
		}
		if at := info.Cgroup(); at == nil || at.CgroupId == 0 {
			t.dead = append(t.dead, path) // with its cgroup
			if err := l.Close(); err != nil {
				return err
			}
			continue
		}
		t.sites = append(t.sites, site{
			name: "link " + h.linkName(), running: map[string]ebpf.ProgramID{h.program: info.Program},
			set: func(p programs) error {
				if p[h.program] == nil {
					return nil // off by now: SyncSockets takes it away
				}
				return updateLink(l, p[h.program])
			},
			close: l.Close,
		})
	}
	return nil
}

// SyncSockets attaches the programs of sockets to the node's cgroup where they are
// on, and takes them away where they are off. Who talks already goes on either way.
func (d *Datapath) SyncSockets() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	unlock, err := lockRoot(d.root)
	if err != nil {
		return fmt.Errorf("sockets: %w", err)
	}
	defer unlock()
	if !d.sockets.Enabled {
		return d.detachSockets()
	}
	if d.socketsErr != nil {
		return errors.Join(d.socketsErr, d.detachSockets())
	}
	if err := d.attachSockets(); err != nil {
		return fmt.Errorf("sockets: %w", err)
	}
	return nil
}

func (d *Datapath) attachSockets() error {
	id, err := cgroupID(d.sockets.Cgroup)
	if err != nil {
		return err
	}
	for _, h := range socketHooks() {
		if err := d.attachSocket(h, id); err != nil {
			return fmt.Errorf("cgroup %s, %s: %w", d.sockets.Cgroup, h.program, err)
		}
	}
	return nil
}

func (d *Datapath) attachSocket(h socketHook, id uint64) error {
	rel := filepath.Join(linksDir, h.linkName())
	l, err := link.LoadPinnedLink(filepath.Join(d.root, rel), nil)
	if err == nil {
		defer l.Close()
		info, err := l.Info()
		if err != nil {
			return err
		}
		if at := info.Cgroup(); at != nil && at.CgroupId == id && ebpf.AttachType(at.AttachType) == h.attach {
			return updateLink(l, d.programs[h.program])
		}
		d.log.Info("replacing a link that leads elsewhere", "link", rel)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin %s: %w", rel, err)
	}
	fresh, err := link.AttachCgroup(link.CgroupOptions{Path: d.sockets.Cgroup, Attach: h.attach, Program: d.programs[h.program]})
	if err != nil {
		return err
	}
	defer fresh.Close()
	return pinAtomic(fresh, d.root, rel)
}

func (d *Datapath) detachSockets() error {
	var errs []error
	for _, h := range slices.Backward(socketHooks()) {
		if err := removeLink(filepath.Join(d.root, linksDir, h.linkName())); err != nil {
			errs = append(errs, fmt.Errorf("sockets: %s: %w", h.program, err))
		}
	}
	return errors.Join(errs...)
}

// VerifySockets says what of SyncSockets is not so any more. That the programs do
// their work it cannot say: the agent connects to something.
func (d *Datapath) VerifySockets() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.sockets.Enabled {
		return nil
	}
	if d.socketsErr != nil {
		return d.socketsErr
	}
	dir, err := os.Open(d.sockets.Cgroup)
	if err != nil {
		return fmt.Errorf("sockets: cgroup: %w", err)
	}
	defer dir.Close()
	for _, h := range socketHooks() {
		if err := d.verifySocket(h, int(dir.Fd())); err != nil {
			return fmt.Errorf("sockets: cgroup %s, %s: %w", d.sockets.Cgroup, h.program, err)
		}
	}
	return nil
}

func (d *Datapath) verifySocket(h socketHook, cgroup int) error {
	info, err := d.programs[h.program].Info()
	if err != nil {
		return err
	}
	want, _ := info.ID()
	q, err := link.QueryPrograms(link.QueryOptions{Target: cgroup, Attach: h.attach})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(q.Programs, func(p link.AttachedProgram) bool { return p.ID == want }) {
		return errors.New("not attached: restart the agent")
	}
	if _, err := os.Stat(filepath.Join(d.root, linksDir, h.linkName())); err != nil {
		return errors.New("attached, but the pin is gone: it would not survive this agent; restart the agent")
	}
	return nil
}
