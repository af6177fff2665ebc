// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
)

// dialUDP returns a socket of the calling thread's namespace, and its cookie.
func dialUDP(network, to string) (*net.UDPConn, uint64, error) {
	addr, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		return nil, 0, err
	}
	c, err := net.DialUDP(network, nil, addr)
	if err != nil {
		return nil, 0, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	var cookie uint64
	var cerr error
	err = raw.Control(func(fd uintptr) { cookie, cerr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) })
	return c, cookie, errors.Join(err, cerr)
}

// Guards against a client that waits for ever for a backend that is gone, in the
// node's namespace or a pod's and in either family, and against one that is cut off
// though nobody asked for it.
func TestDestroyUDP(t *testing.T) {
	l := links(t)
	pod := nstest.Netns(t)
	for _, where := range []string{"", pod} {
		for _, to := range []string{"127.0.0.1:4242", "[::1]:4242"} {
			var gone, kept *net.UDPConn
			var want, other uint64
			open := func() (err error) {
				lo, err := netlink.LinkByName("lo")
				if err == nil {
					err = netlink.LinkSetUp(lo)
				}
				if err == nil {
					gone, want, err = dialUDP("udp", to)
				}
				if err == nil {
					kept, other, err = dialUDP("udp", to)
				}
				return err
			}
			if where != "" {
				nstest.Inside(t, where, open)
			} else if err := open(); err != nil {
				t.Fatal(err)
			}
			defer gone.Close()
			defer kept.Close()
			remote := netip.MustParseAddrPort(to)
			seen := map[uint64]netip.AddrPort{}
			n, err := l.DestroyUDP(where, func(u link.UDPSocket) bool {
				seen[u.Cookie] = u.Remote
				return u.Cookie == want
			})
			if err != nil || n != 1 {
				t.Fatalf("%s: %d sockets ended, %v", to, n, err)
			}
			if seen[want] != remote || seen[other] != remote {
				t.Errorf("%s: sockets seen: %v, want %d and %d", to, seen, want, other)
			}
			if err := gone.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := gone.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("%s: the owner is told %v, want %v", to, err, unix.ECONNABORTED)
			}
			if _, err := kept.Write([]byte("x")); errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EDESTADDRREQ) {
				t.Errorf("%s: another socket was ended: %v", to, err)
			}
			if n, err := l.DestroyUDP(where, func(u link.UDPSocket) bool { return u.Cookie == want }); err != nil || n != 0 {
				t.Errorf("%s: once more: %d sockets, %v", to, n, err)
			}
		}
	}
	if _, err := l.DestroyUDP(t.TempDir()+"/none", func(link.UDPSocket) bool { return true }); err == nil {
		t.Error("a namespace that is gone is no error")
	}
}
