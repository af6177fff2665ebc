// SPDX-License-Identifier: Apache-2.0

// Package layout tells how the entries of a map are laid out, as BTF has it, and
// brings entries from one layout into another. It is pure: types in, bytes out.
package layout

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Layout is the shape of a map's entries. Names of types are no part of it,
// names of their members are: a member is found again by its name.
type Layout struct {
	Type       ebpf.MapType
	key, value node
}

// Of returns the layout of a map with entries of these types. Types that maps of
// Weft have no use for, such as unions and pointers, are errors.
func Of(t ebpf.MapType, key, value btf.Type) (Layout, error) {
	k, err := parse(key)
	if err != nil {
		return Layout{}, fmt.Errorf("key: %w", err)
	}
	v, err := parse(value)
	if err != nil {
		return Layout{}, fmt.Errorf("value: %w", err)
	}
	return Layout{Type: t, key: k, value: v}, nil
}

// Version names the layout: equal for maps of equal type, sizes, member names,
// offsets and member types.
func (l Layout) Version() string {
	sum := sha256.Sum256([]byte(l.String()))
	return hex.EncodeToString(sum[:6])
}

// String describes the layout, one member a line.
func (l Layout) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "type %s\nkey %s\n", l.Type, l.key)
	l.key.describe(&b, "")
	fmt.Fprintf(&b, "value %s\n", l.value)
	l.value.describe(&b, "")
	return b.String()
}

type kind int

const (
	word   kind = iota // an integer
	array              // of equal nodes
	record             // a struct
)

type node struct {
	kind    kind
	size    int // bytes
	signed  bool
	elem    *node // of an array
	count   int
	members []member
}

type member struct {
	name   string
	offset int
	node
}

func parse(t btf.Type) (node, error) {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		return node{kind: word, size: int(t.Size), signed: t.Encoding == btf.Signed}, nil
	case *btf.Enum:
		return node{kind: word, size: int(t.Size), signed: t.Signed}, nil
	case *btf.Array:
		elem, err := parse(t.Type)
		if err != nil {
			return node{}, err
		}
		return node{kind: array, size: elem.size * int(t.Nelems), elem: &elem, count: int(t.Nelems)}, nil
	case *btf.Struct:
		n := node{kind: record, size: int(t.Size)}
		for _, m := range t.Members {
			if m.BitfieldSize != 0 || m.Name == "" {
				return node{}, fmt.Errorf("member %q is a bit field or has no name", m.Name)
			}
			sub, err := parse(m.Type)
			if err != nil {
				return node{}, fmt.Errorf("member %s: %w", m.Name, err)
			}
			n.members = append(n.members, member{m.Name, int(m.Offset.Bytes()), sub})
		}
		return n, nil
	default:
		return node{}, fmt.Errorf("%v is neither an integer, nor an array, nor a struct", t)
	}
}

// String names a node without its members.
func (n node) String() string {
	switch n.kind {
	case array:
		return fmt.Sprintf("%s[%d]", n.elem, n.count)
	case record:
		return fmt.Sprintf("struct of %d", n.size)
	}
	if n.signed {
		return fmt.Sprintf("s%d", 8*n.size)
	}
	return fmt.Sprintf("u%d", 8*n.size)
}

func (n node) describe(b *strings.Builder, indent string) {
	inner := n
	for inner.kind == array {
		inner = *inner.elem
	}
	for _, m := range inner.members {
		fmt.Fprintf(b, "%s  %3d %s %s\n", indent, m.offset, m.name, m.node)
		m.describe(b, indent+"  ")
	}
}

// filler says whether a member holds nothing: its bytes are for members to come.
func filler(name string) bool {
	return name == "pad" || name == "spare" || strings.HasSuffix(name, "_pad") || strings.HasSuffix(name, "_spare")
}

// Shares says whether programs of both layouts may use one map: what both know
// lies in the same place, and what one knows alone lies where the other has
// nothing but filler.
func (l Layout) Shares(other Layout) bool {
	return l.Type == other.Type && l.key.shares(other.key) && l.value.shares(other.value)
}

// place is where an integer lies.
type place struct {
	offset, size int
	signed       bool
}

func (n node) shares(other node) bool {
	if n.size != other.size {
		return false
	}
	mine, theirs := map[string]place{}, map[string]place{}
	n.places(mine, "", 0)
	other.places(theirs, "", 0)
	for name, p := range mine {
		if q, both := theirs[name]; both && p != q {
			return false
		}
		for other, q := range theirs {
			if other != name && p.offset < q.offset+q.size && q.offset < p.offset+p.size {
				return false
			}
		}
	}
	return true
}

func (n node) places(out map[string]place, name string, at int) {
	switch n.kind {
	case word:
		out[name] = place{at, n.size, n.signed}
	case array:
		for i := range n.count {
			n.elem.places(out, fmt.Sprintf("%s[%d]", name, i), at+i*n.elem.size)
		}
	case record:
		for _, m := range n.members {
			if !filler(m.name) {
				m.places(out, name+"."+m.name, at+m.offset)
			}
		}
	}
}
