// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

// Flags of a conntrack entry, as CT_* in bpf/lib/types.h.
const (
	ctOpenerHi  = 1 << 0
	ctStack     = 1 << 1
	ctAnswered  = 1 << 2
	ctGuessed   = 1 << 3
	ctFinOpener = 1 << 4
	ctFinAnswer = 1 << 5
	ctRST       = 1 << 6
)

// CTRow is one connection. Src is the side that opened it.
type CTRow struct {
	Proto       uint8          `json:"proto"`
	Src         netip.Addr     `json:"src"`
	Dst         netip.Addr     `json:"dst"`
	SrcPort     uint16         `json:"srcPort"` // of ICMP echo: the id
	DstPort     uint16         `json:"dstPort"`
	Path        string         `json:"path"` // fast or stack
	Answered    bool           `json:"answered"`
	Flags       string         `json:"flags,omitempty"` // guessed, fin-src, fin-dst, rst, masq:PORT
	Expires     time.Duration  `json:"expires"`         // from now; negative: expired, not yet collected
	SrcIdentity table.Identity `json:"srcIdentity"`
	DstIdentity table.Identity `json:"dstIdentity"`
	SrcEndpoint uint16         `json:"srcEndpoint,omitempty"`
	DstEndpoint uint16         `json:"dstEndpoint,omitempty"`
}

// TableHeader names the columns of TableRow.
func (CTRow) TableHeader() []string {
	return []string{"PROTO", "SOURCE", "DESTINATION", "PATH", "ANSWERED", "FLAGS", "EXPIRES", "SRC-IDENTITY", "DST-IDENTITY"}
}

// TableRow renders the row under TableHeader.
func (r CTRow) TableRow() []string {
	return []string{
		protoName(r.Proto), netip.AddrPortFrom(r.Src, r.SrcPort).String(), netip.AddrPortFrom(r.Dst, r.DstPort).String(),
		r.Path, strconv.FormatBool(r.Answered), r.Flags, r.Expires.Truncate(time.Second).String(),
		r.SrcIdentity.String(), r.DstIdentity.String(),
	}
}

func protoName(p uint8) string {
	switch p {
	case 1:
		return "ICMP"
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	case 58:
		return "ICMPv6"
	case 132:
		return "SCTP"
	}
	return strconv.Itoa(int(p))
}

// CTMap is the four conntrack maps: weft_ct* holds connections that were
// answered, weft_ctn* those that were not (yet).
type CTMap struct{ answered4, answered6, new4, new6 *ebpf.Map }

// List returns at most limit connections (0: all), expired ones included.
func (m *CTMap) List(limit int) ([]CTRow, error) {
	now, err := nowTick()
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	rows := []CTRow{}
	room := func() bool { return limit == 0 || len(rows) < limit }
	for _, mm := range []*ebpf.Map{m.answered4, m.new4} {
		err = errors.Join(err, batches(mm, func(ks []object.DatapathWeftCt4Key, vs []object.DatapathWeftCt) bool {
			for i, k := range ks {
				if room() {
					rows = append(rows, ctRow([2]netip.Addr{addr4(k.Addr[0]), addr4(k.Addr[1])}, k.Port, k.Proto, vs[i], now))
				}
			}
			return room()
		}))
	}
	for _, mm := range []*ebpf.Map{m.answered6, m.new6} {
		err = errors.Join(err, batches(mm, func(ks []object.DatapathWeftCt6Key, vs []object.DatapathWeftCt) bool {
			for i, k := range ks {
				if room() {
					rows = append(rows, ctRow([2]netip.Addr{addr6(k.Addr[0]), addr6(k.Addr[1])}, k.Port, k.Proto, vs[i], now))
				}
			}
			return room()
		}))
	}
	return rows, err
}

func ctRow(addrs [2]netip.Addr, ports [2]uint16, proto uint8, v object.DatapathWeftCt, now uint32) CTRow {
	src, dst := 0, 1
	if v.Flags&ctOpenerHi != 0 {
		src, dst = 1, 0
	}
	r := CTRow{
		Proto: proto, Src: addrs[src], Dst: addrs[dst], SrcPort: port(ports[src]), DstPort: port(ports[dst]),
		Path: "fast", Answered: v.Flags&ctAnswered != 0, Expires: duration(int64(v.Expires) - int64(now)),
		SrcIdentity: table.Identity(v.SrcIdentity), DstIdentity: table.Identity(v.DstIdentity),
		SrcEndpoint: v.SrcEndpoint, DstEndpoint: v.DstEndpoint,
	}
	if v.Flags&ctStack != 0 {
		r.Path = "stack"
	}
	var flags []string
	for _, f := range []struct {
		bit  uint32
		name string
	}{{ctGuessed, "guessed"}, {ctFinOpener, "fin-src"}, {ctFinAnswer, "fin-dst"}, {ctRST, "rst"}} {
		if v.Flags&f.bit != 0 {
			flags = append(flags, f.name)
		}
	}
	if nat := showNAT(v.Nat); nat != "" {
		flags = append(flags, nat)
	}
	r.Flags = strings.Join(flags, ",")
	return r
}

func nowTick() (uint32, error) {
	ns, err := coarse()
	return uint32(ns >> tickShift), err
}

// PurgeAddrs removes every connection of the addresses and returns how many
// there were. It must run after the endpoint's row is gone and before one of its
// addresses is given to another (DATAPATH rule 6).
func (m *CTMap) PurgeAddrs(addrs ...netip.Addr) (int, error) {
	set4, set6 := map[uint32]bool{}, map[object.DatapathV6addr]bool{}
	for _, a := range addrs {
		switch {
		case a.Is4():
			set4[raw4(a)] = true
		case a.Is6():
			set6[raw6(a)] = true
		}
	}
	n := 0
	var errs []error
	for _, mm := range []*ebpf.Map{m.answered4, m.new4} {
		if len(set4) > 0 {
			c, err := purge(mm, func(k object.DatapathWeftCt4Key, _ object.DatapathWeftCt) bool {
				return set4[k.Addr[0]] || set4[k.Addr[1]]
			}, 0, nil)
			n, errs = n+c, append(errs, err)
		}
	}
	for _, mm := range []*ebpf.Map{m.answered6, m.new6} {
		if len(set6) > 0 {
			c, err := purge(mm, func(k object.DatapathWeftCt6Key, _ object.DatapathWeftCt) bool {
				return set6[k.Addr[0]] || set6[k.Addr[1]]
			}, 0, nil)
			n, errs = n+c, append(errs, err)
		}
	}
	return n, errors.Join(errs...)
}

// Young is an endpoint's part of the small tables.
type Young struct {
	Endpoint uint16
	Opened   int // connections that it opened
	Received int // that others opened to it
	Peers    int // addresses at the other ends
}

// YoungCapacity is how many connections a small table has room for.
func (m *CTMap) YoungCapacity() int { return int(m.new4.MaxEntries()) }

// Young tells whose the connections are that did not go on after an answer.
func (m *CTMap) Young() ([]Young, error) {
	type peer struct {
		endpoint uint16
		addr     netip.Addr
	}
	by, peers := map[uint16]*Young{}, map[peer]bool{}
	count := func(id uint16, opened bool, other netip.Addr) {
		if id == 0 {
			return
		}
		y := by[id]
		if y == nil {
			y = &Young{Endpoint: id}
			by[id] = y
		}
		if opened {
			y.Opened++
		} else {
			y.Received++
		}
		if p := (peer{id, other}); !peers[p] {
			peers[p] = true
			y.Peers++
		}
	}
	add := func(pair [2]netip.Addr, v object.DatapathWeftCt) {
		src, dst := pair[0], pair[1]
		if v.Flags&ctOpenerHi != 0 {
			src, dst = dst, src
		}
		count(v.SrcEndpoint, true, dst)
		count(v.DstEndpoint, false, src)
	}
	err4 := batches(m.new4, func(ks []object.DatapathWeftCt4Key, vs []object.DatapathWeftCt) bool {
		for i, k := range ks {
			add([2]netip.Addr{addr4(k.Addr[0]), addr4(k.Addr[1])}, vs[i])
		}
		return true
	})
	err6 := batches(m.new6, func(ks []object.DatapathWeftCt6Key, vs []object.DatapathWeftCt) bool {
		for i, k := range ks {
			add([2]netip.Addr{addr6(k.Addr[0]), addr6(k.Addr[1])}, vs[i])
		}
		return true
	})
	out := make([]Young, 0, len(by))
	for _, y := range by {
		out = append(out, *y)
	}
	slices.SortFunc(out, func(a, b Young) int {
		return cmp.Or(cmp.Compare(b.Opened+b.Received, a.Opened+a.Received), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return out, errors.Join(err4, err6)
}

// Sweep removes connections that expired, at most limit (0: all), and returns
// how many it removed. The programs treat an expired entry as none, so sweeping
// serves the figures and leaves room; it is safe while packets fly.
func (m *CTMap) Sweep(limit int) (int, error) {
	now, err := nowTick()
	if err != nil {
		return 0, fmt.Errorf("conntrack: %w", err)
	}
	n := 0
	var errs []error
	expired := func(v object.DatapathWeftCt) bool { return v.Expires < now }
	for _, mm := range []*ebpf.Map{m.answered4, m.new4} {
		c, err := purge(mm, func(_ object.DatapathWeftCt4Key, v object.DatapathWeftCt) bool { return expired(v) }, left(limit, n), expired)
		n, errs = n+c, append(errs, err)
	}
	for _, mm := range []*ebpf.Map{m.answered6, m.new6} {
		c, err := purge(mm, func(_ object.DatapathWeftCt6Key, v object.DatapathWeftCt) bool { return expired(v) }, left(limit, n), expired)
		n, errs = n+c, append(errs, err)
	}
	return n, errors.Join(errs...)
}

// left returns how many of limit remain: 0 stands for no limit, -1 for none.
func left(limit, done int) int {
	if limit > 0 && done >= limit {
		return -1
	}
	return max(0, limit-done)
}

// Flush removes all connections and returns how many there were.
func (m *CTMap) Flush() (int, error) {
	n := 0
	var errs []error
	for _, mm := range []*ebpf.Map{m.answered4, m.new4} {
		c, err := purge(mm, func(object.DatapathWeftCt4Key, object.DatapathWeftCt) bool { return true }, 0, nil)
		n, errs = n+c, append(errs, err)
	}
	for _, mm := range []*ebpf.Map{m.answered6, m.new6} {
		c, err := purge(mm, func(object.DatapathWeftCt6Key, object.DatapathWeftCt) bool { return true }, 0, nil)
		n, errs = n+c, append(errs, err)
	}
	return n, errors.Join(errs...)
}

// purge deletes the entries that match. With still set, an entry is read again
// right before: a packet may have refreshed it since the batch was read.
func purge[K, V any](m *ebpf.Map, match func(K, V) bool, limit int, still func(V) bool) (int, error) {
	n := 0
	var failed error
	if limit < 0 {
		return 0, nil
	}
	err := batches(m, func(ks []K, vs []V) bool {
		for i := range ks {
			if !match(ks[i], vs[i]) {
				continue
			}
			if still != nil {
				var v V
				if err := m.Lookup(ks[i], &v); err != nil || !still(v) {
					continue
				}
			}
			if err := m.Delete(ks[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				failed = fmt.Errorf("map %s: %w", mapName(m), err)
				return false
			}
			n++
			if limit > 0 && n >= limit {
				return false
			}
		}
		return true
	})
	return n, errors.Join(err, failed)
}
