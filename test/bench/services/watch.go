// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/test/bench/sandbox"
)

// counters are what TCP of a namespace has counted.
func counters(s sandbox.Space) (out map[string]int, err error) {
	out = map[string]int{}
	return out, s.In(func() error {
		for _, file := range []string{"snmp", "netstat"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			lines := strings.Split(string(b), "\n")
			for i := 0; i+1 < len(lines); i += 2 {
				names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
				for j, name := range names[1:] { // the first is the protocol's
					v, err := strconv.Atoi(values[j+1])
					if err != nil {
						return fmt.Errorf("%s of %s: %w", name, s.Name, err)
					}
					if names[0] != "Icmp:" && names[0] != "IcmpMsg:" {
						out[name] = v
					}
				}
			}
		}
		return nil
	})
}

// retransmitted prints what TCP of a namespace counts of losses.
func retransmitted(s sandbox.Space) error {
	all, err := counters(s)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, part := range []string{"Retrans", "Timeout", "Drop", "Overflow", "LossProbe", "AbortOn", "OutRsts"} {
			if strings.Contains(name, part) && all[name] != 0 {
				fmt.Printf("%s: %s %d\n", s.Name, name, all[name])
				break
			}
		}
	}
	return err
}

// strays counts, by side, the packets from which clients outside could make out no
// connection of theirs: what a backend answered under its own address, say.
func (b *bench) strays() error {
	for _, n := range b.nodes {
		all, err := counters(n.outside)
		if err != nil {
			return err
		}
		b.once[strings.TrimSuffix(n.name, "_"+short(n.services))+"_strays"] += float64(all["OutRsts"])
	}
	return nil
}
