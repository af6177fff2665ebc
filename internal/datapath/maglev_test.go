// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/service/maglev"
	"github.com/weft-net/weft/internal/table"
)

// spreadBy has a node serve the load balancer's address by a Maglev table.
func (e *edge) spreadBy(m *machine, fam int, backends ...table.BackendRef) {
	e.t.Helper()
	must(e.t, m.d.Maps().Services.Upsert(table.Frontend{
		Key: table.FrontendKey{Addr: ap(e.vip.of(fam), 53), Proto: table.ProtoUDP}, Namespace: "a", Service: "b", Type: table.FrontendLoadBalancer,
		ServiceID: 1, Flags: table.FrontendBoth | table.FrontendMaglev, Backends: backends,
	}))
}

// askAll has each socket ask once more, and returns which backend each got at a node.
func (e *edge) askAll(m *machine, fam int, sockets []net.Conn) map[netip.AddrPort]netip.AddrPort {
	e.t.Helper()
	for _, c := range sockets {
		if err := say(c); err != nil {
			e.t.Fatal(err)
		}
	}
	rows, err := m.d.Maps().LBConns.List(0)
	must(e.t, err)
	out := map[netip.AddrPort]netip.AddrPort{}
	for _, r := range rows {
		if r.Service == ap(e.vip.of(fam), 53) {
			out[r.Client] = r.Backend
		}
	}
	return out
}

// Guards against a client that gets another backend because the network leads it to
// another node, which learned of the backends in another order and has other ids for them;
// against a backend that goes and takes the clients of others along; and against services
// that wait for a table that is not there.
func TestMaglevNodesAgree(t *testing.T) {
	e := newEdge(t)
	for _, m := range e.nodes {
		m.d.Maps().Services.SetMaglev(maglev.Table{Size: maglev.DefaultSize})
	}
	for _, fam := range families {
		t.Run(fmt.Sprintf("ipv%d", fam), func(t *testing.T) {
			a, b := e.nodes[0], e.nodes[1]
			var here, there []table.BackendRef
			for i, p := range []*pod{a.pods[0], b.pods[0], a.pods[1], b.pods[1]} {
				end := ap(p.addr.of(fam), 5353)
				echoUDP(t, p.space, end)
				id := uint32(10*fam + i)
				here = append(here, table.BackendRef{ID: id, Addr: end, Proto: table.ProtoUDP})
				there = append(there, table.BackendRef{ID: 1000 - id, Addr: end, Proto: table.ProtoUDP})
			}
			slices.Reverse(there)
			e.spreadBy(a, fam, here...)
			e.spreadBy(b, fam, there...)
			var sockets []net.Conn
			for range 60 {
				c, err := dial(t, e.client, "udp", ap(e.vip.of(fam), 53))
				must(t, err)
				defer c.Close()
				sockets = append(sockets, c)
			}
			first := e.askAll(a, fam, sockets)
			used := map[netip.AddrPort]bool{}
			for _, back := range first {
				used[back] = true
			}
			if len(first) != len(sockets) || len(used) != len(here) {
				t.Fatalf("%d of %d clients reach %d of %d backends", len(first), len(sockets), len(used), len(here))
			}
			e.client.in(t, func() { ip(t, fmt.Sprintf("route replace %s via %s", e.vip.of(fam), b.addr.of(fam))) })
			second := e.askAll(b, fam, sockets)
			for client, back := range first {
				if second[client] != back {
					t.Errorf("%s got %s by one node and %s by the other", client, back, second[client])
				}
			}
			gone := there[0].Addr
			e.spreadBy(b, fam, there[1:]...)
			_, err := b.d.Maps().LBConns.Flush()
			must(t, err)
			moved := 0
			for client, back := range e.askAll(b, fam, sockets) {
				switch was := first[client]; {
				case back == gone:
					t.Errorf("%s got %s, which is gone", client, back)
				case was != gone && back != was:
					moved++
				}
			}
			if moved > 5 { // half a percent of a table's slots do
				t.Errorf("%d of %d clients lost a backend that is still there", moved, len(sockets))
			}
			e.withoutTables(t, b, fam)
		})
	}
}

// withoutTables guards against services that stop answering where the map of tables was
// made smaller or emptied, until the agent has written their rows anew.
func (e *edge) withoutTables(t *testing.T, at *machine, fam int) {
	t.Helper()
	m := at.d.Maps().Raw(object.DatapathMapWeftMaglev)
	var keys []object.DatapathWeftMaglevKey
	var key object.DatapathWeftMaglevKey
	var chunk object.DatapathWeftMaglevChunk
	it := m.Iterate()
	for it.Next(&key, &chunk) {
		keys = append(keys, key)
	}
	must(t, it.Err())
	if len(keys) == 0 {
		t.Fatal("there are no tables")
	}
	for _, k := range keys {
		must(t, m.Delete(k))
	}
	for range 5 {
		if err := roundTrip(t, e.client, "udp", ap(e.vip.of(fam), 53), 100); err != nil {
			t.Errorf("without a table: %v", err)
		}
	}
}
