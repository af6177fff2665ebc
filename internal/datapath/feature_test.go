// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"testing"

	"github.com/cilium/ebpf"
	bpflink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/kerneltest"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// needTCX is for tests about tcx.
func needTCX(t testing.TB) {
	t.Helper()
	needRoot(t)
	kerneltest.Need(t, "tcx", "6.6", datapath.HaveTCX())
}

// attached returns what runs at a tcx hook, in order.
func attached(t *testing.T, ifindex int, at ebpf.AttachType) []ebpf.ProgramID {
	t.Helper()
	q, err := bpflink.QueryPrograms(bpflink.QueryOptions{Target: ifindex, Attach: at})
	if err != nil {
		t.Fatal(err)
	}
	var ids []ebpf.ProgramID
	for _, p := range q.Programs {
		ids = append(ids, p.ID)
	}
	return ids
}

// filtered is attached for what clsact runs.
func filtered(t *testing.T, l netlink.Link, parent uint32) []ebpf.ProgramID {
	t.Helper()
	fs, err := netlink.FilterList(l, parent)
	if err != nil {
		t.Fatal(err)
	}
	var ids []ebpf.ProgramID
	for _, f := range fs {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Handle != 0 {
			ids = append(ids, ebpf.ProgramID(b.Id))
		}
	}
	return ids
}

// running is attached at a hook of a device of the node, by whichever of the two
// its programs are attached.
func running(t *testing.T, l netlink.Link, h reason.Hook) []ebpf.ProgramID {
	t.Helper()
	at, parent := ebpf.AttachTCXIngress, uint32(netlink.HANDLE_MIN_INGRESS)
	if h == reason.ToNet || h == reason.ToOverlay {
		at, parent = ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS
	}
	if datapath.HaveTCX() == nil {
		return attached(t, l.Attrs().Index, at)
	}
	return filtered(t, l, parent)
}
