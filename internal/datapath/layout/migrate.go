// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Migration brings entries from one layout into another, member by member.
type Migration struct {
	keySize, valueSize int
	key, value         []step
}

// step copies one integer, or bytes that are the same in both.
type step struct {
	from, to         int
	fromSize, toSize int
}

// Between plans how entries of one layout get into another. Members are found by
// name: what both have is copied, what only the newer has is zero, what only the
// older had is left out; but an entry is not carried over if that leaves out a
// part of its key that is not zero, as two entries could become one. Unsigned
// integers may change their width. Anything else that changed is an error that
// names the member.
func Between(older, newer Layout) (*Migration, error) {
	if !sameKind(older.Type, newer.Type) {
		return nil, fmt.Errorf("was of type %s, is %s", older.Type, newer.Type)
	}
	m := &Migration{keySize: newer.key.size, valueSize: newer.value.size}
	var err error
	if m.key, err = plan(older.key, newer.key, 0, 0, true); err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	if m.value, err = plan(older.value, newer.value, 0, 0, false); err != nil {
		return nil, fmt.Errorf("value: %w", err)
	}
	return m, nil
}

// sameKind says whether entries mean the same in maps of both types. Those of
// per-CPU arrays and ring buffers are not worth bringing along.
func sameKind(a, b ebpf.MapType) bool {
	hash := func(t ebpf.MapType) bool { return t == ebpf.Hash || t == ebpf.LRUHash }
	return (hash(a) && hash(b)) || (a == b && (a == ebpf.Array || a == ebpf.LPMTrie))
}

func plan(older, newer node, from, to int, whole bool) ([]step, error) {
	if older.kind != newer.kind {
		return nil, fmt.Errorf("was %s, is %s", older, newer)
	}
	switch newer.kind {
	case array:
		return planArray(older, newer, from, to, whole)
	case record:
		return planRecord(older, newer, from, to, whole)
	}
	if older.size != newer.size && (older.signed || newer.signed) || older.signed != newer.signed {
		return nil, fmt.Errorf("was %s, is %s", older, newer)
	}
	return []step{{from, to, older.size, newer.size}}, nil
}

func planArray(older, newer node, from, to int, whole bool) ([]step, error) {
	if older.count != newer.count {
		return nil, fmt.Errorf("was %s, is %s", older, newer)
	}
	var steps []step
	for i := range newer.count {
		s, err := plan(*older.elem, *newer.elem, from+i*older.elem.size, to+i*newer.elem.size, whole)
		if err != nil {
			return nil, err
		}
		steps = append(steps, s...)
	}
	return steps, nil
}

func planRecord(older, newer node, from, to int, whole bool) ([]step, error) {
	at := map[string]member{}
	for _, m := range newer.members {
		at[m.name] = m
	}
	var steps []step
	for _, m := range older.members {
		if filler(m.name) {
			continue
		}
		n, ok := at[m.name]
		if !ok && whole { // copies nothing, and is refused where there is something
			steps = append(steps, step{from: from + m.offset, fromSize: m.size})
		}
		if !ok {
			continue
		}
		s, err := plan(m.node, n.node, from+m.offset, to+n.offset, whole)
		if err != nil {
			return nil, fmt.Errorf("member %s: %w", m.name, err)
		}
		steps = append(steps, s...)
	}
	return steps, nil
}

// Entry returns an entry in the newer layout. False: something in it does not fit.
func (m *Migration) Entry(key, value []byte) (k, v []byte, ok bool) {
	k, v = make([]byte, m.keySize), make([]byte, m.valueSize)
	return k, v, apply(m.key, key, k) && apply(m.value, value, v)
}

// apply relies on little-endian integers, as the committed objects have them.
func apply(steps []step, from, to []byte) bool {
	for _, s := range steps {
		n := copy(to[s.to:s.to+s.toSize], from[s.from:s.from+s.fromSize])
		for _, rest := range from[s.from+n : s.from+s.fromSize] {
			if rest != 0 {
				return false
			}
		}
	}
	return true
}

// Grown is the migration for maps of which only sizes are known: what was there
// comes first in what is there now.
func Grown(keySize, older, newer int) *Migration {
	return &Migration{
		keySize: keySize, valueSize: newer,
		key: []step{{0, 0, keySize, keySize}}, value: []step{{0, 0, older, older}},
	}
}
