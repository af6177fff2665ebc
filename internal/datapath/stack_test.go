// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/weft-net/weft/internal/datapath/object"
)

// frames returns by function how much of the stack it uses, and whom it calls.
func frames(insns asm.Instructions) (use map[string]int, calls map[string][]string) {
	use, calls = map[string]int{}, map[string][]string{}
	fn := ""
	var base [16]bool // registers that point to the end of the frame
	for _, ins := range insns {
		if s := ins.Symbol(); s != "" && (fn == "" || s != fn) {
			if _, ok := use[s]; !ok {
				fn, use[s], base = s, 0, [16]bool{}
			}
		}
		class, op := ins.OpCode.Class(), ins.OpCode.ALUOp()
		at := 0
		switch {
		case ins.IsFunctionCall():
			calls[fn] = append(calls[fn], ins.Reference())

		case (class == asm.StXClass || class == asm.StClass) && ins.Dst == asm.R10:
			at = -int(ins.Offset)
		case class == asm.LdXClass:
			base[ins.Dst] = false
			if ins.Src == asm.R10 {
				at = -int(ins.Offset)
			}
		case class.IsALU() && op == asm.Mov:
			base[ins.Dst] = ins.OpCode.Source() == asm.RegSource && ins.Src == asm.R10
		case class.IsALU() && op == asm.Add && base[ins.Dst]:
			at = -int(int32(ins.Constant))
		}
		use[fn] = max(use[fn], at)
	}
	return use, calls
}

// TestStackFitsOldKernels guards against programs that the newest kernel takes
// and the oldest refuses: a program and the functions that call each other have
// 512 bytes, of which before Linux 6.8 each took a multiple of 32
// (check_max_stack_depth in kernel/bpf/verifier.c).
func TestStackFitsOldKernels(t *testing.T) {
	now, err := object.LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("now", func(t *testing.T) { stackFits(t, now) })
	// Upgrades from and to these are tested on the oldest kernel, too.
	for _, name := range []string{"previous", "otherlayout"} {
		other, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(release(t, name)))
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) { stackFits(t, other) })
	}
}

func stackFits(t *testing.T, spec *ebpf.CollectionSpec) {
	const limit, unit = 512, 32
	for name, p := range spec.Programs {
		use, calls := frames(p.Instructions)
		var deepest func(fn string) (int, string)
		deepest = func(fn string) (int, string) {
			most, way := 0, ""
			for _, c := range calls[fn] {
				if n, w := deepest(c); n > most {
					most, way = n, " → "+w
				}
			}
			return most + (max(use[fn], 1)+unit-1)/unit*unit, fmt.Sprintf("%s (%d)%s", fn, use[fn], way)
		}
		n, way := deepest(name)
		if n > limit {
			t.Errorf("program %s takes %d bytes of the stack, of %d: %s", name, n, limit, way)
		}
		if n < 300 && p.Type == ebpf.SchedCLS {
			t.Errorf("program %s takes %d bytes of the stack: the test overlooks some: %s", name, n, way)
		}
		t.Logf("%d: %s", n, way)
	}
}
