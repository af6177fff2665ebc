// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/table"
)

// routes dumps the main table of a family; protocol 0 means all.
func routes(family, protocol int) ([]netlink.Route, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: netlink.RouteProtocol(protocol)}
	mask := netlink.RT_FILTER_TABLE
	if protocol != 0 {
		mask |= netlink.RT_FILTER_PROTOCOL
	}
	var list []netlink.Route
	err := retryDump(func() (err error) {
		list, err = netlink.RouteListFiltered(family, filter, mask)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return list, nil
}

// unreachableMetric is that of unreachable routes: whatever else somebody has for
// the same prefix goes first.
const unreachableMetric = 1<<31 - 1

// ListRoutes returns Weft's routes to other nodes: those of protocol 87 in the
// main table, and those that answer for unused addresses, without the routes to this node's pods, which come and go with
// their links. Owner is empty.
func (l *Links) ListRoutes() ([]table.Route, error) {
	names, err := linkNames()
	if err != nil {
		return nil, err
	}
	out := []table.Route{}
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := routes(fam, Protocol)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			dev := names[r.LinkIndex]
			if strings.HasPrefix(dev, HostPrefix) {
				continue
			}
			out = append(out, rowOf(r, fam, dev))
		}
	}
	return out, nil
}

func linkNames() (map[int]string, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(links))
	for _, k := range links {
		names[k.Attrs().Index] = k.Attrs().Name
	}
	return names, nil
}

func rowOf(r netlink.Route, fam int, dev string) table.Route {
	row := table.Route{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Device: dev}
	if fam == unix.AF_INET6 {
		row.Prefix = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if r.Dst != nil {
		row.Prefix = prefixOf(r.Dst)
	}
	if r.Type == unix.RTN_UNREACHABLE {
		row.Type, row.Device = table.RouteUnreachable, "" // the kernel says lo for IPv6
	}
	if a, ok := netip.AddrFromSlice(r.Gw); ok {
		row.Via = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(r.Src); ok {
		row.Src = a.Unmap()
	}
	return row
}

// UpsertRoute adds or changes a route to another node. A route to the same
// prefix that somebody else made is never touched: if it leads to the same
// next hop all is well, else that is an error which names it. An unreachable
// route stands behind it.
func (l *Links) UpsertRoute(r table.Route) error {
	nr, err := l.route(r)
	if err != nil {
		return err
	}
	have, err := routesTo(r.Prefix)
	if err != nil {
		return fmt.Errorf("route %s: %w", r.Prefix, err)
	}
	if err := l.upsertRoute(r, nr, have); err != nil {
		return err
	}
	return deleteOtherType(nr, have)
}

func (l *Links) upsertRoute(r table.Route, nr *netlink.Route, have []netlink.Route) error {
	i := slices.IndexFunc(have, func(h netlink.Route) bool { return h.Protocol != Protocol })
	if i >= 0 && r.Type == "" {
		foreign := have[i]
		if gw, _ := netip.AddrFromSlice(foreign.Gw); gw.Unmap() == r.Via && (r.Device == "" || foreign.LinkIndex == nr.LinkIndex) {
			return nil
		}
		return fmt.Errorf("route %s via %s: there is one already that is not Weft's (%s): remove it on the node, or set autoDirectNodeRoutes=false and route pod CIDRs yourself",
			r.Prefix, r.Via, foreign)
	}
	err := netlink.RouteReplace(nr)
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("route %s via %s dev %s src %s: %w: autoDirectNodeRoutes reaches only nodes on a subnet of this node's devices; "+
			"let the network route the pod CIDRs between subnets", r.Prefix, r.Via, r.Device, r.Src, err)
	}
	if err != nil {
		return fmt.Errorf("route %s via %s dev %s: %w", r.Prefix, r.Via, r.Device, err)
	}
	return nil
}

// deleteOtherType deletes Weft's routes to a prefix that was another node's and
// is this one's now, or the other way round: they have another metric.
func deleteOtherType(nr *netlink.Route, have []netlink.Route) error {
	for _, h := range have {
		if h.Protocol != Protocol || (h.Type == unix.RTN_UNREACHABLE) == (nr.Type == unix.RTN_UNREACHABLE) {
			continue
		}
		if err := netlink.RouteDel(&h); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("route %s: delete what it replaces: %w", h, err)
		}
	}
	return nil
}

func (l *Links) route(r table.Route) (*netlink.Route, error) {
	if !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() {
		return nil, fmt.Errorf("route %s: not a prefix", r.Prefix)
	}
	nr := &netlink.Route{Dst: ipNet(r.Prefix), Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
	switch r.Type {
	case "":
	case table.RouteUnreachable:
		nr.Type, nr.Priority = unix.RTN_UNREACHABLE, unreachableMetric
		return nr, nil
	default:
		return nil, fmt.Errorf("route %s: unknown type %q", r.Prefix, r.Type)
	}
	if r.Device != "" {
		index, err := l.ByName(r.Device)
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", r.Prefix, err)
		}
		if index == 0 {
			return nil, fmt.Errorf("route %s: device %s is not there", r.Prefix, r.Device)
		}
		nr.LinkIndex = index
	}
	if r.Via.IsValid() {
		nr.Gw = r.Via.AsSlice()
	} else {
		nr.Scope = netlink.SCOPE_LINK
		if r.Prefix.Addr().Is6() {
			nr.Scope = netlink.SCOPE_UNIVERSE
		}
	}
	if r.Src.IsValid() {
		nr.Src = r.Src.AsSlice()
	}
	return nr, nil
}

// routesTo returns the routes to exactly prefix, whoever made them.
func routesTo(prefix netip.Prefix) ([]netlink.Route, error) {
	var list []netlink.Route
	err := retryDump(func() (err error) {
		filter := &netlink.Route{Dst: ipNet(prefix), Table: unix.RT_TABLE_MAIN}
		list, err = netlink.RouteListFiltered(int(family(prefix.Addr())), filter, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
		return err
	})
	return list, err
}

// DeleteRoute deletes Weft's route to a prefix. One that is gone is no error;
// one that somebody else made stays.
func (l *Links) DeleteRoute(prefix netip.Prefix) error {
	r := &netlink.Route{Dst: ipNet(prefix), Protocol: Protocol, Table: unix.RT_TABLE_MAIN, Scope: netlink.SCOPE_NOWHERE}
	if prefix.Addr().Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("route %s: delete: %w", prefix, err)
	}
	return nil
}

// DeleteAllRoutes deletes every route of protocol 87, for the uninstaller.
func (l *Links) DeleteAllRoutes() error {
	var errs []error
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := routes(fam, Protocol)
		errs = append(errs, err)
		for _, r := range list {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("route %s: delete: %w", r, err))
			}
		}
	}
	return errors.Join(errs...)
}

// WatchRoutes calls f at the start and whenever a route to another node may
// have been deleted or changed, until ctx ends: another manager of the network
// may take Weft's routes for leftovers.
func (l *Links) WatchRoutes(ctx context.Context, f func()) error {
	matters := func(m syscall.NetlinkMessage) bool {
		// struct rtmsg: family, dst_len, src_len, tos, table, protocol, ...
		if len(m.Data) < unix.SizeofRtMsg || (m.Header.Type != unix.RTM_DELROUTE && m.Header.Type != unix.RTM_NEWROUTE) {
			return false
		}
		full := m.Data[0] == unix.AF_INET && m.Data[1] == 32 || m.Data[0] == unix.AF_INET6 && m.Data[1] == 128
		return !full // a pod's
	}
	to := listening{[]uint{unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}, matters, settleTime, nil}
	err := watch(ctx, to, func() error { f(); return nil })
	if err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	return nil
}
