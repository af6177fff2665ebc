// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// localTimeout bounds the wait for an address to become local.
const localTimeout = 2 * time.Second

// waitLocal returns once packets to ip are delivered. The kernel adds the local
// route of an IPv6 address from a worker (addrconf_dad_work), without duplicate
// address detection, too; what arrives before is dropped or sent out again. sub
// gets the notifications about addresses since before ip was added.
func waitLocal(h *netlink.Handle, sub *nl.NetlinkSocket, ip netip.Addr) error {
	deadline := time.Now().Add(localTimeout)
	for {
		rs, err := h.RouteGet(ip.AsSlice())
		if err == nil && len(rs) == 1 && rs[0].Type == unix.RTN_LOCAL {
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
