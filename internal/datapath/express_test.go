// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	gomaps "maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/datapath/selftest"
)

// trackers are the maps that hold connections.
var trackers = []string{"weft_ct4", "weft_ct6", "weft_ctn4", "weft_ctn6"}

// entries are raw rows of maps, by map and key.
type entries map[string]map[string][]byte

func (n *node) entries() entries {
	n.t.Helper()
	all := entries{}
	for _, name := range trackers {
		rows := map[string][]byte{}
		m := n.d.Maps().Raw(name)
		key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
		for it := m.Iterate(); it.Next(&key, &value); {
			rows[string(key)] = bytes.Clone(value)
		}
		all[name] = rows
	}
	return all
}

func (n *node) restore(all entries) {
	n.t.Helper()
	n.flush()
	for name, rows := range all {
		for key, value := range rows {
			n.must(n.d.Maps().Raw(name).Put([]byte(key), value))
		}
	}
}

// hopAt is where an entry remembers its way: only the express lane's own business.
var hopAt = binary.Size(object.DatapathWeftCt{}) - binary.Size(object.DatapathWeftCt{}.Hop)

// withoutHops returns the entries as far as both paths must leave them alike.
func (e entries) withoutHops() entries {
	out := entries{}
	for name, rows := range e {
		out[name] = map[string][]byte{}
		for key, value := range rows {
			out[name][key] = value[:hopAt]
		}
	}
	return out
}

// forgetful returns the entries without what they remember: the routing table is asked.
func (e entries) forgetful() entries {
	out := e.withoutHops()
	for name, rows := range out {
		for key, value := range rows {
			out[name][key] = append(slices.Clip(value), make([]byte, len(e[name][key])-hopAt)...)
		}
	}
	return out
}

// lane is a place where packets of a known connection pass.
type lane struct {
	hook     reason.Hook
	dev      netlink.Link
	src, dst netip.AddrPort
	tcp      bool
}

// lanes makes connections, both sides of which have spoken, and returns where
// their packets pass.
func (n *node) lanes(overlay bool) []lane {
	n.t.Helper()
	far, dev := reason.FromNet, n.eth
	if overlay {
		far, dev = reason.FromOverlay, n.overlay
	}
	var out []lane
	for _, fam := range families {
		for i, tcp := range []bool{true, false} {
			a := ap(podA.of(fam), uint16(4000+i))
			for _, to := range []host{podB, remotePod} {
				b, back, backDev := ap(to.of(fam), 80), reason.FromPod, n.b
				if to == remotePod {
					back, backDev = far, dev
				}
				there, here := lane{reason.FromPod, n.a, a, b, tcp}, lane{back, backDev, b, a, tcp}
				for range 2 {
					n.pass(there, frame.SYN)
					n.pass(here, frame.SYN|frame.ACK)
					n.pass(there, frame.ACK)
				}
				out = append(out, there, here)
			}
		}
	}
	return out
}

// kind says what all lanes have in common that the same code serves.
func (l lane) kind() string {
	return fmt.Sprintf("%s, IPv6 %v, TCP %v, to a pod of this node %v", l.hook, l.dst.Addr().Is6(), l.tcp, l.dst.Addr() != remotePod.of(4) && l.dst.Addr() != remotePod.of(6))
}

func (l lane) packet(flags uint8, data []byte) frame.Packet {
	if l.tcp {
		return frame.NewTCP(l.src, l.dst, flags, data)
	}
	return frame.NewUDP(l.src, l.dst, data)
}

func (n *node) pass(l lane, flags uint8) {
	n.t.Helper()
	p := l.packet(flags, []byte("x"))
	p.DstMAC, p.SrcMAC = hostMAC, peerMAC
	prog := n.d.Program(l.hook)
	if l.hook == reason.FromOverlay {
		prog = n.tunnel.Program
	}
	act, err := prog.Run(&ebpf.RunOptions{Data: p.Bytes(), Context: skb{Ifindex: uint32(l.dev.Attrs().Index)}})
	n.must(err)
	if act&0xff != actRedirect {
		n.t.Fatalf("%v: a packet of a connection between pods got action %#x", l, act)
	}
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// anyPacket returns one that is mostly what the lane takes, and often nearly so.
func anyPacket(r *rand.Rand, l lane) []byte {
	flags := pick[uint8](r, frame.ACK, frame.ACK, frame.ACK|frame.PSH, frame.SYN, frame.SYN|frame.ACK, frame.FIN|frame.ACK, frame.RST, 0)
	p := l.packet(flags, make([]byte, pick(r, 0, 1, 100, 1400, 1460, 1500)))
	p.DstMAC, p.SrcMAC = hostMAC, peerMAC
	p.TTL = pick[uint8](r, 64, 64, 64, 2, 1, 255)
	p.TOS = pick[uint8](r, 0, 0, 0, 1, 2, 0xb8, 0xff)
	if r.IntN(8) == 0 {
		if l.src.Addr().Is4() {
			p.Options = []byte{1, 1, 1, 1}
		} else {
			p.Ext = []frame.Ext{{Type: frame.DestOpts, Body: make([]byte, 6)}}
		}
	}
	data := p.Bytes()
	if r.IntN(8) == 0 && len(p.Payload) > 64 {
		data = pick(r, p.Fragments(64)...).Bytes()
	}
	switch r.IntN(8) {
	case 0: // in the headers, mostly
		data[r.IntN(min(len(data), 64))] ^= byte(1 << r.IntN(8))
	case 1:
		data = data[:max(34, r.IntN(len(data)+1))]
	case 2: // as devices pad short frames
		data = append(data, make([]byte, r.IntN(40))...)
	}
	return data
}

// spoil changes an entry, or not.
func spoil(r *rand.Rand, all entries) entries {
	out := entries{}
	for name, rows := range all {
		out[name] = map[string][]byte{}
		for key, value := range rows {
			value = bytes.Clone(value)
			switch r.IntN(12) {
			case 0:
				binary.NativeEndian.PutUint32(value, binary.NativeEndian.Uint32(value)-20000) // expired
			case 1:
				value[4] ^= byte(1 << r.IntN(7)) // flags
			case 2:
				value[24+4*r.IntN(2)] ^= 1 // generations
			case 3:
				value[8] = 1 // the host's
			case 4:
				value[44+2*r.IntN(2)] ^= byte(1 << r.IntN(2)) // endpoints
			}
			out[name][key] = value
		}
	}
	return out
}

// outcome is all that a packet leads to.
type outcome struct {
	result
	lane    bool // the express lane acted
	entries entries
}

func (o outcome) equal(p outcome) bool {
	return o.action == p.action && o.mark == p.mark && bytes.Equal(o.out, p.out) && gomaps.Equal(o.counts, p.counts) && cmp.Equal(o.entries, p.entries)
}

func (o outcome) String() string {
	return fmt.Sprintf("action %#x, mark %#x, counted %v, % x", o.action, o.mark, o.counts, o.out[:min(len(o.out), 80)])
}

// setTrace changes that alone: a whole new configuration makes entries forget their way.
func (n *node) setTrace(level maps.TraceLevel) {
	n.t.Helper()
	m := n.d.Maps().Raw("weft_cfg")
	row, err := m.LookupBytes(uint32(0))
	n.must(err)
	binary.NativeEndian.PutUint32(row, uint32(level))
	n.must(m.Put(uint32(0), row))
}

// both sends a packet over the express lane and over the general path, which is
// what is taken while every packet is traced. False: the kernel took it for no frame.
func (n *node) both(l lane, data []byte, opt runOpt, known entries) (express, general outcome, ok bool) {
	n.t.Helper()
	for _, o := range []*outcome{&express, &general} {
		level, before := maps.TraceNone, known
		if o == &general {
			level, before = maps.TraceAll, known.forgetful()
		}
		n.setTrace(level)
		n.restore(before)
		var err error
		if o.result, err = n.tryRun(l.hook, l.dev, data, opt); err != nil {
			return express, general, false
		}
		o.lane = o.action != actNext && o.action&laneMark != 0
		if o.lane {
			o.action &^= laneMark
		}
		o.entries = n.entries().withoutHops()
	}
	return express, general, true
}

// laneMark is put onto the actions of the express lane, to tell who acted.
const laneMark = 1 << 16

// marked has the lane put it there.
func marked(o datapath.Options) datapath.Options {
	return o.Untested().WithPatch(func(s *ebpf.CollectionSpec) {
		if err := s.Variables["express_mark"].Set(uint32(laneMark)); err != nil {
			panic(err) // there is no such constant
		}
	})
}

// settings under which both paths are compared.
type settings struct {
	name                string
	overlay, masquerade bool
}

// TestExpressAgrees guards against the express lane treating a packet otherwise
// than the general path, which does all the others: the same packets go over both,
// with the same connections known. And against a lane that takes none.
func TestExpressAgrees(t *testing.T) {
	for _, s := range []settings{{name: "native"}, {name: "overlay", overlay: true}, {name: "masquerade", masquerade: true}} {
		t.Run(s.name, func(t *testing.T) {
			n := newNode(t, marked(datapath.Options{Masquerade: s.masquerade}))
			var right, wrong *selftest.Tunnelled // by the node to which the other pod belongs, or by another
			if s.overlay {
				n.joinOverlay(1450)
				right = n.tunnel
				n.by(world.v4, saidIdentity)
				wrong = n.tunnel
			} else {
				n.config(func(c *maps.Config) {
					c.Masquerade = maps.Masquerade{IPv4: s.masquerade, IPv6: s.masquerade, PortMin: 32768, PortMax: 60999}
				})
			}
			seed := rand.Uint64()
			r := rand.New(rand.NewPCG(seed, 0))
			taken := map[string]int{}
			missing := -1 // kinds of lanes that took no packet
			for i := 0; i < 600 || (missing > 0 && i < 5000); i++ {
				n.flush()
				n.tunnel = right
				lanes := n.lanes(s.overlay) // anew: what entries remember holds for a second
				if missing < 0 {
					for _, l := range lanes {
						taken[l.kind()] = 0
					}
					missing = len(taken)
				}
				l := lanes[r.IntN(len(lanes))]
				data, known, opt := anyPacket(r, l), spoil(r, n.entries()), withGSO(pick[uint32](r, 0, 0, 0, 500, 1448))
				if r.IntN(16) == 0 {
					l.dev = pick(r, n.a, n.b, n.eth)
				}
				if r.IntN(8) == 0 {
					n.tunnel = wrong
				}
				express, general, ok := n.both(l, data, opt, known)
				for range 2 { // a second may have ended between the two
					if ok && !express.equal(general) {
						express, general, ok = n.both(l, data, opt, known)
					}
				}
				if ok && !express.equal(general) {
					t.Fatalf("seed %d, packet %d, %s of %d bytes: % x\nexpress: %s\ngeneral: %s\nentries: %s", seed, i, l.hook, len(data), data[:min(len(data), 80)],
						express, general, cmp.Diff(express.entries, general.entries))
				}
				if express.lane {
					if taken[l.kind()] == 0 {
						missing--
					}
					taken[l.kind()]++
				}
			}
			if missing != 0 {
				t.Errorf("seed %d: there are packets of which the express lane took none: %v", seed, taken)
			}
			t.Log(taken)
		})
	}
}
