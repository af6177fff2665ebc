// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/rtnl"
)

// work is the kernel's part of a pod alone: a pair, a program at each hook,
// addresses, routes and neighbours of both families, as package link makes them.
// There is no map, no state, no choice of address, no protocol; as many pods at
// once as there are cores, and the pairs of all that wait before the rest of any,
// which spares grace periods (see endpoint.Manager).
type work struct {
	links *link.Links
	prog  *ebpf.Program
	turns chan struct{}
	n     atomic.Uint32
}

func newWork() (*work, error) {
	links, err := link.New("", slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "floor", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		return nil, err
	}
	return &work{links: links, prog: prog, turns: make(chan struct{}, runtime.GOMAXPROCS(0))}, nil
}

func (w *work) close() error { return w.prog.Close() }

func (w *work) attach(netns string) error {
	n := w.n.Add(1)
	v := link.Veth{
		HostIfName: fmt.Sprintf("%s%d", floorVeth, n), Alias: "floor", Netns: netns, IfName: "eth0", MTU: 1500,
		MAC: net.HardwareAddr{2, 0, 0, 1, byte(n >> 8), byte(n)}, HostMAC: net.HardwareAddr{2, 0, 0, 2, byte(n >> 8), byte(n)},
	}
	w.turns <- struct{}{}
	index, err := w.links.Create(v)
	<-w.turns
	if err != nil {
		return err
	}
	w.turns <- struct{}{} // behind those that wait to begin: channels are fair
	defer func() { <-w.turns }()
	if err := w.program(index); err != nil {
		return err
	}
	return w.links.Up(v, index, link.Addressing{
		IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 250, byte(n >> 8), byte(n)}), netip.AddrFrom16([16]byte{0xfd, 0x0f, 14: byte(n >> 8), 15: byte(n)})},
		Src: []netip.Addr{netip.MustParseAddr(nodeAddr), netip.MustParseAddr(nodeSix)},
	}, nil)
}

// program puts the program at both hooks, which Create has made the place for.
func (w *work) program(index int) (err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		c.Begin("filter", unix.RTM_NEWTFILTER, rtnl.Create, rtnl.TC(index, 1, parent, netlink.MakeHandle(1, nl.Swap16(unix.ETH_P_ALL))))
		c.String(nl.TCA_KIND, "bpf")
		options := c.Nest(nl.TCA_OPTIONS)
		c.Uint32(nl.TCA_BPF_FD, uint32(w.prog.FD()))
		c.String(nl.TCA_BPF_NAME, "floor")
		c.Uint32(nl.TCA_BPF_FLAGS, nl.TCA_BPF_FLAG_ACT_DIRECT)
		c.End(options)
	}
	return c.Commit()
}
