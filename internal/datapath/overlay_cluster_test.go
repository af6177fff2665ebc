// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

const tunnelPort = 8472

// overhead is what the overlay adds to a packet: outer headers without Ethernet's,
// VXLAN's, and the inner Ethernet header.
var overhead = map[int]int{4: 50, 6: 70}

// overlayCluster is two nodes on subnets of their own, with a router between them
// that drops whatever carries a pod's address.
type overlayCluster struct {
	*cluster
	router   *space
	underlay int
}

func newOverlayCluster(t *testing.T, underlay int) *overlayCluster {
	t.Helper()
	needRoot(t)
	c := &overlayCluster{cluster: &cluster{t: t}, router: newSpace(t, "router"), underlay: underlay}
	c.router.in(t, func() {
		sysctl(t, "ipv4/conf/all/forwarding", "1")
		sysctl(t, "ipv6/conf/all/forwarding", "1")
		nft(t, `table inet pods {
			chain through {
				type filter hook forward priority filter;
				ip saddr { 10.1.0.0/24, 10.2.0.0/24 } drop
				ip daddr { 10.1.0.0/24, 10.2.0.0/24 } drop
				ip6 saddr { fd00:1::/64, fd00:2::/64 } drop
				ip6 daddr { fd00:1::/64, fd00:2::/64 } drop
			}
		}
`)
	})
	for i := range c.nodes {
		m := c.newMachine(i + 1)
		c.nodes[i] = m
		c.connect(m, i+1)
		for n := range 2 {
			c.addPod(m, n+1)
			c.setPodMTU(m, m.pods[n], 1500-overhead[underlay])
		}
	}
	for i, m := range c.nodes {
		c.fillIPCache(m, c.nodes[1-i])
		c.joinOverlay(m, c.nodes[1-i])
	}
	return c
}

// connect gives a node a subnet of its own at the router.
func (c *overlayCluster) connect(m *machine, i int) {
	t := c.t
	c.router.in(t, func() {
		ip(t, fmt.Sprintf("link add r%d type veth peer name eth0 netns %s", i, m.name))
		ip(t, fmt.Sprintf("addr add 10.8.%d.1/32 dev r%d", i, i))
		ip(t, fmt.Sprintf("addr add fd00:8:%d::1/128 dev r%d nodad", i, i))
		up(t, fmt.Sprintf("r%d", i))
		for _, f := range families {
			ip(t, fmt.Sprintf("route add %s dev r%d", single(m.addr.of(f)), i))
		}
	})
	m.in(t, func() {
		up(t, "eth0")
		ip(t, fmt.Sprintf("addr add %s/32 dev eth0", m.addr.v4))
		ip(t, fmt.Sprintf("addr add %s/128 dev eth0 nodad", m.addr.v6))
		ip(t, fmt.Sprintf("route add 10.8.%d.1/32 dev eth0 src %s", i, m.addr.v4))
		ip(t, fmt.Sprintf("route add fd00:8:%d::1/128 dev eth0 src %s", i, m.addr.v6))
		ip(t, fmt.Sprintf("route add default via 10.8.%d.1 dev eth0 src %s", i, m.addr.v4))
		ip(t, fmt.Sprintf("route add default via fd00:8:%d::1 dev eth0 src %s", i, m.addr.v6))
		if err := m.d.SyncDevices([]datapath.Device{{Name: "eth0", Index: link(t, "eth0").Attrs().Index}}); err != nil {
			t.Fatal(err)
		}
	})
}

func (c *overlayCluster) setPodMTU(m *machine, p *pod, mtu int) {
	c.t.Helper()
	m.in(c.t, func() { ip(c.t, fmt.Sprintf("link set %s mtu %d", p.dev, mtu)) })
	p.in(c.t, func() { ip(c.t, fmt.Sprintf("link set eth0 mtu %d", mtu)) })
	p.row.MTU = mtu
	if err := m.d.Maps().Endpoints.Upsert(p.row); err != nil {
		c.t.Fatal(err)
	}
}

// joinOverlay makes a node's tunnel device as the agent does, and tells it of the
// other node.
func (c *overlayCluster) joinOverlay(m, other *machine) {
	t := c.t
	m.in(t, func() {
		ip(t, fmt.Sprintf("link add weft_vxlan mtu %d type vxlan external dstport %d nolearning udp6zerocsumrx", 1500-overhead[c.underlay], tunnelPort))
		ip(t, "link set weft_vxlan arp off addrgenmode none")
		sysctl(t, "ipv4/conf/weft_vxlan/rp_filter", "2")
		dev := datapath.Device{Name: "weft_vxlan", Index: link(t, "weft_vxlan").Attrs().Index}
		if err := m.d.SyncOverlay(&dev); err != nil {
			t.Fatal(err)
		}
		up(t, "weft_vxlan")
		for _, f := range families {
			a := m.addr.of(f)
			ip(t, fmt.Sprintf("addr add %s dev weft_vxlan noprefixroute %s", single(a), map[int]string{6: "nodad"}[f]))
			ip(t, fmt.Sprintf("route add %s dev weft_vxlan src %s", other.nets[f/6], a))
		}
		cfg, err := m.d.Maps().Config.Get()
		if err != nil {
			t.Fatal(err)
		}
		cfg.Overlay = maps.Overlay{IfIndex: dev.Index, MTU: 1500 - overhead[c.underlay], Local: m.addr.of(c.underlay), Strict: true}
		if err := m.d.SetConfig(cfg); err != nil {
			t.Fatal(err)
		}
	})
	for _, f := range families {
		c.reach(m, single(other.addr.of(f)), table.IdentityRemoteNode, table.KindNode, other)
		c.reach(m, other.nets[f/6], table.IdentityInit, table.KindRemotePod, other)
	}
}

// reach makes m send to p by the overlay, by way of node.
func (c *overlayCluster) reach(m *machine, p netip.Prefix, id table.Identity, kind table.HostKind, node *machine) {
	c.t.Helper()
	row := maps.IPCacheRow{Prefix: p, Identity: id, Kind: kind, Tunnel: node.addr.of(c.underlay), ByTunnel: true}
	if err := m.d.Maps().IPCache.Upsert(row); err != nil {
		c.t.Fatal(err)
	}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// eachUnderlay runs f on a cluster over IPv4 and on one over IPv6.
func eachUnderlay(t *testing.T, f func(*testing.T, *overlayCluster)) {
	for _, underlay := range families {
		t.Run(fmt.Sprintf("over-ipv%d", underlay), func(t *testing.T) {
			c := newOverlayCluster(t, underlay)
			f(t, c)
			if t.Failed() {
				for _, m := range c.nodes {
					t.Log(m.name, fmt.Sprint(m.metrics(t)))
					rows, _ := m.d.Maps().CT.List(0)
					for _, r := range rows {
						t.Log(strings.Join(r.TableRow(), " "))
					}
				}
			}
		})
	}
}
