// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath"
)

// somebody is a program of somebody else on a clsact hook, which counts packets
// and lets them pass.
type somebody struct {
	t      *testing.T
	seen   *ebpf.Map
	filter *netlink.BpfFilter
}

func newSomebody(t *testing.T, dev netlink.Link, priority uint16, handle uint32) *somebody {
	t.Helper()
	seen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = seen.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebodys", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMapValue(asm.R1, seen.FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
			asm.Mov.Imm(asm.R0, -1), asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	s := &somebody{t: t, seen: seen, filter: &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: dev.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS,
		Handle: handle, Priority: priority, Protocol: unix.ETH_P_ALL,
	}, Fd: p.FD(), Name: "somebodys", DirectAction: true}}
	if err := netlink.FilterAdd(s.filter); err != nil {
		t.Fatalf("filter of somebody at priority %d: %v", priority, err)
	}
	return s
}

func (s *somebody) packets() uint64 {
	s.t.Helper()
	var n uint64
	if err := s.seen.Lookup(uint32(0), &n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// sendRaw sends a frame of a protocol that nobody knows out of a device.
func sendRaw(t *testing.T, dev string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	frame := make([]byte, 60)
	copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 2, 0x88, 0xb5})
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link(t, dev).Attrs().Index}); err != nil {
		t.Fatal(err)
	}
}

// besides is a device of the node with our programs as filters, between those of
// others: before comes first, at our own priority, after last.
type besides struct {
	t             *testing.T
	d             *datapath.Datapath
	before, after *somebody
}

// pass sends a packet through the device and wants the others to see it, and
// from_net if it is attached.
func (b *besides) pass(when string, ours bool) {
	b.t.Helper()
	fromNet := func() uint64 {
		rows, err := b.d.Maps().Metrics.List()
		if err != nil {
			b.t.Fatal(err)
		}
		for _, r := range rows {
			if r.Hook == "from_net" && r.Reason == "stack" {
				return r.Packets
			}
		}
		return 0
	}
	was, first, last := fromNet(), b.before.packets(), b.after.packets()
	sendRaw(b.t, "petho")
	// The packet arrives on another CPU at times. Other packets may come too: of IPv6.
	for end := time.Now().Add(patience); b.after.packets() == last && time.Now().Before(end); {
		sendRaw(b.t, "petho")
	}
	if b.before.packets() == first || b.after.packets() == last {
		b.t.Errorf("%s: packets seen by the program before ours: %d, after it: %d", when, b.before.packets()-first, b.after.packets()-last)
	}
	if got := fromNet() != was; got != ours {
		b.t.Errorf("%s: from_net ran: %v, want %v", when, got, ours)
	}
}

// TestBetweenFilters guards against an agent on a kernel without tcx that pushes
// other programs off the hook or off its own priority, keeps packets from them,
// or takes them along when it lets go of the device.
func TestBetweenFilters(t *testing.T) {
	o := both
	o.Root = newRoot(t)
	d := open(t, o)
	d.ForgetTCX()
	eth := newVeth(t, "etho")
	tc(t, "qdisc add dev etho clsact")
	devs := []datapath.Device{{Name: "etho", Index: eth.Attrs().Index}}
	b := &besides{t: t, d: d, after: newSomebody(t, eth, 7, 1)}
	step := func(when string, err error, ours bool) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		b.pass(when, ours)
	}
	// The kernel runs the younger filters of one priority first.
	if err := d.SyncDevices(devs); err != nil {
		t.Fatal(err)
	}
	b.before = newSomebody(t, eth, 1, 1)
	step("attached", nil, true)
	wantProblem(t, d, "etho from_net: runs after program")
	step("attached again", d.SyncDevices(devs), true)
	step("given up", d.SyncDevices(nil), false)
	step("attached beside one of the same priority", d.SyncDevices(devs), true)
	wantProblem(t, d, "")
	step("unloaded", datapath.Unload(o.Root), false)
	if left := filtered(t, eth, netlink.HANDLE_MIN_INGRESS); len(left) != 2 {
		t.Errorf("filters: %v, want the two of others", left)
	}
}

// TestPriorityTaken guards against an error that leaves the operator guessing:
// the kernel lets filters of one kind and protocol alone share a priority.
func TestPriorityTaken(t *testing.T) {
	d := open(t, both)
	d.ForgetTCX()
	eth := newVeth(t, "etho")
	tc(t, "qdisc add dev etho clsact")
	tc(t, "filter add dev etho ingress prio 1 protocol ip u32 match ip src 198.51.100.0/24")
	devs := []datapath.Device{{Name: "etho", Index: eth.Attrs().Index}}
	if err := d.SyncDevices(devs); err == nil || !strings.Contains(err.Error(), "etho") || !strings.Contains(err.Error(), "at priority 1") {
		t.Errorf("attach beside a filter of another kind at the same priority: %v", err)
	}
	if got := tc(t, "filter show dev etho ingress"); !strings.Contains(got, "c6336400") {
		t.Errorf("somebody's filter is gone: %s", got)
	}
	tc(t, "filter del dev etho ingress prio 1")
	if err := d.SyncDevices(devs); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, d, "")
}

// TestMoveToTCX guards against a device that runs our programs twice, or nobody
// else's any more, once its kernel has tcx.
func TestMoveToTCX(t *testing.T) {
	needTCX(t)
	o := both
	o.Root = newRoot(t)
	d := open(t, o)
	d.ForgetTCX()
	eth := newVeth(t, "etho")
	tc(t, "qdisc add dev etho clsact")
	devs := []datapath.Device{{Name: "etho", Index: eth.Attrs().Index}}
	b := &besides{t: t, d: d, before: newSomebody(t, eth, 1, 1), after: newSomebody(t, eth, 7, 1)}
	if err := d.SyncDevices(devs); err != nil {
		t.Fatal(err)
	}
	b.pass("by filters", true)
	b.d = open(t, o)
	if err := b.d.SyncDevices(devs); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, b.d, "")
	b.pass("by tcx", true)
	if left := filtered(t, eth, netlink.HANDLE_MIN_INGRESS); len(left) != 2 {
		t.Errorf("filters: %v, want the two of others", left)
	}
	if out := tc(t, "filter show dev etho egress"); strings.Contains(out, "weft_") {
		t.Errorf("filters beside tcx links: %s", out)
	}
	if err := b.d.SyncDevices(nil); err != nil {
		t.Fatal(err)
	}
	b.pass("given up", false)
}

// TestGivenUpMeanwhile guards against programs that stay on a device for good,
// on a kernel without tcx, because the device was given up while no agent ran.
func TestGivenUpMeanwhile(t *testing.T) {
	o := both
	o.Root = newRoot(t)
	first := open(t, o)
	first.ForgetTCX()
	eth, tunnel := newVeth(t, "ethw"), newVeth(t, "tunw")
	pod := newVeth(t, "lxcw")
	if err := first.SyncDevices([]datapath.Device{{Name: "ethw", Index: eth.Attrs().Index}}); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, first, "")
	if ids := filtered(t, eth, netlink.HANDLE_MIN_EGRESS); len(ids) != 1 {
		t.Errorf("filters: %v", ids)
	}
	if err := first.SyncOverlay(&datapath.Device{Name: "tunw", Index: tunnel.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	if err := first.AttachEndpoint("lxcw", pod.Attrs().Index); err != nil {
		t.Fatal(err)
	}
	later := open(t, o)
	later.ForgetTCX()
	if err := later.SyncDevices(nil); err != nil {
		t.Fatal(err)
	}
	if out := tc(t, "qdisc show dev ethw"); strings.Contains(out, "clsact") {
		t.Errorf("left on the device: %s", out)
	}
	if ids := filtered(t, tunnel, netlink.HANDLE_MIN_INGRESS); len(ids) != 1 {
		t.Errorf("filters of the tunnel device, which was not given up yet: %v", ids)
	}
	if err := later.SyncOverlay(nil); err != nil {
		t.Fatal(err)
	}
	if out := tc(t, "qdisc show dev tunw"); strings.Contains(out, "clsact") {
		t.Errorf("left on the tunnel device: %s", out)
	}
	if ids := filtered(t, pod, netlink.HANDLE_MIN_INGRESS); len(ids) != 1 {
		t.Errorf("filters of the pod: %v", ids)
	}
}
