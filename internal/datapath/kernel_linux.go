// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bpfFSMagic is BPF_FS_MAGIC of linux/magic.h.
const bpfFSMagic = 0xcafe4a11

// probe checks what the programs need. Each error says what is missing and what
// to do about it; features are tried, versions never compared.
func probe(root string) error {
	dir := root
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if errors.Is(err, unix.ENOENT) && dir != "/" {
			dir = filepath.Dir(dir)
			continue
		}
		if err != nil {
			return fmt.Errorf("bpffs %s: %w", dir, err)
		}
		if uint32(st.Type) != bpfFSMagic {
			return fmt.Errorf("bpffs: %s is on another file system, where pins cannot live; run: mount -t bpf bpf /sys/fs/bpf", root)
		}
		break
	}
	for _, m := range []ebpf.MapType{ebpf.LRUHash, ebpf.LPMTrie, ebpf.RingBuf, ebpf.PerCPUArray} {
		if err := features.HaveMapType(m); err != nil {
			return missing(fmt.Sprintf("map type %s", m), err)
		}
	}
	for _, h := range []asm.BuiltinFunc{
		asm.FnRedirectPeer, asm.FnRedirectNeigh, asm.FnFibLookup, asm.FnKtimeGetCoarseNs, asm.FnRingbufReserve,
		asm.FnSkbChangeTail, asm.FnSkbAdjustRoom, asm.FnCsumDiff,
	} {
		if err := features.HaveProgramHelper(ebpf.SchedCLS, h); err != nil {
			return missing(fmt.Sprintf("BPF helper %s", h), err)
		}
	}
	if err := haveTCX(); err != nil {
		return missing("tcx (attaching programs by link)", err)
	}
	return nil
}

func missing(what string, err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%s: %w; the agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or to be privileged)", what, err)
	}
	return fmt.Errorf("%s: %w; Weft needs Linux 6.6 or newer with CONFIG_NET_XGRESS, CONFIG_BPF_SYSCALL and CONFIG_BPF_JIT", what, err)
}

// haveTCX asks the loopback device what runs on its tcx hook: a kernel without
// tcx does not know the question.
func haveTCX() error {
	const loopback = 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return err
}

// Flags of bpf_fib_lookup.
const fibLookupSkipNeigh = 1 << 2

// fibFlags returns the flags that the kernel knows. BPF_FIB_LOOKUP_SKIP_NEIGH is
// as old as tcx, so a kernel that passed probe has it.
func fibFlags() uint32 { return fibLookupSkipNeigh }

func flock(fd int) error {
	for {
		err := unix.Flock(fd, unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// checkEthernet refuses devices whose packets carry no Ethernet header: the
// programs would read addresses out of the wrong bytes.
func checkEthernet(ifindex int) error {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("interface %d: %w", ifindex, err)
	}
	if enc := l.Attrs().EncapType; enc != "ether" {
		return fmt.Errorf("interface %s carries %s, not Ethernet; leave it out of the devices setting", l.Attrs().Name, enc)
	}
	return nil
}

// detachLink takes a link off its device even if others hold it open.
func detachLink(l link.Link) error {
	at, err := linkTarget(l)
	if err != nil || at.ifindex == 0 {
		return err
	}
	d, ok := l.(interface{ Detach() error })
	if !ok {
		return nil
	}
	return d.Detach()
}
