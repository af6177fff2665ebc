// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// A pod is this to itself where a service leads back to it (bpf/service_ip.h).
var itself = newHost("169.254.42.1", "100::5ef7")

// Guards against services that do not answer pods whose sockets no program sees:
// those of virtual machines and user-space stacks, or all, where the socket layer is
// the node's alone. That a pod does not reach a service which it is the only backend
// of, that it hears of another address than it asked, or that backends do not see it.
func TestServicesPastSockets(t *testing.T) {
	e := newEdge(t)
	e.askFromPod(t)
	e.noDrops("icmp-redirect")
}

// Guards against the same where pods of other nodes are reached by the overlay.
func TestServicesPastSocketsByOverlay(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		e := newOverlayEdge(t, c)
		e.askFromPod(t)
		e.noDrops()
	})
}

// askFromPod has a pod of the first node talk to every kind of backend by every kind of address.
func (e *edge) askFromPod(t *testing.T) {
	a, b := e.nodes[0], e.nodes[1]
	asker := a.pods[1]
	port := uint16(edgePorts)
	for _, fam := range families {
		backends := e.answerers(fam)
		for i := range backends {
			backends[i].sees = asker.addr.of(fam)
		}
		backends = append(backends, answerer{"itself", asker.space, asker.addr.of(fam), itself.of(fam)})
		cluster := newHost("10.96.0.10", "fd00:96::10").of(fam)
		for _, back := range backends {
			echoTCP(t, back.at, ap(back.addr, 8080))
			echoUDP(t, back.at, ap(back.addr, 8080))
			tellTCP(t, back.at, ap(back.addr, 8081))
			for name, addrs := range map[string][2]netip.Addr{
				"ClusterIP":               {cluster, cluster},
				"NodePort":                {unspecified(fam), a.addr.of(fam)},
				"NodePort elsewhere":      {unspecified(fam), b.addr.of(fam)},
				"load balancer's address": {e.vip.of(fam), e.vip.of(fam)},
			} {
				port++
				t.Run(fmt.Sprintf("ipv%d %s, %s", fam, name, back.name), func(t *testing.T) {
					for _, proto := range []uint8{table.ProtoTCP, table.ProtoUDP} {
						e.insideFrontend(ap(addrs[0], port), proto, ap(back.addr, 8080))
					}
					e.insideFrontend(ap(addrs[0], port+1000), table.ProtoTCP, ap(back.addr, 8081))
					e.insideFrontend(ap(addrs[0], port+2000), table.ProtoUDP, ap(back.addr, 9))
					askAll(t, asker.space, ap(addrs[1], port))
					if got := seenBy(t, asker.space, ap(addrs[1], port+1000)); got.Addr() != back.sees {
						t.Errorf("the backend sees %s, want %s", got, back.sees)
					}
					if back.name == "itself" {
						return // what it tells itself about its datagrams is not translated
					}
					// An ICMP error about the backend must be about the service.
					if err := roundTrip(t, asker.space, "udp", ap(addrs[1], port+2000), 10); !errors.Is(err, syscall.ECONNREFUSED) {
						t.Errorf("datagrams to a closed port: %v", err)
					}
				})
			}
		}
	}
}

// insideFrontend is frontend; an address of the services' range is a ClusterIP.
func (e *edge) insideFrontend(at netip.AddrPort, proto uint8, backend netip.AddrPort) {
	f := e.frontend(at, proto, backend)
	if !at.Addr().IsUnspecified() && at.Addr() != e.vip.v4 && at.Addr() != e.vip.v6 {
		f.Type = table.FrontendClusterIP
		must(e.t, e.nodes[0].d.Maps().Services.Upsert(*f))
	}
}

// Guards against a pod's own connection to a backend that gets a service's address for an
// answer, since the same port asked the service before; and against answers that keep the
// backend's, since conntrack has forgotten that it was one.
func TestServicePastSocketRemembered(t *testing.T) {
	e := newEdge(t)
	a, b := e.nodes[0], e.nodes[1]
	asker := a.pods[1]
	for i, fam := range families {
		service := ap(newHost("10.96.0.10", "fd00:96::10").of(fam), uint16(edgePorts+i))
		process := ap(a.addr.of(fam), 8080)
		echoTCP(t, a.space, process)
		e.insideFrontend(service, table.ProtoTCP, process)
		for _, to := range []netip.AddrPort{service, process, service} {
			if err := fromPort(t, asker.space, ap(asker.addr.of(fam), 40000), to); err != nil {
				t.Errorf("%s, after others from the same port: %v", to, err)
			}
		}
		back := ap(b.pods[0].addr.of(fam), 8081)
		server := listen(t, b.pods[0].space, back)
		service = ap(service.Addr(), service.Port()+10)
		e.insideFrontend(service, table.ProtoTCP, back)
		c, err := dial(t, asker.space, "tcp", service)
		must(t, err)
		defer c.Close()
		peer, err := server.Accept()
		must(t, err)
		defer peer.Close()
		_, err = a.d.Maps().CT.Flush()
		must(t, err)
		raw, err := c.(*net.TCPConn).SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) { // it is not to say that it heard
			must(t, syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 0))
		}))
		const packets = 9
		for range packets {
			_, err = peer.Write([]byte("hello"))
			must(t, err)
		}
		must(t, c.SetReadDeadline(time.Now().Add(patience)))
		if n, err := io.ReadFull(c, make([]byte, 5*packets)); err != nil {
			t.Errorf("the backend speaks, and conntrack is empty: %d bytes, %v", n, err)
		}
	}
}

func listen(t *testing.T, s *space, at netip.AddrPort) (l net.Listener) {
	t.Helper()
	s.in(t, func() {
		var err error
		l, err = net.Listen("tcp", at.String())
		must(t, err)
	})
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// fromPort exchanges a few bytes by a connection from a port, and ends it so that the port is free.
func fromPort(t *testing.T, s *space, from, to netip.AddrPort) (err error) {
	t.Helper()
	var c net.Conn
	s.in(t, func() {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Timeout: patience}
		c, err = d.Dial("tcp", to.String())
	})
	if err != nil {
		return err
	}
	defer c.Close()
	must(t, c.(*net.TCPConn).SetLinger(0))
	return say(c)
}

// Guards against a NodePort of another node that is answered here, though
// externalTrafficPolicy Local leaves it to that node: it has other backends, or none.
func TestNodePortOfOtherNode(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		e := newOverlayEdge(t, c)
		a, b := e.nodes[0], e.nodes[1]
		cfg, err := b.d.Maps().Config.Get()
		must(t, err)
		cfg.Masquerade = maps.Masquerade{PortMin: natMin, PortMax: natMax}
		cfg.Outside = maps.Outside{IPv4: true, IPv6: true}
		must(t, b.d.SetConfig(cfg))
		for _, fam := range families {
			here, there := a.pods[0], b.pods[0]
			f := e.frontend(ap(unspecified(fam), edgePorts), table.ProtoTCP, ap(here.addr.of(fam), 8080))
			f.Flags = table.FrontendLocal
			must(t, a.d.Maps().Services.Upsert(*f))
			f.Backends[0].Addr = ap(there.addr.of(fam), 8080)
			must(t, b.d.Maps().Services.Upsert(*f))
			tellTCP(t, there.space, f.Backends[0].Addr)
			asker := a.pods[1]
			if got := seenBy(t, asker.space, ap(b.addr.of(fam), edgePorts)); got.Addr() != asker.addr.of(fam) {
				t.Errorf("the other node's backend sees %s, want %s", got, asker.addr.of(fam))
			}
		}
		e.noDrops()
	})
}

// Guards against a pod's answer that is taken for a question to a NodePort, since the
// process of a node that it answers has the same number for a port.
func TestAnswerToNodePortNumber(t *testing.T) {
	e := newEdge(t)
	a := e.nodes[0]
	server := a.pods[1]
	for _, fam := range families {
		for _, proto := range []uint8{table.ProtoTCP, table.ProtoUDP} {
			e.frontend(ap(unspecified(fam), edgePorts), proto, ap(a.pods[0].addr.of(fam), 8080))
		}
		to := ap(server.addr.of(fam), 9090)
		echoTCP(t, server.space, to)
		echoUDP(t, server.space, to)
		for _, m := range e.nodes {
			from := ap(m.addr.of(fam), edgePorts)
			if err := fromPort(t, m.space, from, to); err != nil {
				t.Errorf("TCP from %s: %v", from, err)
			}
			m.in(t, func() {
				c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
				must(t, err)
				defer c.Close()
				if err := say(c); err != nil {
					t.Errorf("UDP from %s: %v", from, err)
				}
			})
		}
	}
}

// Guards against ranges of clients outside that are asked about pods, and against rows
// of a pod that are there for the next one with its address.
func TestServicePastSocketInside(t *testing.T) {
	e := newEdge(t)
	a := e.nodes[0]
	asker := a.pods[1]
	for _, fam := range families {
		back := ap(a.pods[0].addr.of(fam), 8080)
		echoTCP(t, a.pods[0].space, back)
		f := e.frontend(ap(e.vip.of(fam), edgePorts), table.ProtoTCP, back)
		f.Flags |= table.FrontendSources
		must(t, a.d.Maps().Services.Upsert(*f))
		if err := roundTrip(t, asker.space, "tcp", f.Key.Addr, 100); err != nil {
			t.Errorf("source ranges without this pod: %v", err)
		}
	}
	conns := a.d.Maps().LBConns
	if rows, err := conns.List(0); err != nil || len(rows) != len(families) {
		t.Fatalf("rows %v, %v", rows, err)
	}
	if n, err := conns.PurgeAddrs(asker.addr.v4, asker.addr.v6); err != nil || n != 2*len(families) {
		t.Errorf("%d rows of a pod are removed, %v", n, err)
	}
	if rows, err := conns.List(0); err != nil || len(rows) > 0 {
		t.Errorf("rows are left: %v, %v", rows, err)
	}
}
