// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// RangeStatus is how full a range is, in addresses.
type RangeStatus struct {
	Prefix      netip.Prefix `json:"prefix"`
	Pool        string       `json:"pool,omitempty"` // empty where there is one pool only
	Used        uint64       `json:"used"`
	Quarantined uint64       `json:"quarantined"` // resting for less than Rest, or claimed elsewhere
	Total       uint64       `json:"total"`       // without reserved ones; saturates at 2^64-1
}

// Status of an Allocator.
type Status struct {
	Ranges []RangeStatus `json:"ranges"`
	// Outside counts addresses in use that are in none of the ranges: the
	// node's ranges were changed under running pods.
	Outside uint64 `json:"outside"`
}

// Status counts. It takes time in proportion to the addresses in use and at rest.
func (a *Allocator) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status(a.cfg.Now())
}

func (a *Allocator) status(now time.Time) Status {
	st := Status{Ranges: make([]RangeStatus, len(a.ranges))}
	for i, s := range a.ranges {
		st.Ranges[i] = RangeStatus{Prefix: s.prefix, Pool: s.pool, Total: Capacity(s.prefix)}
	}
	find := func(addr netip.Addr) *RangeStatus {
		for i := range st.Ranges {
			if !a.inRange(addr) {
				break // reserved now, though an earlier range gave it out
			}
			if st.Ranges[i].Prefix.Contains(addr) {
				return &st.Ranges[i]
			}
		}
		return nil
	}
	for addr := range a.used {
		if r := find(addr); r != nil {
			r.Used++
		} else {
			st.Outside++
		}
	}
	for _, q := range a.rest {
		for _, rel := range q.list {
			if r := find(rel.Addr); r != nil && (now.Sub(rel.At) < Rest || a.cfg.Claimed(rel.Addr)) {
				r.Quarantined++
			}
		}
	}
	return st
}

// HoldError says that allocation waits because it is not known which addresses
// were released just now.
type HoldError struct{ Wait time.Duration }

func (e *HoldError) Error() string {
	return fmt.Sprintf("addresses released before the state was lost still rest: try again in %s", e.Wait.Round(time.Second))
}

// ExhaustedError says that a family has no address left.
type ExhaustedError struct {
	V6     bool
	Pool   string        // empty where there is one pool only
	Ranges []RangeStatus // of that family and pool
	// Next is how long until an address has rested enough; 0 if none is resting.
	Next time.Duration
	// Remedy is Config.Remedy.
	Remedy string
}

func (a *Allocator) exhausted(v6 bool, pool string, now time.Time) error {
	e := &ExhaustedError{V6: v6, Pool: pool, Remedy: a.cfg.Remedy}
	for _, r := range a.status(now).Ranges {
		if r.Prefix.Addr().Is6() == v6 && r.Pool == pool {
			e.Ranges = append(e.Ranges, r)
		}
	}
	q := a.rest[v6]
	if i := slices.IndexFunc(q.list, func(r Released) bool { return a.poolOf(r.Addr) == pool }); i >= 0 {
		e.Next = max(Rest-now.Sub(q.at(i).At), time.Second)
	}
	return e
}

func (e *ExhaustedError) Error() string {
	var ps []netip.Prefix
	var used, resting, total uint64
	for _, r := range e.Ranges {
		ps = append(ps, r.Prefix)
		used += r.Used
		resting += r.Quarantined
		total = saturatingAdd(total, r.Total)
	}
	next := ""
	if e.Next > 0 {
		next = fmt.Sprintf(" (the next is free in %s)", e.Next.Round(time.Second))
	}
	remedy := e.Remedy
	if remedy == "" {
		remedy = "larger node ranges (--node-cidr-mask-size of kube-controller-manager) reach only nodes that join later"
	}
	if e.Pool != "" && len(e.Ranges) == 0 {
		return fmt.Sprintf("this node has no %s range of pool %s yet: %s", familyName(e.V6), e.Pool, remedy)
	}
	if e.Pool != "" {
		return fmt.Sprintf("%s pool %s is exhausted on this node: %s: %s addresses, %d in use, %d quarantined%s: %s",
			familyName(e.V6), e.Pool, joinPrefixes(ps), count(total), used, resting, next, remedy)
	}
	return fmt.Sprintf("%s pool %s is exhausted: %s addresses, %d in use, %d quarantined%s: delete pods on this node or add nodes; %s",
		familyName(e.V6), joinPrefixes(ps), count(total), used, resting, next, remedy)
}

func saturatingAdd(x, y uint64) uint64 {
	if x > math.MaxUint64-y {
		return math.MaxUint64
	}
	return x + y
}

func count(n uint64) string {
	if n == math.MaxUint64 {
		return "2^64 or more"
	}
	return strconv.FormatUint(n, 10)
}
