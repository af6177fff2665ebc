// SPDX-License-Identifier: Apache-2.0

package masquerade

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"sigs.k8s.io/yaml"
)

// Limits of an ip-masq-agent file: it comes from a ConfigMap, and each range
// takes an entry of a map of 1024.
const (
	maxBytes  = 256 << 10
	maxRanges = 1000
)

// Link-local ranges (RFC 3927, RFC 4291 2.5.6).
var (
	linkLocal4 = netip.MustParsePrefix("169.254.0.0/16")
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
)

// AgentConfig is what ip-masq-agent's file says.
type AgentConfig struct {
	NonMasquerade  []netip.Prefix
	MasqLinkLocal  bool
	MasqLinkLocal6 bool
}

// DefaultAgentConfig is in effect where the file is missing or empty, as it is
// with Cilium's and Kubernetes' ip-masq-agent: private and reserved ranges of
// IPv4 (RFC 1918, 6598, 6890, 5737, 7526, 2544, 1112).
func DefaultAgentConfig() AgentConfig {
	var c AgentConfig
	for _, s := range []string{
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24",
		"192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
	} {
		c.NonMasquerade = append(c.NonMasquerade, netip.MustParsePrefix(s))
	}
	return c
}

// ParseAgentConfig reads ip-masq-agent's file, YAML or JSON. What it does not
// understand is an error, so that a misspelt key does not masquerade what must
// keep its address.
func ParseAgentConfig(b []byte) (AgentConfig, error) {
	if len(b) > maxBytes {
		return AgentConfig{}, fmt.Errorf("%d bytes long, at most %d are taken", len(b), maxBytes)
	}
	if strings.TrimSpace(string(b)) == "" {
		return DefaultAgentConfig(), nil
	}
	var raw struct {
		NonMasqueradeCIDRs []string `json:"nonMasqueradeCIDRs"`
		MasqLinkLocal      bool     `json:"masqLinkLocal"`
		MasqLinkLocalIPv6  bool     `json:"masqLinkLocalIPv6"`
		ResyncInterval     string   `json:"resyncInterval"` // of ip-masq-agent; changes are seen at once here
	}
	if err := yaml.UnmarshalStrict(b, &raw); err != nil {
		return AgentConfig{}, fmt.Errorf("is not understood: %w", err)
	}
	if len(raw.NonMasqueradeCIDRs) > maxRanges {
		return AgentConfig{}, fmt.Errorf("nonMasqueradeCIDRs: %d ranges, at most %d are taken: join neighbouring ones", len(raw.NonMasqueradeCIDRs), maxRanges)
	}
	c := AgentConfig{MasqLinkLocal: raw.MasqLinkLocal, MasqLinkLocal6: raw.MasqLinkLocalIPv6}
	var errs []error
	for _, s := range raw.NonMasqueradeCIDRs {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil || p.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("nonMasqueradeCIDRs: %q is not a range such as 10.0.0.0/8 or fd00::/8", s))
			continue
		}
		c.NonMasquerade = append(c.NonMasquerade, p.Masked())
	}
	return c, errors.Join(errs...)
}

// Exclusions are the destinations that are not masqueraded.
func (c AgentConfig) Exclusions() []netip.Prefix {
	out := append([]netip.Prefix(nil), c.NonMasquerade...)
	if !c.MasqLinkLocal {
		out = append(out, linkLocal4)
	}
	if !c.MasqLinkLocal6 {
		out = append(out, linkLocal6)
	}
	return out
}
