// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	ebpffeatures "github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/rtnl"
)

// bpfFSMagic is BPF_FS_MAGIC of linux/magic.h.
const bpfFSMagic = 0xcafe4a11

// probe checks what the programs need. Each error says what is missing and what
// to do about it; features are tried, versions never compared.
func probe(root string) (features, error) {
	if err := probeBPFFS(root); err != nil {
		return features{}, err
	}
	for _, m := range []ebpf.MapType{ebpf.LRUHash, ebpf.LPMTrie, ebpf.RingBuf, ebpf.PerCPUArray} {
		if err := ebpffeatures.HaveMapType(m); err != nil {
			return features{}, missing(fmt.Sprintf("map type %s", m), err)
		}
	}
	for _, h := range []asm.BuiltinFunc{
		asm.FnRedirectPeer, asm.FnRedirectNeigh, asm.FnFibLookup, asm.FnKtimeGetCoarseNs, asm.FnRingbufReserve,
		asm.FnSkbChangeTail, asm.FnSkbAdjustRoom, asm.FnCsumDiff, asm.FnSkbSetTunnelKey, asm.FnSkbGetTunnelKey,
	} {
		if err := ebpffeatures.HaveProgramHelper(ebpf.SchedCLS, h); err != nil {
			return features{}, missing(fmt.Sprintf("BPF helper %s", h), err)
		}
	}
	skip, err := haveSkipNeigh()
	if err != nil {
		return features{}, missing("bpf_fib_lookup", err)
	}
	return features{tcx: haveTCX() == nil, skipNeigh: skip}, nil
}

func probeBPFFS(root string) error {
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
		return nil
	}
}

func missing(what string, err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%s: %w; the agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or to be privileged)", what, err)
	}
	return fmt.Errorf("%s: %w; Weft needs Linux %s or newer with CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT, CONFIG_NET_CLS_ACT and CONFIG_NET_CLS_BPF", what, err, MinimumKernel)
}

// haveTCX asks the loopback device what runs on its tcx hook: a kernel without
// tcx does not know the question.
func haveTCX() error {
	const loopback = 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return err
}

// haveSkipNeigh asks bpf_fib_lookup about a device that does not exist: a kernel
// that knows BPF_FIB_LOOKUP_SKIP_NEIGH says ENODEV, an older one EINVAL.
func haveSkipNeigh() (bool, error) {
	const params = 64 // sizeof(struct bpf_fib_lookup)
	insns := asm.Instructions{}
	for off := int16(-params); off < 0; off += 4 {
		insns = append(insns, asm.StoreImm(asm.R10, off, 0, asm.Word))
	}
	insns = append(insns,
		asm.StoreImm(asm.R10, -params, unix.AF_INET, asm.Byte),
		asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -params),
		asm.Mov.Imm(asm.R3, params), asm.Mov.Imm(asm.R4, fibLookupSkipNeigh),
		asm.FnFibLookup.Call(), asm.Return(),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "weft_probe", Type: ebpf.SchedCLS, License: "GPL", Instructions: insns})
	if err != nil {
		return false, err
	}
	defer p.Close()
	got, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		return false, err
	}
	return int32(got) == -int32(unix.ENODEV), nil
}

// bpfMapInfo is the head of struct bpf_map_info of linux/bpf.h.
type bpfMapInfo struct {
	Type, ID, KeySize, ValueSize, MaxEntries, Flags uint32
	Name                                            [16]byte
	IfIndex, VmlinuxValueType                       uint32
	NetnsDev, NetnsIno                              uint64
	BTF, KeyType, ValueType, _                      uint32
}

// mapTypes asks the kernel how the entries of a map are laid out. ok is false
// where it does not know.
func mapTypes(m *ebpf.Map) (key, value btf.Type, ok bool, err error) {
	const objGetInfoByFD = 15 // BPF_OBJ_GET_INFO_BY_FD
	info := &bpfMapInfo{}
	var pin runtime.Pinner // its address is in attr as a number
	pin.Pin(info)
	defer pin.Unpin()
	attr := struct {
		fd, len uint32
		info    uint64
	}{uint32(m.FD()), uint32(unsafe.Sizeof(*info)), uint64(uintptr(unsafe.Pointer(info)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, objGetInfoByFD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(m)
	if errno != 0 {
		return nil, nil, false, fmt.Errorf("ask for its layout: %w", errno)
	}
	if info.BTF == 0 || info.KeyType == 0 || info.ValueType == 0 {
		return nil, nil, false, nil
	}
	h, err := btf.NewHandleFromID(btf.ID(info.BTF))
	if err != nil {
		return nil, nil, false, fmt.Errorf("ask for its layout: %w", err)
	}
	defer h.Close()
	spec, err := h.Spec(nil)
	if err != nil {
		return nil, nil, false, fmt.Errorf("read its layout: %w", err)
	}
	if key, err = spec.TypeByID(btf.TypeID(info.KeyType)); err == nil {
		value, err = spec.TypeByID(btf.TypeID(info.ValueType))
	}
	if err != nil {
		return nil, nil, false, fmt.Errorf("read its layout: %w", err)
	}
	return key, value, true, nil
}

func flock(fd int) error {
	for {
		err := unix.Flock(fd, unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// isEthernet asks for no more than a device's type: it is part of each ADD.
func isEthernet(ifindex int) bool {
	c, err := rtnl.Dial()
	if err != nil {
		return false
	}
	defer c.Close()
	c.Begin("", unix.RTM_GETLINK, 0, rtnl.Link(ifindex, 0, 0))
	c.Uint32(unix.IFLA_EXT_MASK, skipStats)
	b, err := c.Get()
	return err == nil && len(b) >= unix.SizeofIfInfomsg && binary.NativeEndian.Uint16(b[2:]) == unix.ARPHRD_ETHER
}

// skipStats leaves the counters out of the answer: RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStats = 1 << 3

// checkEthernet refuses devices whose packets carry no Ethernet header: the
// programs would read addresses out of the wrong bytes.
func checkEthernet(ifindex int) error {
	if isEthernet(ifindex) {
		return nil
	}
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("interface %d: %w", ifindex, err)
	}
	if enc := l.Attrs().EncapType; enc != "ether" {
		return fmt.Errorf("interface %s carries %s, not Ethernet; leave it out of the devices setting", l.Attrs().Name, enc)
	}
	return nil
}

// detachLink takes a link off its device or cgroup even if others hold it open.
func detachLink(l link.Link) error {
	info, err := l.Info()
	if err != nil {
		return err
	}
	if at := info.Cgroup(); at != nil && at.CgroupId == 0 {
		return nil
	} else if at == nil {
		if at, err := linkTarget(l); err != nil || at.ifindex == 0 {
			return err
		}
	}
	d, ok := l.(interface{ Detach() error })
	if !ok {
		return nil
	}
	return d.Detach()
}

// indexOf returns the index of a device, 0 if there is none of the name.
func indexOf(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}
