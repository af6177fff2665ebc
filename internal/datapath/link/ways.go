// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// waysSettle is short: until f is called, packets still go the old way. It keeps
// a routing daemon that writes a table of thousands from having f called as often.
const waysSettle = time.Millisecond

// WatchWays calls f at the start and whenever what leads away from the node may
// have changed, until ctx ends: routes, rules, next hops, devices, addresses. It
// calls f once more a moment later: with a device or an address the kernel drops
// IPv4 routes without a word, after it has announced what became of the former.
func (l *Links) WatchWays(ctx context.Context, f func() error) error {
	again := make(chan struct{}, 1)
	var later atomic.Bool
	to := listening{
		groups: []uint{
			unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
			unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP,
		},
		matters: wayMatters, settle: waysSettle, again: again,
	}
	err := watch(ctx, to, func() error {
		if !later.Swap(false) {
			time.AfterFunc(settleTime, func() {
				later.Store(true)
				notify(again)
			})
		}
		return f()
	})
	if err != nil {
		return fmt.Errorf("watch ways: %w", err)
	}
	return nil
}

// wayMatters leaves out what pods coming and going cause.
func wayMatters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return !podRoute(m.Data)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return deviceMatters(m)
	}
	return true
}

// podRoute tells whether a route message is about one of Weft's to a pod of this
// node. A route of full length may also lead to another node's range.
func podRoute(data []byte) bool {
	// struct rtmsg: family, dst_len, src_len, tos, table, protocol, ...
	if len(data) < unix.SizeofRtMsg || data[5] != Protocol {
		return false
	}
	if full := data[0] == unix.AF_INET && data[1] == 32 || data[0] == unix.AF_INET6 && data[1] == 128; !full {
		return false
	}
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofRtMsg:])
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Attr.Type != unix.RTA_OIF || len(a.Value) != 4 {
			continue
		}
		dev, err := net.InterfaceByIndex(int(binary.NativeEndian.Uint32(a.Value)))
		return err == nil && strings.HasPrefix(dev.Name, HostPrefix)
	}
	return false
}
