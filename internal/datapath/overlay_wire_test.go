// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/table"
)

// outer is what a VXLAN packet says of itself on the wire.
type outer struct {
	src, dst     netip.Addr
	ttl, tos     uint8
	df           bool
	sport, dport uint16
	sum          uint16
	flags        uint8
	vni          uint32
	inner        []byte // from the inner Ethernet header on
}

func parseOuter(b []byte) (o outer, ok bool) {
	if len(b) < 14+20 {
		return o, false
	}
	var l4 []byte
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		h := b[14:]
		if h[9] != 17 {
			return o, false
		}
		o.src, o.dst = netip.AddrFrom4([4]byte(h[12:16])), netip.AddrFrom4([4]byte(h[16:20]))
		o.tos, o.ttl, o.df = h[1], h[8], h[6]&0x40 != 0
		l4 = h[20:]
	case 0x86dd:
		h := b[14:]
		if len(h) < 40 || h[6] != 17 {
			return o, false
		}
		o.src, o.dst = netip.AddrFrom16([16]byte(h[8:24])), netip.AddrFrom16([16]byte(h[24:40]))
		o.tos, o.ttl, o.df = uint8(binary.BigEndian.Uint16(h)>>4), h[7], true
		l4 = h[40:]
	}
	if len(l4) < 16+14+20 {
		return o, false
	}
	o.sport, o.dport, o.sum = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:]), binary.BigEndian.Uint16(l4[6:])
	o.flags, o.vni, o.inner = l4[8], binary.BigEndian.Uint32(l4[12:])>>8, l4[16:]
	return o, o.dport == tunnelPort
}

// capture collects what the router gets from a device until the function that it
// returns is called.
func capture(t *testing.T, s *space, dev string) func() []outer {
	t.Helper()
	var fd int
	s.in(t, func() {
		var err error
		const all = 0x0300 // ETH_P_ALL, network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link(t, dev).Attrs().Index}); err != nil {
			t.Fatal(err)
		}
	})
	return func() []outer {
		defer unix.Close(fd)
		tv := unix.NsecToTimeval(int64(200 * time.Millisecond))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			t.Fatal(err)
		}
		var out []outer
		for {
			buf := make([]byte, 1<<16)
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return out
			}
			if ll, isLL := from.(*unix.SockaddrLinklayer); isLL && ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			if o, ok := parseOuter(buf[:n]); ok {
				out = append(out, o)
			}
		}
	}
}

// TestOverlayOuterHeaders guards against outer packets that routers treat
// otherwise than the pod's own: cut up, without their class, without a sign of
// congestion, on one path for all flows, or with an end to their life too soon.
func TestOverlayOuterHeaders(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		n1, n2 := c.nodes[0], c.nodes[1]
		const tos = 46<<2 | 2 // a class of its own, and able to hear of congestion
		for _, fam := range families {
			dst := ap(n2.pods[0].addr.of(fam), 7000)
			echoUDP(t, n2.pods[0].space, dst)
			stop := capture(t, c.router, "r1")
			ports := map[uint16]bool{}
			const flows = 32
			for range flows {
				con, err := dial(t, n1.pods[0].space, "udp", dst)
				if err != nil {
					t.Fatal(err)
				}
				setTOS(t, con, fam, tos)
				if err := exchange(con, 100); err != nil {
					t.Error(err)
				}
			}
			got := stop()
			if len(got) != flows {
				t.Fatalf("ipv%d: %d packets on the wire, want %d", fam, len(got), flows)
			}
			for _, o := range got {
				ports[o.sport] = true
				o.sport, o.inner = 0, nil
				want := outer{
					src: n1.addr.of(c.underlay), dst: n2.addr.of(c.underlay), ttl: 64, tos: tos, df: true,
					dport: tunnelPort, flags: 8, vni: uint32(table.IdentityInit),
				}
				if fmt.Sprint(o) != fmt.Sprint(want) {
					t.Errorf("ipv%d: outer %+v, want %+v", fam, o, want)
				}
			}
			if len(ports) < flows/4 {
				t.Errorf("ipv%d: %d flows share %d source ports: they all take one path", fam, flows, len(ports))
			}
		}
	})
}

func setTOS(t *testing.T, c net.Conn, fam, tos int) {
	t.Helper()
	level, opt := unix.IPPROTO_IP, unix.IP_TOS
	if fam == 6 {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	setOption(t, c, level, opt, tos)
}

func setOption(t *testing.T, c net.Conn, level, opt, value int) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var opErr error
	if err := errors.Join(raw.Control(func(fd uintptr) { opErr = unix.SetsockoptInt(int(fd), level, opt, value) }), opErr); err != nil {
		t.Fatal(err)
	}
}

// inject sends inner frames to a node's tunnel port out of the router, from an
// outer source of choice.
func (c *overlayCluster) inject(from, to netip.Addr, frames ...[]byte) {
	c.t.Helper()
	c.router.in(c.t, func() {
		lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
			var opErr error
			level, opt := unix.SOL_IP, unix.IP_TRANSPARENT
			if from.Is6() {
				level, opt = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
			}
			return errors.Join(raw.Control(func(fd uintptr) { opErr = unix.SetsockoptInt(int(fd), level, opt, 1) }), opErr)
		}}
		pc, err := lc.ListenPacket(c.t.Context(), "udp", ap(from, 0).String())
		if err != nil {
			c.t.Fatal(err)
		}
		defer pc.Close()
		for _, f := range frames {
			vxlan := append([]byte{8, 0, 0, 0, 0, 0, 5, 0}, f...)
			if _, err := pc.WriteTo(vxlan, net.UDPAddrFromAddrPort(ap(to, tunnelPort))); err != nil {
				c.t.Fatal(err)
			}
		}
	})
}

// TestOverlaySpoofed guards against anybody but a node getting a packet into a pod
// by the tunnel port, and a node one that is not from there, on real devices.
func TestOverlaySpoofed(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		n1, n2 := c.nodes[0], c.nodes[1]
		victim := n2.pods[0]
		stranger := netip.MustParseAddr(map[int]string{4: "10.8.1.1", 6: "fd00:8:1::1"}[c.underlay])
		for _, fam := range families {
			to := ap(victim.addr.of(fam), 7100)
			var pc net.PacketConn
			victim.in(t, func() {
				var err error
				if pc, err = net.ListenPacket("udp", to.String()); err != nil {
					t.Fatal(err)
				}
			})
			defer pc.Close()
			packet := func(src netip.Addr, say string) []byte {
				p := frame.NewUDP(ap(src, 5000), to, []byte(say))
				p.SrcMAC, p.DstMAC = frame.MAC{2, 1, 1, 1, 1, 1}, frame.MAC{2, 2, 2, 2, 2, 2}
				return p.Bytes()
			}
			pod := n1.pods[0].addr.of(fam)
			short := packet(pod, "short")
			short = short[:len(short)-10]
			tagged := packet(pod, "tagged")
			tagged = append(append(append([]byte{}, tagged[:12]...), 0x81, 0, 0, 7), tagged[12:]...)
			arp := packet(pod, "no IP")
			arp[12], arp[13] = 8, 6
			for _, tc := range []struct {
				from   netip.Addr
				frame  []byte
				reason string
			}{
				{stranger, packet(pod, "a stranger as a pod"), "tunnel-node"},
				{stranger, packet(n1.addr.of(fam), "a stranger as a node"), "tunnel-node"},
				{stranger, packet(n2.pods[1].addr.of(fam), "a stranger as a neighbour"), "tunnel-node"},
				{n1.addr.of(c.underlay), packet(n2.pods[1].addr.of(fam), "a node as the victim's neighbour"), "tunnel-source"},
				{n1.addr.of(c.underlay), packet(n2.addr.of(fam), "a node as the victim's own"), "tunnel-source"},
				{n1.addr.of(c.underlay), packet(world.of(fam), "a node as the world"), "tunnel-source"},
				{n1.addr.of(c.underlay), short, "truncated"},
				{n1.addr.of(c.underlay), tagged, "unknown-protocol"},
				{n1.addr.of(c.underlay), arp, "unknown-protocol"},
			} {
				before := n2.metrics(t)["from_overlay "+tc.reason]
				c.inject(tc.from, n2.addr.of(c.underlay), tc.frame)
				if got := n2.metrics(t)["from_overlay "+tc.reason]; got != before+1 {
					t.Errorf("ipv%d: %d more drops as %s, want 1: %v", fam, got-before, tc.reason, n2.metrics(t))
				}
			}
			// The victim hears the last one alone, which is what the node may send.
			c.inject(n1.addr.of(c.underlay), n2.addr.of(c.underlay), packet(pod, "a node for its pod"))
			buf := make([]byte, 100)
			_ = pc.SetReadDeadline(time.Now().Add(patience))
			if n, from, err := pc.ReadFrom(buf); err != nil || string(buf[:n]) != "a node for its pod" {
				t.Errorf("ipv%d: the pod heard %q from %v: %v", fam, buf[:n], from, err)
			}
		}
	})
}

// TestOverlayErrors guards against errors that do not find back through the
// overlay: of the pod at the other end, of its node, and of the last hop.
func TestOverlayErrors(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		n1, n2 := c.nodes[0], c.nodes[1]
		n2.in(t, func() {
			for _, p := range n2.nets {
				ip(t, fmt.Sprintf("route add unreachable %s metric 4000", p))
			}
		})
		for _, fam := range families {
			for _, tc := range []struct {
				name string
				to   netip.AddrPort
				ttl  int
				want []error
			}{
				{"port without a socket", ap(n2.pods[0].addr.of(fam), 9), 64, []error{syscall.ECONNREFUSED}},
				{"node's port without a socket", ap(n2.addr.of(fam), 9), 64, []error{syscall.ECONNREFUSED}},
				{"address without a pod", ap(n2.nets[fam/6].Addr().Next(), 9), 64, []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH}},
				{"the own node is the last hop", ap(n2.pods[0].addr.of(fam), 9), 1, []error{syscall.EHOSTUNREACH}},
				{"the other node is the last hop", ap(n2.pods[0].addr.of(fam), 9), 2, []error{syscall.EHOSTUNREACH}},
			} {
				t.Run(fmt.Sprintf("ipv%d/%s", fam, tc.name), func(t *testing.T) {
					con, err := dial(t, n1.pods[0].space, "udp", tc.to)
					if err != nil {
						t.Fatal(err)
					}
					if fam == 4 {
						setOption(t, con, unix.IPPROTO_IP, unix.IP_TTL, tc.ttl)
						setOption(t, con, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
					} else {
						setOption(t, con, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, tc.ttl)
						setOption(t, con, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
					}
					if _, err := con.Write([]byte("hello?")); err != nil {
						t.Fatal(err)
					}
					_, err = con.Read(make([]byte, 10))
					for _, w := range tc.want {
						if errors.Is(err, w) {
							return
						}
					}
					t.Errorf("got %v, want one of %v", err, tc.want)
				})
			}
		}
		c.noDrops()
	})
}

// TestOverlayMTU guards against black holes for pods that were made for a larger
// MTU, before the node took part: who may not fragment is told what fits, everybody
// else gets through. So do host to pod and pod to host.
func TestOverlayMTU(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		n1, n2 := c.nodes[0], c.nodes[1]
		for _, m := range c.nodes {
			for _, p := range m.pods {
				c.setPodMTU(m, p, 1500)
			}
		}
		fits := 1500 - overhead[c.underlay]
		for _, fam := range families {
			header := map[int]int{4: 20, 6: 40}[fam]
			for _, tc := range []struct {
				name     string
				from, to *space
				addr     host
			}{
				{"pod to pod", n1.pods[0].space, n2.pods[0].space, n2.pods[0].addr},
				{"pod to host", n1.pods[0].space, n2.space, n2.addr},
				{"host to pod", n1.space, n2.pods[1].space, n2.pods[1].addr},
			} {
				t.Run(fmt.Sprintf("ipv%d/%s", fam, tc.name), func(t *testing.T) {
					to := ap(tc.addr.of(fam), 7200)
					echoTCP(t, tc.to, to)
					echoUDP(t, tc.to, to)
					mtu, err := sendDF(t, tc.from, to, fits-header-8+1)
					if err != nil {
						t.Fatal(err)
					}
					if mtu != fits {
						t.Errorf("learned MTU %d, want %d", mtu, fits)
					}
					if err := roundTrip(t, tc.from, "tcp", to, 300000); err != nil {
						t.Error(err)
					}
					if err := eventually(t, tc.from, to, 10000); err != nil {
						t.Errorf("fragmented: %v", err)
					}
				})
			}
		}
		c.noDrops("too-big", "fragment-unknown")
	})
}
