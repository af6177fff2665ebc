// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/weft-net/weft/internal/datapath/object"
)

const (
	pinnedMaps  = "/sys/fs/bpf/weft/maps"
	pinnedLinks = "/sys/fs/bpf/weft/links"
	ownPins     = "/sys/fs/bpf/weft-fault"
)

// tool is what the tests do inside a node where no program of the node will do.
func tool(args []string) error {
	if len(args) == 0 {
		return errors.New("no verb")
	}
	verbs := map[string]func([]string) error{
		"agent-pid":    agentPid,     // prints the agent's PID in the node
		"kill-next":    killNext,     // OLD AFTER: kills the agent that follows process OLD so long after its start; prints its PID
		"edit-ep":      editEndpoint, // ADDRESS FIELD=VALUE: prints the arguments of put
		"edit-ipcache": editIPCache,  // ADDRESS FIELD=VALUE: prints the arguments of put
		"edit-nat":     editNAT,      // off | OLD NEW: IPv4 addresses that flows get; prints the arguments of put
		"put":          putRow,       // MAP KEY VALUE, both in hex
		"detach":       detach,       // LINK
		"drop":         drop,         // NAME DEVICE ingress|egress ETHERTYPE [OFFSET=BYTE...]
		"undrop":       undrop,       // NAME
		"hooks":        hooks,        // prints DEVICE HOOK PROGRAM ID for each program of tcx, which bpftool may not know
	}
	verb := verbs[args[0]]
	if verb == nil {
		return fmt.Errorf("unknown verb %q", args[0])
	}
	return verb(args[1:])
}

func agentPid([]string) error {
	pid, err := findAgent()
	if err == nil {
		fmt.Println(pid)
	}
	return err
}

func findAgent() (string, error) {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return "", err
	}
	for _, p := range procs {
		exe, err := os.Readlink(p + "/exe")
		if err != nil || filepath.Base(strings.TrimSuffix(exe, " (deleted)")) != "weft-agent" {
			continue
		}
		cmd, err := os.ReadFile(p + "/cmdline")
		if err != nil || len(cmd) == 0 { // it has just begun, and may be init
			continue
		}
		if argv := strings.Split(string(cmd), "\x00"); len(argv) > 1 && argv[1] == "init" {
			continue
		}
		return filepath.Base(p), nil
	}
	return "", errors.New("no process runs weft-agent")
}

func killNext(args []string) error {
	if len(args) != 2 {
		return errors.New("want OLD AFTER")
	}
	after, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	end := time.After(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		pid, err := findAgent()
		if err == nil && pid != args[0] {
			n, err := strconv.Atoi(pid)
			if err != nil {
				return err
			}
			<-time.After(after)
			fmt.Println(pid)
			return syscall.Kill(n, syscall.SIGKILL)
		}
		select {
		case <-end:
			return fmt.Errorf("no agent follows process %s", args[0])
		case <-tick.C:
		}
	}
}

// edit changes one row in place and prints what puts the old one back.
func edit(mapName string, key, row any, change func() error) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinnedMaps, mapName), nil)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Lookup(key, row); err != nil {
		return fmt.Errorf("map %s: %w", mapName, err)
	}
	k, err := m.LookupBytes(key)
	if err != nil {
		return fmt.Errorf("map %s: %w", mapName, err)
	}
	rawKey, err := raw(key)
	if err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	if err := m.Put(key, row); err != nil {
		return fmt.Errorf("map %s: %w", mapName, err)
	}
	fmt.Println(mapName, hex.EncodeToString(rawKey), hex.EncodeToString(k))
	return nil
}

func raw(key any) ([]byte, error) {
	switch k := key.(type) {
	case uint32:
		return binary.NativeEndian.AppendUint32(nil, k), nil
	case object.DatapathV6addr:
		var b []byte
		for _, w := range k.W {
			b = binary.NativeEndian.AppendUint32(b, w)
		}
		return b, nil
	}
	return nil, fmt.Errorf("key %T", key)
}

func putRow(args []string) error {
	if len(args) != 3 {
		return errors.New("put MAP KEY VALUE")
	}
	key, err1 := hex.DecodeString(args[1])
	value, err2 := hex.DecodeString(args[2])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinnedMaps, args[0]), nil)
	if err != nil {
		return err
	}
	defer m.Close()
	return m.Put(key, value)
}

// addrKey is an address as the exact-match maps have it.
func addrKey(a netip.Addr) (mapName string, key any) {
	if a.Is4() {
		b := a.As4()
		return "weft_ipc4", binary.NativeEndian.Uint32(b[:])
	}
	var k object.DatapathV6addr
	b := a.As16()
	for i := range k.W {
		k.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return "weft_ipc6", k
}

func editArgs(args []string) (a netip.Addr, field, value string, err error) {
	if len(args) != 2 {
		return a, "", "", errors.New("want ADDRESS FIELD=VALUE")
	}
	a, err = netip.ParseAddr(args[0])
	field, value, _ = strings.Cut(args[1], "=")
	return a, field, value, err
}

func editIPCache(args []string) error {
	a, field, value, err := editArgs(args)
	if err != nil {
		return err
	}
	name, key := addrKey(a)
	var row object.DatapathWeftIpcache
	return edit(name, key, &row, func() error {
		n, err := strconv.ParseUint(value, 0, 16)
		switch field {
		case "endpoint":
			row.Endpoint = uint16(n)
		case "kind":
			row.Kind = uint8(n)
		default:
			err = fmt.Errorf("unknown field %q", field)
		}
		return err
	})
}

func editEndpoint(args []string) error {
	a, field, value, err := editArgs(args)
	if err != nil {
		return err
	}
	name, key := addrKey(a)
	ipc, err := ebpf.LoadPinnedMap(filepath.Join(pinnedMaps, name), nil)
	if err != nil {
		return err
	}
	defer ipc.Close()
	var who object.DatapathWeftIpcache
	if err := ipc.Lookup(key, &who); err != nil {
		return fmt.Errorf("map %s: %s: %w", name, a, err)
	}
	var row object.DatapathWeftEndpoint
	return edit("weft_ep", uint32(who.Endpoint), &row, func() error {
		n, err := strconv.ParseUint(value, 0, 32)
		switch field {
		case "ifindex":
			row.Ifindex = uint32(n)
		case "generation":
			row.Generation = uint32(n)
		case "v4":
			row.V4 = uint32(n)
		default:
			err = fmt.Errorf("unknown field %q", field)
		}
		return err
	})
}

// editNAT switches masquerade off, or gives flows another address than the node's.
func editNAT(args []string) error {
	if len(args) == 1 && args[0] == "off" {
		var row object.DatapathWeftConfig
		return edit("weft_cfg", uint32(0), &row, func() error {
			row.Nat = 0
			return nil
		})
	}
	if len(args) != 2 {
		return errors.New("edit-nat off | OLD NEW")
	}
	var to [2]uint32
	for i, s := range args {
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is4() {
			return fmt.Errorf("%q is no IPv4 address", s)
		}
		b := a.As4()
		to[i] = binary.NativeEndian.Uint32(b[:])
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinnedMaps, "weft_natip"), nil)
	if err != nil {
		return err
	}
	defer m.Close()
	for slot := range m.MaxEntries() {
		var row object.DatapathWeftNatAddress
		if err := m.Lookup(slot, &row); err != nil {
			return err
		}
		if row.V4 == to[0] {
			return edit("weft_natip", slot, &row, func() error {
				row.V4 = to[1]
				return nil
			})
		}
	}
	return fmt.Errorf("no flow gets %s", args[0])
}

// detach takes a pinned link off its device. The pin stays, as it would if
// somebody detached the link with bpftool.
func detach(args []string) error {
	if len(args) != 1 {
		return errors.New("detach LINK")
	}
	l, err := link.LoadPinnedLink(filepath.Join(pinnedLinks, args[0]), nil)
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Detach()
}

// drop puts a program in front of all others of a hook. It drops packets of an
// EtherType that have all the bytes given, counted from the Ethernet header.
func drop(args []string) error {
	if len(args) < 4 {
		return errors.New("drop NAME DEVICE ingress|egress ETHERTYPE [OFFSET=BYTE...]")
	}
	dev, err := net.InterfaceByName(args[1])
	if err != nil {
		return err
	}
	at := ebpf.AttachTCXIngress
	if args[2] == "egress" {
		at = ebpf.AttachTCXEgress
	}
	insns, err := dropper(args[3], args[4:])
	if err != nil {
		return err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "weft_fault_drop", Type: ebpf.SchedCLS, License: "GPL", Instructions: insns,
	})
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: dev.Index, Program: prog, Attach: at, Anchor: link.Head()})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := os.MkdirAll(ownPins, 0o700); err != nil {
		return err
	}
	return l.Pin(filepath.Join(ownPins, args[0]))
}

func dropper(etherType string, bytes []string) (asm.Instructions, error) {
	const (
		next, shot  = -1, 2
		skbProtocol = 16 // offset in struct __sk_buff
	)
	et, err := strconv.ParseUint(etherType, 0, 16)
	if err != nil {
		return nil, err
	}
	wire := binary.BigEndian.AppendUint16(nil, uint16(et))
	insns := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1), // LoadAbs takes the packet from R6
		asm.LoadMem(asm.R2, asm.R6, skbProtocol, asm.Word),
		asm.JNE.Imm(asm.R2, int32(binary.NativeEndian.Uint16(wire)), "next"),
	}
	for _, b := range bytes {
		offset, value, _ := strings.Cut(b, "=")
		o, err1 := strconv.ParseUint(offset, 0, 16)
		v, err2 := strconv.ParseUint(value, 0, 8)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		insns = append(insns, asm.LoadAbs(int32(o), asm.Byte), asm.JNE.Imm(asm.R0, int32(v), "next"))
	}
	return append(insns,
		asm.Mov.Imm(asm.R0, shot), asm.Return(),
		asm.Mov.Imm(asm.R0, next).WithSymbol("next"), asm.Return(),
	), nil
}

func undrop(args []string) error {
	if len(args) != 1 {
		return errors.New("undrop NAME")
	}
	path := filepath.Join(ownPins, args[0])
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Close()
	err = errors.Join(l.Unpin(), l.Close())
	_ = os.Remove(ownPins) // fails while another program is pinned there
	return err
}

func hooks([]string) error {
	devs, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, d := range devs {
		for name, at := range map[string]ebpf.AttachType{"ingress": ebpf.AttachTCXIngress, "egress": ebpf.AttachTCXEgress} {
			res, err := link.QueryPrograms(link.QueryOptions{Target: d.Index, Attach: at})
			if err != nil {
				return fmt.Errorf("%s %s: %w", d.Name, name, err)
			}
			for _, p := range res.Programs {
				prog, err := ebpf.NewProgramFromID(p.ID)
				if err != nil {
					return fmt.Errorf("%s %s: program %d: %w", d.Name, name, p.ID, err)
				}
				info, err := prog.Info()
				_ = prog.Close()
				if err != nil {
					return fmt.Errorf("%s %s: program %d: %w", d.Name, name, p.ID, err)
				}
				fmt.Println(d.Name, name, info.Name, p.ID)
			}
		}
	}
	return nil
}
