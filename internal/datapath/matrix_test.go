// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/table"
)

// step is one hook that a packet of a cell passes on this node.
type step struct {
	hook  reason.Hook
	dev   func(*node) netlink.Link
	from  func(*node) netlink.Link // where the stack got it; nil: made on this node
	reply bool
	code  reason.Code
	notes []reason.Code
}

// cell is one row of the matrix in docs/datapath.md: who meets a connection on
// this node, and what is known about it afterwards.
type cell struct {
	name         string
	src, dst     host
	steps        []step
	path         string
	srcID, dstID table.Identity
	srcEP, dstEP uint16
}

func devA(n *node) netlink.Link   { return n.a }
func devB(n *node) netlink.Link   { return n.b }
func devEth(n *node) netlink.Link { return n.eth }

var isNew = []reason.Code{reason.CTNew}

func devOverlay(n *node) netlink.Link { return n.overlay }

// overlayCells are the rows of a node that takes part in the overlay.
func overlayCells() []cell {
	const init, nodeID = table.IdentityInit, table.IdentityRemoteNode
	return []cell{
		{"overlay, out", podA, remotePod, []step{
			{reason.FromPod, devA, nil, false, reason.Tunnel, isNew},
			{reason.FromOverlay, devOverlay, nil, true, reason.Peer, nil},
		}, "fast", init, init, 1, 0},
		{"overlay, in", remotePod, podB, []step{
			{reason.FromOverlay, devOverlay, nil, false, reason.Peer, isNew},
			{reason.FromPod, devB, nil, true, reason.Tunnel, nil},
		}, "fast", saidIdentity, init, 0, 2},
		{"overlay, pod to other host", podA, otherNode, []step{
			{reason.FromPod, devA, nil, false, reason.Tunnel, isNew},
			{reason.FromOverlay, devOverlay, nil, true, reason.Peer, nil},
		}, "fast", init, nodeID, 1, 0},
		{"overlay, other host to pod", otherNode, podB, []step{
			{reason.FromOverlay, devOverlay, nil, false, reason.Peer, isNew},
			{reason.FromPod, devB, nil, true, reason.Tunnel, nil},
		}, "fast", nodeID, init, 0, 2},
		{"overlay, service, translated", podA, remotePod, []step{
			{reason.ToOverlay, devOverlay, devA, false, reason.Stack, isNew},
			{reason.FromOverlay, devOverlay, nil, true, reason.Stack, nil},
		}, "stack", init, init, 1, 0},
		{"overlay, service, translated to a host", podA, otherNode, []step{
			{reason.ToNet, devEth, devA, false, reason.Tunnel, isNew},
			{reason.FromOverlay, devOverlay, nil, true, reason.Stack, nil},
		}, "stack", init, nodeID, 1, 0},
	}
}

func cells() []cell {
	const init, hostID, worldID, nodeID = table.IdentityInit, table.IdentityHost, table.IdentityWorld, table.IdentityRemoteNode
	return []cell{
		{"same node", podA, podB, []step{
			{reason.FromPod, devA, nil, false, reason.Peer, isNew},
			{reason.FromPod, devB, nil, true, reason.Peer, nil},
		}, "fast", init, init, 1, 2},
		{"other node, out", podA, remotePod, []step{
			{reason.FromPod, devA, nil, false, reason.Neigh, isNew},
			{reason.FromNet, devEth, nil, true, reason.Peer, nil},
		}, "fast", init, init, 1, 0},
		{"other node, in", remotePod, podB, []step{
			{reason.FromNet, devEth, nil, false, reason.Peer, isNew},
			{reason.FromPod, devB, nil, true, reason.Neigh, nil},
		}, "fast", init, init, 0, 2},
		{"host to pod", ownNode, podB, []step{
			{reason.ToPod, devB, nil, false, reason.Stack, isNew},
			{reason.FromPod, devB, nil, true, reason.Stack, nil},
		}, "stack", hostID, init, 0, 2},
		{"pod to own host", podA, ownNode, []step{
			{reason.FromPod, devA, nil, false, reason.Stack, isNew},
			{reason.ToPod, devA, nil, true, reason.Stack, nil},
		}, "stack", init, hostID, 1, 0},
		{"pod to other host", podA, otherNode, []step{
			{reason.FromPod, devA, nil, false, reason.Stack, isNew},
			{reason.ToNet, devEth, devA, false, reason.Stack, nil},
			{reason.FromNet, devEth, nil, true, reason.Stack, nil},
			{reason.ToPod, devA, devEth, true, reason.Stack, nil},
		}, "stack", init, nodeID, 1, 0},
		{"other host to pod", otherNode, podB, []step{
			{reason.FromNet, devEth, nil, false, reason.Stack, nil},
			{reason.ToPod, devB, devEth, false, reason.Stack, isNew},
			{reason.FromPod, devB, nil, true, reason.Stack, nil},
			{reason.ToNet, devEth, devB, true, reason.Stack, nil},
		}, "stack", nodeID, init, 0, 2},
		{"pod to world", podA, world, []step{
			{reason.FromPod, devA, nil, false, reason.Stack, isNew},
			{reason.ToNet, devEth, devA, false, reason.Stack, nil},
			{reason.FromNet, devEth, nil, true, reason.Stack, nil},
			{reason.ToPod, devA, devEth, true, reason.Stack, nil},
		}, "stack", init, worldID, 1, 0},
		// NodePort with externalTrafficPolicy Local: the client's address survives.
		{"nodeport, client seen", world, podB, []step{
			{reason.ToPod, devB, devEth, false, reason.Stack, isNew},
			{reason.FromPod, devB, nil, true, reason.Stack, nil},
		}, "stack", worldID, init, 0, 2},
		// NodePort otherwise: kube-proxy masquerades to the node's address.
		{"nodeport, masqueraded", ownNode, podB, []step{
			{reason.ToPod, devB, devEth, false, reason.Stack, isNew},
			{reason.FromPod, devB, nil, true, reason.Stack, nil},
		}, "stack", hostID, init, 0, 2},
		{"service, before translation", podA, service, []step{
			{reason.FromPod, devA, nil, false, reason.Stack, isNew},
			{reason.ToPod, devA, devB, true, reason.Stack, nil},
		}, "stack", init, worldID, 1, 0},
		{"service, translated, same node", podA, podB, []step{
			{reason.ToPod, devB, devA, false, reason.Stack, isNew},
			{reason.FromPod, devB, nil, true, reason.Stack, nil},
		}, "stack", init, init, 1, 2},
		{"service, translated, other node", podA, remotePod, []step{
			{reason.ToNet, devEth, devA, false, reason.Stack, isNew},
			{reason.FromNet, devEth, nil, true, reason.Stack, nil},
		}, "stack", init, init, 1, 0},
		{"hairpin, masqueraded", ownNode, podA, []step{
			{reason.ToPod, devA, devA, false, reason.Stack, isNew},
			{reason.FromPod, devA, nil, true, reason.Stack, nil},
		}, "stack", hostID, init, 0, 1},
		{"other node, by a device without a hook", podA, unhookedPod, []step{
			{reason.FromPod, devA, nil, false, reason.Stack, isNew},
			{reason.ToPod, devA, devB, true, reason.Stack, nil},
		}, "stack", init, init, 1, 0},
		{"device without a hook", world, podB, []step{
			{reason.ToPod, devB, devEth, false, reason.Stack, isNew},
			{reason.FromPod, devB, nil, true, reason.Stack, nil},
		}, "stack", worldID, init, 0, 2},
	}
}

// TestMatrix guards against a kind of connection that no hook knows, that takes
// another path back than out, or whose source is taken for somebody else
// (DATAPATH rules 1 and 2). It runs each row of docs/datapath.md with UDP, a TCP
// handshake and echo.
func TestMatrix(t *testing.T) {
	n := newNode(t, datapath.Options{})
	runCells(t, n, cells())
	n.joinOverlay(1450)
	runCells(t, n, overlayCells())
}

func runCells(t *testing.T, n *node, cells []cell) {
	t.Helper()
	doc, err := os.ReadFile("../../docs/datapath.md")
	n.must(err)
	for _, c := range cells {
		if !strings.Contains(string(doc), "| "+c.name+" | ") {
			t.Errorf("docs/datapath.md lacks a row %q", c.name)
		}
		for _, fam := range families {
			for proto, packets := range map[string]func(a, b netip.AddrPort, reply bool) frame.Packet{
				"udp": func(a, b netip.AddrPort, _ bool) frame.Packet { return frame.NewUDP(a, b, nil) },
				"tcp": func(a, b netip.AddrPort, reply bool) frame.Packet {
					if reply {
						return frame.NewTCP(a, b, frame.SYN|frame.ACK, nil)
					}
					return frame.NewTCP(a, b, frame.SYN, nil)
				},
				"echo": func(a, b netip.AddrPort, reply bool) frame.Packet {
					return frame.NewEcho(a.Addr(), b.Addr(), 9, reply, nil)
				},
			} {
				t.Run(fmt.Sprintf("%s/ipv%d/%s", c.name, fam, proto), func(t *testing.T) {
					n.t = t
					n.flush()
					a, b := ap(c.src.of(fam), 4000), ap(c.dst.of(fam), 80)
					for _, s := range c.steps {
						p := packets(a, b, false)
						if s.reply {
							p = packets(b, a, true)
						}
						var opts []runOpt
						if s.from != nil {
							opts = append(opts, from(s.from(n)))
						}
						n.want(n.packet(s.hook, s.dev(n), p, opts...), s.hook, s.code, s.notes...)
					}
					row := n.ct()
					if row.Path != c.path || row.SrcIdentity != c.srcID || row.DstIdentity != c.dstID ||
						row.SrcEndpoint != c.srcEP || row.DstEndpoint != c.dstEP || !row.Answered || row.Src != a.Addr() {
						t.Errorf("conntrack %+v\nwant %+v", row, c)
					}
				})
			}
		}
	}
}
