// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/table"
)

// Guards against a node that is sent to by the overlay before it takes part, or
// not any more after it does; against packets of nodes that are not believed; and
// against pods whose row is not brought up to date with their node's.
func TestTunnelsFollowNodes(t *testing.T) {
	f := newFixture(t)
	in, err := f.d.watch()
	if err != nil {
		t.Fatal(err)
	}
	put(t, f.t.db, f.t.nodes, &table.Node{Name: "n1", Local: true, Addrs: []netip.Addr{ip("10.9.0.1"), ip("fd09::1")}, PodCIDRs: []netip.Prefix{cidr("10.244.1.0/24")}})
	n2 := table.Node{Name: "n2", Addrs: []netip.Addr{ip("10.9.0.2"), ip("fd09::2")}, PodCIDRs: []netip.Prefix{cidr("10.244.2.0/24"), cidr("fd00:2::/64")}, HealthIPs: []netip.Addr{ip("10.244.2.1")}}
	put(t, f.t.db, f.t.nodes, &n2)
	put(t, f.t.db, f.t.pods, &table.RemotePod{Namespace: "a", Pod: "b", NodeAddr: ip("fd09::2"), Addrs: []netip.Addr{ip("10.244.2.9"), ip("fd00:2::9")}})
	put(t, f.t.db, f.t.devices, &table.Device{Name: "eth0", Up: true, Selected: true, Addrs: []netip.Prefix{cidr("10.9.0.1/24"), cidr("fd09::1/64")}})
	step := func() {
		t.Helper()
		txn := f.t.db.ReadTxn()
		work, _ := f.d.take(in, txn)
		f.d.retunnel(txn, work)
		work.routes = true
		if err := f.d.commit(txn, work); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, addr netip.Addr, by bool) {
		t.Helper()
		step()
		for p, row := range rows(f) {
			a, b := netip.Addr{}, false
			if row.Kind == table.KindNode || row.Kind == table.KindRemotePod {
				a, b = addr, by
			}
			if row.Tunnel != a || row.ByTunnel != b {
				t.Errorf("%s: %s (%s) by %v %v, want %v %v", what, p, row.Kind, row.Tunnel, row.ByTunnel, a, b)
			}
		}
		routes := map[string]string{}
		for r := range f.t.routes.All(f.t.db.ReadTxn()) {
			if r.Type == "" {
				routes[r.Prefix.String()] = r.Device + " " + r.Via.String() + " " + r.Src.String()
			}
		}
		wanted := map[string]string{"10.244.2.0/24": "eth0 10.9.0.2 10.9.0.1", "fd00:2::/64": "eth0 fd09::2 fd09::1"}
		if by {
			wanted = map[string]string{"10.244.2.0/24": link.TunnelDevice + " invalid IP 10.9.0.1", "fd00:2::/64": link.TunnelDevice + " invalid IP fd09::1"}
		}
		if d := cmp.Diff(wanted, routes); d != "" {
			t.Errorf("%s: routes (-want +got):\n%s", what, d)
		}
	}
	announce := func(s string) {
		n := n2
		n.Tunnel = s
		put(t, f.t.db, f.t.nodes, &n)
	}
	none := netip.Addr{}
	want("native", none, false)
	announce("vxlan:8472:ipv4")
	want("native, the other in the overlay", none, false)
	f.d.SetOverlay(overlayView{on: true, announce: "vxlan:8472:ipv4"})
	want("both in the overlay, but the programs do not know the others", ip("10.9.0.2"), false)
	f.d.SetOverlay(overlayView{on: true, announce: "vxlan:8472:ipv4", send: true})
	want("both in the overlay", ip("10.9.0.2"), true)
	announce("")
	want("the other not any more", ip("10.9.0.2"), false)
	announce("vxlan:4789:ipv4")
	want("the other on another port", ip("10.9.0.2"), false)
	f.d.SetOverlay(overlayView{on: true, announce: "vxlan:8472:ipv6", v6: true, send: true})
	want("over IPv6", ip("fd09::2"), false)
	announce("vxlan:8472:ipv6")
	want("both over IPv6", ip("fd09::2"), true)
	f.d.SetOverlay(overlayView{})
	want("native again", none, false)
}

// Guards against an agent that starts and takes from the kernel's rows, for as long
// as it does not know all nodes, that the overlay leads there: pods are known before
// nodes, and nodes before their part in it.
func TestTunnelsWaitForNodes(t *testing.T) {
	f := newFixture(t)
	txn := f.t.db.WriteTxn(f.t.nodes)
	initialised := f.t.nodes.RegisterInitializer(txn, "nodes")
	txn.Commit()
	in, err := f.d.watch()
	if err != nil {
		t.Fatal(err)
	}
	step := func() map[netip.Prefix]table.IPCache {
		t.Helper()
		txn := f.t.db.ReadTxn()
		work, _ := f.d.take(in, txn)
		if work.routes {
			f.d.retunnel(txn, work)
		}
		if err := f.d.commit(txn, work); err != nil {
			t.Fatal(err)
		}
		return rows(f)
	}
	routes := func() (n int) {
		for range f.t.routes.All(f.t.db.ReadTxn()) {
			n++
		}
		return n
	}
	f.d.SetOverlay(overlayView{on: true, announce: "vxlan:8472:ipv4", send: true})
	put(t, f.t.db, f.t.devices, &table.Device{Name: "eth0", Up: true, Selected: true, Addrs: []netip.Prefix{cidr("10.9.0.1/24")}})
	put(t, f.t.db, f.t.nodes, &table.Node{Name: "n1", Local: true, Addrs: []netip.Addr{ip("10.9.0.1")}})
	put(t, f.t.db, f.t.pods, &table.RemotePod{Namespace: "a", Pod: "b", NodeAddr: ip("10.9.0.2"), Addrs: []netip.Addr{ip("10.244.2.9")}})
	gone := table.RemotePod{Namespace: "a", Pod: "c", NodeAddr: ip("10.9.0.3"), Addrs: []netip.Addr{ip("10.244.3.9")}}
	put(t, f.t.db, f.t.pods, &gone)
	if got := step(); len(got) != 1 || routes() != 0 {
		t.Errorf("with pods alone: %v and %d routes, want this node's address alone", got, routes())
	}
	n2 := table.Node{Name: "n2", Addrs: []netip.Addr{ip("10.9.0.2")}, PodCIDRs: []netip.Prefix{cidr("10.244.2.0/24")}}
	put(t, f.t.db, f.t.nodes, &n2)
	if got := step(); len(got) != 1 || routes() != 0 {
		t.Errorf("with half of what is known of a node: %v and %d routes, want this node's address alone", got, routes())
	}
	n2.Tunnel = "vxlan:8472:ipv4"
	other := n2
	put(t, f.t.db, f.t.nodes, &other)
	txn = f.t.db.WriteTxn(f.t.nodes)
	initialised(txn)
	txn.Commit()
	got := step()
	for _, p := range []string{"10.9.0.2/32", "10.244.2.0/24", "10.244.2.9/32"} {
		if row := got[cidr(p)]; row.Tunnel != ip("10.9.0.2") || !row.ByTunnel {
			t.Errorf("%s: %+v, want it by the overlay", p, row)
		}
	}
	if row, ok := got[cidr("10.244.3.9/32")]; !ok || row.ByTunnel {
		t.Errorf("pod of a node that nobody knows: %+v, %v", row, ok)
	}
	if routes() != 1 {
		t.Errorf("%d routes, want that to n2's pods", routes())
	}
}
