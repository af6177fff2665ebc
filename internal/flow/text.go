// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// timeLayout shows when within the day; events are read live.
const timeLayout = "15:04:05.000000"

// IP protocol numbers (IANA "Assigned Internet Protocol Numbers").
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// Text renders the event on one line for a human: time, what happened and
// where, the packet, and for a drop the reason and what it means.
func Text(e *Event) string {
	var b strings.Builder
	b.WriteString(e.Time.Format(timeLayout))
	if e.Node != "" {
		b.WriteString(" " + e.Node)
	}
	if e.Type == TypeLost {
		fmt.Fprintf(&b, " LOST %d events: this reader was too slow; narrow it with --type or --pod", e.Lost)
		return b.String()
	}
	if e.Type == TypeDrop {
		b.WriteString(" DROP ")
	} else {
		b.WriteString(" " + verdict(e) + " ")
	}
	b.WriteString(e.Hook)
	if dev := device(e); dev != "" {
		b.WriteString("@" + dev)
	}
	if e.Pod != "" {
		b.WriteString(" " + e.Pod)
	}
	fmt.Fprintf(&b, ": %s -> %s %s", host(e.Src, e.SrcPort), host(e.Dst, e.DstPort), protocol(e))
	fmt.Fprintf(&b, " %d B, identity %d -> %d", e.Length, e.SrcID, e.DstID)
	if e.Type == TypeDrop {
		b.WriteString(": " + e.Reason)
		if h := Hint(e.Reason); h != "" {
			b.WriteString(" (" + h + ")")
		}
	}
	return b.String()
}

func verdict(e *Event) string {
	if e.Verdict == "" {
		return string(e.Type)
	}
	return e.Verdict
}

func device(e *Event) string {
	if e.IfName != "" {
		return e.IfName
	}
	if e.IfIndex != 0 {
		return "if" + strconv.Itoa(e.IfIndex)
	}
	return ""
}

// host renders an endpoint of a packet. A port of 0 means that the packet has
// none (ICMP, later fragments).
func host(a netip.Addr, port uint16) string {
	if !a.IsValid() {
		return "?"
	}
	if port == 0 {
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

func protocol(e *Event) string {
	switch e.Proto {
	case protoTCP:
		if f := tcpFlags(e.TCPFlags); f != "" {
			return "TCP " + f
		}
		return "TCP"
	case protoUDP:
		return "UDP"
	case protoICMP:
		return "ICMP " + icmpName(e, icmp4Names)
	case protoICMPv6:
		return "ICMPv6 " + icmpName(e, icmp6Names)
	}
	return "proto " + strconv.Itoa(int(e.Proto))
}

// Names of ICMP types that a reader of drops meets (RFC 792, RFC 4443, RFC 4861).
var (
	icmp4Names = map[uint8]string{0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
	icmp6Names = map[uint8]string{
		1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request", 129: "echo reply",
		130: "mld query", 131: "mld report", 133: "router solicitation", 134: "router advertisement",
		135: "neighbour solicitation", 136: "neighbour advertisement", 143: "mldv2 report",
	}
)

func icmpName(e *Event, names map[uint8]string) string {
	name, ok := names[e.ICMPType]
	if !ok {
		return fmt.Sprintf("type %d code %d", e.ICMPType, e.ICMPCode)
	}
	if e.ICMPCode != 0 {
		return fmt.Sprintf("%s code %d", name, e.ICMPCode)
	}
	return name
}

// tcpFlags names the flags from the low bit on (RFC 9293, section 3.1).
func tcpFlags(f uint8) string {
	var s []string
	for i, n := range [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if f&(1<<i) != 0 {
			s = append(s, n)
		}
	}
	return strings.Join(s, ",")
}
