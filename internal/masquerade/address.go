// SPDX-License-Identifier: Apache-2.0

package masquerade

import (
	"net/netip"
	"slices"
)

// DeviceAddr chooses the address of a family with which flows leave by a device:
// the node's InternalIP if the device has it, else the device's own, public
// before private and the lowest among equals; the node's InternalIP for a device
// that has none. The result is invalid where there is nothing to choose from.
func DeviceAddr(device []netip.Prefix, node []netip.Addr, v6 bool) netip.Addr {
	var own []netip.Addr
	for _, p := range device {
		a := p.Addr()
		if a.Is6() == v6 && a.IsGlobalUnicast() {
			own = append(own, a)
		}
	}
	var internal netip.Addr
	for _, a := range node {
		if a.Is6() != v6 {
			continue
		}
		if slices.Contains(own, a) {
			return a
		}
		if !internal.IsValid() {
			internal = a
		}
	}
	if len(own) == 0 {
		return internal
	}
	return slices.MinFunc(own, func(x, y netip.Addr) int {
		if x.IsPrivate() != y.IsPrivate() {
			if x.IsPrivate() {
				return 1
			}
			return -1
		}
		return x.Compare(y)
	})
}
