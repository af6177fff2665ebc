// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/state"
)

// SetMTU gives both ends of a link an MTU. Where the router's side of the
// subnet can carry more, a route tells the router, so that it answers what is
// too large with "fragmentation needed" and "packet too big"; hosts on the same
// subnet get no answer, as on any layer-2 network.
func SetMTU(routerPath, hostPath string, o plan.Options, p plan.Port, links map[string]state.Impairments, hosts []plan.Host) error {
	mtu := links[p.Peer].MTU
	if mtu == 0 {
		mtu = o.MTU
	}
	if err := setDeviceMTU(routerPath, p.Peer, mtu); err != nil {
		return err
	}
	if err := setDeviceMTU(hostPath, p.Dev, mtu); err != nil {
		return err
	}
	s, err := o.Subnet(p.Subnet)
	if err != nil {
		return err
	}
	bridgeMTU := largestMTU(o, s, links, hosts)
	if err := fixBridgeMTU(routerPath, s.Bridge, bridgeMTU); err != nil {
		return err
	}
	return setHostRoutes(routerPath, s, p, mtu, bridgeMTU)
}

func largestMTU(o plan.Options, s plan.Subnet, links map[string]state.Impairments, hosts []plan.Host) int {
	largest := o.MTU
	for _, h := range hosts {
		for _, p := range h.Ports {
			if p.Subnet == s.Name {
				largest = max(largest, links[p.Peer].MTU)
			}
		}
	}
	return largest
}

func setDeviceMTU(path, dev string, mtu int) error {
	h, ns, err := handle(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	l, err := h.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("device %s: %w", dev, err)
	}
	if err := h.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("device %s: mtu %d: %w", dev, mtu, err)
	}
	return nil
}

func fixBridgeMTU(path, bridge string, mtu int) error {
	h, ns, err := handle(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	l, err := h.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	if l.Attrs().MTU == mtu {
		return nil
	}
	return setBridgeMTU(h, l, mtu)
}

func setHostRoutes(path string, s plan.Subnet, p plan.Port, mtu, bridgeMTU int) error {
	h, ns, err := handle(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	br, err := h.LinkByName(s.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", s.Bridge, err)
	}
	for _, a := range []netip.Addr{p.V4.Addr(), p.V6.Addr()} {
		r := &netlink.Route{Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), LinkIndex: br.Attrs().Index}
		if a.Is4() {
			r.Scope = netlink.SCOPE_LINK
		}
		if mtu < bridgeMTU {
			r.MTU = mtu // not for a deletion, which would compare it
			err = h.RouteReplace(r)
		} else if err = h.RouteDel(r); errors.Is(err, unix.ESRCH) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("route %s: %w", a, err)
		}
	}
	return nil
}

// ethtool commands (linux/ethtool.h).
const (
	ethtoolSetTSO = 0x1f
	ethtoolSetGSO = 0x24
)

// SetOffload turns segmentation offload of a device on or off. With it, frames
// of up to 64 KiB cross a veth in one piece whatever its MTU is, and a lost one
// counts for many; a bad link is only true to life without.
func SetOffload(path, dev string, on bool) error {
	value := uint32(0)
	if on {
		value = 1
	}
	return In(path, func() error {
		for _, cmd := range []uint32{ethtoolSetTSO, ethtoolSetGSO} {
			if err := ethtool(dev, cmd, value); err != nil {
				return fmt.Errorf("device %s in %s: segmentation offload: %w", dev, filepath.Base(path), err)
			}
		}
		return nil
	})
}

func ethtool(dev string, cmd, value uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	data := struct{ cmd, value uint32 }{cmd, value}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&data)}
	copy(request.name[:unix.IFNAMSIZ-1], dev)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}

// Plug makes a device a port of the subnet's bridge, or with an empty bridge
// takes it off.
func Plug(path, dev, bridge string) error {
	h, ns, err := handle(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	l, err := h.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("device %s: %w", dev, err)
	}
	if bridge == "" {
		err = h.LinkSetNoMaster(l)
	} else {
		var br netlink.Link
		if br, err = h.LinkByName(bridge); err == nil {
			err = h.LinkSetMaster(l, br)
		}
	}
	if err != nil {
		return fmt.Errorf("device %s: bridge %q: %w", dev, bridge, err)
	}
	return nil
}

// HasLink says whether a device exists.
func HasLink(path, dev string) bool {
	h, ns, err := handle(path)
	if err != nil {
		return false
	}
	defer ns.Close()
	defer h.Close()
	_, err = h.LinkByName(dev)
	return err == nil
}

// DeleteLink deletes a device; one that is not there is no error.
func DeleteLink(path, dev string) error {
	h, ns, err := handle(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	l, err := h.LinkByName(dev)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil
	}
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("device %s: %w", dev, err)
	}
	return nil
}

// SetUpPort makes a device a bridge's port, with an MTU, and sets it up.
func SetUpPort(path, dev, bridge string, mtu int) error {
	if err := setDeviceMTU(path, dev, mtu); err != nil {
		return err
	}
	if err := Plug(path, dev, bridge); err != nil {
		return err
	}
	h, ns, err := handle(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	return up(h, dev)
}

// ForgetPaths drops the path MTUs that a host has learned, which would
// outlive the bad link by ten minutes. (The flush entry of IPv6 in /proc leaves
// them alone.)
func ForgetPaths(ctx context.Context, path string) error {
	for _, family := range []string{"-4", "-6"} {
		out, err := runIn(ctx, path, "", "ip", family, "route", "flush", "cache")
		if err != nil {
			return fmt.Errorf("forget path mtus in %s: %w: %s", filepath.Base(path), err, out)
		}
	}
	return nil
}
