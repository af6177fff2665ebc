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
