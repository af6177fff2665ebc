// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"hash/fnv"
	"net/netip"
)

// Free suggests up to n ranges with the given prefix length that overlap none
// of those that are taken: IPv4 from the private networks (RFC 1918), one of
// each in turn, then from the shared one (RFC 6598); IPv6 from unique local
// addresses (RFC 4193) with a global id that is made from what is taken, so
// that clusters on different networks get different ones. The same arguments
// give the same answer.
func Free(taken []netip.Prefix, v6 bool, mask, n int) []netip.Prefix {
	var used spans
	for _, p := range taken {
		if p.IsValid() && isV6(p) == v6 && p.Bits() > 0 {
			used = append(used, spanOf(p))
		}
	}
	used = merge(used)
	if v6 {
		return freeLocal(used, taken, mask, n)
	}
	var grids []grid
	for _, s := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"} {
		if p := netip.MustParsePrefix(s); p.Bits() <= mask && mask <= 30 {
			grids = append(grids, newGrid(p, mask))
		}
	}
	// Most people count from the bottom: the upper half is emptier.
	ats := make([]num, len(grids))
	for i, g := range grids {
		ats[i] = g.lo
		if g.blocks() > 1 {
			ats[i] = num{lo: g.lo.lo + (g.hi.lo-g.lo.lo+1)/2}
		}
	}
	var out []netip.Prefix
	for found := true; found && len(out) < n; {
		found = false
		for i, g := range grids {
			if len(out) == n || ats[i].compare(g.hi) > 0 {
				continue
			}
			at, ok := g.free(ats[i], used)
			if !ok {
				ats[i] = g.hi.next()
				continue
			}
			out = append(out, g.block(at))
			ats[i] = at.add(ones(g.host)).next()
			found = true
		}
	}
	return out
}

func freeLocal(used spans, taken []netip.Prefix, mask, n int) []netip.Prefix {
	if mask < 9 || mask > 126 {
		return nil
	}
	h := fnv.New64a()
	for _, p := range taken {
		_, _ = h.Write([]byte(p.String())) // never fails
	}
	id := num{hi: 0xfd<<56 | h.Sum64()>>24<<16}
	g := newGrid(netip.MustParsePrefix("fd00::/8"), mask)
	at := id.andNot(ones(g.host))
	var out []netip.Prefix
	for len(out) < n {
		next, ok := g.free(at, used)
		if !ok {
			return out
		}
		out = append(out, g.block(next))
		at = next.add(ones(g.host)).next()
		if at.compare(g.hi) > 0 || at.compare(next) <= 0 {
			return out
		}
	}
	return out
}
