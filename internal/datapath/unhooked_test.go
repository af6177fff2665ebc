// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"testing"
)

// TestUnhookedDevice guards against connections to another node that hang where
// the way there leads through a device without from_net: the stack there sees
// the replies, so it must have seen the rest.
func TestUnhookedDevice(t *testing.T) {
	c := newCluster(t)
	a, b := c.nodes[0], c.nodes[1]
	ip(t, "link add x1 type veth peer name x2")
	for i, m := range c.nodes {
		ip(t, fmt.Sprintf("link set x%d netns %s name eth1", i+1, m.name))
	}
	for i, m := range c.nodes {
		m.in(t, func() {
			up(t, "eth1")
			ip(t, fmt.Sprintf("addr add 10.8.0.%d/24 dev eth1", i+1))
			ip(t, fmt.Sprintf("route replace %s via 10.8.0.%d", c.nodes[1-i].nets[0], 2-i))
			nft(t, invalidDrop)
		})
	}
	to := ap(b.pods[0].addr.v4, 8080)
	echoTCP(t, b.pods[0].space, to)
	if err := roundTrip(t, a.pods[0].space, "tcp", to, 100000); err != nil {
		t.Error(err)
	}
	if a.metrics(t)["from_pod neigh"] != 0 {
		t.Error("the fast path leads out of a device that is not ours")
	}
	c.noDrops()
}
