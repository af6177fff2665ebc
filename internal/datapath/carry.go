// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/layout"
	"github.com/weft-net/weft/internal/datapath/maps"
)

// carry brings the entries of one map into one that takes its place. Both live
// until every hook runs programs that use the new one: see decision 0009.
type carry struct {
	name     string
	from, to *ebpf.Map
	forth    *layout.Migration
	back     *layout.Migration // nil: entries cannot go back
}

// specLayout returns the layout that programs want. Ring buffers have none.
func specLayout(spec *ebpf.MapSpec) (layout.Layout, error) {
	if spec.Type == ebpf.RingBuf {
		return layout.Layout{Type: spec.Type}, nil
	}
	l, err := layout.Of(spec.Type, spec.Key, spec.Value)
	if err != nil {
		return l, fmt.Errorf("layout: %w", err)
	}
	return l, nil
}

// layoutOf reads the layout of a map back from the kernel: it cannot disagree
// with the entries, as a record of its own could. known is false where the kernel
// was not told it.
func layoutOf(m *ebpf.Map) (l layout.Layout, known bool, err error) {
	key, value, known, err := mapTypes(m)
	if err != nil || !known {
		return l, false, err
	}
	l, bad := layout.Of(m.Type(), key, value)
	// Somebody else's map may have members that we could not ask for.
	return l, bad == nil, nil
}

// migrations plans the way from one map to a layout, and back.
func migrations(from, to *ebpf.Map, want layout.Layout) (forth, back *layout.Migration, err error) {
	has, known, err := layoutOf(from)
	if err != nil {
		return nil, nil, err
	}
	if known {
		if forth, err = layout.Between(has, want); err != nil {
			return nil, nil, err
		}
		back, _ = layout.Between(want, has)
		return forth, back, nil
	}
	if from.Type() != to.Type() || from.KeySize() != to.KeySize() || from.ValueSize() > to.ValueSize() {
		return nil, nil, fmt.Errorf("its layout is unknown, and its sizes are others: %s, key %d, value %d bytes", from.Type(), from.KeySize(), from.ValueSize())
	}
	return layout.Grown(int(from.KeySize()), int(from.ValueSize()), int(to.ValueSize())), nil, nil
}

// carryFrom takes entries over from other maps, and remembers to do so again.
func (f *mapFiles) carryFrom(name string, want layout.Layout, sources ...*ebpf.Map) error {
	to := f.all[name]
	switch to.Type() {
	case ebpf.RingBuf, ebpf.PerCPUArray: // records, counters and budgets start anew
		return nil
	}
	for _, from := range sources {
		forth, back, err := migrations(from, to, want)
		if err != nil {
			f.log.Warn("the entries of a map cannot be carried over: what was remembered is lost", "map", name, "reason", err)
			continue
		}
		own, err := from.Clone()
		if err != nil {
			return err
		}
		c := &carry{name: name, from: own, to: to, forth: forth, back: back}
		f.carries = append(f.carries, c)
		n, lost, err := copyEntries(c.from, c.to, c.forth, ebpf.UpdateAny)
		if err != nil {
			return err
		}
		f.log.Info("carried entries over", "map", name, "entries", n, "lost", lost)
	}
	return nil
}

// follow carries over what the programs in use wrote since openMaps. overwrite is
// for as long as nothing else writes the new maps. Tables of young flows come
// first: a flow that moves to the other table meanwhile is then found in one of
// them. Before hooks are switched they come once more at the end.
func (f *mapFiles) follow(overwrite bool) error {
	flags, todo := ebpf.UpdateNoExist, f.written()
	if overwrite {
		flags = ebpf.UpdateAny
		for _, c := range todo {
			if c.young() {
				todo = append(todo, c)
			}
		}
	}
	for _, c := range todo {
		if _, _, err := copyEntries(c.from, c.to, c.forth, flags); err != nil {
			return fmt.Errorf("map %s: %w", c.name, err)
		}
	}
	return nil
}

// giveBack is follow in the other direction, for a swap that was taken back.
func (f *mapFiles) giveBack() error {
	var errs []error
	for _, c := range f.written() {
		if c.back == nil {
			continue
		}
		if _, _, err := copyEntries(c.to, c.from, c.back, ebpf.UpdateNoExist); err != nil {
			errs = append(errs, fmt.Errorf("map %s: %w", c.name, err))
		}
	}
	return errors.Join(errs...)
}

// young says whether flows begin in this table.
func (c *carry) young() bool { return maps.IsYoung(c.name) }

// written returns what concerns maps that programs write: all LRU maps, and no
// other; those of young flows first.
func (f *mapFiles) written() []*carry {
	var out []*carry
	for _, c := range f.carries {
		if c.to.Type() == ebpf.LRUHash {
			out = append(out, c)
		}
	}
	old := slices.DeleteFunc(slices.Clone(out), (*carry).young)
	return append(slices.DeleteFunc(out, func(c *carry) bool { return !c.young() }), old...)
}

func (f *mapFiles) closeCarries() error {
	var errs []error
	for _, c := range f.carries {
		errs = append(errs, c.from.Close())
	}
	f.carries = nil
	return errors.Join(errs...)
}

// copyEntries copies what fits. lost counts what does not.
func copyEntries(from, to *ebpf.Map, m *layout.Migration, flags ebpf.MapUpdateFlags) (copied, lost int, err error) {
	err = eachEntry(from, func(key, value []byte) {
		k, v, ok := m.Entry(key, value)
		if ok {
			err := to.Update(k, v, flags)
			if errors.Is(err, ebpf.ErrKeyExist) {
				return
			}
			ok = err == nil
		}
		if ok {
			copied++
		} else {
			lost++
		}
	})
	return copied, lost, err
}

// eachEntry calls f for the entries of a map, in batches: going from key to key
// would start anew, or end early, when programs remove entries meanwhile.
func eachEntry(m *ebpf.Map, f func(key, value []byte)) error {
	size := min(512, int(m.MaxEntries()))
	var cur ebpf.MapBatchCursor
	for {
		keys, values := slab(size, m.KeySize()), slab(size, m.ValueSize())
		n, err := m.BatchLookup(&cur, keys.Interface(), values.Interface(), nil)
		if errors.Is(err, syscall.ENOSPC) { // one bucket holds more
			size *= 2
			continue
		}
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !done {
			return fmt.Errorf("read entries: %w", err)
		}
		for i := range n {
			f(keys.Index(i).Bytes(), values.Index(i).Bytes())
		}
		if done {
			return nil
		}
	}
}

// slab is a slice of n elements of size bytes, whose type the library needs to
// know how many there are.
func slab(n int, size uint32) reflect.Value {
	return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), n, n)
}
