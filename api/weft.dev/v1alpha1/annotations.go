// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Annotations of a CiliumNode, written by the agent of that node alone.
const (
	// NodeRoutesAnnotation holds a JSON list of [NodeRoute]: where the node's own
	// routing table leads. At most MaxNodeRoutes, those within a pool first.
	NodeRoutesAnnotation = "weft.dev/node-routes"
	// ReleaseSeenAnnotation holds, in decimal, the highest seq of the ledger for
	// which the agent has verified that neither its routes nor its ipcache hold a
	// quarantined range.
	ReleaseSeenAnnotation = "weft.dev/release-seen"
	// ReleaseSeenPoolsAnnotation is ReleaseSeenAnnotation for each pool of IPAM
	// mode multi-pool: a JSON object of numbers.
	ReleaseSeenPoolsAnnotation = "weft.dev/release-seen-pools"
	// GiveBackAnnotation holds a JSON list of ranges that the node has stopped to
	// use and gives back, in IPAM mode multi-pool.
	GiveBackAnnotation = "weft.dev/give-back"
)

// ReleaseSeqAnnotation repeats spec.seq on a PodCIDRLedger, in decimal: an
// agent that reads the metadata alone learns whether there is anything new.
const ReleaseSeqAnnotation = "weft.dev/release-seq"

// MaxNodeRoutes is the greatest number of routes in NodeRoutesAnnotation.
const MaxNodeRoutes = 512

// NodeRoute is a route of a node that is neither Weft's own nor a default
// route, nor one of link-local, loopback or multicast addresses.
type NodeRoute struct {
	// CIDR is the destination.
	CIDR string `json:"cidr"`
	// Dev is the name of the device.
	Dev string `json:"dev,omitempty"`
	// Via is the gateway; empty says that the subnet is connected.
	Via string `json:"via,omitempty"`
}
