// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// conn sends the packets of one connection between pod A and a peer.
type conn struct {
	n    *node
	a, b netip.AddrPort
}

func (c conn) tcp(flags uint8) frame.Packet   { return frame.NewTCP(c.a, c.b, flags, nil) }
func (c conn) reply(flags uint8) frame.Packet { return frame.NewTCP(c.b, c.a, flags, nil) }

// toRemote is a connection from pod A to a pod of another node: its packets go
// through from_pod, its replies through from_net.
func toRemote(n *node, fam int) conn {
	return conn{n, ap(podA.of(fam), 4000), ap(remotePod.of(fam), 80)}
}

func (c conn) out(p frame.Packet, code reason.Code, notes ...reason.Code) {
	c.n.t.Helper()
	c.n.want(c.n.packet(reason.FromPod, c.n.a, p), reason.FromPod, code, notes...)
}

func (c conn) in(p frame.Packet, code reason.Code, notes ...reason.Code) {
	c.n.t.Helper()
	c.n.want(c.n.packet(reason.FromNet, c.n.eth, p), reason.FromNet, code, notes...)
}

// tables counts the entries of weft_ctn* (young) and of weft_ct* (grown).
func (n *node) tables() (young, grown int) {
	n.t.Helper()
	rows, err := n.d.Maps().CT.List(0)
	n.must(err)
	all := len(rows)
	for _, fam := range []string{"weft_ctn4", "weft_ctn6"} {
		it := n.d.Maps().Raw(fam).Iterate()
		var k, v []byte
		for it.Next(&k, &v) {
			young++
		}
		n.must(it.Err())
	}
	return young, all - young
}

func (n *node) wantTables(young, grown int) {
	n.t.Helper()
	if y, g := n.tables(); y != young || g != grown {
		n.t.Errorf("%d young and %d grown connections, want %d and %d", y, g, young, grown)
	}
}

// TestHandshake guards against connections that never leave the small table, or
// fill the large one before anybody has gone on after an answer (rule 7).
func TestHandshake(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		c := toRemote(n, fam)
		c.out(c.tcp(frame.SYN), reason.Neigh, reason.CTNew)
		c.out(c.tcp(frame.SYN), reason.Neigh) // again
		n.wantTables(1, 0)
		if row := n.ct(); row.Answered || row.Expires > time.Minute || row.SrcEndpoint != 1 || row.SrcIdentity != 5 || row.DstIdentity != 5 {
			t.Errorf("after SYN: %+v", row)
		}
		c.in(c.reply(frame.SYN|frame.ACK), reason.Peer)
		n.wantTables(1, 0)
		c.out(c.tcp(frame.ACK), reason.Neigh)
		n.wantTables(0, 1)
		row := n.ct()
		if !row.Answered || row.Path != "fast" || row.Expires < 2*time.Hour || row.Src != podA.of(fam) || row.SrcPort != 4000 || row.Flags != "" {
			t.Errorf("established: %+v", row)
		}
		c.in(c.reply(frame.ACK|frame.FIN), reason.Peer)
		if row := n.ct(); row.Flags != "fin-dst" || row.Expires < 2*time.Hour {
			t.Errorf("half closed: %+v", row)
		}
		c.out(c.tcp(frame.ACK|frame.FIN), reason.Neigh)
		if row := n.ct(); row.Expires > 11*time.Second {
			t.Errorf("closed: %+v", row)
		}
		// The same ports again.
		c.out(c.tcp(frame.SYN), reason.Neigh, reason.CTNew)
		n.wantTables(1, 0)
		if row := n.ct(); row.Answered || row.Flags != "" {
			t.Errorf("opened again: %+v", row)
		}
	})
}

// TestScanStaysYoung guards against a port scan, whose every SYN is answered
// with RST, filling the table of established connections (rule 7).
func TestScanStaysYoung(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		c := toRemote(n, fam)
		c.out(c.tcp(frame.SYN), reason.Neigh, reason.CTNew)
		c.in(c.reply(frame.RST|frame.ACK), reason.Peer)
		n.wantTables(1, 0)
		if row := n.ct(); row.Flags != "rst" || row.Expires > 11*time.Second {
			t.Errorf("refused: %+v", row)
		}
		c.out(c.tcp(frame.RST), reason.Neigh) // some scanners do
		n.wantTables(1, 0)
		c.out(c.tcp(frame.SYN), reason.Neigh, reason.CTNew) // tried again
	})
}

// TestFloodKeepsEstablished guards against a flood of opening packets, or of
// datagrams nobody answers, evicting connections that are idle (rule 7).
func TestFloodKeepsEstablished(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		const idle = 50
		for i := range idle {
			c := toRemote(n, fam)
			c.a = ap(c.a.Addr(), uint16(2000+i))
			c.out(c.tcp(frame.SYN), reason.Neigh, reason.CTNew)
			c.in(c.reply(frame.SYN|frame.ACK), reason.Peer)
			c.out(c.tcp(frame.ACK), reason.Neigh)
		}
		for i := range 12000 { // ten times the young table
			p := frame.NewTCP(ap(remotePod.of(fam), uint16(i)), ap(podA.of(fam), uint16(i>>8)), frame.SYN, nil)
			p.DstMAC = hostMAC
			n.quiet(reason.FromNet, n.eth, p.Bytes())
		}
		n.drain()
		if _, grown := n.tables(); grown != idle {
			t.Errorf("%d of %d idle connections left", grown, idle)
		}
	})
}

// TestDatagrams guards against one question with one answer occupying the
// large table, and against a conversation not getting there.
func TestDatagrams(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		c := toRemote(n, fam)
		ask, answer := frame.NewUDP(c.a, c.b, nil), frame.NewUDP(c.b, c.a, nil)
		c.out(ask, reason.Neigh, reason.CTNew)
		if row := n.ct(); row.Answered || row.Expires > 40*time.Second {
			t.Errorf("asked: %+v", row)
		}
		c.in(answer, reason.Peer)
		n.wantTables(1, 0)
		if row := n.ct(); !row.Answered || row.Expires > time.Minute {
			t.Errorf("answered: %+v", row)
		}
		c.out(ask, reason.Neigh)
		n.wantTables(0, 1)
	})
}

// TestEcho guards against echo requests in opposite directions with one id
// being taken for one another's replies.
func TestEcho(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		a, b := podA.of(fam), remotePod.of(fam)
		c := toRemote(n, fam)
		c.out(frame.NewEcho(a, b, 7, false, nil), reason.Neigh, reason.CTNew)
		c.in(frame.NewEcho(b, a, 7, false, nil), reason.Peer, reason.CTNew)
		c.in(frame.NewEcho(b, a, 7, true, nil), reason.Peer)
		c.out(frame.NewEcho(a, b, 7, true, nil), reason.Neigh)
		n.wantTables(2, 0)
	})
}

// TestStackStays guards against rule 1: what the stack has seen stays there,
// both ways, at every hook.
func TestStackStays(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		c := toRemote(n, fam)
		// kube-proxy translated A -> service into A -> remote: it comes out at to_net.
		n.want(n.packet(reason.ToNet, n.eth, c.tcp(frame.SYN)), reason.ToNet, reason.Stack, reason.CTNew)
		c.in(c.reply(frame.SYN|frame.ACK), reason.Stack)
		n.want(n.packet(reason.ToNet, n.eth, c.tcp(frame.ACK)), reason.ToNet, reason.Stack)
		c.in(c.reply(frame.ACK), reason.Stack)
		if row := n.ct(); row.Path != "stack" || !row.Answered || row.SrcEndpoint != 1 {
			t.Errorf("conntrack %+v", row)
		}
		// And to a pod of this node, where it comes out at to_pod.
		n.flush()
		b := conn{n, ap(podA.of(fam), 5000), ap(podB.of(fam), 80)}
		n.want(n.packet(reason.ToPod, n.b, b.tcp(frame.SYN), from(n.a)), reason.ToPod, reason.Stack, reason.CTNew)
		n.want(n.packet(reason.FromPod, n.b, b.reply(frame.SYN|frame.ACK)), reason.FromPod, reason.Stack)
	})
}

// TestFastTurnsStack guards against half a connection on each path when the
// stack takes a fast one over: a translated connection with the same ports, or a
// packet that only the stack can cut up.
func TestFastTurnsStack(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		c := toRemote(n, fam)
		ask, answer := frame.NewUDP(c.a, c.b, nil), frame.NewUDP(c.b, c.a, nil)
		c.out(ask, reason.Neigh, reason.CTNew)
		n.want(n.packet(reason.ToNet, n.eth, ask, withMark(0x5ef70001)), reason.ToNet, reason.Marked)
		c.in(answer, reason.Peer)
		n.want(n.packet(reason.ToNet, n.eth, ask), reason.ToNet, reason.Stack, reason.CTToStack)
		c.in(answer, reason.Stack)
		c.out(ask, reason.Stack)
		// Netfilter knows a translation for 120 s; so long must we know the path.
		if row := n.ct(); row.Path != "stack" || row.Expires < 2*time.Minute {
			t.Errorf("answered on the stack: %+v", row)
		}
	})
}

// TestSelf guards against the two directions of a pod's connection to itself,
// as it comes back from a service, being taken for two connections.
func TestSelf(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		a, b := ap(podA.of(fam), 4000), ap(podA.of(fam), 80)
		n.want(n.packet(reason.ToPod, n.a, frame.NewUDP(a, b, nil), from(n.a)), reason.ToPod, reason.Stack, reason.CTNew)
		n.want(n.packet(reason.ToPod, n.a, frame.NewUDP(b, a, nil), from(n.a)), reason.ToPod, reason.Stack)
		if row := n.ct(); !row.Answered || row.SrcPort != 4000 {
			t.Errorf("conntrack %+v", row)
		}
	})
}

// TestPortsInUse guards against a connection through a service resetting one
// that the pod has directly, by the same addresses and ports after translation.
func TestPortsInUse(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		c := toRemote(n, fam)
		c.out(c.tcp(frame.SYN), reason.Neigh, reason.CTNew)
		// Not answered yet: nothing to lose, the later one decides.
		n.want(n.packet(reason.ToNet, n.eth, c.tcp(frame.SYN)), reason.ToNet, reason.Stack, reason.CTToStack)
		n.flush()
		c.out(c.tcp(frame.SYN), reason.Neigh, reason.CTNew)
		c.in(c.reply(frame.SYN|frame.ACK), reason.Peer)
		n.want(n.packet(reason.ToNet, n.eth, c.tcp(frame.SYN)), reason.ToNet, reason.PortsInUse)
		c.out(c.tcp(frame.ACK), reason.Neigh)
		n.want(n.packet(reason.ToNet, n.eth, c.tcp(frame.SYN)), reason.ToNet, reason.PortsInUse)
		c.in(c.reply(frame.ACK), reason.Peer)
		if row := n.ct(); row.Path != "fast" || row.Flags != "" {
			t.Errorf("conntrack %+v", row)
		}
		// Once it is closed, the ports are free.
		c.out(c.tcp(frame.RST), reason.Neigh)
		n.want(n.packet(reason.ToNet, n.eth, c.tcp(frame.SYN)), reason.ToNet, reason.Stack, reason.CTNew)
		// The same to a pod of this node.
		n.flush()
		b := conn{n, ap(podA.of(fam), 5000), ap(podB.of(fam), 80)}
		b.out(b.tcp(frame.SYN), reason.Peer, reason.CTNew)
		n.want(n.packet(reason.FromPod, n.b, b.reply(frame.SYN|frame.ACK)), reason.FromPod, reason.Peer)
		n.want(n.packet(reason.ToPod, n.b, b.tcp(frame.SYN), from(n.a)), reason.ToPod, reason.PortsInUse)
		b.out(b.tcp(frame.ACK), reason.Peer)
	})
}

// TestMidStream guards against established TCP connections breaking when their
// entry was evicted or never made: only the stack is right for a connection that
// may have been translated.
func TestMidStream(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		c := toRemote(n, fam)
		c.out(c.tcp(frame.ACK), reason.Stack, reason.CTNew, reason.CTPickedUp)
		if row := n.ct(); row.Path != "stack" || row.Flags != "guessed" || row.Answered {
			t.Errorf("picked up: %+v", row)
		}
		c.in(c.reply(frame.ACK), reason.Stack)
		c.out(c.tcp(frame.ACK), reason.Stack)
		n.wantTables(0, 1)
		// A SYN says for sure: it opens.
		c.out(c.tcp(frame.SYN), reason.Neigh, reason.CTNew)
		// A SYN-ACK says who opened: the other side.
		n.flush()
		c.out(c.tcp(frame.SYN|frame.ACK), reason.Stack, reason.CTNew, reason.CTPickedUp)
		if row := n.ct(); row.Src != remotePod.of(fam) || row.Dst != podA.of(fam) || row.DstEndpoint != 1 || !row.Answered {
			t.Errorf("picked up at SYN-ACK: %+v", row)
		}
		// From the net there is no entry before to_pod makes one.
		n.flush()
		c.in(c.reply(frame.ACK), reason.Stack)
		n.noCT()
		n.want(n.packet(reason.ToPod, n.a, c.reply(frame.ACK), from(n.eth)), reason.ToPod, reason.Stack, reason.CTNew, reason.CTPickedUp)
	})
}

// TestGeneration guards against a new pod inheriting the connections of the one
// that had its endpoint id before (rule 6).
func TestGeneration(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		b := conn{n, ap(podA.of(fam), 5000), ap(podB.of(fam), 80)}
		p := frame.NewUDP(b.a, b.b, nil)
		b.out(p, reason.Peer, reason.CTNew)
		again := n.endpointsB
		again.Generation++
		n.must(n.d.Maps().Endpoints.Upsert(again))
		b.out(p, reason.Peer, reason.CTNew)
		b.out(p, reason.Peer)
		own := n.endpointsA
		own.Generation += 100
		n.must(n.d.Maps().Endpoints.Upsert(own))
		b.out(p, reason.Peer, reason.CTNew)
		// Gone altogether.
		n.must(n.d.Maps().Endpoints.Delete(2))
		b.out(p, reason.NoEndpoint)
		in := conn{n, ap(remotePod.of(fam), 1), ap(podB.of(fam), 2)}
		in.in(frame.NewUDP(in.a, in.b, nil), reason.NoEndpoint)
		n.must(n.d.Maps().Endpoints.Delete(1))
		b.out(p, reason.NoEndpoint)
		n.must(n.d.Maps().Endpoints.Upsert(n.endpointsA))
		n.must(n.d.Maps().Endpoints.Upsert(n.endpointsB))
	})
}

// TestErrorsFollow guards against ICMP errors that get lost, take the other path
// than the connection they are about, or make entries of their own.
func TestErrorsFollow(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		unreachable := map[int]uint8{4: 3, 6: 1}[fam]
		c := toRemote(n, fam)
		about := frame.NewUDP(c.a, c.b, []byte("question"))
		fail := frame.NewError(c.b.Addr(), c.a.Addr(), unreachable, 3, 0, about)
		router := frame.NewError(world.of(fam), c.a.Addr(), unreachable, 0, 0, about)
		for _, e := range []frame.Packet{fail, router} { // about nothing we know
			c.in(e, reason.Stack)
		}
		c.out(about, reason.Neigh, reason.CTNew)
		for _, e := range []frame.Packet{fail, router} {
			c.in(e, reason.Peer)
		}
		if row := n.ct(); row.Answered {
			t.Errorf("an error counted as an answer: %+v", row)
		}
		// The same on the stack path.
		n.want(n.packet(reason.ToNet, n.eth, about), reason.ToNet, reason.Stack, reason.CTToStack)
		c.in(fail, reason.Stack)
		c.in(router, reason.Stack)
		// A pod's own errors.
		n.flush()
		in := frame.NewUDP(c.b, c.a, nil)
		back := frame.NewError(c.a.Addr(), c.b.Addr(), unreachable, 3, 0, in)
		c.out(back, reason.Stack)
		c.in(in, reason.Peer, reason.CTNew)
		c.out(back, reason.Neigh)
		// One that lies about whom it concerns.
		lie := frame.NewError(c.a.Addr(), c.b.Addr(), unreachable, 3, 0, frame.NewUDP(ap(podB.of(fam), 1), c.a, nil))
		c.out(lie, reason.Stack)
		ab := frame.NewUDP(ap(podB.of(fam), 1), c.a, nil)
		n.want(n.packet(reason.FromPod, n.b, ab), reason.FromPod, reason.Peer, reason.CTNew)
		c.out(frame.NewError(c.a.Addr(), world.of(fam), unreachable, 3, 0, ab), reason.Stack)
		// An error out of the stack says nothing about the path of its connection.
		n.flush()
		c.out(about, reason.Neigh, reason.CTNew)
		expired := frame.NewError(ownNode.of(fam), c.a.Addr(), map[int]uint8{4: 11, 6: 3}[fam], 0, 0, about)
		n.want(n.packet(reason.ToPod, n.a, expired), reason.ToPod, reason.Stack)
		c.out(about, reason.Neigh)
	})
}

// TestErrorsQuotingLittle guards against reading too far where an error quotes
// little, and against trusting ports that are not there.
func TestErrorsQuotingLittle(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		unreachable := map[int]uint8{4: 3, 6: 1}[fam]
		c := toRemote(n, fam)
		about := frame.NewUDP(c.a, c.b, nil)
		c.out(about, reason.Neigh, reason.CTNew)
		whole := frame.NewError(c.b.Addr(), c.a.Addr(), unreachable, 3, 0, about)
		need := 8 + map[int]int{4: 20, 6: 40}[fam] + 4
		for size := 8; size < need; size++ {
			cut := whole
			cut.Payload = whole.Payload[:size]
			c.in(cut, reason.Stack)
		}
		later := about
		later.Offset = 80
		c.in(frame.NewError(c.b.Addr(), c.a.Addr(), unreachable, 3, 0, later), reason.Stack)
		c.in(whole, reason.Peer)
	})
}

// TestExpiry guards against entries that live on after their time.
func TestExpiry(t *testing.T) {
	eachFamily(t, func(t *testing.T, n *node, fam int) {
		n.config(func(c *maps.Config) { c.Timeouts.Unanswered = 1 })
		c := toRemote(n, fam)
		p := frame.NewUDP(c.a, c.b, nil)
		c.out(p, reason.Neigh, reason.CTNew)
		deadline := time.Now().Add(2 * patience)
		for n.ct().Expires >= 0 {
			if time.Now().After(deadline) {
				t.Fatal("entry does not expire")
			}
			<-time.After(100 * time.Millisecond)
		}
		c.out(p, reason.Neigh, reason.CTNew)
		n.config(func(*maps.Config) {})
	})
}
