// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve makes a machine translate a service to its backend, without hairpins.
func serve(t *testing.T, m *machine, vip, backend netip.AddrPort) {
	t.Helper()
	m.in(t, func() {
		nft(t, fmt.Sprintf(serviceRules, "ip", vip.Addr(), backend, backend.Addr(), vip.Port()))
		nft(t, fmt.Sprintf("flush chain ip svc%d hairpin", vip.Port()))
	})
}

// dialFrom connects from a port that may be in use to another address.
func dialFrom(t *testing.T, s *space, port int, to netip.AddrPort, wait time.Duration) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var err error
	s.in(t, func() {
		d := net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{Port: port}, Control: func(_, _ string, rc syscall.RawConn) error {
			var opErr error
			if err := rc.Control(func(fd uintptr) { opErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); err != nil {
				return err
			}
			return opErr
		}}
		c, err = d.Dial("tcp4", to.String())
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, c.SetDeadline(time.Now().Add(patience))
}

// TestDirectAndService guards against a connection through a service killing
// the one that the pod has to the same backend, from the same port.
func TestDirectAndService(t *testing.T) {
	c := newCluster(t)
	a := c.nodes[0]
	src := a.pods[0]
	for i, dst := range []*pod{c.nodes[1].pods[0], a.pods[1]} {
		backend, vip := ap(dst.addr.v4, 8080), netip.AddrPortFrom(netip.MustParseAddr("10.96.0.1"), uint16(80+i))
		echoTCP(t, dst.space, backend)
		serve(t, a, vip, backend)
		direct, err := dialFrom(t, src.space, 5555+i, backend, patience)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(direct, 1000); err != nil {
			t.Fatal(err)
		}
		if second, err := dialFrom(t, src.space, 5555+i, vip, 500*time.Millisecond); err == nil {
			_ = second.Close()
			t.Errorf("%s: the second connection has the ports of the first", dst.name)
		}
		if err := exchange(direct, 1000); err != nil {
			t.Errorf("%s: the direct connection after one through the service: %v", dst.name, err)
		}
		// From another port the service is there.
		if err := roundTrip(t, src.space, "tcp", vip, 1000); err != nil {
			t.Error(err)
		}
	}
	if m := a.metrics(t); m["to_net ports-in-use"] == 0 || m["to_pod ports-in-use"] == 0 {
		t.Errorf("no SYN met a fast connection: %v", m)
	}
	c.noDrops("ports-in-use")
}

// TestServiceSurvivesFlood guards against datagrams that nobody answers, sent by
// one pod, cutting another's conversation through a service: without its entry
// the next answer would reach the pod untranslated.
func TestServiceSurvivesFlood(t *testing.T) {
	c := newCluster(t)
	a := c.nodes[0]
	for i, dst := range []*pod{a.pods[1], c.nodes[1].pods[0]} {
		backend, vip := ap(dst.addr.v4, 53), netip.AddrPortFrom(netip.MustParseAddr("10.96.0.1"), uint16(53+i))
		serve(t, a, vip, backend)
		var server, flood net.PacketConn
		dst.in(t, func() {
			var err error
			if server, err = net.ListenPacket("udp4", backend.String()); err != nil {
				t.Fatal(err)
			}
		})
		defer server.Close()
		a.pods[1].in(t, func() {
			var err error
			if flood, err = net.ListenPacket("udp4", ":0"); err != nil {
				t.Fatal(err)
			}
		})
		defer flood.Close()
		client, err := dial(t, a.pods[0].space, "udp", vip)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("subscribe")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if err := server.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		_, from, err := server.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		tell := func(what string) {
			t.Helper()
			if _, err := server.WriteTo([]byte(what), from); err != nil {
				t.Fatal(err)
			}
			if err := client.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if n, err := client.Read(buf); err != nil || string(buf[:n]) != what {
				t.Errorf("%s: the %s answer: %q %v", dst.name, what, buf[:n], err)
			}
		}
		tell("first")
		nobody := &net.UDPAddr{IP: c.nodes[1].pods[1].addr.v4.AsSlice()}
		for i := range 40000 { // ten times the young table, each entry used more than once
			nobody.Port = 1024 + i/4
			_, _ = flood.WriteTo([]byte("x"), nobody)
		}
		tell("second")
	}
}
