// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	bpflink "github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath"
)

// socketPrograms lists what runs for sockets of the test's cgroup.
func socketPrograms(t *testing.T, n *socketNode) map[ebpf.AttachType][]ebpf.ProgramID {
	t.Helper()
	dir, err := os.Open(n.options.SocketLB.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	out := map[ebpf.AttachType][]ebpf.ProgramID{}
	for _, at := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
		ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
		ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind,
	} {
		q, err := bpflink.QueryPrograms(bpflink.QueryOptions{Target: int(dir.Fd()), Attach: at})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range q.Programs {
			out[at] = append(out[at], p.ID)
		}
	}
	return out
}

// Guards against services that stop when the agent does, against two sets of programs
// after a restart, and against programs that stay when they are switched off.
func TestSocketsOutliveAgent(t *testing.T) {
	n := newSocketNode(t)
	serveBackends(t, "", 3)
	c := clients()[0]
	f := clusterIP(c, 1, 2)
	upsert(t, n, f)
	before := socketPrograms(t, n)
	if err := n.VerifySockets(); err != nil {
		t.Error(err)
	}
	s, err := c.open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	old, err := s.ask(f.Key.Addr)
	if err != nil {
		t.Fatal(err)
	}
	again := &socketNode{open(t, n.options), n.options}
	wantAnswers(t, c, f.Key.Addr, 1, 2)
	if err := again.SyncSockets(); err != nil {
		t.Fatal(err)
	}
	if err := again.VerifySockets(); err != nil {
		t.Error(err)
	}
	for at, ids := range socketPrograms(t, again) {
		if len(ids) != 1 || len(before[at]) != 1 || ids[0] == before[at][0] {
			t.Errorf("%s: programs %v, were %v: want one new one", at, ids, before[at])
		}
	}
	f.Backends = f.Backends[:1]
	upsert(t, again, f)
	wantAnswers(t, c, f.Key.Addr, 1)
	if now, err := s.ask(f.Key.Addr); err != nil || now != old {
		t.Errorf("an old connection: %v, %v, was %v", now, err, old)
	}
	off := n.options
	off.SocketLB.Enabled = false
	gone := &socketNode{open(t, off), off}
	if err := gone.SyncSockets(); err != nil {
		t.Fatal(err)
	}
	for at, ids := range socketPrograms(t, gone) {
		if len(ids) != 0 {
			t.Errorf("%s: programs %v stay though they are off", at, ids)
		}
	}
	if _, err := unix.Write(s.fd, []byte("who")); err != nil {
		t.Errorf("an old connection after programs went: %v", err)
	}
}

// Guards against a link that is gone, or led elsewhere, and nobody says so or mends it.
func TestSocketsMended(t *testing.T) {
	n := newSocketNode(t)
	l, err := bpflink.LoadPinnedLink(filepath.Join(n.options.Root, "links", "cgroup_connect4"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.(interface{ Detach() error }).Detach(); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := n.VerifySockets(); err == nil || !strings.Contains(err.Error(), "sock_connect4: not attached") {
		t.Errorf("a hook is empty, and the answer is %v", err)
	}
	if err := n.SyncSockets(); err != nil {
		t.Fatal(err)
	}
	if err := n.VerifySockets(); err != nil {
		t.Error(err)
	}
	o := n.options
	o.SocketLB.Cgroup = t.TempDir()
	if err := open(t, o).SyncSockets(); err == nil || !strings.Contains(err.Error(), "cgroup.hostRoot") {
		t.Errorf("a directory that is no cgroup: %v", err)
	}
}

// Guards against uninstalling that leaves programs behind, or takes others' along.
func TestSocketsBesideOthers(t *testing.T) {
	n := newSocketNode(t)
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "other", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: allow(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l, err := bpflink.AttachCgroup(bpflink.CgroupOptions{Path: n.options.SocketLB.Cgroup, Attach: ebpf.AttachCGroupInet4Connect, Program: other})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	serveBackends(t, "", 1)
	f := clusterIP(clients()[0], 1)
	upsert(t, n, f)
	wantAnswers(t, clients()[0], f.Key.Addr, 1)
	if err := datapath.Unload(n.options.Root); err != nil {
		t.Fatal(err)
	}
	left := socketPrograms(t, n)
	info, err := other.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	if got := left[ebpf.AttachCGroupInet4Connect]; len(got) != 1 || got[0] != id || len(left) != 1 {
		t.Errorf("after uninstalling: %v, want only the other's program %d", left, id)
	}
}
