// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/state"
)

// All stands for every other host in a cut.
const All = "all"

// RelaySuffix makes the name of the bridge port of a link that is delayed:
// the relay's TAP device stands between the bridge and the veth.
const RelaySuffix = "-d"

// tableName is the nftables table in the router's namespace.
const tableName = "weft_lab"

// protocols are what a cut may be narrowed to.
func protocols() []string { return []string{"tcp", "udp", "sctp", "icmp", "esp"} }

// CheckCut refuses cuts that cannot be.
func CheckCut(c state.Cut) error {
	if c.A == All || c.A == c.B {
		return fmt.Errorf("cut %s %s: want two different hosts, or a host and %q", c.A, c.B, All)
	}
	known := c.Proto == ""
	for _, p := range protocols() {
		known = known || p == c.Proto
	}
	if !known {
		return fmt.Errorf("cut: protocol %q: want %s", c.Proto, strings.Join(protocols(), ", "))
	}
	if c.Port != 0 && c.Proto != "tcp" && c.Proto != "udp" && c.Proto != "sctp" {
		return fmt.Errorf("cut: port %d: ports belong to --proto tcp, udp or sctp", c.Port)
	}
	if c.Port < 0 || c.Port > 65535 {
		return fmt.Errorf("cut: port %d: want 1 to 65535", c.Port)
	}
	return nil
}

// Ruleset is the router's whole table as nft reads it. It replaces the table
// that is there in one transaction.
//
// A frame is marked with the host it came from when it enters a bridge, and
// judged when it leaves through the port of another host. That holds for
// frames that are bridged within a subnet and for packets that are routed
// between two, whatever addresses they carry.
func Ruleset(hosts []plan.Host, cuts []state.Cut, links map[string]state.Impairments) string {
	var arrive, leave strings.Builder
	byName := map[string]plan.Host{}
	for _, h := range hosts {
		byName[h.Name] = h
		fmt.Fprintf(&arrive, "\t\tiifname %s meta mark set %d\n", portSet(h), h.Mark)
	}
	for _, c := range cuts {
		writeCut(&leave, byName, c)
		if !c.OneWay {
			c.A, c.B = c.B, c.A
			writeCut(&leave, byName, c)
		}
	}
	for _, h := range hosts {
		for _, p := range h.Ports {
			writeHarm(&arrive, "iifname", p, links[p.Peer])
			writeHarm(&leave, "oifname", p, links[p.Peer])
		}
	}
	return fmt.Sprintf(`table bridge %[1]s
delete table bridge %[1]s
table bridge %[1]s {
	chain arrive {
		type filter hook prerouting priority -300
%[2]s	}
	chain leave {
		type filter hook postrouting priority 300
%[3]s	}
}
`, tableName, arrive.String(), leave.String())
}

func names(p plan.Port) string { return fmt.Sprintf("%q, %q", p.Peer, p.Peer+RelaySuffix) }

func portSet(h plan.Host) string {
	var list []string
	for _, p := range h.Ports {
		list = append(list, names(p))
	}
	return "{ " + strings.Join(list, ", ") + " }"
}

// writeCut writes the rules for one direction, from A to B.
func writeCut(b *strings.Builder, hosts map[string]plan.Host, c state.Cut) {
	var match string
	if c.A != All {
		match += fmt.Sprintf("meta mark %d ", hosts[c.A].Mark)
	}
	if c.B != All {
		match += "oifname " + portSet(hosts[c.B]) + " "
	}
	for _, what := range cutMatches(c) {
		fmt.Fprintf(b, "\t\t%s%sdrop\n", match, what)
	}
}

// cutMatches: a port is cut whichever side of the connection uses it. Of
// ICMPv6 only what IPv4's ICMP does as well: without neighbour discovery
// everything would be cut.
func cutMatches(c state.Cut) []string {
	switch {
	case c.Proto == "":
		return []string{""}
	case c.Proto == "icmp":
		return []string{
			"ether type ip ip protocol icmp ",
			"ether type ip6 icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, echo-reply } ",
		}
	case c.Port == 0:
		return []string{fmt.Sprintf("meta l4proto %s ", c.Proto)}
	}
	return []string{
		fmt.Sprintf("meta l4proto %s th dport %d ", c.Proto, c.Port),
		fmt.Sprintf("meta l4proto %s th sport %d ", c.Proto, c.Port),
	}
}

// writeHarm writes what a bad link loses. Loss is in steps of a thousandth of
// a percent.
func writeHarm(b *strings.Builder, direction string, p plan.Port, i state.Impairments) {
	match := direction + " { " + names(p) + " } "
	if i.WireMTU > 0 {
		fmt.Fprintf(b, "\t\t%smeta length > %d drop\n", match, i.WireMTU)
	}
	if i.Loss > 0 {
		fmt.Fprintf(b, "\t\t%snumgen random mod 100000 < %d drop\n", match, int(i.Loss*1000+0.5))
	}
}

// NoRules is the ruleset of a network that is whole.
const NoRules = "table bridge " + tableName + "\ndelete table bridge " + tableName + "\n"

// ApplyRules loads a ruleset in the router's namespace.
func ApplyRules(ctx context.Context, routerPath, ruleset string) error {
	if out, err := runIn(ctx, routerPath, ruleset, "nft", "-f", "-"); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

const toolLimit = 20 * time.Second

// runIn runs a tool of the machine in a network namespace.
func runIn(ctx context.Context, path, stdin string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	err := In(path, cmd.Run)
	return strings.TrimSpace(out.String()), err
}
