// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/table"
)

// Selection says which devices carry the node's traffic.
type Selection struct {
	Globs     []string     // as the setting `devices`; empty: found by the rest
	NodeAddrs []netip.Addr // InternalIPs of this node
}

// Validate reports the first glob that is none.
func (s Selection) Validate() error {
	for _, g := range s.Globs {
		if _, err := path.Match(g, "eth0"); err != nil {
			return fmt.Errorf("devices: %q is not a glob: %w", g, err)
		}
	}
	return nil
}

// Devices returns the devices of the node by name, without pods' links. Of
// those, the ones are selected that match a glob, or without globs those that
// have an InternalIP of the node or a default route. Never selected are lo,
// the overlay's device, docker's devices and veths without a global address.
func (l *Links) Devices(sel Selection) ([]table.Device, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	addrs, err := addrsByIndex()
	if err != nil {
		return nil, err
	}
	gateways, err := defaultRouteDevices()
	if err != nil {
		return nil, err
	}
	out := make([]table.Device, 0, len(links))
	for _, k := range links {
		a := k.Attrs()
		if podLink(a) {
			continue
		}
		d := table.Device{
			Name: a.Name, Index: a.Index, MTU: a.MTU, Up: a.Flags&net.FlagUp != 0,
			MAC: a.HardwareAddr.String(), Addrs: addrs[a.Index],
		}
		d.Selected = sel.selects(d, k.Type(), gateways[d.Index])
		out = append(out, d)
	}
	slices.SortFunc(out, func(x, y table.Device) int { return strings.Compare(x.Name, y.Name) })
	return out, nil
}

func podLink(a *netlink.LinkAttrs) bool {
	return strings.HasPrefix(a.Alias, AliasPrefix) || strings.HasPrefix(a.Name, HostPrefix)
}

func (s Selection) selects(d table.Device, kind string, hasDefault bool) bool {
	if d.Name == "lo" || d.Name == TunnelDevice || strings.HasPrefix(d.Name, "docker") || (kind == "veth" && !hasGlobal(d.Addrs)) {
		return false
	}
	if len(s.Globs) > 0 {
		return slices.ContainsFunc(s.Globs, func(g string) bool {
			ok, err := path.Match(g, d.Name)
			return err == nil && ok
		})
	}
	return hasDefault || slices.ContainsFunc(d.Addrs, func(p netip.Prefix) bool { return slices.Contains(s.NodeAddrs, p.Addr()) })
}

func hasGlobal(ps []netip.Prefix) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Addr().IsGlobalUnicast() })
}

func addrsByIndex() (map[int][]netip.Prefix, error) {
	var list []netlink.Addr
	err := retryDump(func() (err error) {
		list, err = netlink.AddrList(nil, unix.AF_UNSPEC)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := map[int][]netip.Prefix{}
	for _, a := range list {
		if p := prefixOf(a.IPNet); p.IsValid() {
			out[a.LinkIndex] = append(out[a.LinkIndex], p)
		}
	}
	for _, ps := range out { // the kernel's order says nothing
		slices.SortFunc(ps, func(x, y netip.Prefix) int {
			if c := x.Addr().Compare(y.Addr()); c != 0 {
				return c
			}
			return x.Bits() - y.Bits()
		})
	}
	return out, nil
}

// defaultRouteDevices returns the devices of default routes in the main table.
func defaultRouteDevices() (map[int]bool, error) {
	out := map[int]bool{}
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := routes(fam, 0)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			if r.Dst != nil && prefixOf(r.Dst).Bits() != 0 {
				continue
			}
			out[r.LinkIndex] = true
			for _, hop := range r.MultiPath {
				out[hop.LinkIndex] = true
			}
		}
	}
	delete(out, 0)
	return out, nil
}

// DeviceWatcher follows the node's devices.
type DeviceWatcher struct {
	links *Links
	again chan struct{}

	mu  sync.Mutex
	sel Selection
}

// WatchDevices returns a watcher; Run watches.
func (l *Links) WatchDevices(sel Selection) (*DeviceWatcher, error) {
	if err := sel.Validate(); err != nil {
		return nil, err
	}
	return &DeviceWatcher{links: l, sel: sel, again: make(chan struct{}, 1)}, nil
}

// SetNodeAddrs changes the addresses that devices are selected by.
func (w *DeviceWatcher) SetNodeAddrs(addrs []netip.Addr) {
	w.mu.Lock()
	w.sel.NodeAddrs = slices.Clone(addrs)
	w.mu.Unlock()
	notify(w.again)
}

// Run calls f with all devices at the start and whenever one of them, its
// addresses or its selection changed, until ctx ends. f must not block long.
func (w *DeviceWatcher) Run(ctx context.Context, f func([]table.Device)) error {
	var last []table.Device
	groups := []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}
	err := watch(ctx, listening{groups, deviceMatters, settleTime, w.again}, func() error {
		w.mu.Lock()
		sel := w.sel
		w.mu.Unlock()
		now, err := w.links.Devices(sel)
		if err != nil {
			return err
		}
		if last == nil || !reflect.DeepEqual(now, last) {
			last = now
			f(slices.Clone(now))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("watch devices: %w", err)
	}
	return nil
}

// deviceMatters leaves out what pods coming and going cause.
func deviceMatters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		// struct rtmsg: family, then the prefix length of the destination.
		return len(m.Data) > 1 && m.Data[1] == 0
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		h := unix.NlMsghdr(m.Header)
		k, err := netlink.LinkDeserialize(&h, m.Data)
		return err != nil || !podLink(k.Attrs())
	}
	return false
}
