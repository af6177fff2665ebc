// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
)

// counter loads a program that counts packets and passes them (or drops).
func counter(t *testing.T, action int32) (*ebpf.Program, func() uint64) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, action).WithSymbol("out"),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, func() uint64 {
		var n uint64
		if err := m.Lookup(uint32(0), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
}

const unspec, shot = -1, 2 // TC_ACT_UNSPEC, TC_ACT_SHOT

// Every pod's packets must pass the programs, in both directions; a swap must
// reach all pods at once; and what somebody else did must be told.
func TestBlocks(t *testing.T) {
	l := links(t)
	node(t)
	v, index := pod(t, l)
	from, fromCount := counter(t, unspec)
	to, toCount := counter(t, unspec)
	b := link.Blocks{FromPod: from.FD(), ToPod: to.FD()}
	if err := b.Swap(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("swap without links: %v", err)
	}
	if err := b.Check(index); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("check before attach: %v", err)
	}
	for range 2 { // idempotent
		if err := b.Attach(index); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Check(index); err != nil {
		t.Error(err)
	}
	f, to0 := fromCount(), toCount()
	talk(t, v.Netns, "", node4)
	talk(t, "", v.Netns, pod6)
	if fromCount() != f+1 || toCount() != to0+1 {
		t.Errorf("%d from the pod, %d to it, want one more than %d and %d", fromCount(), toCount(), f, to0)
	}

	drop, dropCount := counter(t, shot)
	next := link.Blocks{FromPod: drop.FD(), ToPod: to.FD()}
	if err := next.Swap(); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(index); err == nil || !strings.Contains(err.Error(), "from_pod") {
		t.Errorf("check of the old programs: %v", err)
	}
	if err := next.Check(index); err != nil {
		t.Error(err)
	}
	nstest.Inside(t, v.Netns, func() error { return throw(node4.String()) })
	if dropCount() != 1 || fromCount() != f+1 {
		t.Errorf("after the swap %d came to the new program, %d to the old", dropCount(), fromCount())
	}

	if err := b.Detach(index); err != nil {
		t.Fatal(err)
	}
	if err := b.Detach(index); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := b.Detach(999999); err != nil {
		t.Errorf("a link that is not there: %v", err)
	}
	if err := ip("link", "show", "dev", v.HostIfName); err != nil {
		t.Error(err)
	}
	talk(t, v.Netns, "", node4)
}

// To attach must cost far less than a grace period: with tcx 110 pods at once
// take three seconds.
func TestBlocksAreFast(t *testing.T) {
	l := links(t)
	from, _ := counter(t, unspec)
	b := link.Blocks{FromPod: from.FD(), ToPod: from.FD()}
	const n = 30
	var took []time.Duration
	defer func() {
		if err := l.DeleteAll(); err != nil {
			t.Error(err)
		}
	}()
	for i := range n {
		v := testVeth(t, nstest.Netns(t))
		v.HostIfName = "lxcfast" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		index, err := l.Create(v)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := b.Attach(index); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	fast := 0
	for _, d := range took {
		if d < 3*time.Millisecond {
			fast++
		}
	}
	if fast < n/2 {
		t.Errorf("only %d of %d took less than 3 ms: %v", fast, n, took)
	}
}

// A clsact that somebody else put there must be told, not replaced.
func TestBlocksLeaveForeignQdisc(t *testing.T) {
	l := links(t)
	node(t)
	_, index := pod(t, l)
	if err := tc("qdisc", "add", "dev", "lxc0123456789a", "clsact"); err != nil {
		t.Fatal(err)
	}
	p, _ := counter(t, unspec)
	b := link.Blocks{FromPod: p.FD(), ToPod: p.FD()}
	if err := b.Attach(index); err == nil || !strings.Contains(err.Error(), "not Weft's") {
		t.Errorf("got %v", err)
	}
}
