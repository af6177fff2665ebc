// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// invalidDrop is what kube-proxy does in FORWARD with half a connection.
const invalidDrop = "table inet kp {\n chain f {\n type filter hook forward priority 0;\n ct state invalid counter drop;\n }\n}\n"

// tagPriority makes a machine send all frames with an 802.1p priority and VID 0.
func tagPriority(t *testing.T, m *machine) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R2, 0x0081), asm.Mov.Imm(asm.R3, 0x6000), asm.FnSkbVlanPush.Call(), asm.Mov.Imm(asm.R0, -1), asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = prog.Close() })
	m.in(t, func() {
		tc(t, "qdisc replace dev eth0 clsact")
		theirs := &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link(t, "eth0").Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Priority: 2, Protocol: unix.ETH_P_ALL,
		}, Fd: prog.FD(), Name: "tag", DirectAction: true}
		if err := netlink.FilterAdd(theirs); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPriorityTagged guards against frames with a priority tag (VID 0), which
// the kernel takes as untagged, hanging pods' connections or passing without a
// look at their source.
func TestPriorityTagged(t *testing.T) {
	c := newCluster(t)
	a, b := c.nodes[0], c.nodes[1]
	a.in(t, func() { nft(t, invalidDrop) })
	tagPriority(t, b)
	for _, fam := range families {
		to := ap(b.pods[0].addr.of(fam), 8080)
		echoTCP(t, b.pods[0].space, to)
		if err := roundTrip(t, a.pods[0].space, "tcp", to, 100000); err != nil {
			t.Errorf("ipv%d, tagged on the way back: %v", fam, err)
		}
		to = ap(a.pods[0].addr.of(fam), 8080)
		echoTCP(t, a.pods[0].space, to)
		if err := roundTrip(t, b.pods[0].space, "tcp", to, 100000); err != nil {
			t.Errorf("ipv%d, tagged on the way there: %v", fam, err)
		}
	}
	if a.metrics(t)["from_net peer"] == 0 {
		t.Error("no tagged packet took the fast path")
	}
	c.noDrops()
	// The address of a pod of a, from outside.
	spoofed := a.pods[1].addr.v4
	b.in(t, func() {
		ip(t, "addr add "+spoofed.String()+"/32 dev lo")
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: spoofed.AsSlice()}, Timeout: patience}
		s, err := d.Dial("udp4", ap(a.pods[0].addr.v4, 9).String())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	})
	if got := a.metrics(t)["from_net source-spoofed"]; got != 1 {
		t.Errorf("%d tagged packets with a forged source were dropped, want 1", got)
	}
}
