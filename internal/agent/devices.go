// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/table"
)

// defaultMTU is what pods get while no device is selected.
const defaultMTU = 1500

// selection is what the choice of devices depends on.
type selection struct {
	globs     []string     // setting "devices"
	nodeAddrs []netip.Addr // InternalIPs
	defaults  []string     // devices of default routes
}

// selects tells whether a device carries from_net and to_net: one of the
// setting's, or without a setting those by which the node itself talks.
func (s selection) selects(d *table.Device) bool {
	if d.Name == "lo" || strings.HasPrefix(d.Name, "lxc") {
		return false
	}
	if len(s.globs) > 0 {
		return slices.ContainsFunc(s.globs, func(g string) bool {
			ok, err := path.Match(g, d.Name)
			return err == nil && ok
		})
	}
	if slices.Contains(s.defaults, d.Name) {
		return true
	}
	return slices.ContainsFunc(d.Addrs, func(p netip.Prefix) bool { return slices.Contains(s.nodeAddrs, p.Addr()) })
}

// podMTU is the MTU of pods' devices: the setting, or the least of the selected
// devices, so that no packet of a pod is too large for a way out.
func podMTU(setting int, devices []*table.Device) int {
	if setting != 0 {
		return setting
	}
	mtu := 0
	for _, d := range devices {
		if d.Selected && d.MTU > 0 && (mtu == 0 || d.MTU < mtu) {
			mtu = d.MTU
		}
	}
	if mtu == 0 {
		return defaultMTU
	}
	return mtu
}

func sameDevice(a, b *table.Device) bool {
	return a.Name == b.Name && a.Index == b.Index && a.MTU == b.MTU && a.Up == b.Up && a.MAC == b.MAC &&
		a.Selected == b.Selected && slices.Equal(a.Addrs, b.Addrs)
}
