// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// Families says which address families pods get.
type Families struct{ V4, V6 bool }

// has reports whether addresses like a are given out.
func (f Families) has(a netip.Addr) bool {
	if a.Is4() {
		return f.V4
	}
	return f.V6
}

// never lists what can not be a pod's address on any network: RFC 6890.
var never = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "\"this network\" (RFC 791)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/3"), "multicast and reserved"},
	{netip.MustParsePrefix("::/127"), "unspecified and loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// Validate reports every range that no pod could live in: too small, host bits
// set, of a family that is off, overlapping another one or an address block
// that means something else. It returns nil if all can be used and each family
// that is on has at least one.
func Validate(ranges []netip.Prefix, fam Families) error {
	var errs []error
	bad := func(p netip.Prefix, format string, args ...any) {
		errs = append(errs, fmt.Errorf("pod CIDR %s: %s", p, fmt.Sprintf(format, args...)))
	}
	var got Families
	for i, p := range ranges {
		if !p.IsValid() {
			errs = append(errs, fmt.Errorf("pod CIDR number %d: not a prefix: correct spec.podCIDRs of the node", i+1))
			continue
		}
		switch a := p.Addr(); {
		case a.Is4():
			got.V4 = true
		default:
			got.V6 = true
		}
		if reason := impossible(p, fam); reason != "" {
			bad(p, "%s", reason)
			continue
		}
		for _, q := range ranges[:i] {
			if q.IsValid() && q.Overlaps(p) {
				bad(p, "overlaps pod CIDR %s of the same node: each address may stand in one range only", q)
			}
		}
	}
	if fam.V4 && !got.V4 {
		errs = append(errs, missing("IPv4", "ipv4"))
	}
	if fam.V6 && !got.V6 {
		errs = append(errs, missing("IPv6", "ipv6"))
	}
	return errors.Join(errs...)
}

func missing(family, key string) error {
	return fmt.Errorf("%s is on, but no pod CIDR of the node is %s: set --cluster-cidr of kube-controller-manager to a range of each family, "+
		"or %s.enabled=false", family, family, key)
}

// impossible says why nothing can be allocated from p, or nothing at all.
func impossible(p netip.Prefix, fam Families) string {
	a := p.Addr()
	if a.Is4In6() {
		return "is an IPv4-mapped IPv6 range: write it as IPv4"
	}
	if !fam.has(a) {
		if a.Is4() {
			return "is IPv4, which is off: set ipv4.enabled=true or give the node IPv6 ranges only"
		}
		return "is IPv6, which is off: set ipv6.enabled=true or give the node IPv4 ranges only"
	}
	if m := p.Masked(); m != p {
		return fmt.Sprintf("has bits set beyond its length: write %s", m)
	}
	if Capacity(p) == 0 {
		return fmt.Sprintf("is too small: network, health and broadcast addresses leave none for pods; use a /%d or larger", smallest(a))
	}
	return Forbidden(p)
}

// Forbidden says why p cannot be a range of pods on any network, "" if it can.
func Forbidden(p netip.Prefix) string {
	for _, n := range never {
		if n.prefix.Overlaps(p) {
			return fmt.Sprintf("overlaps %s, which is %s and never a pod's", n.prefix, n.what)
		}
	}
	return ""
}

// smallest is the longest prefix length that leaves an address for a pod.
func smallest(a netip.Addr) int {
	if a.Is4() {
		return 30
	}
	return 126
}

// Capacity counts the addresses of p that pods can get: all but the network
// address, the health address and, for IPv4, the broadcast address. It
// saturates at the largest uint64.
func Capacity(p netip.Prefix) uint64 {
	host := p.Addr().BitLen() - p.Bits()
	reserved := uint64(2)
	if p.Addr().Is4() {
		reserved = 3
	}
	if host >= 64 {
		return math.MaxUint64
	}
	if n := uint64(1) << host; n > reserved {
		return n - reserved
	}
	return 0
}

// HealthAddr returns the address of p that the node's health endpoint holds:
// the first after the network address (IPv4) or the subnet-router anycast
// address (RFC 4291, 2.6.1).
func HealthAddr(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// last returns the highest address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// final returns the highest address of p that a pod can get.
func final(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return last(p).Prev()
	}
	return last(p)
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

func joinPrefixes(ps []netip.Prefix) string {
	ss := make([]string, len(ps))
	for i, p := range ps {
		ss[i] = p.String()
	}
	slices.Sort(ss)
	return strings.Join(ss, ", ")
}
