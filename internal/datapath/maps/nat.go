// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
)

// Flags of a translation, as NATF_* in bpf/lib/types.h.
const (
	natAnswered  = 1 << 0
	natWentOn    = 1 << 1
	natFinOwner  = 1 << 2
	natFinPeer   = 1 << 3
	natRST       = 1 << 4
	natSlotShift = 16
)

// NATRow is one masqueraded flow: what it is to its owner and to the outside.
type NATRow struct {
	Proto      uint8         `json:"proto"`
	Owner      netip.Addr    `json:"owner"`
	OwnerPort  uint16        `json:"ownerPort"` // of ICMP echo: the id
	Node       netip.Addr    `json:"node"`      // address of this node that the peer sees
	NodePort   uint16        `json:"nodePort"`
	Peer       netip.Addr    `json:"peer"`
	PeerPort   uint16        `json:"peerPort"`
	Endpoint   uint16        `json:"endpoint,omitempty"` // 0: the host holds one of its own ports, or it is a client of a service
	State      string        `json:"state"`              // opening, answered, established, closed
	Expires    time.Duration `json:"expires"`            // from now; negative: expired, not yet collected
	generation uint32
}

// TableHeader names the columns of TableRow.
func (NATRow) TableHeader() []string {
	return []string{"PROTO", "SOURCE", "TRANSLATED", "DESTINATION", "STATE", "EXPIRES", "ENDPOINT"}
}

// TableRow renders the row under TableHeader.
func (r NATRow) TableRow() []string {
	owner := "host"
	if r.Owner != r.Node {
		owner = "client" // of a service, at a backend on another node
	}
	if r.Endpoint != 0 {
		owner = strconv.Itoa(int(r.Endpoint))
	}
	return []string{
		protoName(r.Proto), netip.AddrPortFrom(r.Owner, r.OwnerPort).String(), netip.AddrPortFrom(r.Node, r.NodePort).String(),
		netip.AddrPortFrom(r.Peer, r.PeerPort).String(), r.State, r.Expires.Truncate(time.Second).String(), owner,
	}
}

func natState(proto uint8, flags uint32) string {
	switch {
	case proto == 6 && (flags&natRST != 0 || flags&(natFinOwner|natFinPeer) == natFinOwner|natFinPeer):
		return "closed"
	case flags&natWentOn != 0:
		return "established"
	case flags&natAnswered != 0:
		return "answered"
	}
	return "opening"
}

// NATMap is the masqueraded flows, the node's addresses that they get and what
// is not masqueraded.
type NATMap struct {
	main4, main6, new4, new6 *ebpf.Map
	client4, client6         *ebpf.Map
	addresses, devices       *ebpf.Map
	exclude4, exclude6       *ebpf.Map
}

// List returns at most limit flows (0: all), expired ones included.
func (m *NATMap) List(limit int) ([]NATRow, error) {
	now, err := nowTick()
	if err != nil {
		return nil, fmt.Errorf("nat: %w", err)
	}
	rows := []NATRow{}
	room := func() bool { return limit == 0 || len(rows) < limit }
	add := func(r NATRow, v object.DatapathWeftNat) {
		r.OwnerPort, r.Endpoint, r.generation = port(v.Port), v.Endpoint, v.Generation
		r.State, r.Expires = natState(r.Proto, v.Flags), duration(int64(v.Expires)-int64(now))
		rows = append(rows, r)
	}
	for _, mm := range []*ebpf.Map{m.main4, m.new4, m.client4} {
		err = errors.Join(err, batches(mm, func(ks []object.DatapathWeftNat4Key, vs []object.DatapathWeftNat) bool {
			for i, k := range ks {
				if room() {
					add(NATRow{
						Proto: k.Proto, Owner: addr4(vs[i].Addr.W[0]), Node: addr4(k.Addr), NodePort: port(k.Port),
						Peer: addr4(k.Peer), PeerPort: port(k.PeerPort),
					}, vs[i])
				}
			}
			return room()
		}))
	}
	for _, mm := range []*ebpf.Map{m.main6, m.new6, m.client6} {
		err = errors.Join(err, batches(mm, func(ks []object.DatapathWeftNat6Key, vs []object.DatapathWeftNat) bool {
			for i, k := range ks {
				if room() {
					add(NATRow{
						Proto: k.Proto, Owner: addr6(vs[i].Addr), Node: addr6(k.Addr), NodePort: port(k.Port),
						Peer: addr6(k.Peer), PeerPort: port(k.PeerPort),
					}, vs[i])
				}
			}
			return room()
		}))
	}
	return rows, err
}

// drop removes what matches, at most limit (0: all).
func (m *NATMap) drop(match func(owner, node netip.Addr, v object.DatapathWeftNat) bool, limit int, still func(object.DatapathWeftNat) bool) (int, error) {
	n := 0
	var errs []error
	for _, mm := range []*ebpf.Map{m.main4, m.new4, m.client4} {
		c, err := purge(mm, func(k object.DatapathWeftNat4Key, v object.DatapathWeftNat) bool {
			return match(addr4(v.Addr.W[0]), addr4(k.Addr), v)
		}, left(limit, n), still)
		n, errs = n+c, append(errs, err)
	}
	for _, mm := range []*ebpf.Map{m.main6, m.new6, m.client6} {
		c, err := purge(mm, func(k object.DatapathWeftNat6Key, v object.DatapathWeftNat) bool {
			return match(addr6(v.Addr), addr6(k.Addr), v)
		}, left(limit, n), still)
		n, errs = n+c, append(errs, err)
	}
	return n, errors.Join(errs...)
}

// PurgeAddrs removes the flows of the addresses, as CTMap.PurgeAddrs does.
func (m *NATMap) PurgeAddrs(addrs ...netip.Addr) (int, error) {
	return m.drop(func(owner, _ netip.Addr, _ object.DatapathWeftNat) bool { return slices.Contains(addrs, owner) }, 0, nil)
}

// Sweep removes flows that expired, at most limit (0: all), and returns how many.
func (m *NATMap) Sweep(limit int) (int, error) {
	now, err := nowTick()
	if err != nil {
		return 0, fmt.Errorf("nat: %w", err)
	}
	expired := func(v object.DatapathWeftNat) bool { return v.Expires < now }
	return m.drop(func(_, _ netip.Addr, v object.DatapathWeftNat) bool { return expired(v) }, limit, expired)
}

// Flush removes all flows and returns how many there were. A flow that goes on
// takes its port again, if the pod is the next to send.
func (m *NATMap) Flush() (int, error) {
	return m.drop(func(netip.Addr, netip.Addr, object.DatapathWeftNat) bool { return true }, 0, nil)
}

// NATDevice is a device with to_net and the addresses that flows leave it with.
type NATDevice struct {
	Index      int
	IPv4, IPv6 netip.Addr // invalid: none
}

// natSlots is NAT_SLOTS in bpf/lib/types.h; slot 0 is none.
const natSlots = 256

// SetDevices makes flows leave these devices with these addresses, and no
// others. An address keeps its slot for as long as it is wanted, as conntrack
// entries name it.
func (m *NATMap) SetDevices(devs []NATDevice) error {
	slots := make([]object.DatapathWeftNatAddress, natSlots)
	for i := range slots {
		if err := m.addresses.Lookup(uint32(i), &slots[i]); err != nil {
			return fmt.Errorf("map weft_natip: %w", err)
		}
	}
	want4, want6 := map[netip.Addr]uint32{}, map[netip.Addr]uint32{}
	for _, d := range devs {
		if d.IPv4.IsValid() {
			want4[d.IPv4] = 0
		}
		if d.IPv6.IsValid() {
			want6[d.IPv6] = 0
		}
	}
	for i := 1; i < natSlots; i++ { // those that are there, and the room that the others leave
		keepSlot(want4, addr4(slots[i].V4), i, func() { slots[i].V4 = 0 })
		keepSlot(want6, addr6(slots[i].V6), i, func() { slots[i].V6 = object.DatapathV6addr{} })
	}
	next4, next6 := 1, 1
	for a, s := range want4 {
		for ; s == 0 && next4 < natSlots; next4++ {
			if slots[next4].V4 == 0 {
				slots[next4].V4, s, want4[a] = raw4(a), uint32(next4), uint32(next4)
			}
		}
	}
	for a, s := range want6 {
		for ; s == 0 && next6 < natSlots; next6++ {
			if addr6(slots[next6].V6).IsUnspecified() {
				slots[next6].V6, s, want6[a] = raw6(a), uint32(next6), uint32(next6)
			}
		}
	}
	slots[0] = object.DatapathWeftNatAddress{}
	for i := range slots {
		slots[i].Pad = 0
		if err := put(m.addresses, uint32(i), slots[i]); err != nil {
			return err
		}
	}
	return m.putDevices(devs, want4, want6)
}

// keepSlot notes that a slot holds a wanted address, or empties it.
func keepSlot(want map[netip.Addr]uint32, has netip.Addr, slot int, empty func()) {
	if at, ok := want[has]; ok && at == 0 && !has.IsUnspecified() {
		want[has] = uint32(slot)
	} else {
		empty()
	}
}

func (m *NATMap) putDevices(devs []NATDevice, slot4, slot6 map[netip.Addr]uint32) error {
	var errs []error
	keep := map[uint32]bool{}
	for _, d := range devs {
		keep[uint32(d.Index)] = true
		errs = append(errs, put(m.devices, uint32(d.Index), object.DatapathWeftNatDevice{V4: slot4[d.IPv4], V6: slot6[d.IPv6]}))
	}
	old, _, err := dump[uint32, object.DatapathWeftNatDevice](m.devices)
	errs = append(errs, err)
	for _, index := range old {
		if !keep[index] {
			errs = append(errs, remove(m.devices, index))
		}
	}
	return errors.Join(errs...)
}

// SetExclusions makes exactly these ranges destinations that are never masqueraded.
func (m *NATMap) SetExclusions(ranges []netip.Prefix) error {
	keep4, keep6 := map[object.DatapathWeftNet4Key]bool{}, map[object.DatapathWeftNet6Key]bool{}
	var errs []error
	for _, p := range ranges {
		p = p.Masked()
		bits := uint32(p.Bits())
		var err error
		if p.Addr().Is4() {
			k := object.DatapathWeftNet4Key{Prefixlen: bits, Addr: raw4(p.Addr())}
			keep4[k] = true
			err = put(m.exclude4, k, uint32(1))
		} else {
			k := object.DatapathWeftNet6Key{Prefixlen: bits, Addr: raw6(p.Addr())}
			keep6[k] = true
			err = put(m.exclude6, k, uint32(1))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p, err))
		}
	}
	return errors.Join(append(errs, prune(m.exclude4, keep4), prune(m.exclude6, keep6))...)
}

func prune[K comparable](m *ebpf.Map, keep map[K]bool) error {
	old, _, err := dump[K, uint32](m)
	errs := []error{err}
	for _, k := range old {
		if !keep[k] {
			errs = append(errs, remove(m, k))
		}
	}
	return errors.Join(errs...)
}

// Exclusions lists the ranges that are never masqueraded.
func (m *NATMap) Exclusions() ([]netip.Prefix, error) {
	k4, _, err := dump[object.DatapathWeftNet4Key, uint32](m.exclude4)
	if err != nil {
		return nil, err
	}
	k6, _, err := dump[object.DatapathWeftNet6Key, uint32](m.exclude6)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, k := range k4 {
		out = append(out, netip.PrefixFrom(addr4(k.Addr), int(k.Prefixlen)))
	}
	for _, k := range k6 {
		out = append(out, netip.PrefixFrom(addr6(k.Addr), int(k.Prefixlen)))
	}
	return out, nil
}

// showNAT renders conntrack's note of what a flow's opener is to the outside:
// the port; the address stands in `weft bpf nat list`.
func showNAT(nat uint32) string {
	if nat == 0 {
		return ""
	}
	return strings.Join([]string{"masq", strconv.Itoa(int(port(uint16(nat))))}, ":")
}
