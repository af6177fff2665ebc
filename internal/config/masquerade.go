// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"

	"github.com/weft-net/weft/internal/masquerade"
)

// Masquerade says which flows of pods leave with the node's address.
type Masquerade struct {
	BPF   bool   `key:"enable-bpf-masquerade"` // the only way there is
	IPv4  bool   `key:"enable-ipv4-masquerade"`
	IPv6  bool   `key:"enable-ipv6-masquerade"`
	Agent bool   `key:"enable-ip-masq-agent"`  // take exceptions from /etc/config/ip-masq-agent
	Ports string `key:"masquerade-port-range"` // MIN-MAX
}

// PortRange returns the ports that flows get. The settings were checked.
func (m Masquerade) PortRange() (low, high uint16) {
	low, high, _ = masquerade.ParseRange(m.Ports)
	return low, high
}

// Masquerades tells which families are masqueraded.
func (c *Config) Masquerades() (v4, v6 bool) {
	on := c.Masquerade.BPF
	return on && c.Masquerade.IPv4 && c.EnableIPv4, on && c.Masquerade.IPv6 && c.EnableIPv6
}

func (c *Config) checkMasquerade() []error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("setting "+key+": "+format, args...))
	}
	m := c.Masquerade
	if _, _, err := masquerade.ParseRange(m.Ports); err != nil {
		bad("masquerade-port-range", "%w", err)
	}
	for _, f := range []struct {
		key, helm string
		on        bool
	}{{"enable-ipv4-masquerade", "enableIPv4Masquerade", m.IPv4}, {"enable-ipv6-masquerade", "enableIPv6Masquerade", m.IPv6}} {
		if f.on && !m.BPF {
			bad(f.key, "true without enable-bpf-masquerade means iptables, which Weft does not use: set bpf.masquerade=true, or %s=false", f.helm)
		}
	}
	if m.Agent && !m.BPF {
		bad("enable-ip-masq-agent", "true needs enable-bpf-masquerade: set bpf.masquerade=true, or ipMasqAgent.enabled=false")
	}
	v4, v6 := c.Masquerades()
	if c.RoutingMode != RoutingNative || m.Agent {
		return errs
	}
	for _, f := range []struct {
		key, helm, off string
		lacks          bool
	}{
		{"ipv4-native-routing-cidr", "ipv4NativeRoutingCIDR", "enableIPv4Masquerade", v4 && !c.IPv4NativeCIDR.IsValid()},
		{"ipv6-native-routing-cidr", "ipv6NativeRoutingCIDR", "enableIPv6Masquerade", v6 && !c.IPv6NativeCIDR.IsValid()},
	} {
		if f.lacks {
			bad(f.key, "needed to masquerade with routing-mode native: set %s to the range in which the network routes pods' addresses (all pods' ranges at least), or ipMasqAgent.enabled=true, or %s=false", f.helm, f.off)
		}
	}
	return errs
}
