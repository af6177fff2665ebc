// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	weftmaps "github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// verdict returns what became of one more packet of a lane.
func (n *node) verdict(l lane) string {
	n.t.Helper()
	for name := range n.packet(l.hook, l.dev, l.packet(frame.ACK, []byte("x"))).counts {
		return name
	}
	return ""
}

// TestHopForgotten guards against a connection that goes on to where the routing
// table does not lead any more: after the agent has said that ways changed, not for
// a packet; without an agent, not for longer than what entries remember holds.
func TestHopForgotten(t *testing.T) {
	n := newNode(t, datapath.Options{})
	for i, fam := range families {
		t.Run(fmt.Sprintf("ipv%d", fam), func(t *testing.T) {
			n.t = t
			p := remoteNets[i]
			dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
			routes, err := netlink.RouteListFiltered(map[int]int{4: netlink.FAMILY_V4, 6: netlink.FAMILY_V6}[fam], &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
			if err != nil || len(routes) != 1 {
				t.Fatalf("routes to the other node: %v, %v", routes, err)
			}
			const sent, stack = "from_pod verdict/neigh", "from_pod verdict/stack"
			// A second may end at any point; what is looked for holds in nearly all of them.
			for try := 0; ; try++ {
				n.flush()
				n.setTrace(weftmaps.TraceAll)
				lanes := n.lanes(false)
				n.setTrace(weftmaps.TraceNone)
				l := lanes[8*i+2]
				if l.hook != reason.FromPod || l.dst.Addr() != remotePod.of(fam) {
					t.Fatalf("%+v is not the way to the other node", l)
				}
				first := n.verdict(l)
				n.must(netlink.RouteDel(&routes[0]))
				remembered := n.verdict(l)
				n.must(n.d.Maps().Ways.Changed())
				told := n.verdict(l)
				n.must(netlink.RouteAdd(&routes[0]))
				if first != sent || told != stack {
					t.Fatalf("with the route %s, after it went and that was said %s", first, told)
				}
				if remembered == sent {
					break
				}
				if try == 5 {
					t.Fatalf("right after the route went: %s; the test does not test anything", remembered)
				}
			}
			n.flush()
			l := n.lanes(false)[8*i+2]
			n.must(netlink.RouteDel(&routes[0]))
			defer func() { n.must(netlink.RouteAdd(&routes[0])) }()
			for start := time.Now(); n.verdict(l) != stack; {
				if time.Since(start) > 10*time.Second {
					t.Fatal("without a word from the agent it still goes where no route leads")
				}
			}
		})
	}
}
