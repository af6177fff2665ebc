// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	ebpffeatures "github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// probeSockets says what the kernel lacks for the programs of sockets.
func probeSockets() error {
	if err := ebpffeatures.HaveProgramType(ebpf.CGroupSockAddr); err != nil {
		return fmt.Errorf("%w: program type %s: %w; Weft needs CONFIG_CGROUP_BPF", ErrNoSockets, ebpf.CGroupSockAddr, err)
	}
	for _, h := range []asm.BuiltinFunc{
		asm.FnGetSocketCookie, asm.FnGetNetnsCookie, asm.FnSetRetval, asm.FnGetPrandomU32, asm.FnKtimeGetCoarseNs, asm.FnLoop,
	} {
		if err := ebpffeatures.HaveProgramHelper(ebpf.CGroupSockAddr, h); err != nil {
			return fmt.Errorf("%w: BPF helper %s: %w; Weft needs Linux %s or newer", ErrNoSockets, h, err, MinimumKernel)
		}
	}
	return nil
}

// netnsCookie returns what the programs know the agent's network namespace by, which
// is the node's. The first namespace of the machine need not be it.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cookie of the network namespace: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return 0, fmt.Errorf("cookie of the network namespace: %w", err)
	}
	return cookie, nil
}

// cgroupID returns what a link knows a cgroup by.
func cgroupID(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, fmt.Errorf("cgroup %s: %w", path, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("cgroup %s: is not of the cgroup2 hierarchy: set cgroup.autoMount.enabled=true, or cgroup.hostRoot to where the node has it", path)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return st.Ino, nil
}
