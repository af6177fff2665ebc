// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/reconcile/reconciletest"
	"github.com/weft-net/weft/internal/table"
)

// The faults that the suite guards against stand at each of its cases; here it
// runs over the kernel's maps.
func TestReconcilerOverBPFMaps(t *testing.T) {
	if !node(t) {
		return
	}
	o, _ := newNode(t, map[string]string{})
	if err := mountOnce(o.Log, o.BPFFS, "bpf", unix.BPF_FS_MAGIC, 0); err != nil {
		t.Fatal(err)
	}
	row := func(key, version int) *table.IPCache {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(key), 0}), 24) // LPM
		switch key % 3 {
		case 1:
			p = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, 0, byte(key)}), 32)
		case 2:
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(key)}), 128)
		}
		return &table.IPCache{Prefix: p, Identity: table.Identity(1000 + version), Kind: table.KindRemotePod}
	}
	reconciletest.Run(t, func(t *testing.T) reconciletest.Harness[*table.IPCache] {
		dp, err := datapath.Open(datapath.Options{
			Root: filepath.Join(o.BPFFS, strings.NewReplacer("/", "_", " ", "_").Replace(t.Name())), IPv4: true, IPv6: true, Log: o.Log,
			Sizes: maps.Sizes{CT: 1024, CTNew: 1024, Fragments: 1024, IPCache: 1024, Networks: 1024},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = dp.Close() })
		tb, err := newTables()
		if err != nil {
			t.Fatal(err)
		}
		m := dp.Maps().IPCache
		return reconciletest.Harness[*table.IPCache]{
			DB: tb.db, Table: tb.ipcache, Row: row,
			Target: ipcacheTarget{m: m, local: func(netip.Addr) bool { return false }},
			Text:   func(r *table.IPCache) (string, string) { return r.Prefix.String(), r.Identity.String() },
			Dump: func(t *testing.T) map[string]string {
				rows, err := m.List()
				if err != nil {
					t.Fatal(err)
				}
				out := map[string]string{}
				for _, r := range rows {
					out[r.Prefix.String()] = r.Identity.String()
				}
				return out
			},
		}
	})
}
