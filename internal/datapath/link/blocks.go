// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Indexes of the filter blocks that all pods' links share. They are numbers
// within a network namespace that nobody else is likely to choose.
const (
	blockFromPod = 0x5EF70001
	blockToPod   = 0x5EF70002
)

// Attributes and numbers of linux/rtnetlink.h and linux/pkt_sched.h that
// package nl does not name.
const (
	tcaEgressBlock  = 14 // TCA_EGRESS_BLOCK
	magicBlock      = -1 // TCM_IFINDEX_MAGIC_BLOCK
	filterHandle    = 1
	filterPriority  = 1
	bpfDirectAction = 1 // TCA_BPF_FLAG_ACT_DIRECT
)

// Blocks runs two programs on all pods' links through filter blocks that the
// links share. To attach a link is one message of some 50 µs; with tcx each
// program waits for a grace period under the RTNL, 8 to 16 ms, one pod after the
// other. To replace the programs is one atomic step for all links. A link that
// goes takes nothing along; with the last link the blocks go.
type Blocks struct {
	// FromPod and ToPod are descriptors of programs of type SCHED_CLS, for what
	// comes from the pod and what goes to it. "Pass" is TC_ACT_UNSPEC.
	FromPod, ToPod int
}

type blockProgramFD struct {
	block uint32
	fd    int
	name  string
}

func (b Blocks) programs() []blockProgramFD {
	return []blockProgramFD{{blockFromPod, b.FromPod, "from_pod"}, {blockToPod, b.ToPod, "to_pod"}}
}

// Attach makes the link with this index run the programs. It is idempotent.
func (b Blocks) Attach(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(&nl.TcMsg{
		Family: nl.FAMILY_ALL, Ifindex: int32(index), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("clsact")))
	req.AddData(nl.NewRtAttr(nl.TCA_INGRESS_BLOCK, nl.Uint32Attr(blockFromPod)))
	req.AddData(nl.NewRtAttr(tcaEgressBlock, nl.Uint32Attr(blockToPod)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EEXIST) {
		err = b.ours(index)
	}
	if err != nil {
		return fmt.Errorf("link %d: filter blocks: %w", index, err)
	}
	return b.Swap()
}

// ours makes sure that the clsact that is there is that of Attach.
func (b Blocks) ours(index int) error {
	var list []netlink.Qdisc
	err := retryDump(func() (err error) {
		list, err = netlink.QdiscList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}})
		return err
	})
	if err != nil {
		return err
	}
	for _, q := range list {
		if q.Type() != "clsact" {
			continue
		}
		if in := q.Attrs().IngressBlock; in != nil && *in == blockFromPod {
			return nil
		}
		return errors.New("the clsact qdisc is not Weft's: tc qdisc del dev DEVICE clsact")
	}
	return errors.New("the clsact qdisc is gone")
}

// Swap makes all attached links run the programs of b, atomically for each
// direction. Without any link it is an error that wraps unix.EINVAL: there are
// no blocks then.
func (b Blocks) Swap() error {
	for _, f := range b.programs() {
		req := nl.NewNetlinkRequest(unix.RTM_NEWTFILTER, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
		req.AddData(&nl.TcMsg{
			Family: nl.FAMILY_ALL, Ifindex: magicBlock, Handle: filterHandle, Parent: f.block,
			Info: netlink.MakeHandle(filterPriority, nl.Swap16(unix.ETH_P_ALL)),
		})
		req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")))
		opts := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
		opts.AddRtAttr(nl.TCA_BPF_FD, nl.Uint32Attr(uint32(f.fd)))
		opts.AddRtAttr(nl.TCA_BPF_NAME, nl.ZeroTerminated(f.name))
		opts.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(bpfDirectAction))
		req.AddData(opts)
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return fmt.Errorf("program %s: filter block %#x: %w", f.name, f.block, err)
		}
	}
	return nil
}

// Check reports what keeps a link from running the programs of b: that its
// qdisc is gone or another's, or that a block runs something else.
func (b Blocks) Check(index int) error {
	if err := b.ours(index); err != nil {
		return fmt.Errorf("link %d: filter blocks: %w", index, err)
	}
	for _, f := range b.programs() {
		want, err := programID(f.fd)
		if err != nil {
			return fmt.Errorf("program %s: %w", f.name, err)
		}
		got, err := blockProgram(f.block)
		if err != nil {
			return fmt.Errorf("program %s: filter block %#x: %w", f.name, f.block, err)
		}
		if got != want {
			return fmt.Errorf("program %s: filter block %#x runs program %d, want %d", f.name, f.block, got, want)
		}
	}
	return nil
}

// programID reads a program's id from proc, as this package knows descriptors only.
func programID(fd int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "prog_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, fmt.Errorf("descriptor %d is not a BPF program", fd)
}

// blockProgram returns the id of the program that comes first in a block.
func blockProgram(block uint32) (int, error) {
	var list []netlink.Filter
	err := retryDump(func() (err error) {
		list, err = netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: magicBlock}}, block)
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, f := range list {
		if p, ok := f.(*netlink.BpfFilter); ok {
			return p.Id, nil
		}
	}
	return 0, errors.New("has no program")
}

// Detach takes the programs off a link. One that is gone or has none is no error.
func (b Blocks) Detach(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELQDISC, unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{
		Family: nl.FAMILY_ALL, Ifindex: int32(index), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	})
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil && !isGone(err) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("link %d: take programs off: %w", index, err)
	}
	return nil
}
