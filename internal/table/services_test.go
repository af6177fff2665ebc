// SPDX-License-Identifier: Apache-2.0

package table_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/table"
)

func key(addr string, proto, scope uint8) table.FrontendKey {
	return table.FrontendKey{Addr: netip.MustParseAddrPort(addr), Proto: proto, Scope: scope}
}

// Guards against two frontends that share a row: NodePorts of both families have
// addresses of only zeros, and one address has a row for each port, protocol and scope.
func TestFrontendKeysDoNotCollide(t *testing.T) {
	db := statedb.New()
	frontends, err := table.NewFrontends(db)
	if err != nil {
		t.Fatal(err)
	}
	keys := []table.FrontendKey{
		key("0.0.0.0:30000", table.ProtoTCP, table.ScopeExternal),
		key("[::]:30000", table.ProtoTCP, table.ScopeExternal),
		key("[::ffff:0.0.0.0]:30000", table.ProtoTCP, table.ScopeExternal),
		key("10.0.0.1:80", table.ProtoTCP, table.ScopeExternal),
		key("10.0.0.1:80", table.ProtoTCP, table.ScopeInternal),
		key("10.0.0.1:80", table.ProtoUDP, table.ScopeExternal),
		key("10.0.0.1:81", table.ProtoTCP, table.ScopeExternal),
		key("10.0.0.1:336", table.ProtoTCP, table.ScopeExternal), // 80 and 336 differ in the high byte only
	}
	txn := db.WriteTxn(frontends)
	for i, k := range keys {
		f := &table.Frontend{Key: k, Namespace: "default", Service: "web", ServiceID: uint32(i)}
		if _, had, err := frontends.Insert(txn, f); err != nil || had {
			t.Errorf("insert %s: replaced another row: %v, %v", k, had, err)
		}
	}
	rtxn := txn.Commit()
	for i, k := range keys {
		f, _, ok := frontends.Get(rtxn, table.FrontendByKey.Query(k))
		if !ok || f.ServiceID != uint32(i) {
			t.Errorf("get %s: %v, %v", k, f, ok)
		}
	}
	if n := len(statedb.Collect(frontends.List(rtxn, table.FrontendByService.Query("default/web")))); n != len(keys) {
		t.Errorf("by service: %d frontends, want %d", n, len(keys))
	}
}

// Guards against a list in a shape that scripts written for Cilium's do not read.
func TestFrontendReadsAsCiliums(t *testing.T) {
	f := table.Frontend{
		Key: key("[fd00::1]:53", table.ProtoUDP, table.ScopeInternal), ServiceID: 7, Type: table.FrontendClusterIP,
		Namespace: "kube-system", Service: "dns", PortName: "dns", Backends: []table.BackendRef{
			{ID: 3, Addr: netip.MustParseAddrPort("[fd01::2]:5353"), Proto: table.ProtoUDP},
			{ID: 4, Addr: netip.MustParseAddrPort("[fd01::3]:5353"), Proto: table.ProtoUDP, Terminating: true},
		},
	}
	want := []string{
		"7", "[fd00::1]:53/UDP/i", "ClusterIP", "kube-system/dns:dns",
		"3 => [fd01::2]:5353/UDP (active),4 => [fd01::3]:5353/UDP (terminating)",
	}
	for i, cell := range f.TableRow() {
		if cell != want[i] {
			t.Errorf("column %s: %q, want %q", f.TableHeader()[i], cell, want[i])
		}
	}
}

// Guards against a change that is taken for none, which would never reach the kernel.
func TestFrontendEqualSeesEveryField(t *testing.T) {
	base := func() *table.Frontend {
		return &table.Frontend{Key: key("10.0.0.1:80", table.ProtoTCP, 0), Backends: []table.BackendRef{{ID: 1}}}
	}
	if !base().Equal(base()) {
		t.Fatal("two equal rows differ")
	}
	for name, change := range map[string]func(*table.Frontend){
		"key":           func(f *table.Frontend) { f.Key.Scope = 1 },
		"namespace":     func(f *table.Frontend) { f.Namespace = "x" },
		"service":       func(f *table.Frontend) { f.Service = "x" },
		"port name":     func(f *table.Frontend) { f.PortName = "x" },
		"type":          func(f *table.Frontend) { f.Type = table.FrontendNodePort },
		"service id":    func(f *table.Frontend) { f.ServiceID = 2 },
		"affinity":      func(f *table.Frontend) { f.Affinity = time.Second },
		"flags":         func(f *table.Frontend) { f.Flags = table.FrontendBoth },
		"backends":      func(f *table.Frontend) { f.Backends[0].Terminating = true },
		"source ranges": func(f *table.Frontend) { f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} },
	} {
		f := base()
		change(f)
		if f.Equal(base()) {
			t.Errorf("a change of %s is not seen", name)
		}
	}
}
