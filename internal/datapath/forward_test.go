// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"testing"
)

// TestPodsTalk guards against any pair of a cluster not reaching each other by
// any protocol, family and size, and against doing so over the stack.
func TestPodsTalk(t *testing.T) {
	c := newCluster(t)
	src, same, other := c.nodes[0].pods[0], c.nodes[0].pods[1], c.nodes[1].pods[0]
	for _, fam := range families {
		for _, dst := range []*pod{same, other} {
			to := ap(dst.addr.of(fam), 8080)
			echoTCP(t, dst.space, to)
			echoUDP(t, dst.space, to)
			for _, size := range []int{1, 1400, 1473, 60000} {
				for _, network := range []string{"tcp", "udp"} {
					if err := roundTrip(t, src.space, network, to, size); err != nil {
						t.Errorf("%s: %v", network, err)
					}
				}
				if err := ping(t, src.space, dst.addr.of(fam), size); err != nil {
					t.Errorf("icmp: %v", err)
				}
			}
		}
	}
	c.noDrops()
	for _, m := range c.nodes {
		rows, err := m.d.Maps().CT.List(0)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r.Path != "fast" {
				t.Errorf("%s: pod to pod over the stack: %+v", m.name, r)
			}
		}
		if t.Failed() {
			t.Log(m.name, fmt.Sprint(m.metrics(t)))
		}
	}
}

// serviceRules translate a service as kube-proxy does, drop what netfilter's
// conntrack calls invalid, and count what is forwarded.
const serviceRules = `
table %[1]s svc%[5]d {
	chain pre {
		type nat hook prerouting priority dstnat;
		%[1]s daddr %[2]s meta l4proto { tcp, udp } th dport %[5]d dnat to %[3]s
	}
	chain out {
		type nat hook output priority -100;
		%[1]s daddr %[2]s meta l4proto { tcp, udp } th dport %[5]d dnat to %[3]s
	}
	chain post {
		type nat hook postrouting priority srcnat;
		meta mark & 0x4000 == 0x4000 masquerade
	}
	chain hairpin {
		type filter hook prerouting priority mangle;
		%[1]s saddr %[4]s %[1]s daddr %[2]s meta mark set meta mark | 0x4000
	}
	chain through {
		type filter hook forward priority filter;
		ct state invalid counter drop
		counter
	}
}
`

// TestServiceOneWay guards against rule 1 of DATAPATH: a connection that
// kube-proxy translates must not be short-cut on the way back, even where
// netfilter drops what it calls invalid. Pod to pod must work beside it.
func TestServiceOneWay(t *testing.T) {
	c := newCluster(t)
	n1 := c.nodes[0]
	src, same, other := n1.pods[0], n1.pods[1], c.nodes[1].pods[0]
	for _, fam := range families {
		for i, dst := range []*pod{same, other, src} {
			name := []string{"same node", "other node", "hairpin"}[i]
			t.Run(fmt.Sprintf("ipv%d/%s", fam, name), func(t *testing.T) {
				backend, vip := ap(dst.addr.of(fam), uint16(8080+i)), ap(service.of(fam), uint16(80+i))
				echoTCP(t, dst.space, backend)
				echoUDP(t, dst.space, backend)
				family := map[int]string{4: "ip", 6: "ip6"}[fam]
				n1.in(t, func() {
					nft(t, fmt.Sprintf(serviceRules, family, vip.Addr(), backend, src.addr.of(fam), vip.Port()))
					if name != "hairpin" {
						nft(t, fmt.Sprintf("flush chain %s svc%d hairpin", family, vip.Port()))
					}
				})
				for _, network := range []string{"tcp", "udp"} {
					if err := roundTrip(t, src.space, network, vip, 1000); err != nil {
						t.Errorf("%s through the service: %v", network, err)
					}
					if err := roundTrip(t, n1.space, network, vip, 1000); err != nil {
						t.Errorf("%s from the node through the service: %v", network, err)
					}
					if dst != src {
						if err := roundTrip(t, src.space, network, backend, 1000); err != nil {
							t.Errorf("%s to the pod itself: %v", network, err)
						}
					}
				}
				if t.Failed() {
					rows, _ := n1.d.Maps().CT.List(0)
					for _, r := range rows {
						t.Log(r.TableRow())
					}
					t.Log(fmt.Sprint(n1.metrics(t)))
				}
			})
		}
	}
	c.noDrops()
}

// TestHostAndPods guards against nodes not reaching pods and back.
func TestHostAndPods(t *testing.T) {
	c := newCluster(t)
	c.hostsAndPods()
	c.noDrops()
}

// hostsAndPods sends bytes of all kinds between the nodes and a pod of the first,
// both ways.
func (c *cluster) hostsAndPods() {
	t := c.t
	t.Helper()
	n1, n2 := c.nodes[0], c.nodes[1]
	for _, fam := range families {
		for i, pair := range []struct {
			from, to *space
			addr     host
		}{
			{n1.space, n1.pods[0].space, n1.pods[0].addr},
			{n2.space, n1.pods[0].space, n1.pods[0].addr},
			{n1.pods[0].space, n1.space, n1.addr},
			{n1.pods[0].space, n2.space, n2.addr},
		} {
			to := ap(pair.addr.of(fam), uint16(9000+i))
			echoTCP(t, pair.to, to)
			echoUDP(t, pair.to, to)
			for _, size := range []int{1, 1473, 60000} {
				for _, network := range []string{"tcp", "udp"} {
					if err := roundTrip(t, pair.from, network, to, size); err != nil {
						t.Errorf("%s %s: %v", network, pair.from.name, err)
					}
				}
				if err := ping(t, pair.from, to.Addr(), size); err != nil {
					t.Errorf("icmp: %v", err)
				}
			}
		}
	}
}
