// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/api/weft.dev/v1alpha1"
)

// AcknowledgeSetting is the Helm value that lists acknowledged overlaps.
const AcknowledgeSetting = "ipam.operator.acknowledgedOverlaps"

// Quarantine is how long a released block rests where nothing else is set.
const Quarantine = 10 * time.Minute

// Family is a pool's part of one address family. The zero Family is off.
type Family struct {
	// CIDRs are cut into blocks, the first one first.
	CIDRs []netip.Prefix
	// MaskSize is the prefix length of a block.
	MaskSize int
}

// Pool is a named set of ranges.
type Pool struct {
	Name   string
	V4, V6 Family
	// Object is where users set the ranges, for example "CiliumPodIPPool blue";
	// empty stands for the Helm values of mode cluster-pool.
	Object string
}

func (p Pool) family(v6 bool) Family {
	if v6 {
		return p.V6
	}
	return p.V4
}

// setting names what holds the pool's CIDRs of a family, for users.
func (p Pool) setting(v6 bool) string {
	switch {
	case p.Object == "" && v6:
		return "ipam.operator.clusterPoolIPv6PodCIDRList"
	case p.Object == "":
		return "ipam.operator.clusterPoolIPv4PodCIDRList"
	case v6:
		return "spec.ipv6.cidrs of " + p.Object
	default:
		return "spec.ipv4.cidrs of " + p.Object
	}
}

// maskSetting names what holds the size of a pool's blocks, for users.
func (p Pool) maskSetting(v6 bool) string {
	switch {
	case p.Object == "" && v6:
		return "ipam.operator.clusterPoolIPv6MaskSize"
	case p.Object == "":
		return "ipam.operator.clusterPoolIPv4MaskSize"
	case v6:
		return "spec.ipv6.maskSize of " + p.Object
	default:
		return "spec.ipv4.maskSize of " + p.Object
	}
}

// Ledger says which node holds which block. Its methods never change it.
type Ledger struct {
	// Seq counts releases.
	Seq uint64
	// Pool is the pool of the last Plan, without its Name and Object.
	Pool Pool
	// Grants holds each node's blocks, IPv4 first, in the order of granting.
	Grants map[string][]netip.Prefix
	// Quarantine holds released blocks that nobody may have yet, oldest first.
	Quarantine []Release
	// Rested holds released blocks that may be granted, oldest release first.
	Rested []netip.Prefix
	// Growth holds how many blocks were held, an hour or more apart.
	Growth []Sample
}

// Release is a block that a node has given back. Times are whole seconds.
type Release struct {
	CIDR netip.Prefix
	Node string
	At   time.Time
	Seq  uint64
}

// Sample is how many blocks were held at a time.
type Sample struct {
	At     time.Time
	V4, V6 int
}

// HazardKind says what kind of use a hazard is.
type HazardKind int

// Kinds of hazards.
const (
	// Reserved is the range of a ReservedCIDR.
	Reserved HazardKind = iota + 1
	// ServiceCIDR is the range of service addresses.
	ServiceCIDR
	// NodeAddress is an address of a node.
	NodeAddress
	// Connected is the subnet of a node's device.
	Connected
	// Route is a route of a node by way of a gateway. One that is wider than the
	// pool's CIDR takes no block away.
	Route
	// NodeRange is a range that a node holds without this ledger's word: from
	// another pool, or from a time before the ledger.
	NodeRange
	// OtherPool is a CIDR of another pool. Inputs.Others makes it.
	OtherPool
)

func (k HazardKind) String() string {
	switch k {
	case Reserved:
		return "ReservedCIDR"
	case ServiceCIDR:
		return "service CIDR"
	case NodeAddress:
		return "node address"
	case Connected:
		return "connected subnet"
	case Route:
		return "route"
	case NodeRange:
		return "node's range"
	case OtherPool:
		return "other pool"
	}
	return "range"
}

// acknowledgeable says whether an acknowledgement has a say: over what nodes'
// routing tables hold, which may be harmless. The rest is certain.
func (k HazardKind) acknowledgeable() bool { return k == Connected || k == Route }

// Hazard is a range that something other than this pool's pods uses.
type Hazard struct {
	CIDR netip.Prefix
	Kind HazardKind
	// Where says who uses the range or where it was seen: "node n3, device eth1",
	// or the name and reason of a ReservedCIDR.
	Where string
}

// RouteHazard makes a hazard of what an agent published of its node's routes.
func RouteHazard(node string, r v1alpha1.NodeRoute) (Hazard, error) {
	p, err := parsePrefix(r.CIDR)
	if err != nil {
		return Hazard{}, err
	}
	h := Hazard{CIDR: p, Kind: Connected, Where: "node " + node}
	if r.Dev != "" {
		h.Where += ", device " + r.Dev
	}
	if r.Via != "" {
		h.Kind = Route
		h.Where += ", via " + r.Via
	}
	return h, nil
}

// Inputs is everything besides the ledger that a plan depends on.
type Inputs struct {
	Pool Pool
	// Others are the other pools, both as they are wanted and as their ledgers
	// have them. Blocks that overlap are granted by neither pool.
	Others []Pool
	// Hazards may hold the same range many times. Ranges of this ledger's own
	// grants must not be among them.
	Hazards []Hazard
	// Acknowledged are ranges whose overlap with routes and connected subnets
	// of nodes is accepted.
	Acknowledged []netip.Prefix
	Now          time.Time
	// Quarantine is how long a released block rests at least.
	Quarantine time.Duration
	// Seen is the lowest release number that a living agent has reported as
	// verified; math.MaxUint64 where there is no agent.
	Seen uint64
	// Lagging names the node whose agent reported Seen, for messages.
	Lagging string
}

// Demand is a living node and what it wants.
type Demand struct {
	Node string
	// V4 and V6 are how many blocks the node wants in all: 1 or 0 in mode
	// cluster-pool. Blocks beyond that stay with the node.
	V4, V6 int
	// Held are the ranges that the node's CiliumNode names. What the ledger does
	// not know of is taken over where it fits: the ledger was lost, or a leader
	// with an old view has released it.
	Held []netip.Prefix
	// GiveBack are blocks that the node no longer wants.
	GiveBack []netip.Prefix
}

// Result is what a plan gives to a living node.
type Result struct {
	Node string
	// CIDRs are all blocks of the node, IPv4 first.
	CIDRs []netip.Prefix
	// Granted are those of them that this plan has added.
	Granted []netip.Prefix
	// Refused holds an error for each family of which the node gets less than it
	// wants.
	Refused []*RefusedError
}

// Clone returns a copy that shares nothing with l.
func (l Ledger) Clone() Ledger {
	c := l
	c.Pool.V4.CIDRs = slices.Clone(l.Pool.V4.CIDRs)
	c.Pool.V6.CIDRs = slices.Clone(l.Pool.V6.CIDRs)
	c.Grants = make(map[string][]netip.Prefix, len(l.Grants))
	for node, ps := range l.Grants {
		c.Grants[node] = slices.Clone(ps)
	}
	c.Quarantine = slices.Clone(l.Quarantine)
	c.Rested = slices.Clone(l.Rested)
	c.Growth = slices.Clone(l.Growth)
	return c
}

// Equal reports whether l and o say the same, so that nothing has to be written.
func (l Ledger) Equal(o Ledger) bool {
	if l.Seq != o.Seq || len(l.Grants) != len(o.Grants) || !sameFamily(l.Pool.V4, o.Pool.V4) || !sameFamily(l.Pool.V6, o.Pool.V6) {
		return false
	}
	for node, ps := range l.Grants {
		if other, ok := o.Grants[node]; !ok || !slices.Equal(ps, other) {
			return false
		}
	}
	return slices.Equal(l.Rested, o.Rested) &&
		slices.EqualFunc(l.Quarantine, o.Quarantine, func(a, b Release) bool {
			return a.CIDR == b.CIDR && a.Node == b.Node && a.Seq == b.Seq && a.At.Equal(b.At)
		}) &&
		slices.EqualFunc(l.Growth, o.Growth, func(a, b Sample) bool {
			return a.V4 == b.V4 && a.V6 == b.V6 && a.At.Equal(b.At)
		})
}

func sameFamily(a, b Family) bool {
	return a.MaskSize == b.MaskSize && slices.Equal(a.CIDRs, b.CIDRs)
}

// NextEnd returns when the next quarantine may end, agents permitting: the time
// by which to plan again. It is zero where nothing is quarantined.
func (l Ledger) NextEnd(quarantine time.Duration) time.Time {
	var next time.Time
	for _, r := range l.Quarantine {
		if end := r.At.Add(quarantine); next.IsZero() || end.Before(next) {
			next = end
		}
	}
	return next
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// isV6 tells the family of a prefix that parsePrefix made.
func isV6(p netip.Prefix) bool { return p.Addr().Is6() }
