// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"syscall"
	"testing"
	"time"

	dplink "github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/table"
)

// Guards against forged SYNs at a NodePort (DATAPATH rule 7) that end what others
// have: connections through the service, idle all the while, and what pods of the node
// have just asked outside, whose translations nobody outside may push out.
func TestServiceFlood(t *testing.T) {
	e := newEdge(t)
	a, b := e.nodes[0], e.nodes[1]
	cfg, err := a.d.Maps().Config.Get()
	must(t, err)
	cfg.Masquerade = maps.Masquerade{IPv4: true, IPv6: true, PortMin: 20000, PortMax: 59999}
	cfg.Trace = maps.TraceNone
	must(t, a.d.SetConfig(cfg))
	for i, net := range []string{"198.18.0.0/15", "2001:2::/48"} { // of those who do not exist
		a.in(t, func() { ip(t, fmt.Sprintf("route add %s via %s", net, e.at.of(families[i]))) })
		e.client.in(t, func() { ip(t, fmt.Sprintf("-%d route add blackhole %s", families[i], net)) })
	}
	for i, fam := range families {
		t.Run(fmt.Sprintf("ipv%d", fam), func(t *testing.T) {
			back := b.pods[0]
			echoTCP(t, back.space, ap(back.addr.of(fam), 8080))
			e.frontend(ap(unspecified(fam), edgePorts), table.ProtoTCP, ap(back.addr.of(fam), 8080))
			at := ap(a.addr.of(fam), edgePorts)
			var idle []net.Conn
			for _, c := range e.conns(t, 50, at) {
				idle = append(idle, c...)
			}
			server, asked := e.askedByPod(t, a.pods[0], ap(e.at.of(fam), uint16(7000+i)))
			e.flood(t, fam, at, 20*testSizes.NATClient)
			if err := answered(server, asked); err != nil {
				t.Errorf("the answer to what a pod asked before the flood: %v", err)
			}
			if dead := stillGo(idle); dead > 0 || len(idle) != 50 {
				t.Errorf("%d of %d idle connections do not go on", dead, len(idle))
			}
			if err := roundTrip(t, e.client, "tcp", at, 100); err != nil {
				t.Errorf("a new connection: %v", err)
			}
		})
	}
}

// answered sends an answer, and again: full queues may swallow one after a flood.
func answered(server net.PacketConn, q question) error {
	var err error
	for range 10 {
		if _, err = server.WriteTo([]byte("answer"), q.from); err != nil {
			return err
		}
		if err = q.SetReadDeadline(time.Now().Add(patience / 10)); err != nil {
			return err
		}
		if _, err = q.Read(make([]byte, 10)); err == nil {
			return nil
		}
	}
	return err
}

type question struct {
	net.Conn
	from net.Addr // as outside sees it
}

// askedByPod has a pod send a datagram to the host outside, which does not answer yet.
func (e *edge) askedByPod(t *testing.T, p *pod, to netip.AddrPort) (server net.PacketConn, q question) {
	t.Helper()
	e.client.in(t, func() {
		var err error
		server, err = net.ListenPacket("udp", to.String())
		must(t, err)
	})
	t.Cleanup(func() { _ = server.Close() })
	c, err := dial(t, p.space, "udp", to)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = c.Write([]byte("question"))
	must(t, err)
	must(t, server.SetReadDeadline(time.Now().Add(patience)))
	_, from, err := server.ReadFrom(make([]byte, 10))
	must(t, err)
	if host := netip.MustParseAddrPort(from.String()).Addr(); host != e.nodes[0].addr.v4 && host != e.nodes[0].addr.v6 {
		t.Fatalf("a pod is not masqueraded, but comes as %s", from)
	}
	return server, question{c, from}
}

// flood has clients that do not exist open connections to a service of the first node.
func (e *edge) flood(t *testing.T, fam int, at netip.AddrPort, syns int) {
	t.Helper()
	before, err := e.nodes[0].d.Maps().Metrics.Total(reason.SvcNew)
	must(t, err)
	pushSYNs(t, e.client, e.nodes[0].space, fam, at, syns)
	after, err := e.nodes[0].d.Maps().Metrics.Total(reason.SvcNew)
	must(t, err)
	if after-before < uint64(syns)*9/10 {
		t.Fatalf("only %d of %d SYNs came in", after-before, syns)
	}
}

// Guards against a node that drops in FORWARD what nobody accepts, as Docker and
// firewalld have it, and thereby what clients and backends on other nodes send each other.
func TestServiceThroughClosedFirewall(t *testing.T) {
	e := newEdge(t)
	a, b := e.nodes[0], e.nodes[1]
	for i, fam := range families { // as nodes have: rejected is what would be sent on
		a.in(t, func() { ip(t, fmt.Sprintf("-%d route add default via %s", families[i], e.at.of(fam))) })
	}
	a.in(t, func() {
		sysctl(t, "ipv4/icmp_ratelimit", "0") // nor is the client its own router elsewhere, who is told so
		sysctl(t, "ipv6/icmp/ratelimit", "0")
		l, err := dplink.New("", slog.New(slog.DiscardHandler))
		must(t, err)
		must(t, l.EnsureForward(context.Background(), dplink.Forwarded{IPv4: true, IPv6: true, Services: true}))
		for _, bin := range []string{"iptables-nft", "ip6tables-nft"} {
			if out, err := exec.Command(bin, "-P", "FORWARD", "DROP").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
	})
	for _, fam := range families {
		for i, back := range []*pod{a.pods[0], b.pods[0]} {
			to := ap(back.addr.of(fam), 8080)
			echoTCP(t, back.space, to)
			port := uint16(edgePorts + i)
			e.frontend(ap(unspecified(fam), port), table.ProtoTCP, to)
			if err := roundTrip(t, e.client, "tcp", ap(a.addr.of(fam), port), 1<<20); err != nil {
				t.Errorf("the backend is %s: %v", to, err)
			}
		}
		e.refused(t, fam)
	}
}

// refused asks services without backends, from outside and past a pod's socket: both
// must hear at once that nobody is there (DATAPATH rule 22), as kube-proxy has it.
func (e *edge) refused(t *testing.T, fam int) {
	t.Helper()
	a := e.nodes[0]
	for who, from := range map[string]*space{"a client outside": e.client, "a pod": a.pods[1].space} {
		at := ap(e.vip.of(fam), edgePorts+100)
		for _, proto := range []uint8{table.ProtoTCP, table.ProtoUDP} {
			e.frontend(at, proto)
		}
		if _, err := dialFor(t, from, at, patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s connects to a service without backends: %v, want it refused", who, err)
		}
		if err := roundTrip(t, from, "udp", at, 10); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s sends a datagram to a service without backends: %v, want it refused", who, err)
		}
	}
}
