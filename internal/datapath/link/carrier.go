// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// carrierSocket asks for the carrier of devices of the namespace that the
// calling thread is in when the socket is made.
type carrierSocket int

func newCarrierSocket() (carrierSocket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return carrierSocket(fd), nil
}

func (s carrierSocket) Close() error { return unix.Close(int(s)) }

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct{ cmd, data uint32 }

// ethtoolReq is struct ifreq with ifr_data, of linux/if.h.
type ethtoolReq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// settle makes the kernel act on a carrier that just came, at once. The end of a
// veth pair that comes up first gets its carrier when the other follows, and
// its queue only when a worker (net/core/link_watch.c) gets to it: what is sent
// until then is dropped, which costs a TCP connection a second. Asking for the
// link state does the worker's job (ethtool_op_get_link).
func (s carrierSocket) settle(ifname string) error {
	v := &ethtoolValue{cmd: unix.ETHTOOL_GLINK}
	req := &ethtoolReq{data: unsafe.Pointer(v)}
	copy(req.name[:unix.IFNAMSIZ-1], ifname)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(req)))
	runtime.KeepAlive(v)
	if errno != 0 {
		return fmt.Errorf("%s: link state: %w", ifname, errno)
	}
	if v.data == 0 {
		return errors.New(ifname + ": has no carrier: the other end is down")
	}
	return nil
}
