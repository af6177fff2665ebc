// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// patience is how long a test waits for what should take milliseconds: other
// tests may occupy all cores, which may be emulated.
const patience = 30 * time.Second

// echoTCP serves one port in a namespace: it sends back all that it gets.
func echoTCP(t testing.TB, s *space, at netip.AddrPort) {
	t.Helper()
	var l net.Listener
	s.in(t, func() {
		var err error
		if l, err = net.Listen("tcp", at.String()); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// echoUDP is echoTCP for datagrams.
func echoUDP(t testing.TB, s *space, at netip.AddrPort) {
	t.Helper()
	var pc net.PacketConn
	s.in(t, func() {
		var err error
		if pc, err = net.ListenPacket("udp", at.String()); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
	})
	t.Cleanup(func() { _ = pc.Close() })
	go func() { // ends with the socket
		buf := make([]byte, 1<<16)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
}

func dial(t testing.TB, s *space, network string, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var err error
	s.in(t, func() { c, err = net.DialTimeout(network, to.String(), patience) })
	if err != nil {
		return nil, fmt.Errorf("%s to %s: %w", s.name, to, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, c.SetDeadline(time.Now().Add(patience))
}

// exchange sends size bytes and wants them back. Its time begins now, and not
// when the connection came about: programs may have been loaded since.
func exchange(c net.Conn, size int) error { return exchangeIn(patience, c, size) }

// exchangeIn is exchange with as much time as most.
func exchangeIn(most time.Duration, c net.Conn, size int) error {
	if err := c.SetDeadline(time.Now().Add(most)); err != nil {
		return err
	}
	out, in := make([]byte, size), make([]byte, size)
	_, _ = rand.Read(out)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(out)
		sent <- err
	}()
	var err error
	if _, isUDP := c.(*net.UDPConn); isUDP {
		_, err = c.Read(in)
	} else {
		_, err = io.ReadFull(c, in)
	}
	if err := errors.Join(<-sent, err); err != nil {
		return fmt.Errorf("%d bytes %s to %s: %w", size, c.LocalAddr(), c.RemoteAddr(), err)
	}
	if !bytes.Equal(in, out) {
		return fmt.Errorf("%d bytes to %s: came back changed", size, c.RemoteAddr())
	}
	return nil
}

func roundTrip(t testing.TB, s *space, network string, to netip.AddrPort, size int) error {
	t.Helper()
	c, err := dial(t, s, network, to)
	if err != nil {
		return err
	}
	return exchange(c, size)
}

// ping sends one echo request of size bytes and waits for the reply.
func ping(t testing.TB, s *space, to netip.Addr, size int) error {
	t.Helper()
	network, at, proto := "ip4:icmp", "0.0.0.0", 1
	var typ icmp.Type = ipv4.ICMPTypeEcho
	if to.Is6() {
		network, at, proto, typ = "ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest
	}
	var pc *icmp.PacketConn
	var err error
	s.in(t, func() { pc, err = icmp.ListenPacket(network, at) })
	if err != nil {
		return err
	}
	defer pc.Close()
	if err := pc.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	id := os.Getpid() & 0xffff
	m := icmp.Message{Type: typ, Body: &icmp.Echo{ID: id, Seq: 1, Data: make([]byte, size)}}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := pc.WriteTo(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return fmt.Errorf("ping %s from %s: %w", to, s.name, err)
	}
	buf := make([]byte, 1<<16)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("ping %s from %s: %w", to, s.name, err)
		}
		r, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			return err
		}
		e, ok := r.Body.(*icmp.Echo)
		if ok && (r.Type == ipv4.ICMPTypeEchoReply || r.Type == ipv6.ICMPTypeEchoReply) && e.ID == id && from.String() == to.String() {
			return nil
		}
	}
}
