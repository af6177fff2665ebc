// SPDX-License-Identifier: Apache-2.0

package masquerade

import (
	"fmt"
	"strconv"
	"strings"
)

// Default ports of masqueraded flows: the dynamic ones of RFC 6335. Decision
// 0007 says why.
const (
	DefaultMin = 49152
	DefaultMax = 65535
)

// Ports of NodePort services, unless kube-apiserver was told otherwise.
const (
	nodePortMin = 30000
	nodePortMax = 32767
	// leastPorts is how many simultaneous flows to one destination a node must have.
	leastPorts = 256
)

// ParseRange reads "MIN-MAX" and refuses what masqueraded flows cannot have.
func ParseRange(s string) (low, high uint16, err error) {
	a, b, ok := strings.Cut(s, "-")
	x, err1 := strconv.ParseUint(a, 10, 16)
	y, err2 := strconv.ParseUint(b, 10, 16)
	switch {
	case !ok || err1 != nil || err2 != nil || x > y:
		return 0, 0, fmt.Errorf("%q is not a range of ports such as %d-%d", s, DefaultMin, DefaultMax)
	case x < 1024:
		return 0, 0, fmt.Errorf("%q begins below 1024, where the node's own services are", s)
	case x <= nodePortMax && y >= nodePortMin:
		return 0, 0, fmt.Errorf("%q overlaps NodePorts (%d-%d)", s, nodePortMin, nodePortMax)
	case y-x+1 < leastPorts:
		return 0, 0, fmt.Errorf("%q has fewer than %d ports", s, leastPorts)
	}
	return uint16(x), uint16(y), nil
}

// Set is a set of ports, as net.ipv4.ip_local_reserved_ports holds one.
type Set struct{ bits [1 << 10]uint64 }

// ParseSet reads the kernel's form: "8080,9148-9150".
func ParseSet(s string) (*Set, error) {
	var set Set
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		a, b, ok := strings.Cut(part, "-")
		if !ok {
			b = a
		}
		x, err1 := strconv.ParseUint(a, 10, 16)
		y, err2 := strconv.ParseUint(b, 10, 16)
		if err1 != nil || err2 != nil || x > y {
			return nil, fmt.Errorf("%q is not a list of ports", s)
		}
		set.Add(uint16(x), uint16(y))
	}
	return &set, nil
}

// Add adds the ports from low to high.
func (s *Set) Add(low, high uint16) {
	for p := int(low); p <= int(high); p++ {
		s.bits[p>>6] |= 1 << (p & 63)
	}
}

// Minus returns what is in s and not in t.
func (s *Set) Minus(t *Set) *Set {
	out := *s
	for i := range out.bits {
		out.bits[i] &^= t.bits[i]
	}
	return &out
}

// Plus returns what is in s or in t.
func (s *Set) Plus(t *Set) *Set {
	out := *s
	for i := range out.bits {
		out.bits[i] |= t.bits[i]
	}
	return &out
}

// Equal tells whether the two hold the same ports.
func (s *Set) Equal(t *Set) bool { return s.bits == t.bits }

func (s *Set) has(p int) bool { return p <= 65535 && s.bits[p>>6]&(1<<(p&63)) != 0 }

// String renders the set as the kernel does.
func (s *Set) String() string {
	var parts []string
	for p := 0; p <= 65535; p++ {
		if !s.has(p) {
			continue
		}
		low := p
		for s.has(p + 1) {
			p++
		}
		part := strconv.Itoa(low)
		if p > low {
			part += "-" + strconv.Itoa(p)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ",")
}
