// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check compares a pair with what Up makes of it, and returns an error that
// names the first object that is missing or different. With an empty v.Netns
// only the host's end is looked at.
func (l *Links) Check(v Veth, index int, a Addressing) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	defer h.Close()
	if err := checkHost(h, v, index, a); err != nil {
		return fmt.Errorf("link %s: %w", v.HostIfName, err)
	}
	if v.Netns == "" {
		return nil
	}
	ns, err := openNetns(v.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	ph, err := podHandle(ns, func(*netlink.Handle) error { return nil })
	if err != nil {
		return fmt.Errorf("link %s in %s: %w", v.IfName, v.Netns, err)
	}
	defer ph.Close()
	if err := checkPod(ph, v, a); err != nil {
		return fmt.Errorf("link %s in %s: %w", v.IfName, v.Netns, err)
	}
	return nil
}

func checkHost(h *netlink.Handle, v Veth, index int, a Addressing) error {
	dev, err := h.LinkByName(v.HostIfName)
	if err != nil {
		return err
	}
	if got := dev.Attrs().Index; got != index {
		return fmt.Errorf("has index %d, want %d: it was replaced", got, index)
	}
	if err := checkLink(dev, v.HostMAC, v.MTU); err != nil {
		return err
	}
	for _, ip := range a.IPs {
		if err := checkNeigh(h, index, ip, v.MAC); err != nil {
			return err
		}
		if err := checkRoute(h, index, netip.PrefixFrom(ip, ip.BitLen()), netip.Addr{}); err != nil {
			return err
		}
	}
	return nil
}

func checkPod(h *netlink.Handle, v Veth, a Addressing) error {
	dev, err := h.LinkByName(v.IfName)
	if err != nil {
		return err
	}
	if err := checkLink(dev, v.MAC, v.MTU); err != nil {
		return err
	}
	have, err := addrsOn(h, dev)
	if err != nil {
		return err
	}
	for _, ip := range a.IPs {
		if !have[ip] {
			return fmt.Errorf("address %s is missing", ip)
		}
		gw := Gateway(ip)
		if err := checkNeigh(h, dev.Attrs().Index, gw, v.HostMAC); err != nil {
			return err
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if ip.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		} else if err := checkRoute(h, dev.Attrs().Index, netip.PrefixFrom(gw, 32), netip.Addr{}); err != nil {
			return err
		}
		if err := checkRoute(h, dev.Attrs().Index, all, gw); err != nil {
			return err
		}
	}
	return nil
}

func checkLink(dev netlink.Link, mac net.HardwareAddr, mtu int) error {
	switch a := dev.Attrs(); {
	case a.Flags&net.FlagUp == 0:
		return fmt.Errorf("is down")
	case !bytes.Equal(a.HardwareAddr, mac):
		return fmt.Errorf("has MAC %s, want %s", a.HardwareAddr, mac)
	case a.MTU != mtu:
		return fmt.Errorf("has MTU %d, want %d", a.MTU, mtu)
	}
	return nil
}

func addrsOn(h *netlink.Handle, dev netlink.Link) (map[netip.Addr]bool, error) {
	var list []netlink.Addr
	err := retryDump(func() (err error) {
		list, err = h.AddrList(dev, unix.AF_UNSPEC)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	have := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		have[prefixOf(a.IPNet).Addr()] = true
	}
	return have, nil
}

func checkNeigh(h *netlink.Handle, index int, ip netip.Addr, mac net.HardwareAddr) error {
	var list []netlink.Neigh
	err := retryDump(func() (err error) {
		list, err = h.NeighList(index, int(family(ip)))
		return err
	})
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range list {
		if a, _ := netip.AddrFromSlice(n.IP); a.Unmap() != ip {
			continue
		}
		if !bytes.Equal(n.HardwareAddr, mac) || n.State&unix.NUD_PERMANENT == 0 {
			return fmt.Errorf("neighbour %s is %s and not permanent at %s", ip, n.HardwareAddr, mac)
		}
		return nil
	}
	return fmt.Errorf("neighbour %s is missing", ip)
}

// checkRoute looks for a route in the main table; via may be invalid.
func checkRoute(h *netlink.Handle, index int, dst netip.Prefix, via netip.Addr) error {
	var list []netlink.Route
	err := retryDump(func() (err error) {
		filter := &netlink.Route{LinkIndex: index, Dst: ipNet(dst), Table: unix.RT_TABLE_MAIN}
		list, err = h.RouteListFiltered(int(family(dst.Addr())), filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
		return err
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range list {
		gw, _ := netip.AddrFromSlice(r.Gw)
		if gw.Unmap() == via {
			return nil
		}
	}
	if via.IsValid() {
		return fmt.Errorf("route %s through %s is missing", dst, via)
	}
	return fmt.Errorf("route %s is missing", dst)
}
