// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/weft-net/weft/internal/datapath/layout"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

// abi describes what releases share while hooks run programs of both: how entries
// of maps are laid out, and the marks of packets.
func abi(t *testing.T) string {
	t.Helper()
	spec, err := object.LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, name := range maps.Names() {
		m := spec.Maps[name]
		if m.Type == ebpf.RingBuf {
			fmt.Fprintf(&b, "map %s\ntype %s\n\n", name, m.Type)
			continue
		}
		l, err := layout.Of(m.Type, m.Key, m.Value)
		if err != nil {
			t.Fatalf("map %s: %v", name, err)
		}
		fmt.Fprintf(&b, "map %s version %s\n%s\n", name, l.Version(), l)
	}
	for _, file := range []string{"types.h", "reasons.h", "lb.h"} {
		text, err := os.ReadFile(filepath.Join("../../bpf/lib", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^#define ((?:MARK|CONFIG|CT|NATF|IPC|TUNNEL|NAT|EVENT|CODES|SVC|BACKEND|AFFINITY)_\w+\s+[^/\n]*?)\s*(?:/\*.*)?$`).FindAllStringSubmatch(string(text), -1) {
			fmt.Fprintf(&b, "%s\n", strings.Join(strings.Fields(m[1]), " "))
		}
	}
	return b.String()
}

// TestABI guards against a change of what two releases share that nobody meant.
func TestABI(t *testing.T) {
	const golden = "testdata/abi.txt"
	got := abi(t)
	if os.Getenv("WEFT_UPDATE") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	have, had := lines(got), lines(string(want))
	for _, l := range had {
		if !slices.Contains(have, l) {
			t.Logf("was: %s", l)
		}
	}
	for _, l := range have {
		if !slices.Contains(had, l) {
			t.Logf("is:  %s", l)
		}
	}
	t.Error(`what releases share has changed. If that was not meant, take it back. If it was, see decision 0009:
- A new member reads 0 in the entries of a running node: 0 must mean what it was without it. In the place of
  a spare or pad member it lets both releases share the map, anywhere else the map is replaced and copied.
- A member that got another name is a new one: the old value is lost. Rename none.
- A member that changes its type (but for the width of an unsigned number) or its meaning needs a new name.
- A flag, a mark or a number is never used again for something else.
Then: WEFT_UPDATE=1 go test ./internal/datapath -run TestABI, and TestUpgrade and TestHalfSwapped must pass.`)
}

func lines(s string) []string { return strings.Split(s, "\n") }

// older returns what a map was before members of its values were changed.
func older(t *testing.T, name string, change func(*btf.Struct)) *ebpf.MapSpec {
	t.Helper()
	spec, err := object.LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	m := spec.Maps[name]
	m.MaxEntries = 64
	m.Value = btf.Copy(m.Value)
	change(m.Value.(*btf.Struct))
	return m
}

// leave pins a map with one entry under a new root, as an older release would have.
func leave(t *testing.T, spec *ebpf.MapSpec, key, value []byte) (root string) {
	t.Helper()
	root = newRoot(t)
	if err := os.MkdirAll(filepath.Join(root, "maps"), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Put(key, value); err != nil {
		t.Fatal(err)
	}
	if err := m.Pin(filepath.Join(root, "maps", spec.Name)); err != nil {
		t.Fatal(err)
	}
	return root
}

// TestLayoutComparedByMembers guards against a map of another release that has
// the same sizes and is taken as it is.
func TestLayoutComparedByMembers(t *testing.T) {
	needRoot(t)
	o := both
	o.Root = leave(t, older(t, object.DatapathMapWeftIpc4, func(s *btf.Struct) {
		for i, m := range s.Members { // identity, kind, flags, endpoint, tunnel
			if at, moved := map[string]btf.Bits{"kind": 32, "flags": 40, "endpoint": 48}[m.Name]; moved {
				s.Members[i].Offset = at
			}
		}
		slices.SortFunc(s.Members, func(a, b btf.Member) int { return cmp.Compare(a.Offset, b.Offset) })
	}), []byte{10, 2, 0, 9}, append([]byte{5, 0, 0, 0, 4, 0, 3, 1}, make([]byte, 16)...))
	rows, err := open(t, o).Maps().IPCache.List()
	want := maps.IPCacheRow{Prefix: netip.MustParsePrefix("10.2.0.9/32"), Identity: table.IdentityInit, Kind: table.KindRemotePod, EndpointID: 0x103}
	if err != nil || len(rows) != 1 || rows[0] != want {
		t.Errorf("after the upgrade: %v %v, want %v", rows, err, want)
	}
}

// TestNoMigrationSaysWhy guards against an agent that cannot start, or reads
// garbage, where a member changed its type, and against one that does not say so.
func TestNoMigrationSaysWhy(t *testing.T) {
	needRoot(t)
	var log strings.Builder
	o := both
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	spec := older(t, object.DatapathMapWeftIpc4, func(s *btf.Struct) {
		for i, m := range s.Members {
			if m.Name == "identity" {
				s.Members[i].Type = &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
			}
		}
	})
	o.Root = leave(t, spec, []byte{10, 2, 0, 9}, make([]byte, spec.ValueSize))
	if rows, err := open(t, o).Maps().IPCache.List(); err != nil || len(rows) != 0 {
		t.Errorf("after the upgrade: %v %v", rows, err)
	}
	if want := "value: member identity: was s32, is u32"; !strings.Contains(log.String(), want) {
		t.Errorf("the log does not say %q:\n%s", want, &log)
	}
}

// TestSpareMembersShareMaps guards against a release that copies maps, and with
// them risks what comes in meanwhile, although nothing moved.
func TestSpareMembersShareMaps(t *testing.T) {
	needRoot(t)
	o := both
	o.Sizes = testSizes
	spec := older(t, object.DatapathMapWeftCt4, func(s *btf.Struct) {
		for i, m := range s.Members {
			if m.Name == "src_class" {
				s.Members[i].Name = "spare" // before there were classes
			}
		}
	})
	spec.MaxEntries = uint32(testSizes.CT)
	o.Root = leave(t, spec, make([]byte, spec.KeySize), make([]byte, spec.ValueSize))
	id := func() ebpf.MapID {
		m, err := ebpf.LoadPinnedMap(filepath.Join(o.Root, "maps", spec.Name), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		return id
	}
	before := id()
	open(t, o)
	if now := id(); now != before {
		t.Errorf("map %d was replaced by %d", before, now)
	}
}
