// SPDX-License-Identifier: Apache-2.0

package config

import "fmt"

// BigTCP says for which families TCP may build super-packets beyond 64 KiB, where
// kernel and devices take them.
type BigTCP struct {
	IPv4 bool `key:"enable-ipv4-big-tcp"`
	IPv6 bool `key:"enable-ipv6-big-tcp"`
}

func (c *Config) checkBigTCP() []error {
	var errs []error
	for _, f := range []struct {
		key, family, helm string
		wrong             bool
	}{
		{"enable-ipv4-big-tcp", "enable-ipv4", "enableIPv4BIGTCP=false, or ipv4.enabled=true", c.BigTCP.IPv4 && !c.EnableIPv4},
		{"enable-ipv6-big-tcp", "enable-ipv6", "enableIPv6BIGTCP=false, or ipv6.enabled=true", c.BigTCP.IPv6 && !c.EnableIPv6},
	} {
		if f.wrong {
			errs = append(errs, fmt.Errorf("setting %s: true needs %s: set %s", f.key, f.family, f.helm))
		}
	}
	return errs
}
