// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/rtnl"
)

// loopbackIndex is that of lo in every namespace: LOOPBACK_IFINDEX of the
// kernel's net/net_namespace.h.
const loopbackIndex = 1

// skipStats leaves the counters out of what the kernel tells about a device:
// RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStats = 1 << 3

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
// host's end. Repeating it mends what is missing. configured, if not nil, is
// called when only waiting for the kernel's workers is left.
func (l *Links) Up(v Veth, index int, a Addressing, configured func()) error {
	if err := l.UpHost(v, index, a); err != nil {
		return err
	}
	if v.Netns == "" { // not known any more; see endpoint.Manager.Restore
		return nil
	}
	if err := l.upPod(v, index, a, configured); err != nil {
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
	return l.Up(v, index, a, nil)
}

// podIsUp reports whether the pod's end is up and has its addresses.
func podIsUp(v Veth, index int, a Addressing) (up bool, err error) {
	ns, err := openNetns(v.Netns)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	h, err := podHandle(ns, func(*netlink.Handle) error {
		c, err := rtnl.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		end, err := podEnd(c, v, index)
		up = end.flags&unix.IFF_UP != 0
		return err
	})
	if err != nil {
		return false, err
	}
	defer h.Close()
	dev, err := h.LinkByName(v.IfName)
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
	return up, nil
}

// end is what the kernel says about the pod's end of a pair.
type end struct {
	index int
	flags uint32
}

// podEnd returns the pod's end of the pair whose host's end has index. A path
// like /proc/PID/ns/net leads to another pod's namespace once the number is used
// again; nothing in there may be touched.
func podEnd(c *rtnl.Conn, v Veth, index int) (end, error) {
	c.Begin(v.IfName, unix.RTM_GETLINK, 0, rtnl.Link(0, 0, 0))
	c.String(unix.IFLA_IFNAME, v.IfName)
	c.Uint32(unix.IFLA_EXT_MASK, skipStats)
	b, err := c.Get()
	if err != nil {
		return end{}, err
	}
	if len(b) < unix.SizeofIfInfomsg {
		return end{}, fmt.Errorf("%s: answer is cut off", v.IfName)
	}
	attrs, err := nl.ParseRouteAttrAsMap(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return end{}, fmt.Errorf("%s: %w", v.IfName, err)
	}
	mac := net.HardwareAddr(attrs[unix.IFLA_ADDRESS].Value)
	peer := -1
	if at := attrs[unix.IFLA_LINK].Value; len(at) == 4 {
		peer = int(binary.NativeEndian.Uint32(at))
	}
	if peer != index || !bytes.Equal(mac, v.MAC) {
		err := fmt.Errorf("%s there is a device with MAC %s and peer %d, want a veth with MAC %s and peer %d: the path leads to another namespace than it did: delete the pod if it has no network",
			v.IfName, mac, peer, v.MAC, index)
		return end{}, &NetnsError{Path: v.Netns, Err: err}
	}
	return end{index: int(binary.NativeEndian.Uint32(b[4:])), flags: binary.NativeEndian.Uint32(b[8:])}, nil
}

// UpHost is the part of Up that concerns the host's end.
func (l *Links) UpHost(v Veth, index int, a Addressing) error {
	if err := l.upHost(v, index, a); err != nil {
		return fmt.Errorf("link %s: %w", v.HostIfName, err)
	}
	return nil
}

func (l *Links) upHost(v Veth, index int, a Addressing) error {
	if l.ipv6 {
		// Only proc has these; the kernel default would let a pod's router
		// advertisement configure the node once forwarding is off.
		if err := l.write("ipv6/conf/"+v.HostIfName+"/accept_ra", "0"); err != nil {
			return err
		}
	}
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	hostBatch(c, v, index, a)
	err = c.Commit()
	if errors.Is(err, unix.EINVAL) && len(a.Src) > 0 {
		// A source that is not (or no longer) an address of this node makes the
		// kernel refuse; reaching the pod matters more than the preference.
		l.log.Warn("node address is not on any device, routes to pod go without it as source", "addresses", a.Src, "pod", a.IPs)
		hostBatch(c, v, index, Addressing{IPs: a.IPs})
		err = c.Commit()
	}
	return err
}

// hostBatch brings the host's end up and gives it the way to the pod.
func hostBatch(c *rtnl.Conn, v Veth, index int, a Addressing) {
	c.Begin("bring up", unix.RTM_SETLINK, 0, rtnl.Link(index, unix.IFF_UP, unix.IFF_UP))
	for _, ip := range a.IPs {
		neigh(c, index, ip, v.MAC)
		scope := uint8(unix.RT_SCOPE_LINK)
		if ip.Is6() {
			scope = unix.RT_SCOPE_UNIVERSE
		}
		c.Begin("route to "+ip.String(), unix.RTM_NEWROUTE, rtnl.Replace, rtnl.Route(family(ip), ip.BitLen(), Protocol, scope))
		c.Attr(unix.RTA_DST, ip.AsSlice())
		if src := a.src(ip); src.IsValid() {
			c.Attr(unix.RTA_PREFSRC, src.AsSlice())
		}
		c.Uint32(unix.RTA_OIF, uint32(index))
	}
}

func neigh(c *rtnl.Conn, index int, ip netip.Addr, mac net.HardwareAddr) {
	c.Begin("neighbour "+ip.String(), unix.RTM_NEWNEIGH, rtnl.Replace, rtnl.Neigh(family(ip), index, unix.NUD_PERMANENT))
	c.Attr(unix.NDA_DST, ip.AsSlice())
	c.Attr(unix.NDA_LLADDR, mac)
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (l *Links) upPod(v Veth, index int, a Addressing, configured func()) error {
	ns, err := openNetns(v.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	return inside(ns, func() error { return l.upInside(v, index, a, configured) })
}

// upInside runs in the pod's namespace.
func (l *Links) upInside(v Veth, index int, a Addressing, configured func()) (err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := newCarrierSocket()
	if err != nil {
		return err
	}
	defer s.Close()
	end, err := podEnd(c, v, index)
	if err != nil {
		return err
	}
	wants6 := slices.ContainsFunc(a.IPs, netip.Addr.Is6)
	var added *nl.NetlinkSocket
	if wants6 {
		if err := l.podSysctls(v.IfName); err != nil {
			return err
		}
		if added, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV6_IFADDR); err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		defer added.Close()
	}
	podBatch(c, end.index, v, a, wants6)
	if err := c.Commit(); err != nil {
		return err
	}
	if err := s.settle(v.IfName); err != nil {
		return err
	}
	if configured != nil {
		configured()
	}
	for _, ip := range a.IPs {
		if ip.Is6() {
			if err := waitLocal(c, added, ip); err != nil {
				return err
			}
		}
	}
	return nil
}

// podSysctls runs in the pod's namespace, before its device is up. A runtime
// may have switched IPv6 off there.
func (l *Links) podSysctls(ifname string) error {
	conf := "ipv6/conf/" + ifname + "/"
	if !l.ipv6 {
		return errors.New("IPv6 is not in this kernel or switched off at boot: set ipv6.enabled=false")
	}
	if b, err := os.ReadFile(l.proc + "/" + conf + "disable_ipv6"); err == nil && len(b) > 0 && b[0] != '0' {
		if err := l.write(conf+"disable_ipv6", "0"); err != nil {
			return err
		}
	}
	return l.write(conf+"accept_ra", "0")
}

// podBatch gives the pod's end what it carries. Addresses come before the device
// is up, routes after.
func podBatch(c *rtnl.Conn, index int, v Veth, a Addressing, wants6 bool) {
	c.Begin("bring loopback up", unix.RTM_SETLINK, 0, rtnl.Link(loopbackIndex, unix.IFF_UP, unix.IFF_UP))
	if wants6 {
		// The kernel's own link-local address would be tentative for a second.
		c.Begin("switch address generation off", unix.RTM_SETLINK, 0, rtnl.Link(index, 0, 0))
		spec := c.Nest(unix.IFLA_AF_SPEC)
		inet6 := c.Nest(unix.AF_INET6)
		c.Attr(inet6AddrGenMode, []byte{addrGenModeNone})
		c.End(inet6)
		c.End(spec)
	}
	for _, ip := range a.IPs {
		podAddr(c, index, netip.PrefixFrom(ip, ip.BitLen()))
	}
	if wants6 {
		podAddr(c, index, netip.PrefixFrom(linkLocal(v.MAC), 64))
	}
	c.Begin("bring up", unix.RTM_SETLINK, 0, rtnl.Link(index, unix.IFF_UP, unix.IFF_UP))
	for _, ip := range a.IPs {
		neigh(c, index, Gateway(ip), v.HostMAC)
		podRoutes(c, index, ip)
	}
}

func podAddr(c *rtnl.Conn, index int, p netip.Prefix) {
	var flags uint8
	if p.Addr().Is6() {
		flags = unix.IFA_F_NODAD
	}
	c.Begin("address "+p.String(), unix.RTM_NEWADDR, rtnl.Replace, rtnl.Addr(family(p.Addr()), p.Bits(), flags, index))
	c.Attr(unix.IFA_LOCAL, p.Addr().AsSlice())
	c.Attr(unix.IFA_ADDRESS, p.Addr().AsSlice())
}

// podRoutes adds the default route. The IPv4 gateway needs a route of its own;
// a link-local IPv6 gateway is on the link by nature.
func podRoutes(c *rtnl.Conn, index int, ip netip.Addr) {
	gw := Gateway(ip)
	begin := func(what string, bits int, scope uint8) {
		c.Begin(what, unix.RTM_NEWROUTE, rtnl.Replace, rtnl.Route(family(ip), bits, unix.RTPROT_BOOT, scope))
		c.Attr(unix.RTA_PREFSRC, ip.AsSlice())
		c.Uint32(unix.RTA_OIF, uint32(index))
	}
	if ip.Is4() {
		begin("route to "+gw.String(), gw.BitLen(), unix.RT_SCOPE_LINK)
		c.Attr(unix.RTA_DST, gw.AsSlice())
	}
	begin("default route through "+gw.String(), 0, unix.RT_SCOPE_UNIVERSE)
	c.Attr(unix.RTA_GATEWAY, gw.AsSlice())
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
