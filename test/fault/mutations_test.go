// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"fmt"
	"slices"
	"testing"
)

// mutations is the table of breaks, from the wire up to the pod.
func mutations() []mutation {
	return slices.Concat(wireBreaks(), nodeBreaks(), datapathBreaks(), podBreaks(), serviceBreaks(), outsideBreaks())
}

// otherNode selects the cells between pods of two nodes.
func otherNode(from, to string) cells {
	return cells{Path: "pod-to-pod-other-node", From: from, To: to}
}

// of narrows a selection to a family.
func of(c cells, family string) cells { c.Family = family; return c }

// by narrows a selection to a protocol.
func by(c cells, proto string) cells { c.Proto = proto; return c }

// sized narrows a selection to a size.
func sized(c cells, size string) cells { c.Size = size; return c }

var sameNode = cells{Path: "pod-to-pod-same-node"}

func wireBreaks() []mutation {
	pair := otherNode(n1, n2)
	return []mutation{{
		name: "all between two nodes cut", text: true,
		inject: func(t *testing.T, b *breaker) { b.cut(t, n1, n2) },
		fails:  []cells{{From: n1, To: n2}, {From: n2, To: n1}},
		passes: []cells{sameNode},
	}, {
		name: "cut across the router", nodes: 3,
		inject: func(t *testing.T, b *breaker) { b.cut(t, n1, n3) },
		fails:  []cells{{From: n1, To: n3}, {From: n3, To: n1}},
		passes: []cells{sameNode, pair, otherNode(n2, n3)},
	}, {
		name:   "one direction only",
		inject: func(t *testing.T, b *breaker) { b.cut(t, n1, n2, "--one-way") },
		fails:  []cells{pair, otherNode(n2, n1)},
		passes: []cells{sameNode},
	}, {
		name:   "UDP only",
		inject: func(t *testing.T, b *breaker) { b.cut(t, n1, n2, "--proto", "udp") },
		fails:  []cells{by(pair, "UDP"), by(otherNode(n2, n1), "UDP")},
		passes: []cells{by(pair, "TCP"), by(pair, "ICMP"), sameNode},
	}, {
		name:   "UDP in one direction only",
		inject: func(t *testing.T, b *breaker) { b.cut(t, n1, n2, "--proto", "udp", "--one-way") },
		fails:  []cells{by(pair, "UDP")},
		passes: []cells{by(pair, "TCP"), by(pair, "ICMP")},
	}, {
		name:   "TCP to the probes' port only",
		inject: func(t *testing.T, b *breaker) { b.cut(t, n1, n2, "--proto", "tcp", "--port", fmt.Sprint(b.port)) },
		fails:  []cells{by(pair, "TCP")},
		passes: []cells{by(pair, "UDP"), by(pair, "ICMP")},
	}, {
		name: "IPv6 only",
		inject: func(t *testing.T, b *breaker) {
			b.drop(t, n2, b.device(t, n2), "ingress", "0x86dd")
		},
		fails:  []cells{of(pair, "IPv6"), of(otherNode(n2, n1), "IPv6")},
		passes: []cells{of(pair, "IPv4"), sameNode},
	}, {
		name: "IPv4 only",
		inject: func(t *testing.T, b *breaker) {
			// To n2's pods: its own address must stay reachable for kubelet.
			net := b.node(t, n2).PodCIDR(false).Addr().As4()
			b.drop(t, n1, b.device(t, n1), "egress", "0x0800", fmt.Sprintf("30=%d", net[0]), fmt.Sprintf("31=%d", net[1]), fmt.Sprintf("32=%d", net[2]))
		},
		fails:  []cells{of(pair, "IPv4")},
		passes: []cells{of(pair, "IPv6"), {Path: "pod-to-other-host", From: n1, To: n2}},
	}, {
		name: "ICMPv6 echo only",
		inject: func(t *testing.T, b *breaker) {
			b.drop(t, n2, b.device(t, n2), "ingress", "0x86dd", "20=58", "54=128")
		},
		// Fragments have another header where the protocol is looked for.
		fails:  []cells{sized(by(of(pair, "IPv6"), "ICMP"), "1B"), sized(by(of(pair, "IPv6"), "ICMP"), "MTU")},
		passes: []cells{of(pair, "IPv4"), by(of(pair, "IPv6"), "TCP"), by(of(pair, "IPv6"), "UDP")},
	}, {
		name:   "large packets vanish",
		inject: func(t *testing.T, b *breaker) { b.labLink(t, n2, "--wire-mtu", "1400") },
		fails: []cells{
			sized(by(pair, "UDP"), "MTU"), sized(by(pair, "ICMP"), "MTU"), sized(by(pair, "UDP"), "64KB"), sized(by(pair, "TCP"), "64KB"),
		},
		// What n2 found out is told in large packets too: nobody hears it.
		passes: []cells{sized(pair, "1B"), {Path: sameNode.Path, From: n1}},
	}, {
		name: "large packets vanish behind the router", nodes: 3,
		inject: func(t *testing.T, b *breaker) { b.labLink(t, n3, "--wire-mtu", "1300") },
		fails:  []cells{sized(by(otherNode(n1, n3), "UDP"), "MTU"), sized(by(otherNode(n2, n3), "ICMP"), "MTU")},
		passes: []cells{sized(otherNode(n1, n3), "1B"), pair},
	}, {
		name:   "ICMP cut from the other side",
		inject: func(t *testing.T, b *breaker) { b.cut(t, n2, n1, "--proto", "icmp") },
		fails:  []cells{by(of(pair, "IPv4"), "ICMP")},
		passes: []cells{by(pair, "TCP"), by(pair, "UDP")},
	}}
}

func nodeBreaks() []mutation {
	pair := otherNode(n1, n2)
	unreachable := func(v6 bool) func(*testing.T, *breaker) {
		return func(t *testing.T, b *breaker) {
			cidr, fam := b.node(t, n2).PodCIDR(v6), map[bool]string{false: "-4", true: "-6"}[v6]
			old := b.saveRoutes(t, n1, "", fam, "exact "+cidr.String())
			b.sh(t, n1, fmt.Sprintf("ip %s route del %s; ip %s route add unreachable %s", fam, cidr, fam, cidr),
				fmt.Sprintf("ip %s route del unreachable %s; %s", fam, cidr, old))
		}
	}
	return []mutation{{
		name: "route to a peer's IPv4 pods unreachable", stop: []string{n1},
		inject: unreachable(false),
		fails:  []cells{of(pair, "IPv4"), of(otherNode(n2, n1), "IPv4")},
		passes: []cells{of(pair, "IPv6"), sameNode},
	}, {
		name: "route to a peer's IPv6 pods unreachable", stop: []string{n1},
		inject: unreachable(true),
		fails:  []cells{of(pair, "IPv6")},
		passes: []cells{of(pair, "IPv4"), sameNode},
	}, {
		name: "wrong neighbour entry of a pod", stop: []string{n1},
		inject: func(t *testing.T, b *breaker) {
			ep := b.endpoint(t, b.a[n1])
			const cmd = "ip neigh replace %s lladdr %s dev %s nud permanent"
			b.sh(t, n1, fmt.Sprintf(cmd, ep.IPv4, "02:00:00:00:00:99", ep.HostIfName), fmt.Sprintf(cmd, ep.IPv4, ep.MAC, ep.HostIfName))
		},
		fails:  []cells{{Path: "host-to-own-pod", Family: "IPv4", From: n1}},
		passes: []cells{{Path: "host-to-own-pod", Family: "IPv6", From: n1}, {Path: "host-to-own-pod", From: n2}},
	}, {
		name: "route of a pod deleted", stop: []string{n1},
		inject: func(t *testing.T, b *breaker) {
			ep := b.endpoint(t, b.a[n1])
			b.sh(t, n1, fmt.Sprintf("ip -6 route del %s/128", ep.IPv6), b.saveRoutes(t, n1, "", "-6", "exact "+ep.IPv6.String()+"/128"))
		},
		fails:  []cells{{Path: "host-to-own-pod", Family: "IPv6", From: n1}},
		passes: []cells{{Path: "host-to-own-pod", Family: "IPv4", From: n1}},
	}, {
		name: "forwarding of IPv4 off",
		inject: func(t *testing.T, b *breaker) {
			b.sh(t, n1, "echo 0 >/proc/sys/net/ipv4/ip_forward", "echo 1 >/proc/sys/net/ipv4/ip_forward")
		},
		fails:  []cells{of(pair, "IPv4")},
		passes: []cells{of(pair, "IPv6")},
	}, {
		name:   "forwarded packets filtered",
		inject: func(t *testing.T, b *breaker) { b.nft(t, n1, "forward", "drop") },
		fails:  []cells{{Path: "pod-to-other-host", From: n1, To: n2}, {Path: "pod-to-apiserver", From: n1}},
		passes: []cells{pair, {Path: "pod-to-own-host", From: n1}},
	}, {
		name: "a host's firewall drops ICMP",
		inject: func(t *testing.T, b *breaker) {
			b.nft(t, n1, "input", "icmp type echo-request drop", "icmpv6 type echo-request drop")
		},
		fails:  []cells{{Path: "pod-to-own-host", Proto: "ICMP", From: n1}, {Path: "pod-to-other-host", Proto: "ICMP", From: n2, To: n1}},
		passes: []cells{{Path: "pod-to-own-host", Proto: "TCP", From: n1}, {Path: "pod-to-own-host", Proto: "UDP", From: n1}, pair},
	}, {
		name: "duplicate address",
		inject: func(t *testing.T, b *breaker) {
			addr := b.endpoint(t, b.a[n2]).IPv4
			b.sh(t, n1, fmt.Sprintf("ip addr add %s/32 dev lo", addr), fmt.Sprintf("ip addr del %s/32 dev lo", addr))
		},
		// Echo requests find an answer, though of the wrong one.
		fails:  []cells{by(of(pair, "IPv4"), "TCP"), by(of(pair, "IPv4"), "UDP")},
		passes: []cells{of(pair, "IPv6")},
	}}
}

func datapathBreaks() []mutation {
	pair := otherNode(n1, n2)
	edit := func(verb, change string) func(*testing.T, *breaker) {
		return func(t *testing.T, b *breaker) {
			b.edit(t, n2, verb, b.endpoint(t, b.a[n2]).IPv4.String(), change)
		}
	}
	return []mutation{{
		name: "wrong interface in the endpoint map", stop: []string{n2},
		inject: edit("edit-ep", "ifindex=1"),
		fails:  []cells{pair},
		passes: []cells{{Path: "pod-to-pod-same-node", From: n1}},
	}, {
		name: "empty row in the endpoint map", stop: []string{n2},
		inject: edit("edit-ep", "generation=0"),
		fails:  []cells{pair},
		passes: []cells{{Path: "pod-to-pod-same-node", From: n1}},
	}, {
		name: "wrong address in the endpoint map", stop: []string{n2},
		inject: edit("edit-ep", "v4=0x01020304"),
		fails:  []cells{of(pair, "IPv4"), of(otherNode(n2, n1), "IPv4")},
		passes: []cells{of(pair, "IPv6"), {Path: "pod-to-pod-same-node", From: n1}},
	}, {
		name: "wrong endpoint in the ipcache", stop: []string{n2},
		inject: edit("edit-ipcache", "endpoint=4000"),
		fails:  []cells{of(pair, "IPv4")},
		passes: []cells{of(pair, "IPv6")},
	}, {
		name: "program of a pod's device detached", stop: []string{n1},
		inject: func(t *testing.T, b *breaker) {
			b.restartAgent(t, n1)
			b.lab.Exec(t, n1, "tc", "filter", "del", "dev", b.endpoint(t, b.a[n1]).HostIfName, "ingress")
		},
		// The stack carries what the pod sends, and only one way of connections
		// that others open to it.
		fails:  []cells{by(otherNode(n2, n1), "TCP"), by(otherNode(n2, n1), "ICMP")},
		passes: []cells{{Path: "pod-to-pod-same-node", From: n2}},
	}, {
		name: "program of a node's device detached", stop: []string{n2},
		inject: func(t *testing.T, b *breaker) {
			b.restartAgent(t, n2)
			inNode(t, b.lab, n2, "detach", b.device(t, n2)+"_from_net")
		},
		fails:  []cells{by(otherNode(n2, n1), "TCP"), by(otherNode(n2, n1), "ICMP")},
		passes: []cells{{Path: "pod-to-pod-same-node", From: n1}},
	}, {
		name: "a foreign program drops in front of ours",
		inject: func(t *testing.T, b *breaker) {
			b.drop(t, n1, b.endpoint(t, b.a[n1]).HostIfName, "ingress", "0x86dd")
		},
		fails:  []cells{of(pair, "IPv6"), {Path: "pod-to-own-host", Family: "IPv6", From: n1}},
		passes: []cells{of(pair, "IPv4")},
	}}
}

func podBreaks() []mutation {
	pair := otherNode(n1, n2)
	return []mutation{{
		name: "pod's IPv6 default route deleted",
		inject: func(t *testing.T, b *breaker) {
			ep := b.endpoint(t, b.a[n1])
			b.revert(t, n1, b.saveRoutes(t, n1, ep.Netns, "-6", "default"))
			b.lab.Shell(t, n1, "nsenter --net="+ep.Netns+" ip -6 route del default")
		},
		fails:  []cells{of(pair, "IPv6"), {Path: "pod-to-own-host", Family: "IPv6", From: n1}},
		passes: []cells{of(pair, "IPv4")},
	}, {
		name: "pod's IPv4 address deleted",
		inject: func(t *testing.T, b *breaker) {
			ep := b.endpoint(t, b.a[n1])
			// Without its last address a device loses its routes, too.
			b.revert(t, n1, b.saveRoutes(t, n1, ep.Netns, "-4", "scope link")+"\n"+b.saveRoutes(t, n1, ep.Netns, "-4", "default"))
			b.inPod(t, b.a[n1], fmt.Sprintf("ip addr del %s/32 dev eth0", ep.IPv4), fmt.Sprintf("ip addr replace %s/32 dev eth0", ep.IPv4))
		},
		fails:  []cells{of(pair, "IPv4"), of(otherNode(n2, n1), "IPv4"), {Path: "host-to-own-pod", Family: "IPv4", From: n1}},
		passes: []cells{of(pair, "IPv6")},
	}, {
		name: "pod's gateway has a wrong MAC",
		inject: func(t *testing.T, b *breaker) {
			ep := b.endpoint(t, b.a[n1])
			const cmd = "ip neigh replace 169.254.1.1 lladdr %s dev eth0 nud permanent"
			b.inPod(t, b.a[n1], fmt.Sprintf(cmd, "02:00:00:00:00:99"), fmt.Sprintf(cmd, ep.HostMAC))
		},
		fails:  []cells{{Path: "pod-to-own-host", Family: "IPv4", From: n1}},
		passes: []cells{of(pair, "IPv6")},
	}, {
		name: "IPv6 disabled in a pod",
		inject: func(t *testing.T, b *breaker) {
			ep := b.endpoint(t, b.a[n1])
			b.inPod(t, b.a[n1], "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6", fmt.Sprintf(
				"echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip addr replace %s/128 dev eth0 nodad; "+
					"ip -6 neigh replace fe80::1 lladdr %s dev eth0 nud permanent; "+
					"ip -6 route replace fe80::1 dev eth0; ip -6 route replace default via fe80::1 dev eth0", ep.IPv6, ep.HostMAC))
		},
		fails:  []cells{of(pair, "IPv6"), of(otherNode(n2, n1), "IPv6")},
		passes: []cells{of(pair, "IPv4")},
	}, {
		name: "a pod's firewall drops one port",
		inject: func(t *testing.T, b *breaker) {
			b.inPod(t, b.a[n2], nftTable("input", fmt.Sprintf("tcp dport %d drop", b.port)), noTable)
		},
		fails:  []cells{by(pair, "TCP")},
		passes: []cells{by(pair, "UDP"), by(pair, "ICMP"), by(otherNode(n2, n1), "TCP")},
	}}
}

func serviceBreaks() []mutation {
	pair := otherNode(n1, n2)
	return []mutation{{
		name: "no DNS servers",
		inject: func(t *testing.T, b *breaker) {
			replicas := b.lab.Kubectl(t, "get", "deployment", "coredns", "-n", "kube-system", "-o", "jsonpath={.spec.replicas}")
			t.Cleanup(func() {
				_, err := b.lab.TryKubectl("scale", "deployment", "coredns", "-n", "kube-system", "--replicas="+replicas)
				if err == nil {
					_, err = b.lab.TryKubectl("rollout", "status", "deployment", "coredns", "-n", "kube-system", "--timeout=50s")
				}
				if err != nil {
					t.Errorf("not reverted: %v", err)
				}
			})
			b.lab.Kubectl(t, "scale", "deployment", "coredns", "-n", "kube-system", "--replicas=0")
			b.lab.Kubectl(t, "wait", "--for=delete", "pod", "-l", "k8s-app=kube-dns", "-n", "kube-system", "--timeout=50s")
		},
		fails:  []cells{{Path: "pod-to-dns"}},
		passes: []cells{pair, {Path: "pod-to-apiserver"}},
	}, {
		name:   "rules of services gone",
		inject: func(t *testing.T, b *breaker) { b.stopProxy(t, n1) },
		fails:  []cells{{Path: "pod-to-dns", From: n1}, {Path: "pod-to-apiserver", From: n1}, {Path: "hairpin", From: n1}},
		passes: []cells{pair, {Path: "hairpin", From: n2}},
	}, {
		name:   "pods do not reach the API server",
		inject: func(t *testing.T, b *breaker) { b.nft(t, n1, "forward", "tcp dport 6443 drop") },
		fails:  []cells{{Path: "pod-to-apiserver", From: n1}},
		passes: []cells{pair, {Path: "pod-to-apiserver", From: n2}},
	}}
}
