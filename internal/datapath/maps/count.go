// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"syscall"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/weft-net/weft/internal/datapath/object"
)

// kernelBTF holds the types of the running kernel.
const kernelBTF = "/sys/kernel/btf/vmlinux"

// Counter tells what the maps hold. Of hash maps the kernel is asked, where it
// keeps count (from Linux 6.6 on, with BTF): a few microseconds for all of them.
// Everything else is read through, which takes a fraction of a microsecond an
// entry, so that the caller bounds how often it counts.
type Counter struct {
	set   *Set
	names []string      // of the maps that prog counts, in the order of its results
	prog  *ebpf.Program // nil: all maps are read through
	why   error         // why prog is nil
}

// NewCounter returns a counter for the set, which must outlive it.
func (s *Set) NewCounter() *Counter {
	c := &Counter{set: s}
	for _, name := range Names() {
		if t := s.raw[name].Type(); (t == ebpf.Hash || t == ebpf.LRUHash) && s.fills(name) {
			c.names = append(c.names, name)
		}
	}
	c.prog, c.why = c.load()
	return c
}

// ScanOnly returns a counter that reads all maps through, as on an old kernel.
func (s *Set) ScanOnly() *Counter { return &Counter{set: s, why: errors.New("not asked")} }

// ByKernel tells whether the kernel counts hash maps, and if not why.
func (c *Counter) ByKernel() error { return c.why }

// Close lets go of the kernel's program.
func (c *Counter) Close() {
	if c.prog != nil {
		_ = c.prog.Close() // of no consequence: the kernel frees it with the process at the latest
	}
}

// load makes a program that writes the kernel's own count of each hash map into
// its context. It is put together here because it names maps by descriptor, and
// because the object of all other programs must load on kernels that lack it.
func (c *Counter) load() (*ebpf.Program, error) {
	id, err := kernelFunc(kernelBTF, "bpf_map_sum_elem_count")
	if err != nil {
		return nil, err
	}
	insns := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	for i, name := range c.names {
		insns = append(insns,
			asm.LoadMapPtr(asm.R1, c.set.raw[name].FD()),
			asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoKfuncCall, Constant: int64(id)},
			asm.StoreMem(asm.R6, int16(8*i), asm.R0, asm.DWord),
		)
	}
	insns = append(insns, asm.Mov.Imm(asm.R0, 0), asm.Return())
	const sleepable = 1 << 4 // BPF_F_SLEEPABLE, which this type must be
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "weft_count", Type: ebpf.Syscall, Flags: sleepable, License: "GPL", Instructions: insns,
	})
	if err != nil {
		return nil, fmt.Errorf("count of map entries: %w", err)
	}
	return p, nil
}

// Count returns a row for each map, in alphabetical order.
func (c *Counter) Count() ([]MapRow, error) {
	rows, err := c.set.Memory()
	if err != nil {
		return nil, err
	}
	counted, err := c.ask()
	if err != nil {
		return nil, err
	}
	for i, r := range rows {
		if !c.set.fills(r.Name) {
			continue
		}
		n, ok := counted[r.Name]
		if !ok {
			if n, err = scan(c.set.raw[r.Name], inUse(r.Name)); err != nil {
				return nil, fmt.Errorf("map %s: %w", r.Name, err)
			}
		}
		when := Refuses
		if c.set.raw[r.Name].Type() == ebpf.LRUHash {
			when = Evicts
		}
		rows[i] = r.filled(n, when)
	}
	return rows, nil
}

// ask returns the kernel's counts.
func (c *Counter) ask() (map[string]int, error) {
	if c.prog == nil {
		return nil, nil
	}
	counts := make([]int64, len(c.names))
	if _, err := c.prog.Run(&ebpf.RunOptions{Context: make([]int64, len(c.names)), ContextOut: counts}); err != nil {
		return nil, fmt.Errorf("count of map entries: %w", err)
	}
	out := make(map[string]int, len(counts))
	for i, name := range c.names {
		out[name] = int(max(0, counts[i])) // summed over CPUs while they count
	}
	return out, nil
}

// fills tells whether a map has room that is used up: tables of fixed content
// and the ring buffer do not, nor do maps whose family or use is off, which have
// a single entry.
func (s *Set) fills(name string) bool {
	m := s.raw[name]
	switch m.Type() {
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
		return m.MaxEntries() > 1
	}
	switch name {
	case object.DatapathMapWeftEp, object.DatapathMapWeftNatip:
		return true
	}
	return name == object.DatapathMapWeftBe && m.MaxEntries() > 1
}

// inUse tells the entries of an array that hold something: those that are not
// zero. Of a backend that was cleared, the generation stays.
func inUse(name string) func(value []byte) bool {
	if name == object.DatapathMapWeftBe {
		proto := unsafe.Offsetof(object.DatapathWeftBackend{}.Proto)
		return func(v []byte) bool { return v[proto] != 0 }
	}
	return func(v []byte) bool { return slices.ContainsFunc(v, func(b byte) bool { return b != 0 }) }
}

// scan counts the entries of a map by reading them, in batches. Of an array it
// counts those that are in use.
func scan(m *ebpf.Map, used func(value []byte) bool) (int, error) {
	size := min(512, int(m.MaxEntries()))
	array := m.Type() == ebpf.Array
	keys, values := buffer(m.KeySize(), size), buffer(m.ValueSize(), size)
	var cur ebpf.MapBatchCursor
	for total := 0; ; {
		n, err := m.BatchLookup(&cur, keys.Interface(), values.Interface(), nil)
		if errors.Is(err, syscall.ENOSPC) { // as in batches
			size *= 2
			keys, values = buffer(m.KeySize(), size), buffer(m.ValueSize(), size)
			continue
		}
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return 0, err
		}
		if array {
			for i := range n {
				if used(values.Index(i).Bytes()) {
					total++
				}
			}
		} else {
			total += n
		}
		if end {
			return total, nil
		}
	}
}

// buffer is a slice of n arrays of bytes: what to read is told by its length.
func buffer(width uint32, n int) reflect.Value {
	return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(width), reflect.TypeFor[byte]())), n, n)
}
