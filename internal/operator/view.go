// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/ipam/pool"
	"github.com/weft-net/weft/internal/operator/kube"
)

// silence is how long a node may be not Ready before releases no longer wait for
// its agent's word. Its pods may send to a range that has moved on; to hold every
// range back for a machine that is broken would be worse.
const silence = time.Hour

// view is what one round sees, fresh ledger and all.
type view struct {
	snap   kube.Snapshot
	ranges kube.Ranges
	cfg    *config.Operator
	ledger pool.Ledger
	pool   string // of named ones, else empty
	now    time.Time
}

// poolOf is the pool as the settings have it. The families that are off stay zero.
func poolOf(cfg *config.Operator) pool.Pool {
	p := pool.Pool{Name: weftv1.DefaultPool}
	if cfg.EnableIPv4 {
		p.V4 = pool.Family{CIDRs: cfg.Pool.IPv4CIDRs, MaskSize: cfg.Pool.IPv4MaskSize}
	}
	if cfg.EnableIPv6 {
		p.V6 = pool.Family{CIDRs: cfg.Pool.IPv6CIDRs, MaskSize: cfg.Pool.IPv6MaskSize}
	}
	return p
}

// node returns the Node that a CiliumNode belongs to, nil if that is gone.
func (v *view) node(cn *kube.CiliumNode) *kube.Node { return nodeOf(v.snap, cn) }

func nodeOf(s kube.Snapshot, cn *kube.CiliumNode) *kube.Node {
	n := s.Nodes[cn.Name]
	if n == nil || (cn.NodeUID != "" && cn.NodeUID != n.UID) {
		return nil
	}
	return n
}

// vanished are the nodes of the ledger of which the cache knows neither object.
func (v *view) vanished() []string {
	var out []string
	for name := range v.ledger.Grants {
		if v.snap.Nodes[name] == nil && v.snap.CiliumNodes[name] == nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// demands are the living nodes. What a node of the ledger holds stays until the
// node is known to be gone. Where the ledger was lost and two CiliumNodes name one
// range, the older one keeps it; losers tells the others so, by node.
func (v *view) demands(gone map[string]bool) (out []pool.Demand, losers map[string]string) {
	cns := slices.SortedFunc(maps.Values(v.snap.CiliumNodes), func(a, b *kube.CiliumNode) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	losers = map[string]string{}
	said := map[string]bool{}
	var claims []claim
	for _, cn := range cns {
		held := v.ledger.Grants[cn.Name]
		if !cn.Owned || (len(held) == 0 && !v.mayBegin(cn) && len(v.held(cn)) == 0) {
			continue
		}
		d := pool.Demand{Node: cn.Name}
		if v.mayBegin(cn) {
			d.V4, d.V6 = one(v.cfg.EnableIPv4), one(v.cfg.EnableIPv6)
		}
		// Where the ledger knows the node its word stands, and what the CiliumNode
		// says is put right.
		if len(held) == 0 {
			for _, p := range v.held(cn) {
				i := slices.IndexFunc(claims, func(c claim) bool { return c.cidr.Overlaps(p) })
				if i >= 0 {
					losers[cn.Name] = fmt.Sprintf("node %s held %s in its CiliumNode, and so did node %s, %s, since earlier: %s keeps it; drain %s and restart its pods",
						cn.Name, p, claims[i].node, claims[i].cidr, claims[i].node, cn.Name)
					continue
				}
				claims = append(claims, claim{cn.Name, p})
				d.Held = append(d.Held, p)
			}
		}
		said[cn.Name] = true
		out = append(out, d)
	}
	for _, name := range slices.Sorted(maps.Keys(v.ledger.Grants)) {
		if !said[name] && !gone[name] {
			out = append(out, pool.Demand{Node: name})
		}
	}
	return out, losers
}

// claim is a range that a CiliumNode names.
type claim struct {
	node string
	cidr netip.Prefix
}

// held is what a CiliumNode names as its ranges. kube-controller-manager's are
// not the pool's to give.
func (v *view) held(cn *kube.CiliumNode) []netip.Prefix {
	var out []netip.Prefix
	n := v.snap.Nodes[cn.Name]
	for _, s := range cn.PodCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil || (n != nil && slices.Contains(n.PodCIDRs, p.Masked())) {
			continue
		}
		out = append(out, p.Masked())
	}
	return out
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// mayBegin says whether a node may get what it does not have: it exists, and its
// agent has told which routes lead elsewhere.
func (v *view) mayBegin(cn *kube.CiliumNode) bool {
	return cn.Owned && cn.Published && v.node(cn) != nil
}

// hazards are all ranges that something else than this pool's pods uses.
func (v *view) hazards() []pool.Hazard {
	var h hazards
	for _, s := range v.ranges.Services {
		h.add(s.CIDR, pool.ServiceCIDR, s.Where)
	}
	for _, r := range v.ranges.Reserved {
		where := r.Name
		if r.Spec.Reason != "" {
			where += " (" + r.Spec.Reason + ")"
		}
		h.add(string(r.Spec.CIDR), pool.Reserved, where)
	}
	for _, name := range slices.Sorted(maps.Keys(v.snap.Nodes)) {
		n := v.snap.Nodes[name]
		for _, a := range n.Addrs {
			h.add(a.String(), pool.NodeAddress, "node "+name)
		}
		for _, p := range n.PodCIDRs {
			if !slices.Contains(v.ledger.Grants[name], p) {
				h.add(p.String(), pool.NodeRange, "node "+name+", spec.podCIDRs")
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v.snap.CiliumNodes)) {
		cn := v.snap.CiliumNodes[name]
		for _, a := range cn.Addrs {
			h.add(a.String(), pool.NodeAddress, "node "+name)
		}
		for _, r := range cn.Routes {
			if x, err := pool.RouteHazard(name, r); err == nil {
				h.list = append(h.list, x)
			}
		}
		if !cn.Owned {
			for _, s := range cn.PodCIDRs {
				h.add(s, pool.NodeRange, ciliumv2.CiliumNodeResource+" "+name+", which is not Weft's")
			}
		}
	}
	return h.list
}

type hazards struct{ list []pool.Hazard }

// add takes a range or an address; what is neither is no hazard.
func (h *hazards) add(s string, kind pool.HazardKind, where string) {
	var p netip.Prefix
	var err error
	if strings.Contains(s, "/") {
		p, err = netip.ParsePrefix(s)
	} else {
		var a netip.Addr
		if a, err = netip.ParseAddr(s); err == nil {
			p = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		}
	}
	if err == nil {
		h.list = append(h.list, pool.Hazard{CIDR: p.Masked(), Kind: kind, Where: where})
	}
}

// seen is the lowest release that a living agent is done with, and which. An
// agent that has never told its routes holds none of the pool's either; one whose
// Node was deleted may run on.
func (v *view) seen() (uint64, string) {
	least, who := uint64(math.MaxUint64), ""
	for name, cn := range v.snap.CiliumNodes {
		if n := v.node(cn); n != nil && !n.Silent.IsZero() && v.now.Sub(n.Silent) > silence {
			continue
		}
		seen := cn.Seen
		if v.pool != "" {
			seen = cn.Pools.Seen[v.pool]
		}
		if cn.Owned && cn.Published && (seen < least || (seen == least && name < who)) {
			least, who = seen, name
		}
	}
	return least, who
}

func (v *view) inputs() pool.Inputs {
	in := pool.Inputs{
		Pool: poolOf(v.cfg), Hazards: v.hazards(), Acknowledged: v.cfg.Pool.Acknowledged,
		Now: v.now, Quarantine: v.cfg.Pool.Quarantine,
	}
	in.Seen, in.Lagging = v.seen()
	return in
}

// missing says which family is on without a range to give from.
func missing(p pool.Pool, cfg *config.Operator) []string {
	var out []string
	if cfg.EnableIPv4 && len(p.V4.CIDRs) == 0 {
		out = append(out, "IPv4")
	}
	if cfg.EnableIPv6 && len(p.V6.CIDRs) == 0 {
		out = append(out, "IPv6")
	}
	return out
}
