// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// conns opens n connections to a service whose backends echo, and returns them by
// the backend that each got.
func (e *edge) conns(t *testing.T, n int, at netip.AddrPort) map[netip.AddrPort][]net.Conn {
	t.Helper()
	local := map[netip.AddrPort]net.Conn{}
	for range n {
		c, err := dial(t, e.client, "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := say(c); err != nil {
			t.Fatal(err)
		}
		local[netip.MustParseAddrPort(c.LocalAddr().String())] = c
	}
	rows, err := e.nodes[0].d.Maps().LBConns.List(0)
	must(t, err)
	out := map[netip.AddrPort][]net.Conn{}
	for _, r := range rows {
		if c := local[r.Client]; c != nil && r.Service == at && r.Proto == "TCP" {
			out[r.Backend] = append(out[r.Backend], c)
			if r.State != "established" { // else its rows would be forgotten soon, and a scale-up end it
				t.Errorf("a connection that goes on: %+v", r)
			}
		}
	}
	return out
}

// say sends something and waits for the echo.
func say(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

// Guards against a backend that goes away taking connections of others along, being
// asked by new ones, or keeping the datagrams of clients that asked it before.
func TestServiceBackendGoes(t *testing.T) {
	for _, fam := range families {
		t.Run(fmt.Sprintf("ipv%d", fam), func(t *testing.T) {
			e := newEdge(t)
			a, b := e.nodes[0], e.nodes[1]
			var ends []netip.AddrPort
			for _, p := range []*pod{a.pods[0], b.pods[0], b.pods[1]} {
				ends = append(ends, ap(p.addr.of(fam), 8080))
				echoTCP(t, p.space, ends[len(ends)-1])
				echoUDP(t, p.space, ends[len(ends)-1])
			}
			at := ap(a.addr.of(fam), edgePorts)
			tcp := e.frontend(ap(unspecified(fam), edgePorts), table.ProtoTCP, ends...)
			udp := e.frontend(ap(unspecified(fam), edgePorts), table.ProtoUDP, ends...)
			before := e.conns(t, 30, at)
			if len(before) != len(ends) {
				t.Errorf("30 connections reach %d of %d backends", len(before), len(ends))
			}
			var sockets []net.Conn
			for range 10 {
				c, err := dial(t, e.client, "udp", at)
				must(t, err)
				defer c.Close()
				must(t, say(c))
				sockets = append(sockets, c)
			}
			gone := ends[1]
			for _, f := range []*table.Frontend{tcp, udp} {
				f.Backends = append(f.Backends[:1:1], f.Backends[2:]...)
				must(t, a.d.Maps().Services.Upsert(*f))
			}
			// Its id is somebody else's now.
			again := e.frontend(ap(unspecified(fam), edgePorts+1), table.ProtoTCP)
			again.Backends = []table.BackendRef{{ID: 2, Addr: ends[2], Proto: table.ProtoTCP}}
			must(t, a.d.Maps().Services.Upsert(*again))
			for back, conns := range before {
				for _, c := range conns {
					if err := say(c); err != nil && back != gone {
						t.Errorf("a connection to %s ended with another backend: %v", back, err)
					} else if err == nil && back == gone {
						t.Errorf("a connection to %s goes on after it went", back)
					}
				}
			}
			for _, c := range sockets {
				if err := say(c); err != nil {
					t.Errorf("datagrams: %v", err)
				}
			}
			if after := e.conns(t, 20, at); len(after[gone]) > 0 || len(after) != 2 {
				t.Errorf("new connections reach %d backends, %d of them the one that is gone", len(after), len(after[gone]))
			}
		})
	}
}

// Guards against connections that end because the tables had no room for their rows
// any more.
func TestServiceRowsLost(t *testing.T) {
	e := newEdge(t)
	a, b := e.nodes[0], e.nodes[1]
	for _, fam := range families {
		for i, p := range []*pod{a.pods[0], b.pods[0]} {
			end := ap(p.addr.of(fam), 8080)
			echoTCP(t, p.space, end)
			at := ap(a.addr.of(fam), uint16(edgePorts+i))
			e.frontend(ap(unspecified(fam), at.Port()), table.ProtoTCP, end, end)
			c, err := dial(t, e.client, "tcp", at)
			must(t, err)
			defer c.Close()
			must(t, say(c))
			n, err := a.d.Maps().LBConns.Flush()
			must(t, err)
			if n < 2 {
				t.Errorf("%d rows of a connection, want one for each direction", n)
			}
			if err := say(c); err != nil {
				t.Errorf("ipv%d %s: %v", fam, end, err)
			}
		}
	}
}

// Guards against two connections of one client from one port, to two addresses of one
// backend, getting each other's answers; against a port that is not free again once
// the connection before is over.
func TestServicePortsOfOneClient(t *testing.T) {
	e := newEdge(t)
	a := e.nodes[0]
	one, two := ap(a.pods[0].addr.v4, 8080), ap(a.pods[1].addr.v4, 8080)
	echoTCP(t, a.pods[0].space, one)
	echoTCP(t, a.pods[1].space, two)
	first, second, third := ap(a.addr.v4, edgePorts), ap(a.addr.v4, edgePorts+1), ap(a.addr.v4, edgePorts+2)
	e.frontend(ap(unspecified(4), first.Port()), table.ProtoTCP, one)
	e.frontend(ap(unspecified(4), second.Port()), table.ProtoTCP, one, two)
	e.frontend(ap(unspecified(4), third.Port()), table.ProtoTCP, one)
	c1, err := dialFrom(t, e.client, 5001, first, patience)
	must(t, err)
	c2, err := dialFrom(t, e.client, 5001, second, patience)
	must(t, err)
	for _, c := range []net.Conn{c1, c2, c1} {
		must(t, say(c))
	}
	if c, err := dialFrom(t, e.client, 5001, third, time.Second/2); err == nil {
		t.Errorf("a connection to %s from a port that the client has to the same backend: %v", third, say(c))
	}
	if got := a.metrics(t)["from_net ports-in-use"]; got == 0 {
		t.Error("nobody is told why")
	}
	must(t, say(c1))
	must(t, c1.(*net.TCPConn).SetLinger(0))
	must(t, c1.Close())
	c3, err := dialFrom(t, e.client, 5001, third, patience)
	must(t, err)
	must(t, say(c3))
}

// Guards against clients that lose the backend that they are to keep, and against
// answers for those whom a service is not for.
func TestServiceFromOutsidePolicies(t *testing.T) {
	e := newEdge(t)
	a := e.nodes[0]
	for i, fam := range families {
		one, two := ap(a.pods[0].addr.of(fam), 8080), ap(a.pods[1].addr.of(fam), 8080)
		echoTCP(t, a.pods[0].space, one)
		echoTCP(t, a.pods[1].space, two)
		at := ap(a.addr.of(fam), uint16(edgePorts+10*i))
		sticky := e.frontend(ap(unspecified(fam), at.Port()), table.ProtoTCP, one, two)
		sticky.Affinity = time.Hour
		must(t, a.d.Maps().Services.Upsert(*sticky))
		if got := e.conns(t, 20, at); len(got) != 1 {
			t.Errorf("a client with affinity reaches %d backends", len(got))
		}
		refuse := func(what, reason string, f *table.Frontend, at netip.AddrPort) {
			t.Helper()
			before := a.metrics(t)["from_net "+reason]
			must(t, a.d.Maps().Services.Upsert(*f))
			if c, err := dialFor(t, e.client, at, time.Second/2); err == nil {
				t.Errorf("%s answers: %v", what, say(c))
			}
			if reason != "" && a.metrics(t)["from_net "+reason] == before {
				t.Errorf("%s: nobody is told why", what)
			}
		}
		port := at.Port() + 1
		none := e.frontend(ap(unspecified(fam), port), table.ProtoTCP)
		if _, err := dialFor(t, e.client, ap(a.addr.of(fam), port), patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a NodePort without backends: %v, want it refused", err)
		}
		none.Flags |= table.FrontendLocal
		refuse("a NodePort without backends of this node", "no-backend", none, ap(a.addr.of(fam), port))
		nobody := e.frontend(ap(e.vip.of(fam), port+5), table.ProtoTCP)
		refuse("a load balancer's address without backends", "svc-refused", nobody, ap(e.vip.of(fam), port+5))
		some := e.frontend(ap(e.vip.of(fam), port), table.ProtoTCP, one)
		some.Flags |= table.FrontendSources
		refuse("a service with source ranges", "source-ranges", some, ap(e.vip.of(fam), port))
		some.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.9.0.64/26")}
		if fam == 6 {
			some.SourceRanges = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("fd00:9::100/120")}
		}
		must(t, a.d.Maps().Services.Upsert(*some))
		if got := e.conns(t, 1, ap(e.vip.of(fam), port)); len(got) != 1 {
			t.Errorf("a client within the source ranges: %v", got)
		}
		inside := e.frontend(ap(e.vip.of(fam), port+1), table.ProtoTCP, one)
		inside.Type = table.FrontendClusterIP
		refuse("a ClusterIP", "", inside, ap(e.vip.of(fam), port+1))
	}
	cfg, err := a.d.Maps().Config.Get()
	must(t, err)
	cfg.Outside = maps.Outside{}
	must(t, a.d.SetConfig(cfg))
	if _, err := dialFor(t, e.client, ap(a.addr.v4, edgePorts), time.Second/2); err == nil {
		t.Error("services answer though they are off")
	}
}

func dialFor(t *testing.T, s *space, to netip.AddrPort, wait time.Duration) (c net.Conn, err error) {
	t.Helper()
	s.in(t, func() { c, err = net.DialTimeout("tcp", to.String(), wait) })
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// Guards against a connection that inherits what became of the one before from the
// same port, and so is forgotten or taken over while it lives.
func TestServicePortAgain(t *testing.T) {
	e := newEdge(t)
	a := e.nodes[0]
	end := ap(a.pods[0].addr.v4, 8080)
	echoTCP(t, a.pods[0].space, end)
	at := ap(a.addr.v4, edgePorts)
	e.frontend(ap(unspecified(4), at.Port()), table.ProtoTCP, end)
	e.frontend(ap(unspecified(4), at.Port()+1), table.ProtoTCP, end)
	for i := range 3 {
		c, err := dialFrom(t, e.client, 6001, at, patience)
		must(t, err)
		must(t, say(c))
		must(t, say(c))
		rows, err := a.d.Maps().LBConns.List(0)
		must(t, err)
		for _, r := range rows {
			if r.Client.Port() == 6001 && r.State != "established" {
				t.Errorf("connection %d from the port: %+v", i, r)
			}
		}
		if _, err := dialFrom(t, e.client, 6001, ap(a.addr.v4, at.Port()+1), time.Second/3); err == nil {
			t.Errorf("connection %d: another service has its port", i)
		}
		must(t, say(c))
		must(t, c.(*net.TCPConn).SetLinger(0))
		must(t, c.Close())
	}
}

// Guards against clients of a service that is gone, or not for them any more, being
// served because they were before.
func TestServiceTakenAway(t *testing.T) {
	e := newEdge(t)
	a := e.nodes[0]
	end := ap(a.pods[0].addr.v4, 8080)
	echoUDP(t, a.pods[0].space, end)
	echoTCP(t, a.pods[0].space, end)
	udp := e.frontend(ap(e.vip.v4, 53), table.ProtoUDP, end)
	other := e.frontend(ap(e.vip.v4, 54), table.ProtoUDP)
	other.Backends = udp.Backends // so that the backend stays
	must(t, a.d.Maps().Services.Upsert(*other))
	c, err := dial(t, e.client, "udp", udp.Key.Addr)
	must(t, err)
	defer c.Close()
	must(t, say(c))
	must(t, a.d.Maps().Services.Delete(udp.Key))
	ends := false
	for end := time.Now().Add(patience); !ends && time.Now().Before(end); {
		must(t, c.SetDeadline(time.Now().Add(time.Second/3)))
		_, werr := c.Write([]byte("hello"))
		_, rerr := c.Read(make([]byte, 5))
		ends = werr != nil || rerr != nil
	}
	if !ends {
		t.Error("a service that is gone goes on answering")
	}
	tcp := e.frontend(ap(e.vip.v4, 80), table.ProtoTCP, end)
	conn, err := dialFrom(t, e.client, 7001, tcp.Key.Addr, patience)
	must(t, err)
	must(t, say(conn))
	tcp.Flags |= table.FrontendSources
	must(t, a.d.Maps().Services.Upsert(*tcp))
	must(t, say(conn)) // it is not ended
	must(t, conn.(*net.TCPConn).SetLinger(0))
	must(t, conn.Close())
	if _, err := dialFrom(t, e.client, 7001, tcp.Key.Addr, time.Second/2); err == nil {
		t.Error("a client that was taken out of the source ranges opens another connection")
	}
}

// Guards against connections that end while their backend shuts down, or is not ready
// for a moment.
func TestServiceBackendDrains(t *testing.T) {
	e := newEdge(t)
	a := e.nodes[0]
	one, two := ap(a.pods[0].addr.v4, 8080), ap(a.pods[1].addr.v4, 8080)
	echoTCP(t, a.pods[0].space, one)
	echoTCP(t, a.pods[1].space, two)
	f := e.frontend(ap(unspecified(4), edgePorts), table.ProtoTCP, one, two)
	var alive atomic.Bool
	alive.Store(true)
	a.d.Maps().Services.Keep(func(addr netip.AddrPort, _ uint8) bool { return alive.Load() && addr == one })
	at := ap(a.addr.v4, edgePorts)
	before := e.conns(t, 20, at)
	f.Backends = f.Backends[1:]
	must(t, a.d.Maps().Services.Upsert(*f))
	for back, conns := range before {
		for _, c := range conns {
			if err := say(c); err != nil {
				t.Errorf("a connection to %s: %v", back, err)
			}
		}
	}
	if after := e.conns(t, 20, at); len(after[one]) > 0 {
		t.Errorf("%d new connections reach a backend that shuts down", len(after[one]))
	}
	alive.Store(false)
	must(t, a.d.Maps().Services.Prune([]table.Frontend{*f}))
	for _, c := range before[one] {
		if say(c) == nil {
			t.Error("a connection to a backend that is gone goes on")
		}
	}
}

// Guards against a backend's word that leaves as a masqueraded flow of its own because
// conntrack has forgotten who opened.
func TestServiceAnswersMasqueraded(t *testing.T) {
	e := newEdge(t)
	a := e.nodes[0]
	cfg, err := a.d.Maps().Config.Get()
	must(t, err)
	cfg.Masquerade.IPv4, cfg.Masquerade.IPv6 = true, true
	must(t, a.d.SetConfig(cfg))
	for i, fam := range families {
		end := ap(a.pods[0].addr.of(fam), 8080)
		var l net.Listener
		a.pods[0].in(t, func() { l, err = net.Listen("tcp", end.String()) })
		must(t, err)
		defer l.Close()
		at := ap(a.addr.of(fam), uint16(edgePorts+i))
		e.frontend(ap(unspecified(fam), at.Port()), table.ProtoTCP, end)
		c, err := dial(t, e.client, "tcp", at)
		must(t, err)
		defer c.Close()
		server, err := l.Accept()
		must(t, err)
		defer server.Close()
		for range 2 {
			_, err = a.d.Maps().CT.Flush()
			must(t, err)
			_, err = server.Write([]byte("hello"))
			must(t, err)
			must(t, c.SetDeadline(time.Now().Add(patience)))
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Errorf("ipv%d: the backend speaks first: %v", fam, err)
			}
		}
	}
}
