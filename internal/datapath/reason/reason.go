// SPDX-License-Identifier: Apache-2.0

// Package reason names what the BPF programs count: hooks, verdicts, notes and
// drop reasons. The numbers are those of bpf/lib/reasons.h; a test keeps the two
// equal. Each drop reason says in one line what happened and in another what to
// do about it.
package reason

// Class groups codes.
type Class string

// Classes. Each packet is counted under one verdict or one drop; notes come on top.
const (
	ClassVerdict Class = "verdict"
	ClassNote    Class = "note"
	ClassDrop    Class = "drop"
)

// Code is what a program counted.
type Code uint8

// First codes of the classes, as in bpf/lib/reasons.h.
const (
	firstNote Code = 64
	firstDrop Code = 128
)

// Class returns the class that the code belongs to.
func (c Code) Class() Class {
	switch {
	case c >= firstDrop:
		return ClassDrop
	case c >= firstNote:
		return ClassNote
	}
	return ClassVerdict
}

// Info explains one code.
type Info struct {
	Code    Code
	Name    string // kebab-case, stable: metrics, `monitor` and docs/datapath.md use it
	Meaning string // one line: what happened
	Remedy  string // one line: what to do; empty where there is nothing to mend
}

// Hook is a place where a program runs.
type Hook uint8

// Hooks, as in enum weft_hook.
const (
	FromPod Hook = iota
	ToPod
	FromNet
	ToNet
	FromOverlay // ingress of the tunnel device
	ToOverlay   // its egress
)

// Hooks lists all hooks in the order of their numbers.
func Hooks() []Hook { return []Hook{FromPod, ToPod, FromNet, ToNet, FromOverlay, ToOverlay} }

// String returns the name of the hook's program.
func (h Hook) String() string {
	switch h {
	case FromPod:
		return "from_pod"
	case ToPod:
		return "to_pod"
	case FromNet:
		return "from_net"
	case ToNet:
		return "to_net"
	case FromOverlay:
		return "from_overlay"
	case ToOverlay:
		return "to_overlay"
	}
	return "unknown"
}

// Lookup returns what is known about a code. A code of a newer program than
// this one comes back with the name "unknown".
func Lookup(c Code) Info {
	for _, i := range All() {
		if i.Code == c {
			return i
		}
	}
	return Info{Code: c, Name: "unknown", Meaning: "counted by a newer program than this command knows"}
}

// String returns the name of the code.
func (c Code) String() string { return Lookup(c).Name }
