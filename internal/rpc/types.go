// SPDX-License-Identifier: Apache-2.0

// Package rpc is the agent's local API: HTTP with JSON on a unix socket that
// only root may open. The CLI on the node speaks it; from a laptop the CLI runs
// itself inside the agent's container through pods/exec, so that no agent needs
// another listener.
package rpc

import (
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/ipam"
)

// SocketPath is where the agent serves.
const SocketPath = "/var/run/weft/weft.sock"

// Routes of the API. All are GET and answer JSON, but for Monitor, which
// streams one flow.Event a line until the client goes away, and Metrics, which
// answers Prometheus' text format.
const (
	PathStatus      = "/v1/status"       // Status
	PathEndpoints   = "/v1/endpoints"    // []table.Endpoint
	PathNodes       = "/v1/nodes"        // []table.Node
	PathIPCache     = "/v1/ipcache"      // []table.IPCache, the desired rows
	PathRoutes      = "/v1/routes"       // []table.Route, the desired rows
	PathDevices     = "/v1/devices"      // []table.Device
	PathServices    = "/v1/services"     // []table.Frontend, the desired rows
	PathBPFEndpoint = "/v1/bpf/endpoint" // []maps.EndpointRow, as the kernel has them
	PathBPFIPCache  = "/v1/bpf/ipcache"  // []maps.IPCacheRow
	PathBPFCT       = "/v1/bpf/ct"       // []maps.CTRow
	PathBPFNAT      = "/v1/bpf/nat"      // []maps.NATRow
	PathBPFMetrics  = "/v1/bpf/metrics"  // []maps.MetricRow
	PathBPFMaps     = "/v1/bpf/maps"     // []maps.MapRow

	PathBPFLB         = "/v1/bpf/lb"             // []maps.LBRow
	PathBPFLBBackends = "/v1/bpf/lb/backends"    // []maps.BackendRow
	PathBPFLBSockets  = "/v1/bpf/lb/sockets"     // []maps.SocketRow
	PathBPFLBMaglev   = "/v1/bpf/lb/maglev"      // []maps.MaglevRow
	PathBPFLBConns    = "/v1/bpf/lb/connections" // []maps.LBConnRow
	PathMonitor       = "/v1/monitor"            // ?type=drop|trace&pod=NAMESPACE/NAME
	PathConfig        = "/v1/config"             // config.Config in effect
	PathIPAM          = "/v1/ipam"               // IPAM
	PathMetrics       = "/metrics"
)

// Status is the agent's account of itself.
type Status struct {
	Node       string      `json:"node"`
	Version    string      `json:"version"`
	StartedAt  time.Time   `json:"startedAt"`
	Ready      bool        `json:"ready"` // all components that gate pods are OK
	Components []Component `json:"components"`
}

// Component is one line of `weft status`: "Name: OK" or "Name: reason".
type Component struct {
	Name    string   `json:"name"` // Kubernetes, Datapath, IPAM, ...
	State   State    `json:"state"`
	Message string   `json:"message,omitempty"` // on OK a short summary, else the reason and what to do
	Details []string `json:"details,omitempty"` // shown with --verbose
	// Inline shows Message in the component's line on OK too.
	Inline bool `json:"inline,omitempty"`
}

// State of a component.
type State string

// States of a component.
const (
	StateOK       State = "OK"
	StateWarning  State = "Warning" // works, somebody should look
	StateFailing  State = "Failing" // makes `weft status` exit 1
	StateDisabled State = "Disabled"
)

// IPAM is what a node has for its pods, and who has it.
type IPAM struct {
	Mode   string             `json:"mode"` // setting ipam
	Ranges []ipam.RangeStatus `json:"ranges"`
	// Outside counts addresses in use that are in none of the ranges.
	Outside   uint64        `json:"outside"`
	Addresses []IPAMAddress `json:"addresses"`
	// Problems say what is wrong, and what releases of other nodes wait for.
	Problems []string `json:"problems,omitempty"`
}

// IPAMAddress is an address in use.
type IPAMAddress struct {
	IP    netip.Addr `json:"ip"`
	Owner string     `json:"owner"` // namespace/pod, or what it is
}
