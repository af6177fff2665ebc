// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/weft-net/weft/internal/datapath/layout"
)

func u(size uint32) btf.Type { return &btf.Int{Size: size} }

func list(n uint32, of btf.Type) btf.Type { return &btf.Array{Index: u(4), Type: of, Nelems: n} }

type field struct {
	name   string
	offset btf.Bits
	t      btf.Type
}

func structure(size uint32, fields ...field) btf.Type {
	s := &btf.Struct{Name: "any", Size: size}
	for _, f := range fields {
		s.Members = append(s.Members, btf.Member{Name: f.name, Type: f.t, Offset: 8 * f.offset})
	}
	return s
}

func of(t *testing.T, typ ebpf.MapType, key, value btf.Type) layout.Layout {
	t.Helper()
	l, err := layout.Of(typ, key, value)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestEntry guards against an upgrade that reads one member as another, or makes
// two entries one.
func TestEntry(t *testing.T) {
	two := structure(8, field{"a", 0, u(4)}, field{"b", 4, u(4)})
	for _, tc := range []struct {
		name         string
		older, newer btf.Type
		from, want   []byte // nil: is not carried over
	}{
		{"same", two, two, []byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"grown", two, structure(12, field{"a", 0, u(4)}, field{"b", 4, u(4)}, field{"c", 8, u(4)}), []byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0}},
		{"grown in front", two, structure(12, field{"c", 0, u(4)}, field{"a", 4, u(4)}, field{"b", 8, u(4)}), []byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}},
		{"moved", two, structure(8, field{"b", 0, u(4)}, field{"a", 4, u(4)}), []byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{5, 6, 7, 8, 1, 2, 3, 4}},
		{"shrunk", two, structure(4, field{"b", 0, u(4)}), []byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{5, 6, 7, 8}},
		{"wider", two, structure(16, field{"a", 0, u(8)}, field{"b", 8, u(8)}), []byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 7, 8, 0, 0, 0, 0}},
		{"narrower", two, structure(4, field{"a", 0, u(2)}, field{"b", 2, u(2)}), []byte{1, 2, 0, 0, 5, 6, 0, 0}, []byte{1, 2, 5, 6}},
		{"too narrow", two, structure(4, field{"a", 0, u(2)}, field{"b", 2, u(2)}), []byte{1, 2, 0, 0, 5, 6, 1, 0}, nil},
		{
			"nested", structure(16, field{"x", 0, list(2, two)}),
			structure(20, field{"x", 4, list(2, structure(8, field{"b", 0, u(4)}, field{"a", 4, u(4)}))}),
			[]byte{1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4},
			[]byte{0, 0, 0, 0, 2, 2, 2, 2, 1, 1, 1, 1, 4, 4, 4, 4, 3, 3, 3, 3},
		},
		{"filler used up", structure(12, field{"a", 0, u(4)}, field{"spare", 4, list(2, u(4))}), structure(12, field{"a", 0, u(4)}, field{"b", 4, u(4)}, field{"spare", 8, u(4)}), []byte{1, 2, 3, 4, 9, 9, 9, 9, 9, 9, 9, 9}, []byte{1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := layout.Between(of(t, ebpf.LRUHash, u(4), tc.older), of(t, ebpf.LRUHash, u(4), tc.newer))
			if err != nil {
				t.Fatal(err)
			}
			k, v, ok := m.Entry([]byte{9, 8, 7, 6}, tc.from)
			if ok != (tc.want != nil) || (ok && (!bytes.Equal(v, tc.want) || !bytes.Equal(k, []byte{9, 8, 7, 6}))) {
				t.Errorf("key % x, value % x, %t; want % x", k, v, ok, tc.want)
			}
		})
	}
}

// TestKeysStayApart guards against two connections that become one because a
// release knows less about them.
func TestKeysStayApart(t *testing.T) {
	short := structure(4, field{"a", 0, u(4)})
	long := structure(8, field{"zone", 0, u(4)}, field{"a", 4, u(4)})
	m, err := layout.Between(of(t, ebpf.Hash, long, u(4)), of(t, ebpf.LRUHash, short, u(4)))
	if err != nil {
		t.Fatal(err)
	}
	if k, _, ok := m.Entry([]byte{0, 0, 0, 0, 1, 2, 3, 4}, []byte{1, 1, 1, 1}); !ok || !bytes.Equal(k, []byte{1, 2, 3, 4}) {
		t.Errorf("without a zone: % x %t", k, ok)
	}
	if k, _, ok := m.Entry([]byte{5, 0, 0, 0, 1, 2, 3, 4}, []byte{1, 1, 1, 1}); ok {
		t.Errorf("of zone 5: % x", k)
	}
}

// TestNoWayBetween guards against entries that are carried over as garbage, and
// against an operator who is not told which member is to blame.
func TestNoWayBetween(t *testing.T) {
	signed := &btf.Int{Size: 4, Encoding: btf.Signed}
	base := of(t, ebpf.LRUHash, u(4), structure(4, field{"a", 0, u(4)}))
	for _, tc := range []struct {
		newer layout.Layout
		want  string
	}{
		{of(t, ebpf.PerCPUArray, u(4), u(4)), "was of type LRUHash, is PerCPUArray"},
		{of(t, ebpf.LRUHash, structure(4, field{"x", 0, u(4)}), structure(4, field{"a", 0, u(4)})), "key: was u32, is struct of 4"},
		{of(t, ebpf.LRUHash, u(4), structure(4, field{"a", 0, signed})), "value: member a: was u32, is s32"},
		{of(t, ebpf.LRUHash, u(4), structure(8, field{"a", 0, list(2, u(4))})), "value: member a: was u32, is u32[2]"},
	} {
		if _, err := layout.Between(base, tc.newer); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error %v does not say %q", err, tc.want)
		}
	}
	if _, err := layout.Of(ebpf.Hash, u(4), &btf.Pointer{Target: u(4)}); err == nil {
		t.Error("a pointer was taken for something that can be stored")
	}
}

// TestVersion guards against layouts that differ and are taken for one: then
// programs read another release's entries as they lie.
func TestVersion(t *testing.T) {
	a := of(t, ebpf.LRUHash, u(4), structure(8, field{"a", 0, u(4)}, field{"b", 4, u(4)}))
	renamed := of(t, ebpf.LRUHash, &btf.Typedef{Type: u(4)}, structure(8, field{"a", 0, &btf.Const{Type: u(4)}}, field{"b", 4, u(4)}))
	if a.Version() != renamed.Version() {
		t.Errorf("the names of types make a difference:\n%s\n%s", a, renamed)
	}
	for name, other := range map[string]layout.Layout{
		"type":         of(t, ebpf.Hash, u(4), structure(8, field{"a", 0, u(4)}, field{"b", 4, u(4)})),
		"key":          of(t, ebpf.LRUHash, u(8), structure(8, field{"a", 0, u(4)}, field{"b", 4, u(4)})),
		"member names": of(t, ebpf.LRUHash, u(4), structure(8, field{"b", 0, u(4)}, field{"a", 4, u(4)})),
		"member types": of(t, ebpf.LRUHash, u(4), structure(8, field{"a", 0, u(4)}, field{"b", 4, list(2, u(2))})),
		"offsets":      of(t, ebpf.LRUHash, u(4), structure(8, field{"a", 0, u(4)}, field{"b", 5, u(2)})),
	} {
		if other.Version() == a.Version() {
			t.Errorf("another %s has the same version", name)
		}
	}
}

// TestShares guards against a map that is copied although both releases can use
// it, and against one that both use and read differently.
func TestShares(t *testing.T) {
	base := of(t, ebpf.LRUHash, structure(8, field{"a", 0, u(4)}, field{"pad", 4, list(4, u(1))}), structure(12, field{"x", 0, u(4)}, field{"spare", 4, list(2, u(4))}))
	key := structure(8, field{"a", 0, u(4)}, field{"pad", 4, list(4, u(1))})
	for _, tc := range []struct {
		name  string
		newer layout.Layout
		want  bool
	}{
		{"the same", base, true},
		{"filler used up", of(t, ebpf.LRUHash, key, structure(12, field{"x", 0, u(4)}, field{"y", 4, u(4)}, field{"spare", 8, u(4)})), true},
		{"filler of the key used up", of(t, ebpf.LRUHash, structure(8, field{"a", 0, u(4)}, field{"zone", 4, u(2)}, field{"pad", 6, u(2)}), structure(12, field{"x", 0, u(4)})), true},
		{"another type", of(t, ebpf.Hash, key, structure(12, field{"x", 0, u(4)})), false},
		{"another size", of(t, ebpf.LRUHash, key, structure(16, field{"x", 0, u(4)})), false},
		{"renamed", of(t, ebpf.LRUHash, key, structure(12, field{"y", 0, u(4)})), false},
		{"moved", of(t, ebpf.LRUHash, key, structure(12, field{"x", 4, u(4)})), false},
		{"halved", of(t, ebpf.LRUHash, key, structure(12, field{"x", 0, u(2)}, field{"y", 2, u(2)})), false},
	} {
		if got := base.Shares(tc.newer); got != tc.want {
			t.Errorf("%s: %t", tc.name, got)
		}
		if got := tc.newer.Shares(base); got != tc.want {
			t.Errorf("%s, the other way round: %t", tc.name, got)
		}
	}
}
