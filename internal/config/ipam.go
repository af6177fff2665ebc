// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Modes of IPAM: who gives a node the ranges that its pods live in.
const (
	IPAMKubernetes  = "kubernetes"   // kube-controller-manager, in Node.spec.podCIDRs
	IPAMClusterPool = "cluster-pool" // Weft's operator, from one pool
	IPAMMultiPool   = "multi-pool"   // Weft's operator, from CiliumPodIPPools
)

// MultiPool is what an agent asks of pools in mode multi-pool.
type MultiPool struct {
	// PreAllocation says how many free addresses a node keeps of a pool, as
	// POOL=N, separated by commas.
	PreAllocation string `key:"ipam-multi-pool-pre-allocation"`
}

// Ahead returns how many free addresses a node keeps, by pool.
func (p MultiPool) Ahead() (map[string]int, error) {
	out := map[string]int{}
	for _, w := range words(p.PreAllocation) {
		name, number, ok := strings.Cut(w, "=")
		n, err := strconv.Atoi(number)
		if !ok || name == "" || err != nil || n < 0 || n > maxAhead {
			return nil, fmt.Errorf("%q is not POOL=N with N from 0 to %d", w, maxAhead)
		}
		out[name] = n
	}
	return out, nil
}

// maxAhead bounds how many addresses a node keeps of a pool.
const maxAhead = 1 << 12

func (c *Config) checkPools() []error {
	var errs []error
	if _, err := c.Pools.Ahead(); err != nil {
		errs = append(errs, fmt.Errorf("setting ipam-multi-pool-pre-allocation: %w", err))
	}
	return errs
}

// ClusterPool says what the operator gives ranges from in mode cluster-pool.
type ClusterPool struct {
	IPv4CIDRs    []netip.Prefix `key:"cluster-pool-ipv4-cidr"`
	IPv4MaskSize int            `key:"cluster-pool-ipv4-mask-size"` // of one node's range
	IPv6CIDRs    []netip.Prefix `key:"cluster-pool-ipv6-cidr"`
	IPv6MaskSize int            `key:"cluster-pool-ipv6-mask-size"`
	// Acknowledged are ranges whose overlap with something else was accepted.
	Acknowledged []netip.Prefix `key:"cluster-pool-acknowledged-overlaps"`
	// Quarantine is how long a released range rests at least.
	Quarantine time.Duration `key:"cluster-pool-quarantine"`
}

// CIDRs returns the ranges of the pool of both families, IPv4 first.
func (p *ClusterPool) CIDRs() []netip.Prefix {
	return append(append([]netip.Prefix{}, p.IPv4CIDRs...), p.IPv6CIDRs...)
}

// longestQuarantine bounds how long a range may rest: what is longer than a day
// is a mistake in the unit.
const longestQuarantine = 24 * time.Hour

// checkPool looks at the pool's settings alone. A pool without ranges is no
// error here: the operator refuses it and proposes some.
func (c *Config) checkPool() []error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("setting "+key+": "+format, args...))
	}
	p := &c.Pool
	for _, f := range []struct {
		family, cidrs, mask string
		list                []netip.Prefix
		size, bits, longest int
		on                  bool
	}{
		{"IPv4", "cluster-pool-ipv4-cidr", "cluster-pool-ipv4-mask-size", p.IPv4CIDRs, p.IPv4MaskSize, 32, 30, c.EnableIPv4},
		{"IPv6", "cluster-pool-ipv6-cidr", "cluster-pool-ipv6-mask-size", p.IPv6CIDRs, p.IPv6MaskSize, 128, 126, c.EnableIPv6},
	} {
		if f.size < 1 || f.size > f.longest {
			bad(f.mask, "%d is not the length of a node's %s range: write 1 to %d", f.size, f.family, f.longest)
		}
		for i, r := range f.list {
			switch {
			case r.Addr().BitLen() != f.bits:
				bad(f.cidrs, "%s is not an %s range", r, f.family)
			case c.IPAM == IPAMClusterPool && !f.on:
				bad(f.cidrs, "%s is set but its family is off", r)
			case r.Bits() > f.size:
				bad(f.mask, "/%d is longer than a node's range can be cut from %s: a node's range must fit into each range of the pool", f.size, r)
			}
			for _, q := range f.list[:i] {
				if q.Overlaps(r) {
					bad(f.cidrs, "%s and %s overlap: each address may stand in one range only", q, r)
				}
			}
		}
	}
	if p.Quarantine < 0 || p.Quarantine > longestQuarantine {
		bad("cluster-pool-quarantine", "%s is outside 0 to %s", p.Quarantine, longestQuarantine)
	}
	return errs
}
