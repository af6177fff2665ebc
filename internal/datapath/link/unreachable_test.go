// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/table"
)

func unreachable() []table.Route {
	return []table.Route{
		{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Type: table.RouteUnreachable},
		{Prefix: netip.MustParsePrefix("fd09::/64"), Type: table.RouteUnreachable},
	}
}

// allErrors makes a socket tell of ICMP errors that may pass, too.
func allErrors(network, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		if network == "udp6" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
	}); e != nil {
		return e
	}
	return err
}

// answer sends a datagram to an address where nobody is, and returns what comes
// back within a second.
func answer(to string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := (&net.Dialer{Control: allErrors}).DialContext(ctx, "udp", net.JoinHostPort(to, "9"))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

// Packets to unused addresses of the node's own ranges must not leave by the
// default route, where a router sends them back: who asks is told at once.
func TestUnusedAddressIsUnreachable(t *testing.T) {
	l := links(t)
	node(t)
	v, _ := pod(t, l)
	for _, args := range [][]string{
		{"neigh", "add", "192.0.2.254", "lladdr", "02:00:00:00:00:fe", "dev", "node0", "nud", "permanent"},
		{"neigh", "add", "2001:db8::fe", "lladdr", "02:00:00:00:00:fe", "dev", "node0", "nud", "permanent"},
		{"route", "add", "default", "via", "192.0.2.254"},
		{"-6", "route", "add", "default", "via", "2001:db8::fe"},
	} {
		if err := ip(args...); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // idempotent
		for _, r := range unreachable() {
			if err := l.UpsertRoute(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := listed(t, l); !slices.Equal(got, unreachable()) {
		t.Errorf("got %+v, want %+v", got, unreachable())
	}
	for _, to := range []string{"10.9.0.77", "fd09::77"} {
		for where, f := range map[string]func() error{
			"the node": func() error { return answer(to) },
			"a pod": func() (err error) {
				nstest.Inside(t, v.Netns, func() error { err = answer(to); return nil })
				return err
			},
		} {
			start := time.Now()
			err := f()
			if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("%s from %s: %v", to, where, err)
			}
			if d := time.Since(start); d > 500*time.Millisecond {
				t.Errorf("%s from %s: told after %s", to, where, d)
			}
		}
	}
	talk(t, "", v.Netns, pod4)
	talk(t, "", v.Netns, pod6)
	for _, r := range unreachable() {
		if err := l.DeleteRoute(r.Prefix); err != nil {
			t.Fatal(err)
		}
	}
	if got := listed(t, l); len(got) != 0 {
		t.Errorf("after deletion: %+v", got)
	}
	talk(t, "", v.Netns, pod4) // deletion spared the pod's route
}

// A range that was another node's: the old route must go, else packets follow it.
// What others have for the range stays and goes first.
func TestUnreachableTakesTurns(t *testing.T) {
	l := links(t)
	node(t)
	there := []table.Route{route4(), route6()}
	here := []table.Route{{Prefix: there[0].Prefix, Type: table.RouteUnreachable}, {Prefix: there[1].Prefix, Type: table.RouteUnreachable}}
	for _, want := range [][]table.Route{there, here, there, here} {
		for _, r := range want {
			if err := l.UpsertRoute(r); err != nil {
				t.Fatal(err)
			}
		}
		if got := listed(t, l); !slices.Equal(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if err := ip("route", "add", here[0].Prefix.String(), "via", "192.0.2.99"); err != nil {
		t.Fatal(err)
	}
	if err := l.UpsertRoute(here[0]); err != nil {
		t.Errorf("beside a foreign route: %v", err)
	}
	if err := l.DeleteAllRoutes(); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, l); len(got) != 0 {
		t.Errorf("after deleting all: %+v", got)
	}
	if err := ip("route", "del", here[0].Prefix.String(), "via", "192.0.2.99"); err != nil {
		t.Errorf("the foreign route is gone: %v", err)
	}
	if err := l.UpsertRoute(table.Route{Prefix: here[0].Prefix, Type: "blackhole"}); err == nil {
		t.Error("an unknown type is taken")
	}
}
