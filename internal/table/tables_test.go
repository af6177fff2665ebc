// SPDX-License-Identifier: Apache-2.0

package table_test

import (
	"net/netip"
	"testing"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/table"
)

// Guards against the two families sharing a key: an IPv4 range and the mapped
// IPv6 range of the same bits and length must be two rows.
func TestFamiliesDoNotCollide(t *testing.T) {
	db := statedb.New()
	ipc, err := table.NewIPCache(db)
	if err != nil {
		t.Fatal(err)
	}
	prefixes := []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::ffff:0.0.0.0/96"), netip.MustParsePrefix("::/0"),
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("::ffff:10.0.0.1/128"),
	}
	txn := db.WriteTxn(ipc)
	for _, p := range prefixes {
		if _, had, err := ipc.Insert(txn, &table.IPCache{Prefix: p, Owner: p.String()}); err != nil || had {
			t.Errorf("insert %s: replaced another row: %v, %v", p, had, err)
		}
	}
	rtxn := txn.Commit()
	for _, p := range prefixes {
		row, _, ok := ipc.Get(rtxn, table.IPCacheByPrefix.Query(p))
		if !ok || row.Owner != p.String() {
			t.Errorf("get %s: %v, %v", p, row, ok)
		}
	}
}

// Guards against a row whose header and cells disagree, which would shift every
// column of the CLI's lists.
func TestRowsMatchHeaders(t *testing.T) {
	for _, r := range []statedb.TableWritable{
		&table.Endpoint{}, &table.Node{}, &table.RemotePod{}, &table.IPCache{}, &table.Device{}, &table.Route{},
		&table.Service{}, &table.EndpointSlice{}, &table.Frontend{},
	} {
		if h, c := len(r.TableHeader()), len(r.TableRow()); h != c {
			t.Errorf("%T: %d headers, %d cells", r, h, c)
		}
	}
}

// Guards against an endpoint that cannot be found by what a DEL brings.
func TestEndpointIndexes(t *testing.T) {
	db := statedb.New()
	eps, err := table.NewEndpoints(db)
	if err != nil {
		t.Fatal(err)
	}
	txn := db.WriteTxn(eps)
	for i, c := range []string{"a", "b"} {
		e := &table.Endpoint{ID: uint16(i + 1), Kind: table.EndpointPod, ContainerID: c, IfName: "eth0", Namespace: "default", Pod: "web-0"}
		if _, _, err := eps.Insert(txn, e); err != nil {
			t.Fatal(err)
		}
	}
	rtxn := txn.Commit()
	if e, _, ok := eps.Get(rtxn, table.EndpointByAttachment.Query("b/eth0")); !ok || e.ID != 2 {
		t.Errorf("by attachment: %v, %v", e, ok)
	}
	if n := len(statedb.Collect(eps.List(rtxn, table.EndpointByName.Query("default/web-0")))); n != 2 {
		t.Errorf("by name: %d endpoints, want 2", n)
	}
}
