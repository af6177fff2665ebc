// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/weft-net/weft/internal/table"
)

// Tunnelled runs a program on packets that seem to have come by a tunnel device.
type Tunnelled struct {
	Program *ebpf.Program
	chain   *ebpf.Map
}

// Close frees the programs.
func (t *Tunnelled) Close() error {
	if t == nil {
		return nil
	}
	return errors.Join(t.Program.Close(), t.chain.Close())
}

// ByTunnel puts a program in front of next that gives packets tunnel metadata,
// which Program.Run cannot: what it sets as the outer source is read as such. An
// invalid node: packets that did not come by a tunnel.
func ByTunnel(next *ebpf.Program, node netip.Addr, said table.Identity) (*Tunnelled, error) {
	chain, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	if err := chain.Put(uint32(0), next); err != nil {
		return nil, errors.Join(err, chain.Close())
	}
	insns := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	if node.IsValid() {
		insns = append(insns, setTunnelKey(node, said)...)
	}
	const notChained = 99 // no action has this number
	insns = append(insns,
		asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, chain.FD()), asm.Mov.Imm(asm.R3, 0), asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, notChained), asm.Return(),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "by_tunnel", Type: ebpf.SchedCLS, License: "GPL", Instructions: insns})
	if err != nil {
		return nil, errors.Join(err, chain.Close())
	}
	return &Tunnelled{p, chain}, nil
}

// setTunnelKey calls bpf_skb_set_tunnel_key with a struct bpf_tunnel_key.
func setTunnelKey(node netip.Addr, said table.Identity) asm.Instructions {
	const (
		size, room  = 44, 48 // of the struct, and on the stack
		remote      = 4      // offsets in it
		local       = 28
		tuninfoIPv6 = 1 // BPF_F_TUNINFO_IPV6
	)
	var insns asm.Instructions
	for off := int16(-room); off < 0; off += 4 {
		insns = append(insns, asm.StoreImm(asm.R10, off, 0, asm.Word))
	}
	store := func(off int16, v uint32) {
		insns = append(insns, asm.Mov.Imm32(asm.R7, int32(v)), asm.StoreMem(asm.R10, -room+off, asm.R7, asm.Word))
	}
	store(0, uint32(said))
	store(remote, 0x01010101) // it has to be something
	flags := int32(0)
	if node.Is4() {
		b := node.As4()
		store(local, binary.BigEndian.Uint32(b[:])) // in host order
	} else {
		flags = tuninfoIPv6
		b := node.As16()
		for i := range 4 {
			store(int16(local+4*i), binary.NativeEndian.Uint32(b[4*i:]))
		}
	}
	return append(insns,
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -room),
		asm.Mov.Imm(asm.R3, size), asm.Mov.Imm(asm.R4, flags), asm.FnSkbSetTunnelKey.Call(),
	)
}
