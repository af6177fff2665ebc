// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	bpflink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/flow"
	"github.com/weft-net/weft/internal/table"
)

// both is a datapath for both families.
var both = datapath.Options{IPv4: true, IPv6: true}

// TestReopenKeepsState guards against a restart of the agent that loses
// connections, detaches a program, or leaves an old one running.
func TestReopenKeepsState(t *testing.T) {
	o := both
	o.Root = newRoot(t)
	first := open(t, o)
	pod, eth := newVeth(t, "lxcr"), newVeth(t, "ethr")
	if err := first.AttachEndpoint("lxcr", pod.Attrs().Index); err != nil {
		t.Fatal(err)
	}
	if err := first.SyncDevices([]datapath.Device{{Name: "ethr", Index: eth.Attrs().Index}}); err != nil {
		t.Fatal(err)
	}
	row := maps.IPCacheRow{Prefix: netip.MustParsePrefix("10.1.0.10/32"), Identity: table.IdentityInit, Kind: table.KindLocalPod, EndpointID: 3}
	if err := first.Maps().IPCache.Upsert(row); err != nil {
		t.Fatal(err)
	}
	if err := first.SetConfig(maps.Config{Trace: maps.TraceAll}); err != nil {
		t.Fatal(err)
	}
	old, oldEth := filtered(t, pod, netlink.HANDLE_MIN_INGRESS), running(t, eth, reason.FromNet)

	second := open(t, o)
	if now := filtered(t, pod, netlink.HANDLE_MIN_INGRESS); len(old) != 1 || len(now) != 1 || now[0] == old[0] {
		t.Errorf("programs at the pod before %v, after %v: want one, another", old, now)
	}
	if now := running(t, eth, reason.FromNet); len(oldEth) != 1 || len(now) != 1 || now[0] == oldEth[0] {
		t.Errorf("programs at the device before %v, after %v: want one, another", oldEth, now)
	}
	rows, err := second.Maps().IPCache.List()
	if err != nil || len(rows) != 1 || rows[0] != row {
		t.Errorf("ipcache after reopening: %+v %v", rows, err)
	}
	if cfg, err := second.Maps().Config.Get(); err != nil || cfg.Trace != maps.TraceAll {
		t.Errorf("config after reopening: %+v %v", cfg, err)
	}
	if err := second.AttachEndpoint("lxcr", pod.Attrs().Index); err != nil {
		t.Fatal(err)
	}
	if p := second.Verify(context.Background()); len(p) != 0 {
		t.Errorf("problems after reopening: %v", p)
	}
	if err := second.SyncDevices(nil); err != nil {
		t.Fatal(err)
	}
	if now := running(t, eth, reason.FromNet); len(now) != 0 {
		t.Errorf("from_net still attached to a device that was given up: %v", now)
	}
}

// TestDeviceReplaced guards against a new device under an old name without
// programs, and against links of devices that are gone piling up.
func TestDeviceReplaced(t *testing.T) {
	o := both
	o.Root = newRoot(t)
	d := open(t, o)
	sync := func(pod, eth netlink.Link) {
		t.Helper()
		if err := d.AttachEndpoint("lxcd", pod.Attrs().Index); err != nil {
			t.Fatal(err)
		}
		if err := d.SyncDevices([]datapath.Device{{Name: "ethd", Index: eth.Attrs().Index}}); err != nil {
			t.Fatal(err)
		}
		if p := d.Verify(context.Background()); len(p) != 0 {
			t.Errorf("problems: %v", p)
		}
	}
	sync(newVeth(t, "lxcd"), newVeth(t, "ethd"))
	sync(newVeth(t, "lxcd"), newVeth(t, "ethd"))
	ip(t, "link del lxcd")
	ip(t, "link del ethd")
	if err := d.DetachEndpoint("lxcd"); err != nil {
		t.Errorf("detach from a device that is gone: %v", err)
	}
	open(t, o)
	left, err := os.ReadDir(filepath.Join(o.Root, "links"))
	if err != nil || len(left) != 0 {
		t.Errorf("links of a device that is gone: %v %v", left, err)
	}
}

// foreign loads a program of somebody else's.
func foreign(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebodys", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// wantProblem wants Verify to find one thing and say text about it.
func wantProblem(t *testing.T, d *datapath.Datapath, text string) {
	t.Helper()
	p := d.Verify(context.Background())
	if text == "" && len(p) == 0 {
		return
	}
	if len(p) != 1 || !strings.Contains(p[0].String(), text) {
		t.Errorf("problems %v, want one with %q", p, text)
	}
}

// TestVerifyNames guards against a status that says OK while our program does
// not run, or not first.
func TestVerifyNames(t *testing.T) {
	needTCX(t)
	o := both
	o.Root = newRoot(t)
	d := open(t, o)
	eth := newVeth(t, "ethv")
	devs := []datapath.Device{{Name: "ethv", Index: eth.Attrs().Index}}
	if err := d.SyncDevices(devs); err != nil {
		t.Fatal(err)
	}
	other, err := bpflink.AttachTCX(bpflink.TCXOptions{Interface: eth.Attrs().Index, Program: foreign(t), Attach: ebpf.AttachTCXIngress, Anchor: bpflink.Head()})
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, d, "ethv from_net: runs after program")
	wantProblem(t, d, "somebodys")
	pin := filepath.Join(o.Root, "links", "ethv_from_net")
	pinned, err := bpflink.LoadPinnedLink(pin, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := pinned.(interface{ Detach() error }).Detach(); err != nil {
		t.Fatal(err)
	}
	_ = pinned.Close()
	wantProblem(t, d, "not attached: the hook holds program")
	_ = other.Close()
	wantProblem(t, d, "not attached: the hook is empty")
	if err := d.SyncDevices(devs); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, d, "")
	if err := os.Rename(pin, pin+"x"); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, d, "the pin is gone")
}

// TestVerifyPods is TestVerifyNames for the filters of pods, beside which a
// filter of somebody else must survive.
func TestVerifyPods(t *testing.T) {
	o := both
	o.Root = newRoot(t)
	d := open(t, o)
	pod := newVeth(t, "lxcv")
	attach := func() {
		t.Helper()
		if err := d.AttachEndpoint("lxcv", pod.Attrs().Index); err != nil {
			t.Fatal(err)
		}
	}
	attach()
	wantProblem(t, d, "")
	theirs := &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: pod.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS,
		Handle: 1, Priority: 2, Protocol: 3,
	}, Fd: foreign(t).FD(), Name: "theirs", DirectAction: true}
	if err := netlink.FilterAdd(theirs); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, d, "")
	ip(t, "link set lxcv up")
	if out, err := exec.Command("tc", "filter", "del", "dev", "lxcv", "ingress", "prio", "1").CombinedOutput(); err != nil {
		t.Fatalf("tc: %v: %s", err, out)
	}
	wantProblem(t, d, "not attached: the hook holds program")
	attach()
	wantProblem(t, d, "")
	if err := d.DetachEndpoint("lxcv"); err != nil {
		t.Fatal(err)
	}
	if left := filtered(t, pod, netlink.HANDLE_MIN_INGRESS); len(left) != 1 {
		t.Errorf("filters after detaching: %v, want the one of somebody else", left)
	}
	if out, err := exec.Command("tc", "qdisc", "del", "dev", "lxcv", "clsact").CombinedOutput(); err != nil {
		t.Fatalf("tc: %v: %s", err, out)
	}
	attach()
	if err := d.DetachEndpoint("lxcv"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tc", "qdisc", "show", "dev", "lxcv").CombinedOutput(); err != nil || strings.Contains(string(out), "clsact") {
		t.Errorf("qdiscs after detaching: %s %v", out, err)
	}
}

// TestVerifyPodsBehindTCX guards against a status that says OK while somebody's
// tcx program, which comes before every filter, keeps packets from ours.
func TestVerifyPodsBehindTCX(t *testing.T) {
	needTCX(t)
	d := open(t, both)
	pod := newVeth(t, "lxcv")
	if err := d.AttachEndpoint("lxcv", pod.Attrs().Index); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, d, "")
	tcx, err := bpflink.AttachTCX(bpflink.TCXOptions{Interface: pod.Attrs().Index, Program: foreign(t), Attach: ebpf.AttachTCXIngress})
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, d, "lxcv from_pod: runs after program")
	_ = tcx.Close()
	wantProblem(t, d, "")
}

// TestResizeCarriesOver guards against a changed map size that resets
// connections, and against one that is ignored.
func TestResizeCarriesOver(t *testing.T) {
	o := both
	o.Root = newRoot(t)
	o.Sizes = maps.Sizes{CT: 1024, CTNew: 1024, Fragments: 64, IPCache: 64, Networks: 64, Events: 1 << 16}
	first := open(t, o)
	row := maps.IPCacheRow{Prefix: netip.MustParsePrefix("10.2.0.0/24"), Identity: table.IdentityInit, Kind: table.KindRemotePod}
	if err := first.Maps().IPCache.Upsert(row); err != nil {
		t.Fatal(err)
	}
	o.Sizes.Networks, o.Sizes.CT = 128, 2048
	second := open(t, o)
	rows, err := second.Maps().IPCache.List()
	if err != nil || len(rows) != 1 || rows[0] != row {
		t.Errorf("ipcache after resizing: %+v %v", rows, err)
	}
	read, err := datapath.OpenMaps(o.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if n := read.Raw("weft_net4").MaxEntries(); n != 128 {
		t.Errorf("pinned map has %d entries, want 128", n)
	}
	if left, err := os.ReadDir(filepath.Join(o.Root, "new")); err != nil || len(left) != 0 {
		t.Errorf("left over under new/: %v %v", left, err)
	}
}

// TestForeignLayoutReplaced guards against an agent that cannot start, or that
// reads garbage, beside maps of another version.
func TestForeignLayoutReplaced(t *testing.T) {
	o := both
	o.Root = newRoot(t)
	if err := os.MkdirAll(filepath.Join(o.Root, "maps"), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 4, ValueSize: 4, MaxEntries: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(filepath.Join(o.Root, "maps", "weft_ct4")); err != nil {
		t.Fatal(err)
	}
	d := open(t, o)
	if rows, err := d.Maps().CT.List(0); err != nil || len(rows) != 0 {
		t.Errorf("conntrack after replacing: %v %v", rows, err)
	}
}

// TestGrownValuesKept guards against an upgrade that forgets who stands behind
// every address because a row has more to say than before.
func TestGrownValuesKept(t *testing.T) {
	o := both
	o.Root = newRoot(t)
	if err := os.MkdirAll(filepath.Join(o.Root, "maps"), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 8, Flags: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	// identity 5, no endpoint, a pod of another node: the first fields of struct weft_ipcache.
	if err := m.Put([4]byte{10, 2, 0, 9}, [8]byte{5, 0, 0, 0, 0, 0, 4, 0}); err != nil {
		t.Fatal(err)
	}
	if err := m.Pin(filepath.Join(o.Root, "maps", "weft_ipc4")); err != nil {
		t.Fatal(err)
	}
	rows, err := open(t, o).Maps().IPCache.List()
	want := maps.IPCacheRow{Prefix: netip.MustParsePrefix("10.2.0.9/32"), Identity: table.IdentityInit, Kind: table.KindRemotePod}
	if err != nil || len(rows) != 1 || rows[0] != want {
		t.Errorf("after the upgrade: %v %v, want %v", rows, err, want)
	}
}

// TestUnloadLeavesNothing guards against an uninstall that leaves a program
// attached or a pin behind.
func TestUnloadLeavesNothing(t *testing.T) {
	o := both
	o.Root = newRoot(t)
	d := open(t, o)
	l, eth := newVeth(t, "lxcu"), newVeth(t, "ethu")
	if err := d.AttachEndpoint("lxcu", l.Attrs().Index); err != nil {
		t.Fatal(err)
	}
	if err := d.SyncDevices([]datapath.Device{{Name: "ethu", Index: eth.Attrs().Index}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := datapath.Unload(o.Root); err != nil {
			t.Fatal(err)
		}
	}
	if datapath.HaveTCX() == nil { // else filters are all that there is
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			if ids := attached(t, eth.Attrs().Index, at); len(ids) != 0 {
				t.Errorf("still attached: %v", ids)
			}
		}
	}
	if out, err := exec.Command("tc", "qdisc", "show").CombinedOutput(); err != nil || strings.Contains(string(out), "clsact") {
		t.Errorf("qdiscs after Unload: %s %v", out, err)
	}
	if _, err := os.Stat(o.Root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("root after Unload: %v", err)
	}
	if _, err := datapath.OpenMaps(o.Root); err == nil || !strings.Contains(err.Error(), "no agent has run") {
		t.Errorf("OpenMaps without pins: %v", err)
	}
}

// TestOpenRefuses guards against errors that leave the operator guessing.
func TestOpenRefuses(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		name string
		o    datapath.Options
		want string
	}{
		{"no bpffs", datapath.Options{Root: filepath.Join(t.TempDir(), "weft"), IPv4: true}, "mount -t bpf"},
		{"no family", datapath.Options{Root: bpffs + "/x"}, "ipv4.enabled"},
		{"size", datapath.Options{Root: newRoot(t), IPv4: true, Sizes: maps.Sizes{CT: -1}}, "weft_ct"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if d, err := datapath.Open(tc.o); err == nil {
				_ = d.Close()
				t.Fatal("opened")
			} else if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
		})
	}
	d := open(t, both)
	if err := d.AttachEndpoint("lo", 1); err == nil || !strings.Contains(err.Error(), "not Ethernet") {
		t.Errorf("attach to a device without Ethernet: %v", err)
	}
}

// TestReadEvents guards against records that never arrive, arrive with wrong
// fields or times, and against a reader that cannot be stopped.
func TestReadEvents(t *testing.T) {
	n := newNode(t, datapath.Options{})
	n.must(n.events.Close()) // the ring has one reader
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	got := make(chan flow.Event, 1)
	done := make(chan error, 1)
	go func() { done <- n.d.ReadEvents(ctx, func(e flow.Event) { got <- e }) }()
	p := frame.NewUDP(ap(world.v4, 4000), ap(podB.v4, 53), []byte("hello"))
	p.DstMAC = hostMAC
	n.quiet(reason.FromPod, n.a, p.Bytes())
	select {
	case e := <-got:
		if age := time.Since(e.Time); age < 0 || age > time.Minute {
			t.Errorf("time is %v off", age)
		}
		e.Time = time.Time{}
		want := flow.Event{
			Type: flow.TypeDrop, Hook: "from_pod", Reason: "source-spoofed", Verdict: "drop", IfIndex: n.a.Attrs().Index,
			Endpoint: 1, Src: world.v4, Dst: podB.v4, SrcPort: 4000, DstPort: 53, Proto: frame.UDP, SrcID: 5, Length: 33,
		}
		if e != want {
			t.Errorf("record %+v\nwant   %+v", e, want)
		}
	case <-ctx.Done():
		t.Fatal("no record")
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("the reader does not stop")
	}
}

// TestFamilyOffCostsNothing guards against tens of megabytes for connections of
// a family that the node does not have, and against losing them for good: the
// family may be switched on later.
func TestFamilyOffCostsNothing(t *testing.T) {
	o := datapath.Options{IPv4: true, Root: newRoot(t), Sizes: maps.DefaultSizes()}
	memory := func(d *datapath.Datapath) map[string]uint64 {
		rows, err := d.Maps().Memory()
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]uint64{}
		for _, r := range rows {
			m[r.Name] = r.Bytes
		}
		return m
	}
	off := memory(open(t, o))
	if off["weft_ct4"] < 1<<20 || off["weft_ct6"] > 1<<16 {
		t.Errorf("with IPv6 off weft_ct4 takes %d bytes, weft_ct6 %d", off["weft_ct4"], off["weft_ct6"])
	}
	o.IPv6 = true
	if on := memory(open(t, o)); on["weft_ct6"] < 1<<20 {
		t.Errorf("with IPv6 on weft_ct6 takes %d bytes", on["weft_ct6"])
	}
}
