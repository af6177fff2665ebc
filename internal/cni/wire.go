// SPDX-License-Identifier: Apache-2.0

// Package cni holds both ends of the CNI: the plugin that the container runtime
// executes (package plugin) and the agent's server that it speaks to (package
// server). This package is what the two share, and imports nothing heavy.
//
// The wire is a 4-byte big-endian length and that many bytes of JSON, one
// request and one response a connection, on a unix socket: a gRPC client would
// more than double the plugin's size (DATAPATH rule 19).
package cni

import "net/netip"

// Paths of a node, as the plugin and the agent share them.
const (
	SocketPath = "/var/run/weft/cni.sock"
	QueueDir   = "/var/run/weft/deletes" // DELs taken while no agent answered
	// UnreachableFile has as its time since when the plugin finds no agent. The
	// plugin makes it, the agent removes it when it serves.
	UnreachableFile = "/var/run/weft/cni-unreachable"
)

// Error codes of the CNI specification 1.1, section "Error", and of its library.
const (
	CodeVersion      uint = 1
	CodeUnknown      uint = 3 // container
	CodeEnvironment  uint = 4
	CodeIO           uint = 5
	CodeDecode       uint = 6
	CodeConfig       uint = 7
	CodeNetns        uint = 8
	CodeTryAgain     uint = 11
	CodeNotAvailable uint = 50 // STATUS
	CodeLimited      uint = 51 // STATUS
	CodeInternal     uint = 999
)

// MaxMessage bounds a message in bytes, either way.
const MaxMessage = 1 << 20

// Request is what the plugin asks for. Command is the value of CNI_COMMAND.
type Request struct {
	Command     string `json:"command"`
	ContainerID string `json:"containerID"`
	Netns       string `json:"netns"`
	IfName      string `json:"ifName"`
	Args        string `json:"args"` // CNI_ARGS as given: K8S_POD_NAMESPACE=...;K8S_POD_NAME=...
	// Valid lists container and interface pairs that GC must keep.
	Valid []Attachment `json:"valid,omitempty"`
	// PrevIPs are the addresses of prevResult, for CHECK.
	PrevIPs []netip.Addr `json:"prevIPs,omitempty"`
}

// Attachment names one attachment of a container to the network.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Response is the agent's answer. Error is nil on success.
type Response struct {
	Error  *Error  `json:"error,omitempty"`
	Result *Result `json:"result,omitempty"` // of ADD
}

// Error carries a CNI error code (CNI spec 1.1, section "Error") to the runtime.
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"` // what to do next
}

// Error returns message and details.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Result describes the attachment that an ADD made.
type Result struct {
	HostIfName string       `json:"hostIfName"`
	HostMAC    string       `json:"hostMAC"`
	MAC        string       `json:"mac"`
	MTU        int          `json:"mtu"`
	IPs        []netip.Addr `json:"ips"`
	Gateways   []netip.Addr `json:"gateways"` // one for each of IPs
}
