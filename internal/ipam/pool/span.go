// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
	"slices"
)

// num is an address as a number; IPv4 has its 32 bits at the low end.
type num struct{ hi, lo uint64 }

func numOf(a netip.Addr) num {
	if a.Is4() {
		b := a.As4()
		return num{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return num{hi: binary.BigEndian.Uint64(b[:8]), lo: binary.BigEndian.Uint64(b[8:])}
}

func (n num) addr(v6 bool) netip.Addr {
	if !v6 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n.lo)) //nolint:gosec // the high bits of an IPv4 address are zero
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b)
}

func (n num) compare(m num) int {
	if c := cmp.Compare(n.hi, m.hi); c != 0 {
		return c
	}
	return cmp.Compare(n.lo, m.lo)
}

// add wraps around at 2^128.
func (n num) add(m num) num {
	lo, carry := bits.Add64(n.lo, m.lo, 0)
	hi, _ := bits.Add64(n.hi, m.hi, carry)
	return num{hi, lo}
}

func (n num) sub(m num) num {
	lo, borrow := bits.Sub64(n.lo, m.lo, 0)
	hi, _ := bits.Sub64(n.hi, m.hi, borrow)
	return num{hi, lo}
}

func (n num) or(m num) num     { return num{n.hi | m.hi, n.lo | m.lo} }
func (n num) andNot(m num) num { return num{n.hi &^ m.hi, n.lo &^ m.lo} }
func (n num) next() num        { return n.add(num{lo: 1}) }
func (n num) prev() num        { return n.sub(num{lo: 1}) }

// shr shifts right; Go defines shifts by 64 and more as zero.
func (n num) shr(by int) num {
	if by >= 64 {
		return num{lo: n.hi >> (by - 64)}
	}
	return num{hi: n.hi >> by, lo: n.lo>>by | n.hi<<(64-by)}
}

// count is n as a count, at most the largest uint64.
func (n num) count() uint64 {
	if n.hi > 0 {
		return math.MaxUint64
	}
	return n.lo
}

// ones is 2^host - 1.
func ones(host int) num {
	if host >= 64 {
		return num{hi: 1<<(host-64) - 1, lo: math.MaxUint64}
	}
	return num{lo: 1<<host - 1}
}

// span is a range of addresses of one family, both ends included.
type span struct{ lo, hi num }

func spanOf(p netip.Prefix) span {
	host := ones(p.Addr().BitLen() - p.Bits())
	lo := numOf(p.Addr()).andNot(host)
	return span{lo, lo.or(host)}
}

func (s span) overlaps(o span) bool { return s.lo.compare(o.hi) <= 0 && o.lo.compare(s.hi) <= 0 }

// spans is sorted, without overlaps, once merge has made it.
type spans []span

// merge sorts in place and joins what overlaps or touches.
func merge(ss spans) spans {
	slices.SortFunc(ss, func(a, b span) int { return a.lo.compare(b.lo) })
	out := ss[:0]
	for _, s := range ss {
		if n := len(out); n > 0 && (s.lo.compare(out[n-1].hi) <= 0 || s.lo == out[n-1].hi.next()) {
			if s.hi.compare(out[n-1].hi) > 0 {
				out[n-1].hi = s.hi
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// from returns the index of the first span that ends at n or after it.
func (ss spans) from(n num) int {
	i, _ := slices.BinarySearchFunc(ss, n, func(s span, n num) int { return s.hi.compare(n) })
	return i
}

// touch reports whether any span overlaps o.
func (ss spans) touch(o span) bool {
	i := ss.from(o.lo)
	return i < len(ss) && ss[i].lo.compare(o.hi) <= 0
}

// without returns what of s none of the spans holds.
func (ss spans) without(s span) spans {
	var out spans
	for i := ss.from(s.lo); i < len(ss) && ss[i].lo.compare(s.hi) <= 0; i++ {
		if ss[i].lo.compare(s.lo) > 0 {
			out = append(out, span{s.lo, ss[i].lo.prev()})
		}
		if ss[i].hi.compare(s.hi) >= 0 {
			return out
		}
		s.lo = ss[i].hi.next()
	}
	return append(out, s)
}

// grid is a CIDR cut into blocks.
type grid struct {
	span

	v6   bool
	host int // bits of an address within a block
	mask int
}

func newGrid(p netip.Prefix, mask int) grid {
	return grid{span: spanOf(p), v6: isV6(p), host: p.Addr().BitLen() - mask, mask: mask}
}

// blocks counts the blocks, at most the largest uint64.
func (g grid) blocks() uint64 {
	n := g.hi.sub(g.lo).shr(g.host)
	if c := n.count(); c < math.MaxUint64 {
		return c + 1
	}
	return math.MaxUint64
}

// touched counts the blocks that any of the spans overlaps.
func (g grid) touched(ss spans) uint64 {
	var total num
	next := num{} // index of the first block that is not counted yet
	for i := ss.from(g.lo); i < len(ss) && ss[i].lo.compare(g.hi) <= 0; i++ {
		first, last := num{}, g.hi.sub(g.lo).shr(g.host)
		if ss[i].lo.compare(g.lo) > 0 {
			first = ss[i].lo.sub(g.lo).shr(g.host)
		}
		if ss[i].hi.compare(g.hi) < 0 {
			last = ss[i].hi.sub(g.lo).shr(g.host)
		}
		if first.compare(next) < 0 {
			first = next
		}
		if last.compare(first) < 0 {
			continue
		}
		total = total.add(last.sub(first)).next()
		next = last.next()
	}
	return total.count()
}

// free returns the first block at or after from that no span touches, which
// must be the start of a block of g.
func (g grid) free(from num, ss spans) (num, bool) {
	for i := ss.from(from); ; i++ {
		if i == len(ss) || ss[i].lo.compare(from.add(ones(g.host))) > 0 {
			return from, true
		}
		if ss[i].hi.compare(g.hi) >= 0 {
			return num{}, false
		}
		next := ss[i].hi.next().sub(g.lo).add(ones(g.host)).andNot(ones(g.host)).add(g.lo)
		if next.compare(g.hi) > 0 || next.compare(from) <= 0 {
			return num{}, false
		}
		for i+1 < len(ss) && ss[i+1].hi.compare(next) < 0 {
			i++
		}
		from = next
	}
}

// block is the block that starts at n.
func (g grid) block(n num) netip.Prefix { return netip.PrefixFrom(n.addr(g.v6), g.mask) }

// holds reports whether p is one of the blocks.
func (g grid) holds(p netip.Prefix) bool {
	return isV6(p) == g.v6 && p.Bits() == g.mask && g.overlaps(spanOf(p))
}
