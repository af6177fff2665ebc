// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// waysSettle is short: until f is called, packets still go the old way. It keeps
// a routing daemon that writes a table of thousands from having f called as often.
const waysSettle = time.Millisecond

// WatchWays calls f at the start and whenever what leads away from the node may
// have changed, until ctx ends: routes, rules, next hops, devices, addresses.
func (l *Links) WatchWays(ctx context.Context, f func() error) error {
	to := listening{
		groups: []uint{
			unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
			unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP,
		},
		matters: wayMatters, settle: waysSettle,
	}
	if err := watch(ctx, to, f); err != nil {
		return fmt.Errorf("watch ways: %w", err)
	}
	return nil
}

// wayMatters leaves out what pods coming and going cause.
func wayMatters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		// struct rtmsg: family, dst_len, src_len, tos, table, protocol, ...
		if len(m.Data) < unix.SizeofRtMsg {
			return true
		}
		full := m.Data[0] == unix.AF_INET && m.Data[1] == 32 || m.Data[0] == unix.AF_INET6 && m.Data[1] == 128
		return !full || m.Data[5] != Protocol
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return deviceMatters(m)
	}
	return true
}
