// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/weft-net/weft/test/bench/sandbox"
)

// retransmitted prints what TCP of a namespace counts of losses.
func retransmitted(s sandbox.Space) error {
	return s.In(func() error {
		for _, file := range []string{"snmp", "netstat"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			lines := strings.Split(string(b), "\n")
			for i := 0; i+1 < len(lines); i += 2 {
				names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
				for j := range names {
					for _, part := range []string{"Retrans", "Timeout", "Drop", "Overflow", "Spurious", "LossProbe", "PAWS", "Challenge", "DSACK", "AbortOn", "OutRsts"} {
						if strings.Contains(names[j], part) && values[j] != "0" {
							fmt.Printf("%s: %s %s\n", s.Name, names[j], values[j])
							break
						}
					}
				}
			}
		}
		return nil
	})
}
