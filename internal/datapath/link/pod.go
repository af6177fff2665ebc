// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// loopbackIndex is that of lo in every namespace: LOOPBACK_IFINDEX of the
// kernel's net/net_namespace.h.
const loopbackIndex = 1

// Addressing is what a pod's pair carries.
type Addressing struct {
	IPs []netip.Addr // of the pod, one of each family
	// Src are addresses of the node: the host's route to the pod prefers the
	// first of the same family as source.
	Src []netip.Addr
}

func (a Addressing) src(of netip.Addr) netip.Addr {
	for _, s := range a.Src {
		if s.Is4() == of.Is4() {
			return s
		}
	}
	return netip.Addr{}
}

// Up gives both ends what they carry and brings them up, the host's end first:
// when the pod can send, everything it needs is there. index is that of the
// host's end. Repeating it mends what is missing.
func (l *Links) Up(v Veth, index int, a Addressing) error {
	if err := l.UpHost(v, index, a); err != nil {
		return err
	}
	if v.Netns == "" { // not known any more; see endpoint.Manager.Restore
		return nil
	}
	if err := l.upPod(v, index, a); err != nil {
		return fmt.Errorf("link %s in %s: %w", v.IfName, v.Netns, err)
	}
	s, err := newCarrierSocket()
	if err != nil {
		return fmt.Errorf("link %s: %w", v.HostIfName, err)
	}
	return errors.Join(s.settle(v.HostIfName), s.Close())
}

// Mend is Up for a pod that runs: of the pod's end it touches nothing, unless
// the device is down or without its addresses, as an interrupted Up leaves it. By
// then routes and neighbours in there are the pod's own concern: another plugin
// of the chain, or the pod itself, may have changed them on purpose.
func (l *Links) Mend(v Veth, index int, a Addressing) error {
	if err := l.UpHost(v, index, a); err != nil {
		return err
	}
	if v.Netns == "" {
		return nil
	}
	done, err := podIsUp(v, index, a)
	if err != nil {
		return fmt.Errorf("link %s in %s: %w", v.IfName, v.Netns, err)
	}
	if done {
		return nil
	}
	return l.Up(v, index, a)
}

// podIsUp reports whether the pod's end is up and has its addresses.
func podIsUp(v Veth, index int, a Addressing) (bool, error) {
	ns, err := openNetns(v.Netns)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	h, err := podHandle(ns, func(*netlink.Handle) error { return nil })
	if err != nil {
		return false, err
	}
	defer h.Close()
	dev, err := podEnd(h, v, index)
	if err != nil {
		return false, err
	}
	have, err := addrsOn(h, dev)
	if err != nil {
		return false, err
	}
	for _, ip := range a.IPs {
		if !have[ip] {
			return false, nil
		}
	}
	return dev.Attrs().Flags&net.FlagUp != 0, nil
}

// podEnd returns the pod's end of the pair whose host's end has index. A path
// like /proc/PID/ns/net leads to another pod's namespace once the number is used
// again; nothing in there may be touched.
func podEnd(h *netlink.Handle, v Veth, index int) (netlink.Link, error) {
	dev, err := h.LinkByName(v.IfName)
	if err != nil {
		return nil, err
	}
	at := dev.Attrs()
	if dev.Type() != "veth" || at.ParentIndex != index || !bytes.Equal(at.HardwareAddr, v.MAC) {
		err := fmt.Errorf("%s there is a %s with MAC %s and peer %d, want MAC %s and peer %d: the path leads to another namespace than it did: delete the pod if it has no network",
			v.IfName, dev.Type(), at.HardwareAddr, at.ParentIndex, v.MAC, index)
		return nil, &NetnsError{Path: v.Netns, Err: err}
	}
	return dev, nil
}

// UpHost is the part of Up that concerns the host's end.
func (l *Links) UpHost(v Veth, index int, a Addressing) error {
	if err := l.upHost(v, index, a); err != nil {
		return fmt.Errorf("link %s: %w", v.HostIfName, err)
	}
	return nil
}

func (l *Links) upHost(v Veth, index int, a Addressing) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	defer h.Close()
	if l.hasIPv6() {
		// Only proc has these; the kernel default would let a pod's router
		// advertisement configure the node once forwarding is off.
		if err := l.write("ipv6/conf/"+v.HostIfName+"/accept_ra", "0"); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	for _, ip := range a.IPs {
		if err := neigh(h, index, ip, v.MAC); err != nil {
			return err
		}
		if err := l.podRoute(h, index, ip, a.src(ip)); err != nil {
			return err
		}
	}
	return nil
}

// podRoute adds the host's route to a pod. A source that is not (or no longer)
// an address of this node would make the kernel refuse; reaching the pod
// matters more than the preference.
func (l *Links) podRoute(h *netlink.Handle, index int, ip, src netip.Addr) error {
	r := &netlink.Route{LinkIndex: index, Dst: hostNet(ip), Protocol: Protocol, Scope: netlink.SCOPE_LINK}
	if ip.Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	if src.IsValid() {
		r.Src = src.AsSlice()
	}
	err := h.RouteReplace(r)
	if errors.Is(err, unix.EINVAL) && r.Src != nil {
		l.log.Warn("node address is not on any device, route to pod goes without it as source", "address", src, "pod", ip)
		r.Src = nil
		err = h.RouteReplace(r)
	}
	if err != nil {
		return fmt.Errorf("route to %s: %w", ip, err)
	}
	return nil
}

func neigh(h *netlink.Handle, index int, ip netip.Addr, mac net.HardwareAddr) error {
	n := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac, Family: family(ip)}
	if err := h.NeighSet(n); err != nil {
		return fmt.Errorf("neighbour %s: %w", ip, err)
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (l *Links) upPod(v Veth, index int, a Addressing) error {
	ns, err := openNetns(v.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	wants6 := false
	for _, ip := range a.IPs {
		wants6 = wants6 || ip.Is6()
	}
	var socks podSockets
	defer socks.close()
	var dev netlink.Link
	h, err := podHandle(ns, func(h *netlink.Handle) (err error) {
		if dev, err = podEnd(h, v, index); err != nil {
			return err
		}
		return socks.open(l, v, wants6)
	})
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: loopbackIndex}}); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	if err := podConfigure(h, dev, v, a, wants6); err != nil {
		return err
	}
	if err := socks.carrier.settle(v.IfName); err != nil {
		return err
	}
	for _, ip := range a.IPs {
		if ip.Is6() {
			if err := waitLocal(h, socks.addrs, ip); err != nil {
				return err
			}
		}
	}
	return nil
}

// podSockets are made inside the pod's namespace, in one visit.
type podSockets struct {
	carrier carrierSocket
	addrs   *nl.NetlinkSocket // notifications about IPv6 addresses
}

func (s *podSockets) open(l *Links, v Veth, wants6 bool) (err error) {
	s.carrier = -1
	if wants6 {
		if err := l.podSysctls(v.IfName); err != nil {
			return err
		}
		if s.addrs, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV6_IFADDR); err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
	}
	s.carrier, err = newCarrierSocket()
	return err
}

func (s *podSockets) close() {
	if s.addrs != nil {
		s.addrs.Close()
	}
	if s.carrier > 0 {
		_ = s.carrier.Close()
	}
}

// podSysctls runs in the pod's namespace, before its device is up. A runtime
// may have switched IPv6 off there.
func (l *Links) podSysctls(ifname string) error {
	conf := "ipv6/conf/" + ifname + "/"
	if !l.hasIPv6() {
		return errors.New("IPv6 is not in this kernel or switched off at boot: set ipv6.enabled=false")
	}
	if b, err := os.ReadFile(l.proc + "/" + conf + "disable_ipv6"); err == nil && len(b) > 0 && b[0] != '0' {
		if err := l.write(conf+"disable_ipv6", "0"); err != nil {
			return err
		}
	}
	return l.write(conf+"accept_ra", "0")
}

func podConfigure(h *netlink.Handle, dev netlink.Link, v Veth, a Addressing, wants6 bool) error {
	index := dev.Attrs().Index
	addrs := make([]netip.Prefix, 0, 3)
	for _, ip := range a.IPs {
		addrs = append(addrs, netip.PrefixFrom(ip, ip.BitLen()))
	}
	if wants6 {
		// The kernel's own link-local address would be tentative for a second.
		if err := h.LinkSetIP6AddrGenMode(dev, int(addrGenModeNone)); err != nil {
			return fmt.Errorf("switch address generation off: %w", err)
		}
		addrs = append(addrs, netip.PrefixFrom(linkLocal(v.MAC), 64))
	}
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrReplace(dev, addr); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	if err := h.LinkSetUp(dev); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	for _, ip := range a.IPs {
		gw := Gateway(ip)
		if err := neigh(h, index, gw, v.HostMAC); err != nil {
			return err
		}
		if err := podRoutes(h, index, ip, gw); err != nil {
			return err
		}
	}
	return nil
}

// podRoutes adds the default route. The IPv4 gateway needs a route of its own;
// a link-local IPv6 gateway is on the link by nature.
func podRoutes(h *netlink.Handle, index int, ip, gw netip.Addr) error {
	if ip.Is4() {
		onLink := &netlink.Route{LinkIndex: index, Dst: hostNet(gw), Scope: netlink.SCOPE_LINK, Src: ip.AsSlice()}
		if err := h.RouteReplace(onLink); err != nil {
			return fmt.Errorf("route to %s: %w", gw, err)
		}
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if ip.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	def := &netlink.Route{LinkIndex: index, Dst: ipNet(all), Gw: gw.AsSlice(), Src: ip.AsSlice()}
	if err := h.RouteReplace(def); err != nil {
		return fmt.Errorf("default route through %s: %w", gw, err)
	}
	return nil
}

// linkLocal derives the modified EUI-64 address of a MAC: RFC 4291, appendix A.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	if len(mac) != 6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{
		0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5],
	})
}
