// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

func ranged(f table.Frontend, service uint32, ranges ...string) table.Frontend {
	f.ServiceID, f.Type, f.SourceRanges = service, table.FrontendLoadBalancer, nil
	f.Flags |= table.FrontendSources
	for _, r := range ranges {
		f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix(r))
	}
	return f
}

// Guards against clients that may use a service after they were taken out of its
// source ranges, or may not while another frontend of it changes; against ranges that
// nobody removes.
func TestServiceSources(t *testing.T) {
	s := newSetOf(t, lbSizes)
	one := ranged(frontend("192.0.2.1:80", 1, 2), 5, "10.0.0.0/8", "10.1.0.0/16", "198.51.100.7/32")
	two := ranged(frontend("192.0.2.2:80", 1), 5, "10.0.0.0/8")
	six := ranged(frontend("[2001:db8::1]:80", 3), 6, "2001:db8:7::/48")
	for _, f := range []table.Frontend{one, two, six} {
		must(t, s.Services.Upsert(f))
	}
	count := func(what string, v4, v6 int) {
		t.Helper()
		if a, b := entriesOf(t, s, "weft_src4"), entriesOf(t, s, "weft_src6"); a != v4 || b != v6 {
			t.Errorf("%s: %d and %d ranges, want %d and %d", what, a, b, v4, v6)
		}
	}
	admits := func(a string, service uint32) bool {
		var v uint32
		k := object.DatapathWeftSrc4Key{Prefixlen: 64, Service: service, Addr: le(a)}
		err := s.Raw(object.DatapathMapWeftSrc4).Lookup(k, &v)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
		return err == nil
	}
	count("two frontends of one service, and another family", 3, 1)
	if !admits("10.200.0.1", 5) || !admits("198.51.100.7", 5) || admits("198.51.100.8", 5) || admits("10.200.0.1", 6) {
		t.Error("the wrong clients are let in")
	}
	one.SourceRanges = one.SourceRanges[1:2]
	must(t, s.Services.Upsert(one))
	count("one of them narrowed", 2, 1)
	must(t, s.Services.Delete(two.Key))
	count("the other gone", 1, 1)
	if admits("10.200.0.1", 5) || !admits("10.1.2.3", 5) {
		t.Error("the wrong clients are let in after a change")
	}
	s = again(t, s)
	must(t, s.Raw(object.DatapathMapWeftSrc4).Put(object.DatapathWeftSrc4Key{Prefixlen: 32, Service: 5}, uint32(1)))
	must(t, s.Raw(object.DatapathMapWeftSrc4).Put(object.DatapathWeftSrc4Key{Prefixlen: 40, Service: 99, Addr: le("10.0.0.0")}, uint32(1)))
	must(t, s.Services.Prune([]table.Frontend{one, six}))
	count("what a hand wrote, pruned", 1, 1)
	one.Flags, one.SourceRanges = one.Flags&^table.FrontendSources, nil
	must(t, s.Services.Upsert(one))
	count("for everybody again", 0, 1)
	wrong := ranged(frontend("192.0.2.3:80", 1), 7, "2001:db8::/32")
	if err := s.Services.Upsert(wrong); err == nil {
		t.Error("a range of another family is taken")
	}
	many := ranged(frontend("192.0.2.4:80", 1), 8)
	for i := range byte(200) {
		many.SourceRanges = append(many.SourceRanges, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, i}), 32))
	}
	if err := s.Services.Upsert(many); !errors.Is(err, maps.ErrFull) {
		t.Errorf("more ranges than fit: %v", err)
	}
	count("of one that did not fit nothing is left", 0, 1)
	wantServices(t, s, one, six)
}

// le is an address as maps hold it.
func le(s string) uint32 {
	b := netip.MustParseAddr(s).As4()
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}
