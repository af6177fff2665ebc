// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

// source is one row of weft_src*: who may use a service from outside.
type source struct {
	service uint32
	from    netip.Prefix
}

// serviceBits are those of the service's number before the client's address.
const serviceBits = 32

// sourceRow returns the key of a row and the map that it is in.
func (m *ServiceMap) sourceRow(s source) (any, *ebpf.Map) {
	bits := uint32(serviceBits + s.from.Bits())
	if s.from.Addr().Is4() {
		return object.DatapathWeftSrc4Key{Prefixlen: bits, Service: s.service, Addr: raw4(s.from.Addr())}, m.sources4
	}
	return object.DatapathWeftSrc6Key{Prefixlen: bits, Service: s.service, Addr: raw6(s.from.Addr())}, m.sources6
}

// encodeSources returns the ranges of a frontend, sorted: none where it is for all.
func encodeSources(f *table.Frontend) ([]netip.Prefix, error) {
	if f.Flags&table.FrontendSources == 0 {
		return nil, nil
	}
	out := make([]netip.Prefix, 0, len(f.SourceRanges))
	for _, p := range f.SourceRanges {
		if !p.IsValid() || p.Addr().Is4() != f.Key.Addr.Addr().Is4() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("source range %s is of another family", p)
		}
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out), nil
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// readSources returns what the kernel holds, in order.
func (m *ServiceMap) readSources() ([]source, error) {
	var out []source
	add := func(service, bits uint32, a netip.Addr) {
		if p, err := a.Prefix(int(bits) - serviceBits); err == nil {
			out = append(out, source{service, p})
		}
	}
	keys4, _, err := dump[object.DatapathWeftSrc4Key, uint32](m.sources4)
	if err != nil {
		return nil, err
	}
	for _, k := range keys4 {
		add(k.Service, k.Prefixlen, addr4(k.Addr))
	}
	keys6, _, err := dump[object.DatapathWeftSrc6Key, uint32](m.sources6)
	if err != nil {
		return nil, err
	}
	for _, k := range keys6 {
		add(k.Service, k.Prefixlen, addr6(k.Addr))
	}
	slices.SortFunc(out, func(a, b source) int { return comparePrefixes(a.from, b.from) })
	return out, nil
}

// withSources gives rows the ranges that the kernel has for their service.
func withSources(rows map[table.FrontendKey]serviceRow, all []source) {
	byService := map[uint32][]netip.Prefix{}
	for _, s := range all {
		byService[s.service] = append(byService[s.service], s.from)
	}
	for key, r := range rows {
		if r.value.Flags&table.FrontendSources == 0 {
			continue
		}
		v4 := key.Addr.Addr().Is4()
		for _, p := range byService[r.value.Service] {
			if p.Addr().Is4() == v4 {
				r.sources = append(r.sources, p)
			}
		}
		rows[key] = r
	}
}

// putSources writes the ranges that the kernel does not have yet. Whatever it
// returns, they count as named once more.
func (m *ServiceMap) putSources(r serviceRow) error {
	var err error
	for _, p := range r.sources {
		s := source{r.value.Service, p}
		if m.memory.sources[s]++; m.memory.sources[s] > 1 || err != nil {
			continue
		}
		k, in := m.sourceRow(s)
		if err = put(in, k, uint32(1)); errors.Is(err, ErrFull) {
			err = fmt.Errorf("%w (bpf-lb-map-max)", err)
		}
	}
	return err
}

// releaseSources takes back what putSources counted, and removes ranges that no
// frontend has any more.
func (m *ServiceMap) releaseSources(r serviceRow) error {
	var errs []error
	for _, p := range r.sources {
		s := source{r.value.Service, p}
		if m.memory.sources[s]--; m.memory.sources[s] > 0 {
			continue
		}
		delete(m.memory.sources, s)
		k, in := m.sourceRow(s)
		errs = append(errs, remove(in, k))
	}
	return errors.Join(errs...)
}

// pruneSources removes what no row of a service names.
func (m *ServiceMap) pruneSources() error {
	_, e4 := purge(m.sources4, func(k object.DatapathWeftSrc4Key, _ uint32) bool {
		p, err := addr4(k.Addr).Prefix(int(k.Prefixlen) - serviceBits)
		return err != nil || m.memory.sources[source{k.Service, p}] == 0
	}, 0, nil)
	_, e6 := purge(m.sources6, func(k object.DatapathWeftSrc6Key, _ uint32) bool {
		p, err := addr6(k.Addr).Prefix(int(k.Prefixlen) - serviceBits)
		return err != nil || m.memory.sources[source{k.Service, p}] == 0
	}, 0, nil)
	return errors.Join(e4, e6)
}
