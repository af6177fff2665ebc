// SPDX-License-Identifier: Apache-2.0

// Package endpoint owns the life of every network attachment on this node: it
// allocates addresses, makes the veth pair, attaches the programs, writes the
// maps, remembers all of it in a state file and takes it apart again.
package endpoint

import (
	"net/netip"

	"github.com/weft-net/weft/internal/table"
)

// AddRequest is what a new endpoint needs. All fields but IPs are required for pods.
type AddRequest struct {
	Kind        table.EndpointKind
	ContainerID string
	IfName      string
	Netns       string // path
	Namespace   string
	Pod         string
	PodUID      string
	// IPs fixes the addresses (health and proof endpoints); empty allocates one
	// of each enabled family from the node's ranges.
	IPs []netip.Addr
}
