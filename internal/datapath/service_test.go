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
