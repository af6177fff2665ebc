// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weft-net/weft/internal/table"
)

var both = families{true, true}

func ip(s string) netip.Addr     { return netip.MustParseAddr(s) }
func cidr(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// world is the input of the derivation.
type world struct {
	nodes     map[string]*table.Node
	pods      map[string]*table.RemotePod
	endpoints map[uint16]*table.Endpoint
	devices   map[string]*table.Device
}

// derived computes the ipcache from nothing: the slow, obviously right way.
func (w world) derived() map[netip.Prefix]table.IPCache {
	c := newClaims()
	var self *table.Node
	for _, n := range w.nodes {
		if n.Local {
			self = n
		}
		c.set(nodeOwner(n.Name), nodeClaims(n, both))
	}
	for _, p := range w.pods {
		c.set(podOwner(p), podClaims(p, self, both))
	}
	for _, e := range w.endpoints {
		c.set(endpointOwner(e), endpointClaims(e))
	}
	for _, d := range w.devices {
		c.set(deviceOwner(d), deviceClaims(d, both))
	}
	out := map[netip.Prefix]table.IPCache{}
	for p := range c.prefixes {
		out[p], _ = c.winner(p)
	}
	return out
}

// fixture runs a deriver over tables.
type fixture struct {
	t tables
	d *deriver
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	tb, err := newTables()
	if err != nil {
		t.Fatal(err)
	}
	none := func() ([]netip.Prefix, error) { return nil, nil }
	return &fixture{t: tb, d: newDeriver(tb, both, true, none, slog.New(slog.DiscardHandler))}
}

func put[T any](t testing.TB, db *statedb.DB, tb statedb.RWTable[T], row T) {
	t.Helper()
	txn := db.WriteTxn(tb)
	defer txn.Commit()
	if _, _, err := tb.Insert(txn, row); err != nil {
		t.Fatal(err)
	}
}

func drop[T any](t testing.TB, db *statedb.DB, tb statedb.RWTable[T], row T) {
	t.Helper()
	txn := db.WriteTxn(tb)
	defer txn.Commit()
	if _, _, err := tb.Delete(txn, row); err != nil {
		t.Fatal(err)
	}
}

func rows(f *fixture) map[netip.Prefix]table.IPCache {
	out := map[netip.Prefix]table.IPCache{}
	for r := range f.t.ipcache.All(f.t.db.ReadTxn()) {
		out[r.Prefix] = *r
	}
	return out
}

// Guards against an entry that depends on the order of events: after any
// history the table is what a fresh start would make of the present state. A
// late delete of a former owner is one of those histories.
func TestHistoryDoesNotMatter(t *testing.T) {
	addrs := []netip.Addr{ip("10.244.1.5"), ip("10.244.1.6"), ip("10.9.0.1"), ip("10.9.0.2"), ip("fd00::5")}
	ranges := []netip.Prefix{cidr("10.244.0.0/24"), cidr("10.244.1.0/24"), cidr("fd00::/64")}
	rapid.Check(t, func(rt *rapid.T) {
		f := newFixture(t)
		in, err := f.d.watch()
		if err != nil {
			rt.Fatal(err)
		}
		w := world{map[string]*table.Node{}, map[string]*table.RemotePod{}, map[uint16]*table.Endpoint{}, map[string]*table.Device{}}
		some := rapid.SliceOfNDistinct(rapid.SampledFrom(addrs), 0, 3, rapid.ID[netip.Addr])
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			switch rapid.IntRange(0, 7).Draw(rt, "what") {
			case 0:
				n := &table.Node{
					Name: rapid.SampledFrom([]string{"n1", "n2"}).Draw(rt, "node"), Addrs: some.Draw(rt, "addrs"), HealthIPs: some.Draw(rt, "health"),
					PodCIDRs: rapid.SliceOfNDistinct(rapid.SampledFrom(ranges), 0, 2, rapid.ID[netip.Prefix]).Draw(rt, "ranges"),
				}
				n.Local = n.Name == "n1"
				w.nodes[n.Name] = n
				put(t, f.t.db, f.t.nodes, n)
			case 1:
				for name, n := range w.nodes {
					if !n.Local { // a node does not lose itself
						delete(w.nodes, name)
						drop(t, f.t.db, f.t.nodes, n)
					}
					break
				}
			case 2, 3:
				p := &table.RemotePod{
					Namespace: "default", Pod: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "pod"), Addrs: some.Draw(rt, "addrs"),
					NodeAddr: rapid.SampledFrom(addrs).Draw(rt, "of"), Created: time.Unix(int64(rapid.IntRange(0, 2).Draw(rt, "age")), 0),
				}
				w.pods[p.Pod] = p
				put(t, f.t.db, f.t.pods, p)
			case 4:
				for name, p := range w.pods {
					delete(w.pods, name)
					drop(t, f.t.db, f.t.pods, p)
					break
				}
			case 5:
				e := &table.Endpoint{ID: uint16(rapid.IntRange(1, 2).Draw(rt, "id")), Kind: table.EndpointPod, Pod: "x", State: table.EndpointReady, IPv4: rapid.SampledFrom(addrs[:2]).Draw(rt, "ip")}
				e.ContainerID = fmt.Sprint(e.ID)
				w.endpoints[e.ID] = e
				put(t, f.t.db, f.t.endpoints, e)
			case 6:
				for id, e := range w.endpoints {
					delete(w.endpoints, id)
					drop(t, f.t.db, f.t.endpoints, e)
					break
				}
			case 7:
				d := &table.Device{Name: "eth0", Up: true}
				for _, a := range some.Draw(rt, "addrs") {
					d.Addrs = append(d.Addrs, netip.PrefixFrom(a, 24))
				}
				w.devices[d.Name] = d
				put(t, f.t.db, f.t.devices, d)
			}
			if rapid.Bool().Draw(rt, "derive") {
				step(rt, f, in)
			}
		}
		step(rt, f, in)
		if d := cmp.Diff(w.derived(), rows(f), cmp.Comparer(func(a, b table.IPCache) bool { return a == b })); d != "" {
			rt.Fatal(d)
		}
	})
}

// step derives once, as Run does.
func step(t interface{ Fatal(...any) }, f *fixture, in inputs) {
	txn := f.t.db.ReadTxn()
	work, _ := f.d.take(in, txn)
	if err := f.d.commit(txn, work); err != nil {
		t.Fatal(err)
	}
}

// Guards against what each kind of claim says, and who wins.
func TestClaims(t *testing.T) {
	self := &table.Node{Name: "n1", Local: true, Addrs: []netip.Addr{ip("10.9.0.1"), ip("fd09::1")}, PodCIDRs: []netip.Prefix{cidr("10.244.0.0/24")}, HealthIPs: []netip.Addr{ip("10.244.0.1")}}
	peer := &table.Node{
		Name: "n2", Addrs: []netip.Addr{ip("10.9.0.2"), ip("fd09::2")}, HealthIPs: []netip.Addr{ip("10.244.1.1")},
		PodCIDRs: []netip.Prefix{cidr("10.244.1.7/24"), cidr("fd00:1::/64")}, // host bits set
	}
	w := world{
		nodes: map[string]*table.Node{"n1": self, "n2": peer},
		pods: map[string]*table.RemotePod{
			"old": {Namespace: "a", Pod: "old", NodeAddr: ip("10.9.0.2"), Addrs: []netip.Addr{ip("10.244.1.9")}, Created: time.Unix(1, 0)},
			"new": {Namespace: "a", Pod: "new", NodeAddr: ip("10.9.0.3"), Addrs: []netip.Addr{ip("10.244.1.9")}, Created: time.Unix(2, 0), Identity: 300},
			"own": {Namespace: "a", Pod: "own", NodeAddr: ip("10.9.0.1"), Addrs: []netip.Addr{ip("10.244.0.50")}},
			"lie": {Namespace: "a", Pod: "lie", NodeAddr: ip("10.9.0.2"), Addrs: []netip.Addr{ip("10.244.0.9"), ip("10.9.0.1"), ip("10.244.1.1")}},
		},
		endpoints: map[uint16]*table.Endpoint{
			1: {ID: 1, Kind: table.EndpointPod, Namespace: "a", Pod: "web", State: table.EndpointReady, IPv4: ip("10.244.0.9"), Identity: table.IdentityInit},
			2: {ID: 2, Kind: table.EndpointPod, Namespace: "a", Pod: "bye", State: table.EndpointDisconnecting, IPv4: ip("10.244.0.10")},
		},
		devices: map[string]*table.Device{"eth0": {Name: "eth0", Addrs: []netip.Prefix{cidr("10.9.0.1/24"), cidr("192.0.2.1/24"), cidr("fe80::1/64"), cidr("127.0.0.1/8")}}},
	}
	type row struct {
		Kind     table.HostKind
		Identity table.Identity
		EP       uint16
		Node     netip.Addr
	}
	want := map[string]row{
		"10.9.0.1/32":   {table.KindHost, table.IdentityHost, 0, netip.Addr{}},
		"fd09::1/128":   {table.KindHost, table.IdentityHost, 0, netip.Addr{}},
		"192.0.2.1/32":  {table.KindHost, table.IdentityHost, 0, netip.Addr{}},
		"10.9.0.2/32":   {table.KindNode, table.IdentityRemoteNode, 0, netip.Addr{}},
		"fd09::2/128":   {table.KindNode, table.IdentityRemoteNode, 0, netip.Addr{}},
		"10.244.1.1/32": {table.KindRemotePod, table.IdentityHealth, 0, ip("10.9.0.2")},
		"10.244.1.0/24": {table.KindRemotePod, table.IdentityInit, 0, ip("10.9.0.2")},
		"fd00:1::/64":   {table.KindRemotePod, table.IdentityInit, 0, ip("fd09::2")},
		"10.244.1.9/32": {table.KindRemotePod, 300, 0, ip("10.9.0.3")},
		"10.244.0.9/32": {table.KindLocalPod, table.IdentityInit, 1, netip.Addr{}},
	}
	got := map[string]row{}
	for p, r := range w.derived() {
		got[p.String()] = row{r.Kind, r.Identity, r.EndpointID, r.NodeAddr}
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

// Guards against pruning on half of the state: the desired tables count as
// complete only when every input is.
func TestInitialisedLast(t *testing.T) {
	f := newFixture(t)
	txn := f.t.db.WriteTxn(f.t.nodes, f.t.devices)
	nodes, devices := f.t.nodes.RegisterInitializer(txn, "x"), f.t.devices.RegisterInitializer(txn, "x")
	txn.Commit()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.d.Run(ctx) }()
	put(t, f.t.db, f.t.devices, &table.Device{Name: "eth0", Up: true, Addrs: []netip.Prefix{cidr("10.9.0.1/24")}})
	ready, ch := f.t.ipcache.Initialized(f.t.db.ReadTxn())
	finish := func(init func(statedb.WriteTxn), t statedb.TableMeta) {
		txn := f.t.db.WriteTxn(t)
		init(txn)
		txn.Commit()
	}
	finish(devices, f.t.devices)
	put(t, f.t.db, f.t.devices, &table.Device{Name: "eth1"}) // gives it something to do
	select {
	case <-ch:
		t.Error("complete without nodes")
	case <-time.After(50 * time.Millisecond):
	}
	finish(nodes, f.t.nodes)
	<-ch
	if ready {
		t.Error("complete at the start")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Guards against routes that swallow packets, and against peers that are out of
// reach in silence.
func TestRoutes(t *testing.T) {
	dev := []*table.Device{
		{Name: "eth0", Up: true, Selected: true, Addrs: []netip.Prefix{cidr("10.9.0.1/24"), cidr("fd09::1/64")}},
		{Name: "eth1", Up: true, Addrs: []netip.Prefix{cidr("10.9.1.1/24"), cidr("10.9.5.1/32")}},
		{Name: "down0", Addrs: []netip.Prefix{cidr("10.9.7.1/24")}},
	}
	self := &table.Node{Name: "n1", Local: true, Addrs: []netip.Addr{ip("10.9.0.1")}, PodCIDRs: []netip.Prefix{cidr("10.244.0.0/24")}}
	node := func(name, addr string, ranges ...string) *table.Node {
		n := &table.Node{Name: name}
		for a := range strings.FieldsSeq(addr) {
			n.Addrs = append(n.Addrs, ip(a))
		}
		for _, r := range ranges {
			n.PodCIDRs = append(n.PodCIDRs, cidr(r))
		}
		return n
	}
	for _, tc := range []struct {
		name     string
		node     *table.Node
		foreign  string
		indirect bool
		routes   string
		problem  string
	}{
		{name: "one subnet", node: node("n2", "10.9.0.2 fd09::2", "10.244.1.0/24", "fd00:1::/64"), routes: "10.244.1.0/24 10.9.0.2 eth0 10.9.0.1; fd00:1::/64 fd09::2 eth0 fd09::1"},
		{name: "second device", node: node("n2", "10.9.1.2", "10.244.1.0/24"), routes: "10.244.1.0/24 10.9.1.2 eth1 10.9.1.1"},
		{name: "across a router", node: node("n2", "10.8.0.2", "10.244.1.0/24"), problem: "node n2 (10.8.0.2) is across a router: no direct route to its pods is possible: add a route for 10.244.1.0/24"},
		{name: "across a router, routed", node: node("n2", "10.8.0.2", "10.244.1.0/24"), foreign: "10.244.0.0/16"},
		{name: "a narrower route is not enough", node: node("n2", "10.8.0.2", "10.244.1.0/24"), foreign: "10.244.1.0/25", problem: "across a router"},
		{name: "a default route is not enough", node: node("n2", "10.8.0.2", "10.244.1.0/24"), foreign: "0.0.0.0/0", problem: "across a router"},
		{name: "device is down", node: node("n2", "10.9.7.2", "10.244.1.0/24"), problem: "across a router"},
		{name: "a host address is no subnet", node: node("n2", "10.9.5.1", "10.244.1.0/24"), problem: "across a router"},
		{name: "no address of the family", node: node("n2", "10.9.0.2", "fd00:1::/64"), problem: "node n2: pod range fd00:1::/64 has no next hop"},
		{name: "our own range", node: node("n2", "10.9.0.2", "10.244.0.0/16"), problem: "node n2: pod range 10.244.0.0/16 overlaps 10.244.0.0/24 of node n1"},
		{name: "range holds a node", node: node("n2", "10.9.0.2", "10.9.0.0/24"), problem: "node n2: pod range 10.9.0.0/24 contains the address 10.9.0.1 of node n1"},
		{name: "direct routes are off", node: node("n2", "10.9.0.2", "10.244.1.0/24"), indirect: true, problem: "node n2: nothing routes its pod range 10.244.1.0/24: set autoDirectNodeRoutes=true"},
		{name: "direct routes are off, routed", node: node("n2", "10.9.0.2", "10.244.1.0/24"), indirect: true, foreign: "10.244.1.0/24"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := routing{direct: !tc.indirect, fam: both, nodes: []*table.Node{tc.node, self}, devices: dev}
			if tc.foreign != "" {
				r.foreign = []netip.Prefix{cidr(tc.foreign)}
			}
			routes, problems := r.routes()
			var got []string
			for _, x := range others(routes) {
				got = append(got, fmt.Sprint(x.Prefix, " ", x.Via, " ", x.Device, " ", x.Src))
			}
			if s := strings.Join(got, "; "); s != tc.routes {
				t.Errorf("routes %q, want %q", s, tc.routes)
			}
			if all := strings.Join(problems, "; "); (tc.problem == "") != (all == "") || !strings.Contains(all, tc.problem) {
				t.Errorf("problems %q, want %q", all, tc.problem)
			}
		})
	}
	t.Run("two nodes with one range", func(t *testing.T) {
		r := routing{direct: true, fam: both, devices: dev, nodes: []*table.Node{
			self, node("n3", "10.9.0.3", "10.244.1.0/24"), node("n2", "10.9.0.2", "10.244.1.0/24"),
		}}
		routes, problems := r.routes()
		routes = others(routes)
		if len(routes) != 1 || routes[0].Owner != "node/n2" || len(problems) != 1 || !strings.Contains(problems[0], "node n3: pod range 10.244.1.0/24 overlaps 10.244.1.0/24 of node n2") {
			t.Errorf("%v, %v", routes, problems)
		}
	})
}

// Guards against pods whose packets are too large for one of the ways out.
func TestPodMTU(t *testing.T) {
	devs := []*table.Device{{MTU: 9000, Selected: true}, {MTU: 1450, Selected: true}, {MTU: 1280}}
	for _, tc := range []struct {
		setting int
		devs    []*table.Device
		want    int
	}{{0, devs, 1450}, {1400, devs, 1400}, {0, nil, 1500}, {0, devs[:1], 9000}} {
		if got := podMTU(tc.setting, tc.devs); got != tc.want {
			t.Errorf("setting %d, %d devices: %d, want %d", tc.setting, len(tc.devs), got, tc.want)
		}
	}
}

// Guards against a memory of another boot or node being taken for this one's.
func TestMemory(t *testing.T) {
	f := memoryFile{path: t.TempDir() + "/node.json", bootID: "b1", node: "n1"}
	m := memory{UID: "u", Addrs: []netip.Addr{ip("10.9.0.1")}, PodCIDRs: []netip.Prefix{cidr("10.244.0.0/24")}, ProvenAt: time.Unix(1e9, 0).UTC()}
	if err := f.save(m); err != nil {
		t.Fatal(err)
	}
	got, err := f.load()
	if err != nil || got.UID != "u" || !slices.Equal(got.PodCIDRs, m.PodCIDRs) || !got.ProvenAt.Equal(m.ProvenAt) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, other := range []memoryFile{{f.path, "b2", "n1", ""}, {f.path, "b1", "n2", ""}} {
		if got, err := other.load(); err != nil || !got.ProvenAt.IsZero() || len(got.PodCIDRs) != 0 {
			t.Errorf("%+v: %+v, %v", other, got, err)
		}
	}
	// Ranges are of the mode that gave them; that the node was proven stays.
	for mode, keeps := range map[string]bool{"kubernetes": true, "cluster-pool": false} {
		other := memoryFile{f.path, "b1", "n1", mode}
		if got, err := other.load(); err != nil || got.ProvenAt.IsZero() || (len(got.PodCIDRs) > 0) != keeps {
			t.Errorf("%s: %+v, %v", mode, got, err)
		}
	}
}
