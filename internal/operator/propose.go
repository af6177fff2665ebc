// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/weft-net/weft/internal/ipam/pool"
)

// proposals is how many ranges are proposed where none is set.
const proposals = 3

// propose is the refusal to work without a pool, with ranges that no node, no
// service and no declaration uses as far as can be seen from here.
func (v *view) propose(families []string) string {
	var sb strings.Builder
	fmt.Fprintf(&sb, "ipam cluster-pool: no %s range is set and there is no default: pods would hide whatever uses it", strings.Join(families, " and no "))
	var taken []netip.Prefix
	for _, h := range v.hazards() {
		taken = append(taken, h.CIDR)
	}
	for _, ps := range v.ledger.Grants {
		taken = append(taken, ps...)
	}
	for _, f := range families {
		setting, v6, mask := "ipam.operator.clusterPoolIPv4PodCIDRList", false, v.cfg.Pool.IPv4MaskSize
		if f == "IPv6" {
			setting, v6, mask = "ipam.operator.clusterPoolIPv6PodCIDRList", true, v.cfg.Pool.IPv6MaskSize
		}
		var free []string
		for _, p := range pool.Free(taken, v6, mask-v.spread(), proposals) {
			free = append(free, p.String())
		}
		if len(free) == 0 {
			fmt.Fprintf(&sb, "; set %s", setting)
			continue
		}
		fmt.Fprintf(&sb, "; set %s to a range that nothing in your network uses, as far as the %d nodes' routes tell one of %s",
			setting, v.published(), strings.Join(free, ", "))
	}
	return sb.String()
}

// spread is how many bits a proposal has for blocks: room for 256 nodes, and for
// four times those that there are.
func (v *view) spread() int { return max(8, bits.Len(uint(4*len(v.snap.Nodes)))) }

// published counts the nodes whose routes are known.
func (v *view) published() int {
	n := 0
	for _, cn := range v.snap.CiliumNodes {
		if v.mayBegin(cn) {
			n++
		}
	}
	return n
}
