// SPDX-License-Identifier: Apache-2.0

// Package endpoint owns the life of every network attachment on this node: it
// allocates addresses, makes the veth pair, attaches the programs, writes the
// maps, remembers all of it in a state file and takes it apart again.
package endpoint

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

// StatePath is where the state file lies. It is on tmpfs: it describes this
// boot only.
const StatePath = "/var/run/weft/endpoints.json"

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

// PoolChooser says from which pools pods get their addresses.
type PoolChooser interface {
	// Choose returns the pools of a pod. Add fails with its error.
	Choose(ctx context.Context, namespace, pod string) (ipam.Choice, error)
	// Outcome tells what came of a choice; err is that of the allocator.
	Outcome(namespace, pod string, pools ipam.Choice, err error)
}

// Datapath puts the programs on a pod's device and takes them off. The names
// are those of the host's end.
type Datapath interface {
	// AttachEndpoint attaches from_pod and to_pod; attached already is no error.
	AttachEndpoint(ifname string, ifindex int) error
	// DetachEndpoint takes them off and removes their pins; nothing there, or
	// the device gone, is no error.
	DetachEndpoint(ifname string) error
	// PurgeAddrs removes every conntrack entry of the addresses, so that they
	// can be given again (DATAPATH rule 6).
	PurgeAddrs(addrs ...netip.Addr) error
}

// Rows are the map rows of endpoints: one in the endpoint map, and one in the
// ipcache map for each address.
type Rows interface {
	// WriteEndpoint writes all rows of an endpoint; repeating it is no error.
	WriteEndpoint(ep *table.Endpoint) error
	// RemoveEndpoint removes them, ipcache first; rows that are gone are no error.
	RemoveEndpoint(ep *table.Endpoint) error
	// ListEndpoints returns the rows of the endpoint map. Fields that the map
	// does not hold (names, containers) are empty.
	ListEndpoints() ([]*table.Endpoint, error)
}

// Params are what a Manager works with.
type Params struct {
	Node     string // name, for errors
	Settings Settings
	State    State
	Links    *link.Links
	Datapath Datapath
	Rows     Rows     // MapRows in the agent
	Observe  Observer // may be nil
	Log      *slog.Logger
}

// State says where a Manager keeps what it knows.
type State struct {
	Path      string // state file; empty is StatePath
	DB        *statedb.DB
	Endpoints statedb.RWTable[*table.Endpoint] // table.NewEndpoints(DB); written by the Manager alone
}

// Settings of a Manager. They are fixed while it lives.
type Settings struct {
	Families ipam.Families
	// MTU of pods' devices in bytes. It is asked at each Add, because the
	// node's devices may change.
	MTU func() int
	// BigTCP is how large their super-packets may grow. It is asked at each Add
	// too; nil leaves the kernel's default.
	BigTCP func() link.BigTCP
	// Claimed reports that an address belongs to an object of a pod that is
	// gone, so that it must not be given again yet (DATAPATH rule 15). May be nil.
	Claimed func(netip.Addr) bool
	// NoRange says why the node has no ranges, "" for what is usual; Remedy is
	// what to do when they are used up. Both are parts of errors of Add, and may
	// be left out.
	NoRange func() string
	Remedy  string
	// Pools chooses pools for pods; nil where there is one only.
	Pools PoolChooser
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Concurrency bounds the operations at work at one time; 0 is 3.
	Concurrency int
}

// Observer is told of every operation that ends, for metrics.
// op is "add", "delete", "check" or "gc"; wait is the part of took that the
// operation stood in line for others.
type Observer func(op string, took, wait time.Duration, err error)
