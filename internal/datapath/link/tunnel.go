// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TunnelDevice is the name of the overlay's device.
const TunnelDevice = "weft_vxlan"

// tunnelAlias is its alias. It does not begin like those of pods' links: the
// device belongs to the node.
const tunnelAlias = "weft-overlay"

// rpFilterLoose takes what comes from an address that is reachable at all: other
// nodes' own addresses come by the overlay, and are reached without it.
const rpFilterLoose = 2

// Tunnel describes the overlay's device: one for all nodes, which takes from each
// packet's metadata where it goes and leaves there where it came from.
type Tunnel struct {
	Port int // UDP, where the others send to as well
	MTU  int // bytes of the inner packet
	MAC  net.HardwareAddr
	// Addrs are the node's own: what the node translates to "the address of the
	// way out" must get one that the other nodes know.
	Addrs []netip.Addr
}

// FindTunnel returns index and port of the overlay's device, 0 if there is none.
func (l *Links) FindTunnel() (index, port int, err error) {
	k, err := netlink.LinkByName(TunnelDevice)
	if isGone(err) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("device %s: %w", TunnelDevice, err)
	}
	v, ok := k.(*netlink.Vxlan)
	if !ok {
		return 0, 0, nil
	}
	return v.Index, v.Port, nil
}

// EnsureTunnel makes the overlay's device, or mends it, and returns its index. A
// new one is down and takes nothing in until TunnelUp: programs come first. A
// device of another kind by that name, and any other VXLAN device on the port,
// is an error that names it.
func (l *Links) EnsureTunnel(t Tunnel) (int, error) {
	links, err := listLinks()
	if err != nil {
		return 0, err
	}
	var have *netlink.Vxlan
	for _, k := range links {
		v, isVxlan := k.(*netlink.Vxlan)
		name := k.Attrs().Name
		switch {
		case name == TunnelDevice && !isVxlan:
			return 0, fmt.Errorf("device %s: exists and is a %s, which Weft never makes: rename or delete it", name, k.Type())
		case name == TunnelDevice:
			have = v
		case isVxlan && v.Port == t.Port:
			return 0, fmt.Errorf("device %s: has UDP port %d already: `ip -d link show %s` tells whose it is; delete it, or choose another tunnelPort", name, t.Port, name)
		}
	}
	if have != nil && !t.made(have) {
		l.log.Warn("tunnel device is not as it was made, replacing it", "device", TunnelDevice, "port", have.Port)
		if err := netlink.LinkDel(have); err != nil && !isGone(err) {
			return 0, fmt.Errorf("device %s: delete: %w", TunnelDevice, err)
		}
		have = nil
	}
	if have == nil {
		if have, err = t.create(); err != nil {
			return 0, err
		}
	}
	if err := l.mendTunnel(have, t); err != nil {
		return 0, fmt.Errorf("device %s: %w", TunnelDevice, err)
	}
	return have.Index, nil
}

// made tells whether all is right that a device can only be made with.
func (t Tunnel) made(v *netlink.Vxlan) bool {
	return v.FlowBased && v.Port == t.Port && !v.Learning && v.UDP6ZeroCSumRx && bytes.Equal(v.HardwareAddr, t.MAC)
}

func (t Tunnel) create() (*netlink.Vxlan, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = TunnelDevice, t.MTU, t.MAC
	v := &netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: t.Port, UDP6ZeroCSumRx: true}
	if err := netlink.LinkAdd(v); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil, fmt.Errorf("device %s: %w: load the kernel module vxlan (modprobe vxlan)", TunnelDevice, err)
		}
		return nil, fmt.Errorf("device %s: create: %w", TunnelDevice, err)
	}
	k, err := netlink.LinkByName(TunnelDevice)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", TunnelDevice, err)
	}
	if made, ok := k.(*netlink.Vxlan); ok {
		return made, nil
	}
	return nil, fmt.Errorf("device %s: became a %s", TunnelDevice, k.Type())
}

// mendTunnel sets what anybody can change.
func (l *Links) mendTunnel(v *netlink.Vxlan, t Tunnel) error {
	if v.MTU != t.MTU {
		if err := netlink.LinkSetMTU(v, t.MTU); err != nil {
			return fmt.Errorf("mtu %d: %w", t.MTU, err)
		}
	}
	// Without ARP and neighbour discovery every address behind the device is
	// reached as if it were the device's own MAC, and no question goes out.
	if v.RawFlags&unix.IFF_NOARP == 0 {
		if err := netlink.LinkSetARPOff(v); err != nil {
			return fmt.Errorf("arp off: %w", err)
		}
	}
	req := linkRequest(unix.RTM_SETLINK, v.Index)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(tunnelAlias)))
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil)
	conf.AddRtAttr(devconfRPFilter, nl.Uint32Attr(rpFilterLoose))
	conf.AddRtAttr(devconfForwarding, nl.Uint32Attr(1))
	if l.ipv6 && t.MTU >= minMTU6 {
		spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(inet6AddrGenMode, []byte{addrGenModeNone})
		if err := l.write("ipv6/conf/"+TunnelDevice+"/accept_ra", "0"); err != nil {
			return err
		}
	}
	req.AddData(spec)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set alias and reverse-path filter: %w", err)
	}
	return nil
}

// minMTU6 is the least MTU with which the kernel keeps IPv6 on a device (RFC 8200).
const minMTU6 = 1280

// TunnelUp brings the device up and gives it the node's addresses, and no others.
func (l *Links) TunnelUp(index int, t Tunnel) error {
	dev := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index, Name: TunnelDevice}}
	err := netlink.LinkSetUp(dev)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("device %s: UDP port %d is in use on this node: `ss -lunp sport = :%d` tells by whom; end that, or choose another tunnelPort", TunnelDevice, t.Port, t.Port)
	}
	if err != nil {
		return fmt.Errorf("device %s: bring up: %w", TunnelDevice, err)
	}
	if err := tunnelAddrs(dev, t.Addrs); err != nil {
		return fmt.Errorf("device %s: %w", TunnelDevice, err)
	}
	return nil
}

func tunnelAddrs(dev netlink.Link, want []netip.Addr) error {
	var list []netlink.Addr
	err := retryDump(func() (err error) {
		list, err = netlink.AddrList(dev, unix.AF_UNSPEC)
		return err
	})
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	have := map[netip.Addr]bool{}
	for _, x := range list {
		p := prefixOf(x.IPNet)
		if p.IsSingleIP() && slices.Contains(want, p.Addr()) {
			have[p.Addr()] = true
		} else if err := netlink.AddrDel(dev, &x); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("address %s: delete: %w", p, err)
		}
	}
	for _, a := range want {
		if have[a] {
			continue
		}
		addr := &netlink.Addr{IPNet: hostNet(a), Flags: unix.IFA_F_NOPREFIXROUTE}
		if a.Is6() {
			addr.Flags |= unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(dev, addr); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return nil
}

// RemoveTunnel deletes the overlay's device, and tells whether there was one.
// What has its name and is another kind of device stays.
func (l *Links) RemoveTunnel() (bool, error) {
	index, _, err := l.FindTunnel()
	if err != nil || index == 0 {
		return false, err
	}
	err = netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}})
	if err != nil && !isGone(err) {
		return false, fmt.Errorf("device %s: delete: %w", TunnelDevice, err)
	}
	return true, nil
}
