// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	weftv1alpha1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/datapath/link"
)

// serviceDevice is where kube-proxy (IPVS) puts the addresses of services, of
// which the operator knows the range.
const serviceDevice = "kube-ipvs0"

// kernelRoute is a route of the node as the kernel has it.
type kernelRoute struct {
	dst      netip.Prefix
	dev      string
	via      netip.Addr
	table    int
	typ      int
	protocol int
}

// kernelRoutes returns the routes of all tables and both families.
func kernelRoutes() ([]kernelRoute, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	// Table 0 with this mask means all tables.
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	out := make([]kernelRoute, 0, len(list))
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		if !ok {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		k := kernelRoute{
			dst: netip.PrefixFrom(a.Unmap(), ones).Masked(), dev: names[r.LinkIndex],
			table: r.Table, typ: r.Type, protocol: int(r.Protocol),
		}
		gw, index := r.Gw, r.LinkIndex
		if len(r.MultiPath) > 0 {
			gw, index = r.MultiPath[0].Gw, r.MultiPath[0].LinkIndex
		}
		if via, ok := netip.AddrFromSlice(gw); ok {
			k.via = via.Unmap()
		}
		k.dev = names[index]
		out = append(out, k)
	}
	return out, nil
}

// neverPods tells of a destination that is nobody's pod range.
func neverPods(p netip.Prefix) bool {
	a := p.Addr()
	return p.Bits() == 0 || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() ||
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// nodeRoutes chooses what the operator must know of a node's routes: where a pod
// range would take packets from something else. It leaves out Weft's own routes,
// default routes, what is never a pod's address, and routes to what are pod
// ranges already, for which a router may have announced them. Addresses of the
// node count where no connected subnet covers them. Those within a range of the
// pool come first; more is how many found no room.
func nodeRoutes(routes []kernelRoute, pods, pool []netip.Prefix) (out []weftv1alpha1.NodeRoute, more int) {
	known := make(map[netip.Prefix]bool, len(pods))
	for _, p := range pods {
		known[p.Masked()] = true
	}
	subnets := foreign(routes, known)
	outside := func(r kernelRoute) bool {
		return !slices.ContainsFunc(pool, func(p netip.Prefix) bool { return p.Overlaps(r.dst) })
	}
	slices.SortFunc(subnets, func(x, y kernelRoute) int {
		return cmp.Or(boolCompare(outside(x), outside(y)), x.dst.Compare(y.dst), strings.Compare(x.dev, y.dev), x.via.Compare(y.via))
	})
	for _, r := range subnets {
		n := weftv1alpha1.NodeRoute{CIDR: r.dst.String(), Dev: r.dev}
		if r.via.IsValid() {
			n.Via = r.via.String()
		}
		switch {
		case len(out) > 0 && out[len(out)-1] == n:
		case len(out) == weftv1alpha1.MaxNodeRoutes:
			more++
		default:
			out = append(out, n)
		}
	}
	return out, more
}

// foreign returns the routes that are not Weft's, default, or to known pod
// ranges, and the node's addresses that no connected subnet covers.
func foreign(routes []kernelRoute, known map[netip.Prefix]bool) (subnets []kernelRoute) {
	var addrs []kernelRoute
	for _, r := range routes {
		if neverPods(r.dst) || r.protocol == link.Protocol || known[r.dst] || r.dev == serviceDevice || strings.HasPrefix(r.dev, link.HostPrefix) {
			continue
		}
		switch r.typ {
		case unix.RTN_UNICAST, unix.RTN_UNSPEC, unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT:
			if r.table != unix.RT_TABLE_LOCAL {
				subnets = append(subnets, r)
			}
		case unix.RTN_LOCAL:
			addrs = append(addrs, r)
		}
	}
	for _, x := range addrs {
		covers := func(s kernelRoute) bool {
			return !s.via.IsValid() && s.dst.Bits() <= x.dst.Bits() && s.dst.Contains(x.dst.Addr())
		}
		if !slices.ContainsFunc(subnets, covers) {
			subnets = append(subnets, x)
		}
	}
	return subnets
}

func boolCompare(x, y bool) int {
	switch {
	case x == y:
		return 0
	case y:
		return -1
	}
	return 1
}

// routesPause is how long the node's routes are left alone after a look at them:
// one that comes and goes must not make a write each time.
const routesPause = 5 * time.Second

// RoutesDue says that the node's routes may have changed.
func (p *poolNode) RoutesDue() {
	if p == nil {
		return
	}
	select {
	case p.due <- struct{}{}:
	default:
	}
}

// followNodeRoutes keeps what the operator sees of this node's routes up to date.
func (a *Agent) followNodeRoutes(ctx context.Context) error {
	if a.pool == nil {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.pool.due:
		}
		if err := a.readNodeRoutes(); err != nil {
			a.log.Warn("routes of the node cannot be read", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(routesPause):
		}
	}
}

func (a *Agent) readNodeRoutes() error {
	routes, err := kernelRoutes()
	if err != nil {
		return err
	}
	pods := append(a.pool.known(), a.endpoints.Ranges()...)
	for n := range a.t.nodes.All(a.t.db.ReadTxn()) {
		pods = append(pods, n.PodCIDRs...)
	}
	return a.pool.SetRoutes(nodeRoutes(routes, pods, a.cfg.Pool.CIDRs()))
}
