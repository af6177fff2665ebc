// SPDX-License-Identifier: Apache-2.0

// Package flow turns the records of the datapath's ring buffer into events and
// hands them to whoever listens. A slow listener loses events, which are
// counted; it never slows the datapath or another listener.
package flow

import (
	"net/netip"
	"time"
)

// Type of an event.
type Type string

// Event types, named as `monitor --type` takes them.
const (
	TypeDrop  Type = "drop"
	TypeTrace Type = "trace"
	// TypeLost stands where a slow reader lost events; only Time and Lost are set.
	TypeLost Type = "lost"
)

// Event is one packet as a program of the datapath saw it.
type Event struct {
	Time     time.Time  `json:"time"`
	Type     Type       `json:"type"`
	Hook     string     `json:"hook"`             // from_pod, to_pod, from_net, to_net
	Reason   string     `json:"reason,omitempty"` // of a drop: kebab-case, as in docs/datapath.md
	Verdict  string     `json:"verdict"`          // drop, peer, neigh, stack, answer, marked
	IfIndex  int        `json:"ifindex"`
	IfName   string     `json:"ifname,omitempty"`
	OutIf    int        `json:"outIfindex,omitempty"` // device that it was redirected to, 0 if it was not
	Endpoint uint16     `json:"endpoint,omitempty"`   // the local endpoint concerned
	Pod      string     `json:"pod,omitempty"`        // its namespace/name, filled in by the agent
	Src      netip.Addr `json:"src"`
	Dst      netip.Addr `json:"dst"`
	SrcPort  uint16     `json:"srcPort,omitempty"`
	DstPort  uint16     `json:"dstPort,omitempty"`
	Proto    uint8      `json:"proto"`
	TCPFlags uint8      `json:"tcpFlags,omitempty"`
	ICMPType uint8      `json:"icmpType,omitempty"`
	ICMPCode uint8      `json:"icmpCode,omitempty"`
	SrcID    uint32     `json:"srcIdentity"`
	DstID    uint32     `json:"dstIdentity"`
	Length   uint32     `json:"length"` // bytes from the network header on
	Lost     uint64     `json:"lost,omitempty"`
	Node     string     `json:"node,omitempty"` // filled in by the CLI where it merges nodes
}

// Filter selects events; zero fields select everything.
type Filter struct {
	Type Type   // "" both
	Pod  string // namespace/name, or a name alone for that name in any namespace
}
