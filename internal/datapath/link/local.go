// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/rtnl"
)

// localTimeout bounds the wait for an address to become local.
const localTimeout = 2 * time.Second

// waitLocal returns once packets to ip are delivered. The kernel adds the local
// route of an IPv6 address from a worker (addrconf_dad_work), without duplicate
// address detection, too; what arrives before is dropped or sent out again. sub
// gets the notifications about addresses since before ip was added.
func waitLocal(c *rtnl.Conn, sub *nl.NetlinkSocket, ip netip.Addr) error {
	deadline := time.Now().Add(localTimeout)
	for {
		c.Begin("", unix.RTM_GETROUTE, 0, rtnl.Route(family(ip), ip.BitLen(), 0, 0))
		c.Attr(unix.RTA_DST, ip.AsSlice())
		b, err := c.Get()
		if err == nil && len(b) >= unix.SizeofRtMsg && b[7] == unix.RTN_LOCAL { // rtm_type
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("address %s: was added, but is not local after %s", ip, localTimeout)
		}
		tv := unix.NsecToTimeval(left.Nanoseconds())
		if err := sub.SetReceiveTimeout(&tv); err != nil {
			return fmt.Errorf("address %s: wait for it: %w", ip, err)
		}
		_, _, _ = sub.Receive() // whatever it says, the next look tells
	}
}
