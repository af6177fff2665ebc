// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/table"
)

// Guards against a hostPort that leads to an address that the pod had before, to
// another pod of its name, or nowhere though the pod has its address; against one that
// stays after the pod; and against a start that takes hostPorts away before all pods
// are known.
func TestHostPortsFollowPods(t *testing.T) {
	f := newServiceFixture(t, 100, nil)
	f.s.p.hostPorts = true
	txn := f.t.db.WriteTxn(f.t.hostPorts)
	listed := f.t.hostPorts.RegisterInitializer(txn, "test")
	txn.Commit()
	in, err := f.s.watch()
	if err != nil {
		t.Fatal(err)
	}
	if in.hosts, err = f.t.watchHostPorts(); err != nil {
		t.Fatal(err)
	}
	defer in.close()
	f.completeAll()
	wake, err := f.s.round(in)
	if err != nil || wake.initialised == nil {
		t.Fatalf("pods are not listed yet, and the round goes on: %v", err)
	}
	f.event(1, nil, f.t.hostPorts, func(txn statedb.WriteTxn) { listed(txn) })
	pod := func(uid string, ports ...table.HostPort) func(statedb.WriteTxn) {
		return func(txn statedb.WriteTxn) {
			_, _, _ = f.t.hostPorts.Insert(txn, &table.PodHostPorts{Namespace: "default", Pod: "p", UID: uid, Ports: ports})
		}
	}
	endpoint := func(id uint16, uid, addr string, state table.EndpointState) func(statedb.WriteTxn) {
		return func(txn statedb.WriteTxn) {
			_, _, _ = f.t.endpoints.Insert(txn, &table.Endpoint{
				ID: id, ContainerID: fmt.Sprint(id), Kind: table.EndpointPod, Namespace: "default", Pod: "p", PodUID: uid,
				IPv4: ip(addr), State: state, CreatedAt: time.Unix(int64(id), 0),
			})
		}
	}
	web := table.HostPort{Port: 8080, To: 80, Proto: table.ProtoTCP}
	for _, step := range []struct {
		what string
		in   statedb.TableMeta
		do   func(statedb.WriteTxn)
		want string // backend; empty: no row
	}{
		{"an endpoint whose pod is not known", f.t.endpoints, endpoint(1, "u1", "10.0.0.1", table.EndpointReady), ""},
		{"its pod", f.t.hostPorts, pod("u1", web), "10.0.0.1:80"},
		{"the pod is replaced by one of its name", f.t.hostPorts, pod("u2", web), ""},
		{"the new one's endpoint", f.t.endpoints, endpoint(2, "u2", "10.0.0.2", table.EndpointReady), "10.0.0.2:80"},
		{"the node was restarted", f.t.endpoints, endpoint(3, "u2", "10.0.0.3", table.EndpointReady), "10.0.0.3:80"},
		{"the old one goes", f.t.endpoints, endpoint(2, "u2", "10.0.0.2", table.EndpointDisconnecting), "10.0.0.3:80"},
		{"an endpoint of before the runtime told UIDs", f.t.endpoints, endpoint(4, "", "10.0.0.4", table.EndpointReady), "10.0.0.4:80"},
		{"the pod has ended", f.t.hostPorts, func(txn statedb.WriteTxn) {
			_, _, _ = f.t.hostPorts.Delete(txn, &table.PodHostPorts{Namespace: "default", Pod: "p"})
		}, ""},
	} {
		f.event(2, f.t.arrived.hostPorts, step.in, step.do)
		if _, err := f.s.round(in); err != nil {
			t.Fatal(err)
		}
		got := ""
		if r := f.frontend("0.0.0.0:8080"); r != nil {
			var addrs []string
			for _, b := range r.Backends {
				addrs = append(addrs, b.Addr.String())
			}
			got = strings.Join(addrs, " ")
		}
		if got != step.want {
			t.Errorf("%s: backends %q, want %q", step.what, got, step.want)
		}
	}
	if ok, _ := f.t.frontends.Initialized(f.t.db.ReadTxn()); !ok {
		t.Error("all is known, and nothing may be pruned")
	}
	if got := f.t.podAddrs(f.t.db.ReadTxn(), &table.PodHostPorts{Namespace: "default", Pod: "p", UID: "u2"}); len(got) != 1 || got[0] != netip.MustParseAddr("10.0.0.4") {
		t.Errorf("addresses %v", got)
	}
}

// Guards against nodePort.addresses that close another address than they leave out, of
// this node, of others, or of pods; and against an address that stays closed to another
// owner.
func TestNodePortAddressesMarkNodes(t *testing.T) {
	f := newFixture(t)
	f.d.nodePorts = []netip.Prefix{cidr("10.9.0.0/24"), cidr("fd00:9::/64")}
	in, err := f.d.watch()
	if err != nil {
		t.Fatal(err)
	}
	derive := func() {
		t.Helper()
		txn := f.t.db.ReadTxn()
		work, _ := f.d.take(in, txn)
		if err := f.d.commit(txn, work); err != nil {
			t.Fatal(err)
		}
	}
	put(t, f.t.db, f.t.nodes, &table.Node{Name: "n1", Local: true, Addrs: []netip.Addr{ip("10.9.0.1"), ip("fd00:9::1")}})
	put(t, f.t.db, f.t.nodes, &table.Node{Name: "n2", Addrs: []netip.Addr{ip("10.9.0.2"), ip("192.0.2.2")}, PodCIDRs: []netip.Prefix{cidr("10.244.2.0/24")}})
	put(t, f.t.db, f.t.devices, &table.Device{Name: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("fd00:8::1/64")}})
	derive()
	for p, closed := range map[string]bool{
		"10.9.0.1/32": false, "fd00:9::1/128": false, "192.0.2.1/32": true, "fd00:8::1/128": true,
		"10.9.0.2/32": false, "192.0.2.2/32": true, "10.244.2.0/24": false,
	} {
		if r, ok := rows(f)[cidr(p)]; !ok || r.NoNodePort != closed {
			t.Errorf("%s: %+v, want it closed: %v", p, r, closed)
		}
	}
	drop(t, f.t.db, f.t.devices, &table.Device{Name: "eth1"})
	put(t, f.t.db, f.t.endpoints, &table.Endpoint{ID: 7, ContainerID: "c", Kind: table.EndpointPod, Pod: "p", IPv4: ip("192.0.2.1"), State: table.EndpointReady})
	derive()
	if r := rows(f)[cidr("192.0.2.1/32")]; r.Kind != table.KindLocalPod || r.NoNodePort {
		t.Errorf("a pod's address: %+v", r)
	}
}
