// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/api/weft.dev/v1alpha1"
)

// Parse reads a ledger as it stands in the API server. It fails where an entry
// cannot be understood: as nobody knows which range it speaks of, nothing may
// be granted before it is put right. The error names each such entry.
func Parse(spec *v1alpha1.PodCIDRLedgerSpec) (Ledger, error) {
	var errs []error
	read := func(what string, c v1alpha1.CIDR) netip.Prefix {
		p, err := parsePrefix(string(c))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
		return p
	}
	list := func(what string, cs []v1alpha1.CIDR) []netip.Prefix {
		if len(cs) == 0 {
			return nil
		}
		ps := make([]netip.Prefix, len(cs))
		for i, c := range cs {
			ps[i] = read(what, c)
		}
		return ps
	}
	if spec.Seq < 0 {
		errs = append(errs, fmt.Errorf("seq %d: is negative", spec.Seq))
	}
	l := Ledger{Seq: uint64(max(spec.Seq, 0)), Grants: make(map[string][]netip.Prefix, len(spec.Grants))}
	l.Pool.V4 = Family{CIDRs: list("pool.ipv4", spec.Pool.IPv4.CIDRs), MaskSize: spec.Pool.IPv4.MaskSize}
	l.Pool.V6 = Family{CIDRs: list("pool.ipv6", spec.Pool.IPv6.CIDRs), MaskSize: spec.Pool.IPv6.MaskSize}
	for node, cs := range spec.Grants {
		if len(cs) > 0 {
			l.Grants[node] = list("grants of node "+node, cs)
		}
	}
	for _, r := range spec.Quarantine {
		if r.Seq < 0 {
			errs = append(errs, fmt.Errorf("quarantine of %s: seq %d: is negative", r.CIDR, r.Seq))
		}
		l.Quarantine = append(l.Quarantine, Release{
			CIDR: read("quarantine", r.CIDR), Node: r.Node, At: r.At.Time, Seq: uint64(max(r.Seq, 0)),
		})
	}
	l.Rested = list("rested", spec.Rested)
	for _, s := range spec.Growth {
		l.Growth = append(l.Growth, Sample{At: s.At.Time, V4: s.IPv4, V6: s.IPv6})
	}
	if len(errs) > 0 {
		slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
		return Ledger{}, fmt.Errorf("ledger: %w: correct the entry with kubectl edit podcidrledger", errors.Join(errs...))
	}
	return l, nil
}

// Spec writes l as it stands in the API server. Parse of the result is equal to l.
func (l Ledger) Spec() v1alpha1.PodCIDRLedgerSpec {
	s := v1alpha1.PodCIDRLedgerSpec{
		Seq: int64(min(l.Seq, math.MaxInt64)),
		Pool: v1alpha1.LedgerPool{
			IPv4: v1alpha1.LedgerFamily{CIDRs: format(l.Pool.V4.CIDRs), MaskSize: l.Pool.V4.MaskSize},
			IPv6: v1alpha1.LedgerFamily{CIDRs: format(l.Pool.V6.CIDRs), MaskSize: l.Pool.V6.MaskSize},
		},
		Rested: format(l.Rested),
	}
	if len(l.Grants) > 0 {
		s.Grants = make(map[string][]v1alpha1.CIDR, len(l.Grants))
		for node, ps := range l.Grants {
			s.Grants[node] = format(ps)
		}
	}
	for _, r := range l.Quarantine {
		s.Quarantine = append(s.Quarantine, v1alpha1.LedgerRelease{
			CIDR: v1alpha1.CIDR(r.CIDR.String()), Node: r.Node, At: metav1.NewTime(r.At), Seq: int64(min(r.Seq, math.MaxInt64)),
		})
	}
	for _, g := range l.Growth {
		s.Growth = append(s.Growth, v1alpha1.LedgerSample{At: metav1.NewTime(g.At), IPv4: g.V4, IPv6: g.V6})
	}
	return s
}

func format(ps []netip.Prefix) []v1alpha1.CIDR {
	if len(ps) == 0 {
		return nil
	}
	out := make([]v1alpha1.CIDR, len(ps))
	for i, p := range ps {
		out[i] = v1alpha1.CIDR(p.String())
	}
	return out
}

// parsePrefix reads a range; bits beyond the prefix length are ignored.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR such as 10.20.0.0/24", s)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4-mapped range: write it as IPv4", s)
	}
	return p.Masked(), nil
}
