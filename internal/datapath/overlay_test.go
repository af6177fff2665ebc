// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"testing"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// TestOverlayPodsTalk guards against pods of nodes that are a router apart not
// reaching each other by any protocol, family and size, where the network between
// knows nothing of pods, and against doing so over the stack.
func TestOverlayPodsTalk(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		src, dst := c.nodes[0].pods[0], c.nodes[1].pods[0]
		for _, fam := range families {
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
			if got := m.metrics(t); got["from_pod tunnel"] == 0 || got["from_overlay peer"] == 0 || got["to_net neigh"] != 0 {
				t.Errorf("%s: the overlay did not carry it: %v", m.name, got)
			}
		}
	})
}

// TestOverlayHosts guards against nodes not reaching other nodes' pods and back
// where no answer can take the network's way, and against node to node going by
// the overlay.
func TestOverlayHosts(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		n1, n2 := c.nodes[0], c.nodes[1]
		c.hostsAndPods()
		c.noDrops()
		before := n1.metrics(t)["to_overlay stack"]
		for _, fam := range families {
			to := ap(n2.addr.of(fam), 9100)
			echoTCP(t, n2.space, to)
			if err := roundTrip(t, n1.space, "tcp", to, 1000); err != nil {
				t.Error(err)
			}
		}
		if got := n1.metrics(t)["to_overlay stack"]; got != before {
			t.Errorf("node to node sent %d packets by the overlay", got-before)
		}
	})
}

// TestOverlayServices guards against flows that kube-proxy translates towards a
// pod or a process of another node losing their way back: by the overlay like
// everything else, and through the stack that translated them.
func TestOverlayServices(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		n1, n2 := c.nodes[0], c.nodes[1]
		src := n1.pods[0]
		for _, fam := range families {
			for i, dst := range []struct {
				*space
				addr host
				name string
			}{
				{n1.pods[1].space, n1.pods[1].addr, "same node"},
				{n2.pods[0].space, n2.pods[0].addr, "other node"},
				{n2.space, n2.addr, "other node's own process"},
			} {
				t.Run(fmt.Sprintf("ipv%d/%s", fam, dst.name), func(t *testing.T) {
					backend, vip := ap(dst.addr.of(fam), uint16(8080+i)), ap(service.of(fam), uint16(80+i))
					echoTCP(t, dst.space, backend)
					echoUDP(t, dst.space, backend)
					family := map[int]string{4: "ip", 6: "ip6"}[fam]
					n1.in(t, func() {
						nft(t, fmt.Sprintf(serviceRules, family, vip.Addr(), backend, src.addr.of(fam), vip.Port()))
						nft(t, fmt.Sprintf("flush chain %s svc%d hairpin", family, vip.Port()))
					})
					for _, network := range []string{"tcp", "udp"} {
						if err := roundTrip(t, src.space, network, vip, 1000); err != nil {
							t.Errorf("%s through the service: %v", network, err)
						}
						if err := roundTrip(t, n1.space, network, vip, 1000); err != nil {
							t.Errorf("%s from the node through the service: %v", network, err)
						}
						if err := roundTrip(t, src.space, network, backend, 1000); err != nil {
							t.Errorf("%s to the backend itself: %v", network, err)
						}
					}
				})
			}
		}
		c.noDrops()
	})
}

// TestOverlayRouteAndIPCacheDiffer guards against packets that are lost while a
// node changes the routing mode: routes and ipcache are written one after the
// other, and what is sent between the two must arrive all the same.
func TestOverlayRouteAndIPCacheDiffer(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		src, dst := c.nodes[0].pods[0], c.nodes[1].pods[0]
		for _, fam := range families {
			to := ap(dst.addr.of(fam), 8080)
			echoTCP(t, dst.space, to)
			echoUDP(t, dst.space, to)
			row := maps.IPCacheRow{
				Prefix: c.nodes[1].nets[fam/6], Identity: table.IdentityInit, Kind: table.KindRemotePod,
				Tunnel: c.nodes[1].addr.of(c.underlay),
			}
			for _, network := range []string{"tcp", "udp"} {
				flow, err := dial(t, src.space, network, to)
				if err != nil {
					t.Fatal(err)
				}
				for _, by := range []bool{true, false, true} {
					row.ByTunnel = by
					if err := c.nodes[0].d.Maps().IPCache.Upsert(row); err != nil {
						t.Fatal(err)
					}
					if err := exchange(flow, 1000); err != nil {
						t.Errorf("ipv%d %s, by tunnel %v, a flow of before: %v", fam, network, by, err)
					}
					if err := roundTrip(t, src.space, network, to, 1000); err != nil {
						t.Errorf("ipv%d %s, by tunnel %v, a new flow: %v", fam, network, by, err)
					}
				}
			}
		}
		c.noDrops()
	})
}
