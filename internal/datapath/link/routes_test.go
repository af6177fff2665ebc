// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/table"
)

func route4() table.Route {
	return table.Route{Prefix: netip.MustParsePrefix("10.9.7.0/24"), Via: netip.MustParseAddr("192.0.2.7"), Device: "node0", Src: node4}
}

func route6() table.Route {
	return table.Route{Prefix: netip.MustParsePrefix("fd09:7::/64"), Via: netip.MustParseAddr("2001:db8::7"), Device: "node0", Src: node6}
}

func listed(t *testing.T, l *link.Links) []table.Route {
	t.Helper()
	got, err := l.ListRoutes()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(x, y table.Route) int { return strings.Compare(x.Prefix.String(), y.Prefix.String()) })
	return got
}

// What is written must be read back the same, or the reconciler never settles;
// others' routes must not appear in it, or it would delete them.
func TestRoutesRoundTrip(t *testing.T) {
	l := links(t)
	node(t)
	if err := ip("route", "add", "10.8.0.0/24", "via", "192.0.2.9"); err != nil {
		t.Fatal(err)
	}
	want := []table.Route{route4(), route6()}
	for range 2 { // idempotent
		for _, r := range want {
			if err := l.UpsertRoute(r); err != nil {
				t.Fatal(err)
			}
		}
		if got := listed(t, l); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	want[0].Via, want[1].Via = netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("2001:db8::8")
	for _, r := range want {
		if err := l.UpsertRoute(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := listed(t, l); !slices.Equal(got, want) {
		t.Errorf("after a change: got %v, want %v", got, want)
	}
	for range 2 {
		if err := l.DeleteRoute(want[0].Prefix); err != nil {
			t.Fatal(err)
		}
	}
	if got := listed(t, l); !slices.Equal(got, want[1:]) {
		t.Errorf("after a deletion: got %v", got)
	}
	if err := l.DeleteAllRoutes(); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, l); len(got) != 0 {
		t.Errorf("after deleting all: %v", got)
	}
}

// A route that an administrator or the cloud made must be named, and stay.
func TestForeignRouteStays(t *testing.T) {
	l := links(t)
	node(t)
	for _, r := range []table.Route{route4(), route6()} {
		gw := "192.0.2.99"
		if r.Prefix.Addr().Is6() {
			gw = "2001:db8::99"
		}
		if err := ip("route", "add", r.Prefix.String(), "via", gw); err != nil {
			t.Fatal(err)
		}
		if err := l.UpsertRoute(r); err == nil || !strings.Contains(err.Error(), "not Weft's") || !strings.Contains(err.Error(), gw) {
			t.Errorf("%s: got %v", r.Prefix, err)
		}
		if err := l.DeleteRoute(r.Prefix); err != nil {
			t.Errorf("%s: delete: %v", r.Prefix, err)
		}
		if err := ip("route", "del", r.Prefix.String(), "via", gw); err != nil {
			t.Errorf("the foreign route is gone: %v", err)
		}
		if err := ip("route", "add", r.Prefix.String(), "via", r.Via.String()); err != nil {
			t.Fatal(err)
		}
		if err := l.UpsertRoute(r); err != nil {
			t.Errorf("%s: a foreign route that does the same: %v", r.Prefix, err)
		}
	}
}

// autoDirectNodeRoutes across a router cannot work, and must say so.
func TestRouteAcrossRouter(t *testing.T) {
	l := links(t)
	node(t)
	r4, r6 := route4(), route6()
	r4.Via, r6.Via = netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:7::7")
	for _, r := range []table.Route{r4, r6} {
		if err := l.UpsertRoute(r); err == nil || !strings.Contains(err.Error(), "autoDirectNodeRoutes") {
			t.Errorf("%s: got %v", r.Prefix, err)
		}
	}
	gone := route4()
	gone.Device = "eth7"
	if err := l.UpsertRoute(gone); err == nil || !strings.Contains(err.Error(), "device eth7 is not there") {
		t.Errorf("got %v", err)
	}
}

// Another network manager that deletes Weft's route must be noticed within a second.
func TestWatchRoutesSeesTheft(t *testing.T) {
	l := links(t)
	node(t)
	if err := l.UpsertRoute(route4()); err != nil {
		t.Fatal(err)
	}
	looked := make(chan struct{}, 100)
	stop := run(t, func(ctx context.Context) error { return l.WatchRoutes(ctx, func() { looked <- struct{}{} }) })
	defer stop()
	await(t, looked, "the look at the start")
	if err := ip("route", "del", "10.9.7.0/24"); err != nil {
		t.Fatal(err)
	}
	await(t, looked, "a deleted route")
}

// run runs f until the function that it returns is called, which waits for it.
func run(t *testing.T, f func(context.Context) error) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Error("does not end with its context")
		}
	}
}

func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(time.Second):
		t.Fatalf("%s was not seen within a second", what)
		panic("unreachable")
	}
}

func find(t *testing.T, ds []table.Device, name string) table.Device {
	t.Helper()
	i := slices.IndexFunc(ds, func(d table.Device) bool { return d.Name == name })
	if i < 0 {
		t.Fatalf("%s is not among %v", name, ds)
	}
	return ds[i]
}

// The wrong device means no network, and the next one over looks just like it.
func TestDeviceSelection(t *testing.T) {
	l := links(t)
	node(t)
	nstest.Bridge(t, "other0", "198.51.100.1/24", "2001:db8:5::1/64")
	nstest.Bridge(t, "docker0", "172.17.0.1/16")
	nstest.Bridge(t, "bare0")
	if err := ip("link", "add", "uplink0", "type", "veth", "peer", "name", "uplink1"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ip("link", "del", "uplink0"); err != nil {
			t.Error(err)
		}
	}()
	for _, args := range [][]string{
		{"addr", "add", "203.0.113.1/24", "dev", "uplink0"},
		{"link", "set", "uplink0", "up"},
		{"link", "set", "uplink1", "up"},
		{"route", "add", "default", "via", "203.0.113.2"},
	} {
		if err := ip(args...); err != nil {
			t.Fatal(err)
		}
	}
	pod(t, l)
	for _, c := range []struct {
		name string
		sel  link.Selection
		want string
	}{
		{"address and default route", link.Selection{NodeAddrs: []netip.Addr{node4}}, "node0 uplink0"},
		{"IPv6 address alone", link.Selection{NodeAddrs: []netip.Addr{node6}}, "node0 uplink0"},
		{"default route alone", link.Selection{}, "uplink0"},
		{"address of docker", link.Selection{NodeAddrs: []netip.Addr{netip.MustParseAddr("172.17.0.1")}}, "uplink0"},
		{"loopback as node address", link.Selection{NodeAddrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, "uplink0"},
		{"glob", link.Selection{Globs: []string{"other*"}, NodeAddrs: []netip.Addr{node4}}, "other0"},
		{"glob of all", link.Selection{Globs: []string{"*"}}, "bare0 node0 other0 uplink0"},
		{"glob of nothing", link.Selection{Globs: []string{"eth*"}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			ds, err := l.Devices(c.sel)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range ds {
				if d.Selected {
					got = append(got, d.Name)
				}
				if strings.HasPrefix(d.Name, "lxc") {
					t.Errorf("a pod's link is listed: %v", d)
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("selected %v, want %s", got, c.want)
			}
		})
	}
	ds, err := l.Devices(link.Selection{})
	if err != nil {
		t.Fatal(err)
	}
	d := find(t, ds, "node0")
	if !d.Up || d.MTU != 1500 || d.Index == 0 || d.MAC == "" || !slices.Contains(d.Addrs, netip.MustParsePrefix("192.0.2.1/24")) || !slices.Contains(d.Addrs, netip.MustParsePrefix("2001:db8::1/64")) {
		t.Errorf("got %+v", d)
	}
	if _, err := l.WatchDevices(link.Selection{Globs: []string{"eth[0"}}); err == nil || !strings.Contains(err.Error(), `"eth[0"`) {
		t.Errorf("a bad glob: %v", err)
	}
}

// A device or address that comes, goes or changes must be seen; pods must not
// cause a look each.
func TestWatchDevices(t *testing.T) {
	l := links(t)
	node(t)
	w, err := l.WatchDevices(link.Selection{})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan []table.Device, 100)
	stop := run(t, func(ctx context.Context) error { return w.Run(ctx, func(ds []table.Device) { seen <- ds }) })
	defer stop()
	if d := find(t, await(t, seen, "the start"), "node0"); d.Selected {
		t.Errorf("selected before the node's address is known: %+v", d)
	}
	w.SetNodeAddrs([]netip.Addr{node4})
	if d := find(t, await(t, seen, "the node's address"), "node0"); !d.Selected {
		t.Errorf("not selected: %+v", d)
	}
	if err := ip("addr", "add", "192.0.2.77/24", "dev", "node0"); err != nil {
		t.Fatal(err)
	}
	if d := find(t, await(t, seen, "an address"), "node0"); !slices.Contains(d.Addrs, netip.MustParsePrefix("192.0.2.77/24")) {
		t.Errorf("got %+v", d)
	}
	if err := ip("link", "set", "node0", "mtu", "1450"); err != nil {
		t.Fatal(err)
	}
	if d := find(t, await(t, seen, "an MTU"), "node0"); d.MTU != 1450 {
		t.Errorf("got %+v", d)
	}
	pod(t, l)
	if err := ip("link", "set", "node0", "mtu", "1440"); err != nil {
		t.Fatal(err)
	}
	if d := find(t, await(t, seen, "another MTU"), "node0"); d.MTU != 1440 {
		t.Errorf("a pod caused a look: %+v", d)
	}
}
