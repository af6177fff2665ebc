// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// TestTranslationSurvivesFlood guards against one pod's SYNs that nobody answers
// pushing out another's established translation (DATAPATH rule 7).
func TestTranslationSurvivesFlood(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		pod, out := ap(podA.of(fam), 4000), ap(world.of(fam), 443)
		port := n.opened(frame.NewTCP(pod, out, frame.SYN, nil))
		answer := frame.NewTCP(out, ap(ownNode.of(fam), port), frame.SYN|frame.ACK, nil)
		n.packet(reason.FromNet, n.eth, answer)
		n.opened(frame.NewTCP(pod, out, frame.ACK, nil))
		n.opened(frame.NewTCP(pod, out, frame.ACK|frame.PSH, []byte("x")))
		n.masquerade(func(c *maps.Config) { c.Trace = maps.TraceNone })
		defer n.masquerade(func(*maps.Config) {})
		to := router.of(fam)
		for i := range uint16(8 * testSizes.NATNew) {
			if i%1000 == 0 {
				to = to.Next()
			}
			p := frame.NewTCP(ap(podB.of(fam), 1024+i), netip.AddrPortFrom(to, 80), frame.SYN, nil)
			p.DstMAC, p.SrcMAC = hostMAC, peerMAC
			for range 3 { // an entry that is used once is the first to go
				n.quiet(reason.ToNet, n.eth, p.Bytes())
			}
		}
		n.drain()
		n.masquerade(func(*maps.Config) {})
		data := frame.NewTCP(out, ap(ownNode.of(fam), port), frame.ACK|frame.PSH, []byte("y"))
		if p := parsed(t, n.packet(reason.FromNet, n.eth, data).out); p.Dst != pod.Addr() {
			t.Errorf("an answer went to %s after a flood", p.Dst)
		}
	})
}

// TestTranslationFoundAgain guards against a connection that changes its port in
// mid-stream, because the port that it would have got first is free by now.
func TestTranslationFoundAgain(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		n.masquerade(func(c *maps.Config) { c.Masquerade.PortMin, c.Masquerade.PortMax = 60000, 60001 })
		defer n.masquerade(func(*maps.Config) {})
		out := ap(world.of(fam), 443)
		open := func(pod netip.Addr, sport uint16, flags uint8) uint16 {
			port, _ := ports(parsed(t, n.packet(reason.ToNet, n.eth, frame.NewTCP(ap(pod, sport), out, flags, nil)).out))
			return port
		}
		alone := func(pod netip.Addr, sport uint16) uint16 {
			n.flush()
			n.flushNAT()
			return open(pod, sport, frame.SYN)
		}
		first := alone(podA.of(fam), 4000)
		sport := uint16(5000)
		for alone(podB.of(fam), sport) != first {
			sport++
		}
		n.flush()
		n.flushNAT()
		open(podA.of(fam), 4000, frame.SYN)
		second := open(podB.of(fam), sport, frame.SYN)
		if second == first {
			t.Fatalf("two flows have port %d", first)
		}
		n.flush()
		if _, err := n.d.Maps().NAT.PurgeAddrs(podA.of(fam)); err != nil {
			t.Fatal(err)
		}
		if port := open(podB.of(fam), sport, frame.ACK); port != second {
			t.Errorf("port %d in mid-stream, had %d", port, second)
		}
	})
}
