// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/link"
)

// foreignRoutes returns the destinations of the main table's unicast routes that
// are neither Weft's nor default ones.
func foreignRoutes() ([]netip.Prefix, error) {
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range list {
		if r.Protocol == link.Protocol || r.Dst == nil || (r.Type != unix.RTN_UNICAST && r.Type != unix.RTN_UNSPEC) {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		if !ok {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		if p := netip.PrefixFrom(a.Unmap(), ones); p.Bits() > 0 {
			out = append(out, p.Masked())
		}
	}
	return out, nil
}
