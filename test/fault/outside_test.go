// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// The outside of a lab: the subnet that its host client is on.
const outside4, outside6 = "172.18.9.0/24", "fd00:18:9::/64"

// outsideBreaks are those between the cluster and a host outside.
func outsideBreaks() []mutation {
	pair := otherNode(n1, n2)
	out := cells{Path: "pod-to-outside"}
	in := cells{Path: "outside-to-node"}
	from := func(c cells, node string) cells { c.From = node; return c }
	to := func(c cells, node string) cells { c.To = node; return c }
	return []mutation{{
		name: "no way back to a node's pods", mode: unmasqueraded, text: true,
		inject: func(t *testing.T, b *breaker) {
			n := b.node(t, n1)
			b.sh(t, outsideHost, fmt.Sprintf("ip route add unreachable %s; ip -6 route add unreachable %s", n.PodCIDR(false), n.PodCIDR(true)),
				fmt.Sprintf("ip route del unreachable %s; ip -6 route del unreachable %s", n.PodCIDR(false), n.PodCIDR(true)))
		},
		fails:  []cells{from(out, n1)},
		passes: []cells{from(out, n2), in, pair},
	}, {
		name: "no way back to a node",
		inject: func(t *testing.T, b *breaker) {
			addr := b.node(t, n1).Addr(true)
			b.sh(t, outsideHost, fmt.Sprintf("ip -6 route add unreachable %s", addr), fmt.Sprintf("ip -6 route del unreachable %s", addr))
		},
		fails:  []cells{to(of(in, "IPv6"), n1)},
		passes: []cells{to(of(in, "IPv4"), n1), to(in, n2), from(out, n2), pair},
	}, {
		name: "pods are masqueraded by somebody else", mode: unmasqueraded,
		inject: func(t *testing.T, b *breaker) {
			b.sh(t, n1, fmt.Sprintf(`nft "add table inet weft_fault; add chain inet weft_fault p { type nat hook postrouting priority 90; }; `+
				`add rule inet weft_fault p ip daddr %s masquerade; add rule inet weft_fault p ip6 daddr %s masquerade"`, outside4, outside6), noTable)
		},
		// Everything comes back all the same; of one byte nobody can tell whose it is.
		fails:  []cells{by(from(out, n1), "TCP"), by(from(out, n1), "UDP"), sized(by(from(out, n1), "ICMP"), "MTU")},
		passes: []cells{sized(by(from(out, n1), "ICMP"), "1B"), from(out, n2), in, pair},
	}, {
		name: "a node's firewall lets nobody in from outside",
		inject: func(t *testing.T, b *breaker) {
			b.nft(t, n1, "input", "ip saddr "+outside4+" drop", "ip6 saddr "+outside6+" drop")
		},
		fails:  []cells{to(in, n1)},
		passes: []cells{out, to(in, n2), pair},
	}, {
		name: "a firewall lets no UDP out",
		inject: func(t *testing.T, b *breaker) {
			b.nft(t, "router", "forward", "ip daddr "+outside4+" udp dport "+fmt.Sprint(b.port)+" drop")
		},
		fails:  []cells{by(of(out, "IPv4"), "UDP")},
		passes: []cells{by(out, "TCP"), by(out, "ICMP"), of(out, "IPv6"), in, pair},
	}, {
		name:   "no IPv6 outside",
		inject: func(t *testing.T, b *breaker) { b.nft(t, "router", "forward", "ip6 daddr "+outside6+" drop") },
		fails:  []cells{of(out, "IPv6"), of(in, "IPv6")},
		passes: []cells{of(out, "IPv4"), of(in, "IPv4"), pair},
	}}
}

// masqueradeBreaks are those of a cluster that masquerades.
func masqueradeBreaks() []mutation {
	pair := otherNode(n1, n2)
	out := cells{Path: "pod-to-outside"}
	in := cells{Path: "outside-to-node"}
	from := func(c cells, node string) cells { c.From = node; return c }
	edit := func(t *testing.T, b *breaker, args ...string) {
		old := strings.TrimSpace(inNode(t, b.lab, n1, append([]string{"edit-nat"}, args...)...))
		b.revert(t, n1, toolPath+" put "+old)
	}
	return []mutation{{
		name: "masquerade off in the datapath", stop: []string{n1}, mode: masqueraded,
		inject: func(t *testing.T, b *breaker) { edit(t, b, "off") },
		// The network knows the way back to the pods all the same; of one byte nobody can tell whose it is.
		fails:  []cells{by(from(out, n1), "TCP"), by(from(out, n1), "UDP"), sized(by(from(out, n1), "ICMP"), "MTU")},
		passes: []cells{from(out, n2), in, pair},
	}, {
		name: "masqueraded with another node's address", stop: []string{n1}, mode: masqueraded,
		inject: func(t *testing.T, b *breaker) {
			edit(t, b, b.node(t, n1).Addr(false).String(), b.node(t, n2).Addr(false).String())
		},
		fails:  []cells{of(from(out, n1), "IPv4")},
		passes: []cells{of(from(out, n1), "IPv6"), from(out, n2), in, pair},
	}, {
		name: "answers to masqueraded ports dropped", mode: masqueraded,
		inject: func(t *testing.T, b *breaker) {
			b.nft(t, "router", "forward", fmt.Sprintf("ip saddr %s ip daddr %s udp sport %d drop", outside4, b.node(t, n1).Addr(false), b.port))
		},
		fails:  []cells{by(of(from(out, n1), "IPv4"), "UDP")},
		passes: []cells{of(from(out, n1), "IPv6"), by(from(out, n1), "TCP"), from(out, n2), pair},
	}}
}

// TestConnectivityTestSeesMasqueradeBreaks has the cluster masquerade: the
// connectivity test must see what is broken in that, and everything whole before
// and after.
func TestConnectivityTestSeesMasqueradeBreaks(t *testing.T) {
	l := labtest.Open(t)
	enoughTime(t, 8*time.Minute)
	t.Cleanup(func() {
		if err := helmSet(l, "bpf.masquerade=false,ipv4NativeRoutingCIDR=,ipv6NativeRoutingCIDR="); err != nil {
			t.Errorf("back to no masquerade: %v", err)
		}
	})
	if err := helmSet(l, "bpf.masquerade=true,ipv4NativeRoutingCIDR=10.244.0.0/16,ipv6NativeRoutingCIDR=fd00:10:244::/56"); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	if !f.masq {
		t.Fatal("the connectivity test does not say that the cluster masquerades")
	}
	f.suffer(t, masqueradeBreaks(), 1)
}
