// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// shareAddress lets several sockets of one server have one address, so that a
// burst of datagrams spreads over their buffers.
func shareAddress(_, _ string, c syscall.RawConn) error {
	return control(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
}

// fragmentation decides what happens to datagrams larger than the path. Whole
// sets "do not fragment" and ignores what the kernel remembers about the path
// (IP_PMTUDISC_PROBE), so that a path that became too narrow shows every time;
// otherwise datagrams are fragmented by the MTU of the device
// (IP_PMTUDISC_OMIT), whatever an ICMP error said.
func fragmentation(v6, whole bool) func(_, _ string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error { return setFragmentation(fd, v6, whole) })
	}
}

func setFragmentation(fd int, v6, whole bool) error {
	switch {
	case v6 && whole:
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
	case v6:
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_OMIT)
	case whole:
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
}

func control(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// openICMP opens a socket that sends echo requests to dst and takes what it
// sends back. Raw says that the socket is a raw one: it sees all echo replies
// from dst, with IPv4 headers in front. Ping sockets are tried first because
// they need no capability.
func openICMP(dst netip.Addr, whole bool) (f *os.File, raw bool, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	var to unix.Sockaddr
	if dst.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		to = &unix.SockaddrInet6{Addr: dst.As16()}
	} else {
		to = &unix.SockaddrInet4{Addr: dst.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		raw = true
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	}
	if err != nil {
		return nil, false, fmt.Errorf("icmp socket: %w; it needs CAP_NET_RAW or net.ipv4.ping_group_range", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) // capped by the kernel; less still works
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	if err = setFragmentation(fd, dst.Is6(), whole); err == nil {
		err = unix.Connect(fd, to)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, false, fmt.Errorf("icmp socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "icmp"), raw, nil
}

// reportICMP has ICMP errors about what the socket sent end its next call, also
// those that the protocol holds for passing ("packet too big").
func reportICMP(f *os.File, v6 bool) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return control(c, func(fd int) error {
		if v6 {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	})
}

// routeMTU returns the MTU of the route to dst: the route's own, else the
// device's. It asks the routing table itself (RTM_F_FIB_MATCH), not for what
// the kernel has learned about the path, because that is what is to be tested.
func routeMTU(dst netip.Addr) (int, error) {
	routes, err := netlink.RouteGetWithOptions(dst.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil {
		return 0, fmt.Errorf("route to %s: %w", dst, err)
	}
	if len(routes) == 0 {
		return 0, fmt.Errorf("route to %s: none", dst)
	}
	r := routes[0]
	if r.MTU != 0 {
		return r.MTU, nil
	}
	index := r.LinkIndex
	if index == 0 && len(r.MultiPath) > 0 {
		index = r.MultiPath[0].LinkIndex
	}
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return 0, fmt.Errorf("route to %s: device %d: %w", dst, index, err)
	}
	return link.Attrs().MTU, nil
}
