// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/datapath/selftest"
	"github.com/weft-net/weft/internal/table"
)

// saidIdentity is what tunnel keys say of the sender, where a test says nothing else.
const saidIdentity table.Identity = 4711

// by makes packets of the overlay come from a node from now on.
func (n *node) by(node netip.Addr, said table.Identity) {
	n.t.Helper()
	t, err := selftest.ByTunnel(n.d.Program(reason.FromOverlay), node, said)
	n.must(err)
	n.t.Cleanup(func() { _ = t.Close() })
	n.tunnel = t
}

// joinOverlay gives the node a tunnel device and lets it know the other nodes in
// the overlay, over IPv4.
func (n *node) joinOverlay(mtu int) {
	n.t.Helper()
	n.overlay = newVeth(n.t, "weft_vxlan")
	index := n.overlay.Attrs().Index
	n.config(func(c *maps.Config) {
		c.Overlay = maps.Overlay{IfIndex: index, MTU: mtu, Local: ownNode.v4, Port: 8472, Strict: true}
	})
	for i, f := range families {
		for _, r := range []maps.IPCacheRow{
			{Prefix: single(otherNode.of(f)), Identity: table.IdentityRemoteNode, Kind: table.KindNode},
			{Prefix: remoteNets[i], Identity: table.IdentityInit, Kind: table.KindRemotePod},
		} {
			r.Tunnel, r.ByTunnel = otherNode.v4, true
			n.must(n.d.Maps().IPCache.Upsert(r))
		}
	}
	n.by(otherNode.v4, saidIdentity)
}

// eachOverlayFamily is eachFamily for a node that takes part in the overlay.
func eachOverlayFamily(t *testing.T, f func(*testing.T, *node, int)) {
	n := newNode(t, datapath.Options{})
	n.joinOverlay(1450)
	for _, fam := range families {
		t.Run(fmt.Sprintf("ipv%d", fam), func(t *testing.T) {
			n.t = t
			n.flush()
			n.by(otherNode.v4, saidIdentity)
			f(t, n, fam)
		})
	}
}

// TestOverlayTrust guards against an outsider, or a node, that sends what does not
// belong to it into the overlay (DATAPATH rule 3).
func TestOverlayTrust(t *testing.T) {
	n := newNode(t, datapath.Options{})
	n.joinOverlay(1450)
	third := newHost("10.9.0.3", "fd00:9::3")
	for i, f := range families {
		n.must(n.d.Maps().IPCache.Upsert(maps.IPCacheRow{Prefix: single(third.of(f)), Identity: table.IdentityRemoteNode, Kind: table.KindNode, Tunnel: third.v4, ByTunnel: true}))
		n.must(n.d.Maps().IPCache.Upsert(maps.IPCacheRow{Prefix: otherNets[i], Identity: table.IdentityInit, Kind: table.KindRemotePod, Tunnel: third.v4, ByTunnel: true}))
	}
	for _, fam := range families {
		for _, tc := range []struct {
			name  string
			outer netip.Addr
			src   host
			code  reason.Code
		}{
			{"its own pod", otherNode.v4, remotePod, reason.Peer},
			{"its own address", otherNode.v4, otherNode, reason.Peer},
			{"a pod of another node", otherNode.v4, unhookedPod, reason.TunnelSource},
			{"another node's address", otherNode.v4, third, reason.TunnelSource},
			{"a pod of ours", otherNode.v4, podA, reason.TunnelSource},
			{"our own address", otherNode.v4, ownNode, reason.TunnelSource},
			{"the world", otherNode.v4, world, reason.TunnelSource},
			{"an outsider's outer address", world.v4, remotePod, reason.TunnelNode},
			{"our own outer address", ownNode.v4, remotePod, reason.TunnelNode},
			{"a pod's outer address", remotePod.v4, remotePod, reason.TunnelNode},
			{"a node's address of the other family", otherNode.v6, remotePod, reason.TunnelSource},
			{"an outsider's address of the other family", world.v6, remotePod, reason.TunnelNode},
			{"no tunnel at all", netip.Addr{}, remotePod, reason.TunnelNode},
		} {
			t.Run(tc.name, func(t *testing.T) {
				n.t = t
				n.flush()
				n.by(tc.outer, saidIdentity)
				p := frame.NewUDP(ap(tc.src.of(fam), 4000), ap(podB.of(fam), 80), nil)
				var notes []reason.Code
				if tc.code == reason.Peer {
					notes = isNew
				}
				r := n.packet(reason.FromOverlay, n.overlay, p)
				n.want(r, reason.FromOverlay, tc.code, notes...)
				if tc.code != reason.Peer {
					n.noCT()
				}
			})
		}
	}
}

// TestOverlayIdentity guards against a pod that is taken for what the node says of
// another kind of sender, and against one whose address says less than its node.
func TestOverlayIdentity(t *testing.T) {
	eachOverlayFamily(t, func(t *testing.T, n *node, fam int) {
		for _, tc := range []struct {
			src        host
			said, want table.Identity
		}{
			{remotePod, 4711, 4711},
			{remotePod, table.IdentityHealth, table.IdentityHealth},
			{remotePod, table.IdentityHost, table.IdentityInit},
			{remotePod, table.IdentityRemoteNode, table.IdentityInit},
			{remotePod, table.IdentityAPIServer, table.IdentityInit},
			{remotePod, 0, table.IdentityInit},
			{otherNode, 4711, table.IdentityRemoteNode},
			{otherNode, table.IdentityHost, table.IdentityRemoteNode},
		} {
			n.flush()
			n.by(otherNode.v4, tc.said)
			r := n.packet(reason.FromOverlay, n.overlay, frame.NewUDP(ap(tc.src.of(fam), 4000), ap(podB.of(fam), 80), nil))
			n.want(r, reason.FromOverlay, reason.Peer, reason.CTNew)
			if got := n.ct().SrcIdentity; got != tc.want {
				t.Errorf("%s said to be %s is taken for %s, want %s", tc.src.of(fam), tc.said, got, tc.want)
			}
		}
	})
}

// TestOverlayBypassed guards against an outsider who sends with a pod's address
// past the overlay's check.
func TestOverlayBypassed(t *testing.T) {
	eachOverlayFamily(t, func(t *testing.T, n *node, fam int) {
		p := frame.NewUDP(ap(remotePod.of(fam), 4000), ap(podB.of(fam), 80), nil)
		n.want(n.packet(reason.FromNet, n.eth, p), reason.FromNet, reason.TunnelBypassed)
		n.noCT()
		// The other nodes' own addresses may come either way.
		p = frame.NewUDP(ap(otherNode.of(fam), 4000), ap(podB.of(fam), 80), nil)
		n.want(n.packet(reason.FromNet, n.eth, p), reason.FromNet, reason.Stack)
	})
}

// TestOverlayTooBig guards against a pod that is not told that its packet does not
// fit into the tunnel.
func TestOverlayTooBig(t *testing.T) {
	eachOverlayFamily(t, func(t *testing.T, n *node, fam int) {
		header := map[int]int{4: 20, 6: 40}[fam]
		for _, dst := range []host{remotePod, otherNode} {
			n.flush()
			fits := frame.NewUDP(ap(podA.of(fam), 4000), ap(dst.of(fam), 80), make([]byte, 1450-header-8))
			n.want(n.packet(reason.FromPod, n.a, fits), reason.FromPod, reason.Tunnel, reason.CTNew)
			over := frame.NewUDP(ap(podA.of(fam), 4000), ap(dst.of(fam), 80), make([]byte, 1450-header-7))
			over.DF = true
			n.want(n.packet(reason.FromPod, n.a, over), reason.FromPod, reason.TooBig, reason.ICMPSent)
		}
	})
}

// TestOverlayOtherFrames guards against frames without IP, or cut short, that
// cross the overlay or upset it.
func TestOverlayOtherFrames(t *testing.T) {
	eachOverlayFamily(t, func(t *testing.T, n *node, fam int) {
		p := frame.NewUDP(ap(remotePod.of(fam), 4000), ap(podB.of(fam), 80), make([]byte, 40))
		p.DstMAC, p.SrcMAC = hostMAC, peerMAC
		b := p.Bytes()
		n.want(n.run(reason.FromOverlay, n.overlay, b[:14+map[int]int{4: 20, 6: 40}[fam]+4]), reason.FromOverlay, reason.Truncated)
		arp := append([]byte{}, b...)
		arp[12], arp[13] = 0x08, 0x06
		n.want(n.run(reason.FromOverlay, n.overlay, arp), reason.FromOverlay, reason.UnknownProtocol)
		n.want(n.run(reason.ToOverlay, n.overlay, arp), reason.ToOverlay, reason.UnknownProtocol)
		n.noCT()
	})
}

// TestToOverlay guards against the stack sending into the overlay what the other
// nodes would drop, or what belongs to nobody there, without a word.
func TestToOverlay(t *testing.T) {
	eachOverlayFamily(t, func(t *testing.T, n *node, fam int) {
		group := map[int]netip.Addr{4: netip.MustParseAddr("224.0.0.22"), 6: netip.MustParseAddr("ff02::16")}[fam]
		for _, tc := range []struct {
			name     string
			src, dst netip.Addr
			mark     uint32
			code     reason.Code
			notes    []reason.Code
		}{
			{"the node to a pod", ownNode.of(fam), remotePod.of(fam), 0, reason.Stack, nil},
			{"a pod to a pod", podA.of(fam), remotePod.of(fam), 0, reason.Stack, isNew},
			{"the fast path", podA.of(fam), remotePod.of(fam), 0x5ef70001, reason.Marked, nil},
			{"the world to a pod", world.of(fam), remotePod.of(fam), 0, reason.TunnelForeign, nil},
			{"the node to nobody", ownNode.of(fam), world.of(fam), 0, reason.TunnelEndpoint, nil},
			{"the node to a node", ownNode.of(fam), otherNode.of(fam), 0, reason.TunnelEndpoint, nil},
			{"the node to a pod that no overlay reaches", ownNode.of(fam), unhookedPod.of(fam), 0, reason.TunnelEndpoint, nil},
			{"multicast", ownNode.of(fam), group, 0, reason.Ignored, nil},
		} {
			t.Run(tc.name, func(t *testing.T) {
				n.t = t
				n.flush()
				r := n.packet(reason.ToOverlay, n.overlay, frame.NewUDP(ap(tc.src, 4000), ap(tc.dst, 80), nil), withMark(tc.mark))
				n.want(r, reason.ToOverlay, tc.code, tc.notes...)
			})
		}
	})
}
