// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// Ports that masqueraded flows get in tests, unless told otherwise.
const natMin, natMax = 49152, 65535

// excluded is what tests tell not to masquerade.
var (
	excluded     = newHost("198.51.100.7", "2001:db8:7::7")
	excludedNets = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:7::/64")}
)

// newMasq is a node that masquerades.
func newMasq(t testing.TB) *node {
	t.Helper()
	n := newNode(t, datapath.Options{Masquerade: true})
	n.masquerade(func(*maps.Config) {})
	n.must(n.d.Maps().NAT.SetDevices([]maps.NATDevice{{Index: n.eth.Attrs().Index, IPv4: ownNode.v4, IPv6: ownNode.v6}}))
	n.must(n.d.Maps().NAT.SetExclusions(excludedNets))
	return n
}

func (n *node) masquerade(f func(*maps.Config)) {
	n.config(func(c *maps.Config) {
		c.Masquerade = maps.Masquerade{IPv4: true, IPv6: true, PortMin: natMin, PortMax: natMax}
		f(c)
	})
}

func eachMasq(t *testing.T, f func(*testing.T, *node, int)) {
	n := newMasq(t)
	for _, fam := range families {
		t.Run(fmt.Sprintf("ipv%d", fam), func(t *testing.T) {
			n.t = t
			n.flush()
			n.flushNAT()
			f(t, n, fam)
		})
	}
}

func (n *node) flushNAT() {
	n.t.Helper()
	_, err := n.d.Maps().NAT.Flush()
	n.must(err)
}

func (n *node) nat() []maps.NATRow {
	n.t.Helper()
	rows, err := n.d.Maps().NAT.List(0)
	n.must(err)
	return rows
}

// pingPort is a flow's port: of echo the id.
func ports(p frame.Parsed) (src, dst uint16) {
	switch p.Proto {
	case frame.ICMP, frame.ICMPv6:
		return binary.BigEndian.Uint16(p.Payload[4:]), 0
	}
	return binary.BigEndian.Uint16(p.Payload), binary.BigEndian.Uint16(p.Payload[2:])
}

// leave sends a pod's packet through from_pod and to_net, as the stack does in
// between, and returns what left.
func (n *node) leave(p frame.Packet) result {
	n.t.Helper()
	if r := n.packet(reason.FromPod, n.a, p); r.action != actNext {
		n.t.Fatalf("from_pod: %+v", r.event)
	}
	return n.packet(reason.ToNet, n.eth, p)
}

func parsed(t testing.TB, b []byte) frame.Parsed {
	t.Helper()
	p, err := frame.Parse(b)
	if err != nil {
		t.Fatalf("%v in % x", err, b)
	}
	return p
}

// flows builds a question and its answer by protocol. The answer goes to where
// the question came from as seen outside.
var flows = map[string]struct {
	ask    func(src, dst netip.AddrPort) frame.Packet
	answer func(src, dst netip.AddrPort) frame.Packet
}{
	"tcp": {
		func(s, d netip.AddrPort) frame.Packet { return frame.NewTCP(s, d, frame.SYN, nil) },
		func(s, d netip.AddrPort) frame.Packet { return frame.NewTCP(s, d, frame.SYN|frame.ACK, nil) },
	},
	"udp": {
		func(s, d netip.AddrPort) frame.Packet { return frame.NewUDP(s, d, []byte("question")) },
		func(s, d netip.AddrPort) frame.Packet { return frame.NewUDP(s, d, []byte("answer")) },
	},
	"echo": {
		func(s, d netip.AddrPort) frame.Packet {
			return frame.NewEcho(s.Addr(), d.Addr(), s.Port(), false, []byte("ping"))
		},
		func(s, d netip.AddrPort) frame.Packet {
			return frame.NewEcho(s.Addr(), d.Addr(), d.Port(), true, []byte("ping"))
		},
	},
}

// TestMasquerade guards against flows that leave with the pod's address, whose
// answer does not find the pod, or whose checksums are wrong either way.
func TestMasquerade(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		for proto, flow := range flows {
			t.Run(proto, func(t *testing.T) {
				n.t = t
				n.flush()
				n.flushNAT()
				pod, out := ap(podA.of(fam), 4000), ap(world.of(fam), 443)
				n.want(n.packet(reason.FromPod, n.a, flow.ask(pod, out)), reason.FromPod, reason.Stack, reason.CTNew)
				r := n.packet(reason.ToNet, n.eth, flow.ask(pod, out))
				n.want(r, reason.ToNet, reason.Stack, reason.NATNew)
				left := parsed(t, r.out)
				port, _ := ports(left)
				if left.Src != ownNode.of(fam) || left.Dst != out.Addr() || port < natMin {
					t.Fatalf("left as %s port %d to %s", left.Src, port, left.Dst)
				}
				answer := flow.answer(out, ap(left.Src, port))
				r = n.packet(reason.FromNet, n.eth, answer)
				n.want(r, reason.FromNet, reason.Stack)
				want := flow.answer(out, pod)
				want.DstMAC, want.SrcMAC = hostMAC, peerMAC
				if string(r.out) != string(want.Bytes()) {
					t.Fatalf("answer became\n% x\nwant\n% x", r.out, want.Bytes())
				}
				if ct := n.ct(); !ct.Answered || ct.Path != "stack" {
					t.Errorf("conntrack %+v", ct)
				}
				// The same flow again: the same port.
				if again, _ := ports(parsed(t, n.leave(flow.ask(pod, out)).out)); again != port {
					t.Errorf("the second packet has port %d, the first had %d", again, port)
				}
				if rows := n.nat(); len(rows) != 1 || rows[0].Owner != pod.Addr() || rows[0].NodePort != port || rows[0].Endpoint != 1 {
					t.Errorf("translations: %+v", rows)
				}
			})
		}
	})
}

// TestNotMasqueraded guards against translating what the network routes back,
// what is the cluster's, what others translated, and what outside opened.
func TestNotMasqueraded(t *testing.T) {
	eachMasq(t, func(t *testing.T, n *node, fam int) {
		for name, tc := range map[string]struct{ src, dst netip.AddrPort }{
			"excluded":        {ap(podA.of(fam), 4000), ap(excluded.of(fam), 443)},
			"other node":      {ap(podA.of(fam), 4000), ap(otherNode.of(fam), 443)},
			"remote pod":      {ap(podA.of(fam), 4000), ap(unhookedPod.of(fam), 443)},
			"host":            {ap(ownNode.of(fam), 4000), ap(world.of(fam), 443)},
			"somebody else's": {ap(otherNode.of(fam), 50000), ap(world.of(fam), 443)},
		} {
			p := frame.NewTCP(tc.src, tc.dst, frame.SYN, nil)
			r := n.packet(reason.ToNet, n.eth, p)
			p.DstMAC, p.SrcMAC = hostMAC, peerMAC
			if string(r.out) != string(p.Bytes()) || r.action != actNext {
				t.Errorf("%s: changed to % x", name, r.out)
			}
		}
		if rows := n.nat(); len(rows) != 0 {
			t.Errorf("translations: %+v", rows)
		}
		// Outside opens; the pod answers with its own address.
		n.flush()
		in := frame.NewTCP(ap(world.of(fam), 5000), ap(podA.of(fam), 80), frame.SYN, nil)
		n.want(n.packet(reason.FromNet, n.eth, in), reason.FromNet, reason.Stack)
		n.want(n.packet(reason.ToPod, n.a, in, from(n.eth)), reason.ToPod, reason.Stack, reason.CTNew)
		back := frame.NewTCP(ap(podA.of(fam), 80), ap(world.of(fam), 5000), frame.SYN|frame.ACK, nil)
		if p := parsed(t, n.leave(back).out); p.Src != podA.of(fam) {
			t.Errorf("the answer left with %s", p.Src)
		}
		// Nobody remembers it, and the pod answers.
		n.flush()
		if p := parsed(t, n.packet(reason.ToNet, n.eth, back).out); p.Src != podA.of(fam) {
			t.Errorf("the answer left with %s", p.Src)
		}
		if p := parsed(t, n.packet(reason.FromNet, n.eth, frame.NewTCP(ap(world.of(fam), 443), ap(ownNode.of(fam), 50000), frame.ACK, nil)).out); p.Dst != ownNode.of(fam) {
			t.Errorf("a packet for the host went to %s", p.Dst)
		}
	})
}
