// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/internal/plan"
)

// routerSysctls: the router forwards, tells nobody of better ways (pods of one
// subnet may go through it by design), and its bridges leave packets to it.
func routerSysctls() map[string]string {
	return map[string]string{
		"net/ipv4/ip_forward":                  "1",
		"net/ipv6/conf/all/forwarding":         "1",
		"net/ipv6/conf/default/forwarding":     "1",
		"net/ipv6/conf/all/accept_ra":          "0",
		"net/ipv6/conf/default/accept_ra":      "0",
		"net/ipv4/conf/all/send_redirects":     "0",
		"net/ipv4/conf/default/send_redirects": "0",
		"net/ipv4/conf/all/rp_filter":          "0",
		"net/ipv4/conf/default/rp_filter":      "0",
		"net/ipv4/icmp_ratelimit":              "0",
		"net/bridge/bridge-nf-call-iptables":   "0",
		"net/bridge/bridge-nf-call-ip6tables":  "0",
		"net/bridge/bridge-nf-call-arptables":  "0",
	}
}

// setBridgeMTU fixes a bridge's MTU. Only a real change does: until then the
// bridge follows the smallest of its ports (net/bridge/br_if.c), and one bad
// link would harm all hosts of the subnet.
func setBridgeMTU(h *netlink.Handle, br netlink.Link, mtu int) error {
	for _, m := range []int{1280, mtu} {
		if err := h.LinkSetMTU(br, m); err != nil {
			return fmt.Errorf("bridge %s: mtu %d: %w", br.Attrs().Name, m, err)
		}
	}
	return nil
}

func hostSysctls(kind plan.Kind) map[string]string {
	s := map[string]string{
		"net/ipv6/conf/all/accept_ra":     "0",
		"net/ipv6/conf/default/accept_ra": "0",
	}
	if kind == plan.Node {
		s["net/ipv4/ip_forward"] = "1"
		s["net/ipv6/conf/all/forwarding"] = "1"
		s["net/ipv6/conf/default/forwarding"] = "1"
	}
	return s
}

// SetUpRouter makes the bridges in the router's namespace. The bridges' own
// addresses are the gateways; there is no route out.
func SetUpRouter(path string, subnets []plan.Subnet, mtu int) error {
	if err := Sysctls(path, routerSysctls()); err != nil {
		return err
	}
	h, ns, err := handle(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	if err := up(h, "lo"); err != nil {
		return err
	}
	for _, s := range subnets {
		mac, err := net.ParseMAC(s.MAC)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", s.Bridge, err)
		}
		noSnooping := false
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: s.Bridge, HardwareAddr: mac}, MulticastSnooping: &noSnooping}
		if err := h.LinkAdd(br); err != nil {
			return fmt.Errorf("bridge %s: %w", s.Bridge, err)
		}
		if err := setBridgeMTU(h, br, mtu); err != nil {
			return err
		}
		if err := addAddrs(h, s.Bridge, netip.PrefixFrom(s.GW4, s.V4.Bits()), netip.PrefixFrom(s.GW6, s.V6.Bits())); err != nil {
			return err
		}
		if err := up(h, s.Bridge); err != nil {
			return err
		}
	}
	return nil
}

// Attach connects a host to the router: one veth pair a port, addresses, and
// default routes to the router.
func Attach(router, path string, o plan.Options, host plan.Host) error {
	if err := Sysctls(path, hostSysctls(host.Kind)); err != nil {
		return err
	}
	rt, rtNS, err := handle(router)
	if err != nil {
		return err
	}
	defer rtNS.Close()
	defer rt.Close()
	h, ns, err := handle(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	if err := up(h, "lo"); err != nil {
		return err
	}
	for i, p := range host.Ports {
		s, err := o.Subnet(p.Subnet)
		if err != nil {
			return err
		}
		if err := attachPort(rt, h, int(ns), s, p, o.MTU); err != nil {
			return fmt.Errorf("host %s: %w", host.Name, err)
		}
		if i > 0 {
			continue // the default routes leave by the first device
		}
		for _, gw := range []netip.Addr{s.GW4, s.GW6} {
			if err := setRoute(h, Route{Dst: netip.PrefixFrom(zero(gw), 0), Via: gw, Dev: p.Dev}); err != nil {
				return fmt.Errorf("host %s: %w", host.Name, err)
			}
		}
	}
	return nil
}

func zero(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func attachPort(rt, h *netlink.Handle, hostNS int, s plan.Subnet, p plan.Port, mtu int) error {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return fmt.Errorf("device %s: %w", p.Dev, err)
	}
	br, err := rt.LinkByName(s.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", s.Bridge, err)
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: p.Peer, MTU: mtu, MasterIndex: br.Attrs().Index},
		PeerName:  p.Dev, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(hostNS), PeerMTU: uint32(mtu),
	}
	if err := rt.LinkAdd(veth); err != nil {
		return fmt.Errorf("device %s: %w", p.Peer, err)
	}
	if err := rt.LinkSetMaster(veth, br); err != nil {
		return fmt.Errorf("device %s: %w", p.Peer, err)
	}
	if err := addAddrs(h, p.Dev, p.V4, p.V6); err != nil {
		return err
	}
	if err := up(h, p.Dev); err != nil {
		return err
	}
	return up(rt, p.Peer)
}

// addAddrs adds addresses without duplicate address detection, which would
// hold IPv6 back for a second.
func addAddrs(h *netlink.Handle, dev string, prefixes ...netip.Prefix) error {
	l, err := h.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("device %s: %w", dev, err)
	}
	for _, p := range prefixes {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, a); err != nil {
			return fmt.Errorf("device %s: address %s: %w", dev, p, err)
		}
	}
	return nil
}

func up(h *netlink.Handle, dev string) error {
	l, err := h.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("device %s: %w", dev, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("device %s: up: %w", dev, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Route is one route of a namespace.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
	Dev string // needed only where the gateway is not on a connected subnet
	MTU int    // 0: the device's
}

func setRoute(h *netlink.Handle, r Route) error {
	nr := &netlink.Route{Dst: ipNet(r.Dst), MTU: r.MTU}
	if r.Via.IsValid() {
		nr.Gw = r.Via.AsSlice()
	}
	if r.Dev != "" {
		l, err := h.LinkByName(r.Dev)
		if err != nil {
			return fmt.Errorf("device %s: %w", r.Dev, err)
		}
		nr.LinkIndex = l.Attrs().Index
	}
	if err := h.RouteReplace(nr); err != nil {
		return fmt.Errorf("route %s via %s: %w", r.Dst, r.Via, err)
	}
	return nil
}

// SetRoutes adds or replaces routes in a namespace.
func SetRoutes(path string, routes []Route) error {
	h, ns, err := handle(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	for _, r := range routes {
		if err := setRoute(h, r); err != nil {
			return err
		}
	}
	return nil
}

// DeleteRoutes takes routes away; one that is not there is no error.
func DeleteRoutes(path string, routes []Route) error {
	h, ns, err := handle(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	for _, r := range routes {
		nr := &netlink.Route{Dst: ipNet(r.Dst), Gw: r.Via.AsSlice()}
		if err := h.RouteDel(nr); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("route %s via %s: %w", r.Dst, r.Via, err)
		}
	}
	return nil
}

// RemovePorts takes a host's links away.
func RemovePorts(routerPath string, host plan.Host) error {
	var errs []error
	for _, p := range host.Ports {
		errs = append(errs, DeleteLink(routerPath, p.Peer+RelaySuffix), DeleteLink(routerPath, p.Peer))
	}
	return errors.Join(errs...)
}
