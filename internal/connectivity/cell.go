// SPDX-License-Identifier: Apache-2.0

// Package connectivity is the connectivity test: a matrix of cells (path ×
// family × protocol × size), probes that run the cells from inside pods and
// nodes, a server that echoes, and a report that names every cell that failed.
package connectivity

import (
	"net/netip"
	"path"
	"strings"
)

// Path is who talks to whom.
type Path string

// Paths. Those from host also run inside the agent's container, against the
// nodes' health endpoints.
const (
	PodToPodSameNode  Path = "pod-to-pod-same-node"
	PodToPodOtherNode Path = "pod-to-pod-other-node"
	PodToOwnHost      Path = "pod-to-own-host"
	PodToOtherHost    Path = "pod-to-other-host"
	HostToOwnPod      Path = "host-to-own-pod"
	HostToOtherPod    Path = "host-to-other-pod"
	Hairpin           Path = "hairpin" // a pod to itself through a Service
	PodToAPIServer    Path = "pod-to-apiserver"
	PodToDNS          Path = "pod-to-dns"
	HostToAPIServer   Path = "host-to-apiserver" // only from the agent's container
	HostToDNS         Path = "host-to-dns"       // only from the agent's container
	PodToOutside      Path = "pod-to-outside"    // a host beyond the cluster, and which source address arrives there
	OutsideToNode     Path = "outside-to-node"   // from that host, if this process runs on it
	AgentStatus       Path = "agent-status"      // the agent finds nothing wrong
	Programs          Path = "programs"          // every hook's program counted packets
)

// Family of addresses.
type Family string

// Families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// Is says whether the address is of the family.
func (f Family) Is(a netip.Addr) bool { return a.IsValid() && a.Is6() == (f == IPv6) }

// Of returns the first address of the family, or an invalid one.
func (f Family) Of(addrs []netip.Addr) netip.Addr {
	for _, a := range addrs {
		if f.Is(a) {
			return a
		}
	}
	return netip.Addr{}
}

// Proto is what carries the bytes.
type Proto string

// Protocols.
const (
	TCP  Proto = "TCP"
	UDP  Proto = "UDP"
	ICMP Proto = "ICMP"
)

// Size of what is sent and has to come back.
type Size string

// Sizes. MTU is a datagram whose packet is exactly as large as the source's
// route allows, sent with "do not fragment"; MTU+1 needs two fragments; 64KB is
// the largest datagram there is (UDP, ICMP) or a stream of 65,536 bytes (TCP).
// TCP sends MTU and MTU+1 bytes as a stream.
const (
	OneByte   Size = "1B"
	MTU       Size = "MTU"
	MTUPlus1  Size = "MTU+1"
	Max       Size = "64KB"
	Handshake Size = "handshake" // of TCP and TLS
	Query     Size = "query"     // and answer, of DNS
	Connect   Size = "connect"   // of TCP, to a host where no echo server of ours answers
)

// Kind of a party.
type Kind string

// Kinds of parties.
const (
	KindPod     Kind = "pod"
	KindNode    Kind = "node"
	KindService Kind = "service"
	KindHealth  Kind = "health"  // a node's health endpoint
	KindOutside Kind = "outside" // a host beyond the cluster; its name is its address
)

// Party is one end of a cell.
type Party struct {
	Kind Kind   `json:"kind"`
	Node string `json:"node,omitempty"`
	Name string `json:"name,omitempty"` // of pods and services
}

// String names the party as the report does: "pod probe-a-x (n1)".
func (p Party) String() string {
	switch {
	case p.Kind == KindNode:
		return "node " + p.Node
	case p.Kind == KindHealth:
		return "health endpoint (" + p.Node + ")"
	case p.Kind == KindOutside:
		return strings.TrimSpace("outside host " + p.Name)
	case p.Node == "":
		return string(p.Kind) + " " + p.Name
	}
	return string(p.Kind) + " " + p.Name + " (" + p.Node + ")"
}

// Cell is one thing to try. Skip says why it is not tried; Fail why it failed
// before it could be tried. Both are empty for a cell to run.
type Cell struct {
	ID     int        `json:"id"`
	Path   Path       `json:"path"`
	Family Family     `json:"family,omitempty"`
	Proto  Proto      `json:"proto,omitempty"`
	Size   Size       `json:"size,omitempty"`
	From   Party      `json:"from"`
	To     Party      `json:"to"`
	Addr   netip.Addr `json:"addr"`
	Port   uint16     `json:"port,omitempty"`
	// Source lists the addresses of which the far end has to see one as the
	// sender's; SourceIs says in words which they are. Empty: any will do.
	Source   []netip.Addr `json:"source,omitempty"`
	SourceIs string       `json:"sourceIs,omitempty"`
	// LearnsMTU: the far end may take its first answer for one that fits and has
	// to be told otherwise on the way (RFC 1191, RFC 8201). That answer is lost,
	// so the cell has one attempt more.
	LearnsMTU bool   `json:"learnsMTU,omitempty"`
	Skip      string `json:"skip,omitempty"`
	Fail      string `json:"fail,omitempty"`
}

// Runs says whether there is anything to send for the cell.
func (c *Cell) Runs() bool { return c.Skip == "" && c.Fail == "" }

// Name is "IPv4 UDP MTU+1", or the path for cells without a packet.
func (c *Cell) Name() string {
	if c.Family == "" {
		return string(c.Path)
	}
	return strings.Join([]string{string(c.Family), string(c.Proto), string(c.Size)}, " ")
}

// Filter limits what is tried. Zero fields limit nothing.
type Filter struct {
	Families []Family
	// Cells are patterns as of path.Match, on the path ("pod-to-pod-*") or, with
	// slashes, on path/family/protocol/size ("*/IPv6/UDP/64KB"). Letter case
	// does not matter.
	Cells []string
}

// Check names the first pattern that is malformed.
func (f Filter) Check() error {
	for _, p := range f.Cells {
		if _, err := path.Match(p, ""); err != nil {
			return &BadFilterError{Pattern: p}
		}
	}
	return nil
}

// BadFilterError is a pattern that path.Match does not take.
type BadFilterError struct{ Pattern string }

// Error names the pattern and shows a right one.
func (e *BadFilterError) Error() string {
	return "--cells " + e.Pattern + `: not a pattern; examples: "pod-to-pod-*", "*/IPv6/UDP/64KB"`
}

// Selects says whether the cell is to be in the plan.
func (f Filter) Selects(c *Cell) bool {
	if len(f.Families) > 0 && c.Family != "" {
		ok := false
		for _, fam := range f.Families {
			ok = ok || fam == c.Family
		}
		if !ok {
			return false
		}
	}
	if len(f.Cells) == 0 {
		return true
	}
	full := strings.ToLower(strings.Join([]string{string(c.Path), string(c.Family), string(c.Proto), string(c.Size)}, "/"))
	for _, p := range f.Cells {
		p = strings.ToLower(p)
		subject := full
		if !strings.Contains(p, "/") {
			subject = strings.ToLower(string(c.Path))
		}
		if ok, _ := path.Match(p, subject); ok { // Check saw the pattern
			return true
		}
	}
	return false
}
