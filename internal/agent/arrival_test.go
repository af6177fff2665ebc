// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/arrival"
	"github.com/weft-net/weft/internal/table"
)

// Guards against a latency that begins somewhere on the way: the rows that follow
// from an event carry its arrival through the derivation, deletions too, and those
// that follow from none carry none.
func TestArrivalsReachTheDesiredRows(t *testing.T) {
	f := newFixture(t)
	in, err := f.d.watch()
	if err != nil {
		t.Fatal(err)
	}
	txn := f.t.db.WriteTxn(f.t.ipcache, f.t.routes)
	ipcache, err := f.t.ipcache.Changes(txn)
	if err != nil {
		t.Fatal(err)
	}
	routes, err := f.t.routes.Changes(txn)
	if err != nil {
		t.Fatal(err)
	}
	txn.Commit()
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	event := func(at time.Time, log *arrival.Log, tbl statedb.TableMeta, write func(statedb.WriteTxn)) {
		txn := f.t.db.WriteTxn(tbl)
		write(txn)
		log.Note(tbl.Revision(txn), at)
		txn.Commit()
	}
	node := func(n *table.Node) func(statedb.WriteTxn) {
		return func(txn statedb.WriteTxn) { _, _, _ = f.t.nodes.Insert(txn, n) }
	}
	expect := func(what string, want map[string]time.Time) {
		t.Helper()
		step(t, f, in)
		txn := f.t.db.ReadTxn()
		got := map[string]time.Time{}
		rows, _ := ipcache.Next(txn)
		for c, rev := range rows {
			got[c.Object.Prefix.String()] = f.t.arrived.ipcache.At(rev)
		}
		rs, _ := routes.Next(txn)
		for c, rev := range rs {
			got["route "+c.Object.Prefix.String()] = f.t.arrived.routes.At(rev)
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d rows changed, want %d: %v", what, len(got), len(want), got)
		}
		for p, w := range want {
			if g, ok := got[p]; !ok || !g.Equal(w) {
				t.Errorf("%s: %s arrived at %v (changed %t), want %v", what, p, g, ok, w)
			}
		}
	}
	self := &table.Node{Name: "n1", Local: true, Addrs: []netip.Addr{ip("10.9.0.1")}, PodCIDRs: []netip.Prefix{cidr("10.244.0.0/24")}}
	peer := &table.Node{Name: "n2", Addrs: []netip.Addr{ip("10.9.0.2")}, PodCIDRs: []netip.Prefix{cidr("10.244.1.0/24")}}
	put(t, f.t.db, f.t.devices, &table.Device{Name: "eth0", Index: 2, Up: true, Selected: true, Addrs: []netip.Prefix{cidr("10.9.0.1/24")}})
	event(at(1), f.t.arrived.nodes, f.t.nodes, node(self))
	event(at(2), f.t.arrived.nodes, f.t.nodes, node(peer))
	pod := &table.RemotePod{Namespace: "default", Pod: "web", Addrs: []netip.Addr{ip("10.244.1.7")}, NodeAddr: ip("10.9.0.2")}
	event(at(3), f.t.arrived.pods, f.t.pods, func(txn statedb.WriteTxn) { _, _, _ = f.t.pods.Insert(txn, pod) })
	put(t, f.t.db, f.t.endpoints, &table.Endpoint{ID: 2, Kind: table.EndpointPod, Pod: "first", State: table.EndpointReady, IPv4: ip("10.244.0.8")})
	expect("all at once", map[string]time.Time{
		"10.244.0.8/32": {},
		"10.9.0.1/32":   at(1), "10.9.0.2/32": at(2), "10.244.1.0/24": at(2), "10.244.1.7/32": at(3),
		// Routes are derived from all nodes together: the first of them began it.
		"route 10.244.0.0/24": at(1), "route 10.244.1.0/24": at(1),
	})
	event(at(4), f.t.arrived.pods, f.t.pods, func(txn statedb.WriteTxn) { _, _, _ = f.t.pods.Delete(txn, pod) })
	expect("a pod goes", map[string]time.Time{"10.244.1.7/32": at(4)})
	put(t, f.t.db, f.t.endpoints, &table.Endpoint{ID: 3, Kind: table.EndpointPod, Pod: "mine", State: table.EndpointReady, IPv4: ip("10.244.0.9")})
	expect("a pod of this node", map[string]time.Time{"10.244.0.9/32": {}})
	event(at(6), f.t.arrived.nodes, f.t.nodes, func(txn statedb.WriteTxn) { _, _, _ = f.t.nodes.Delete(txn, peer) })
	expect("a node goes", map[string]time.Time{"10.9.0.2/32": at(6), "10.244.1.0/24": at(6), "route 10.244.1.0/24": at(6)})
}
