// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"net"
	"net/netip"
)

// network returns a with a prefix length, as the CNI library wants it.
func network(a netip.Addr, bits int) net.IPNet {
	return net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}
