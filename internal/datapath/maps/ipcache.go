// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

// IPCacheRow says who stands behind an address or a prefix.
type IPCacheRow struct {
	Prefix     netip.Prefix   `json:"prefix"` // masked
	Identity   table.Identity `json:"identity"`
	Kind       table.HostKind `json:"kind"`
	EndpointID uint16         `json:"endpointID,omitempty"` // of local pods
	// Tunnel is the node in the overlay, of nodes and their pods: what comes by
	// the overlay from this prefix is believed of that node alone. Invalid: none.
	Tunnel netip.Addr `json:"tunnel,omitzero"`
	// ByTunnel: packets to it go by the overlay, where this node takes part.
	ByTunnel bool `json:"byTunnel,omitempty"`
	// NoNodePort: an address of a node at which NodePorts do not answer.
	NoNodePort bool `json:"noNodePort,omitempty"`
}

// As IPC_TUNNEL and IPC_NO_NODE_PORT of bpf/lib/types.h.
const (
	flagByTunnel   = 1 << 0
	flagNoNodePort = 1 << 1
)

// TableHeader names the columns of TableRow.
func (IPCacheRow) TableHeader() []string {
	return []string{"PREFIX", "IDENTITY", "KIND", "ENDPOINT", "TUNNEL"}
}

// TableRow renders the row under TableHeader.
func (r IPCacheRow) TableRow() []string {
	ep := ""
	if r.EndpointID != 0 {
		ep = strconv.Itoa(int(r.EndpointID))
	}
	tunnel := ""
	if r.ByTunnel {
		tunnel = r.Tunnel.String()
	}
	return []string{r.Prefix.String(), r.Identity.String(), r.Kind.String(), ep, tunnel}
}

// IPCacheMap is weft_ipc4, weft_ipc6 (full-length prefixes), weft_net4 and
// weft_net6 (all others).
type IPCacheMap struct {
	exact4, exact6, net4, net6 *ebpf.Map
	ways                       *WaysMap
}

func (m *IPCacheMap) find(p netip.Prefix) (*ebpf.Map, any, error) {
	if !p.IsValid() || p.Addr().Is4In6() {
		return nil, nil, fmt.Errorf("ipcache %s: not a prefix", p)
	}
	p = p.Masked()
	a, bits := p.Addr(), uint32(p.Bits())
	switch {
	case a.Is4() && p.IsSingleIP():
		return m.exact4, raw4(a), nil
	case a.Is4():
		return m.net4, object.DatapathWeftNet4Key{Prefixlen: bits, Addr: raw4(a)}, nil
	case p.IsSingleIP():
		return m.exact6, raw6(a), nil
	}
	return m.net6, object.DatapathWeftNet6Key{Prefixlen: bits, Addr: raw6(a)}, nil
}

// Upsert writes one row. An error wraps ErrFull when the map has no room.
func (m *IPCacheMap) Upsert(r IPCacheRow) error {
	mm, k, err := m.find(r.Prefix)
	if err != nil {
		return err
	}
	v := object.DatapathWeftIpcache{Identity: uint32(r.Identity), Endpoint: r.EndpointID, Kind: uint8(r.Kind), Tunnel: mapped(r.Tunnel)}
	if r.ByTunnel {
		v.Flags |= flagByTunnel
	}
	if r.NoNodePort {
		v.Flags |= flagNoNodePort
	}
	return m.changing(r.Prefix, func() error { return put(mm, k, v) })
}

// changing changes the row of a prefix. Where its addresses are then reached in
// another way than before, connections are made to forget the old one.
func (m *IPCacheMap) changing(p netip.Prefix, change func() error) error {
	before, err := m.covering(p)
	if err != nil {
		return err
	}
	if err := change(); err != nil {
		return fmt.Errorf("ipcache %s: %w", p, err)
	}
	after, err := m.covering(p)
	if err != nil || before == after {
		return err
	}
	return m.ways.Changed()
}

// reached is what of a row packets' ways depend on.
type reached struct {
	tunnel   netip.Addr
	byTunnel bool
	node     bool // for which another MTU counts
}

// covering tells how an address is reached, or a range as a whole.
func (m *IPCacheMap) covering(p netip.Prefix) (reached, error) {
	r, found, err := m.Lookup(p)
	if err == nil && !found && p.IsSingleIP() {
		r, err = m.wider(p.Addr())
	}
	return reached{r.Tunnel, r.ByTunnel, r.Kind == table.KindNode}, err
}

// wider returns the row of the longest range with the address, a zero one if there is none.
func (m *IPCacheMap) wider(a netip.Addr) (IPCacheRow, error) {
	var v object.DatapathWeftIpcache
	var err error
	if a.Is4() {
		err = m.net4.Lookup(object.DatapathWeftNet4Key{Prefixlen: 32, Addr: raw4(a)}, &v)
	} else {
		err = m.net6.Lookup(object.DatapathWeftNet6Key{Prefixlen: 128, Addr: raw6(a)}, &v)
	}
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return IPCacheRow{}, nil
	case err != nil:
		return IPCacheRow{}, fmt.Errorf("ipcache %s: %w", a, err)
	}
	return ipcacheRow(netip.PrefixFrom(a, a.BitLen()), v), nil
}

// Delete removes one row. Deleting what is not there is no error.
func (m *IPCacheMap) Delete(p netip.Prefix) error {
	mm, k, err := m.find(p)
	if err != nil {
		return err
	}
	return m.changing(p, func() error { return remove(mm, k) })
}

func ipcacheRow(p netip.Prefix, v object.DatapathWeftIpcache) IPCacheRow {
	return IPCacheRow{
		Prefix: p, Identity: table.Identity(v.Identity), Kind: table.HostKind(v.Kind), EndpointID: v.Endpoint,
		Tunnel: unmapped(v.Tunnel), ByTunnel: v.Flags&flagByTunnel != 0, NoNodePort: v.Flags&flagNoNodePort != 0,
	}
}

// Lookup returns the row of an address, or of a range the longest one that covers
// it, and whether there is one.
func (m *IPCacheMap) Lookup(p netip.Prefix) (IPCacheRow, bool, error) {
	mm, k, err := m.find(p)
	if err != nil {
		return IPCacheRow{}, false, err
	}
	var v object.DatapathWeftIpcache
	err = mm.Lookup(k, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return IPCacheRow{}, false, nil
	}
	if err != nil {
		return IPCacheRow{}, false, fmt.Errorf("ipcache %s: %w", p, err)
	}
	return ipcacheRow(p.Masked(), v), true, nil
}

// List returns all rows, by family, address and length.
func (m *IPCacheMap) List() ([]IPCacheRow, error) {
	rows := []IPCacheRow{}
	add := func(p netip.Prefix, v object.DatapathWeftIpcache) {
		rows = append(rows, ipcacheRow(p, v))
	}
	k4, v4, err := dump[uint32, object.DatapathWeftIpcache](m.exact4)
	if err != nil {
		return nil, err
	}
	for i, k := range k4 {
		add(netip.PrefixFrom(addr4(k), 32), v4[i])
	}
	k6, v6, err := dump[object.DatapathV6addr, object.DatapathWeftIpcache](m.exact6)
	if err != nil {
		return nil, err
	}
	for i, k := range k6 {
		add(netip.PrefixFrom(addr6(k), 128), v6[i])
	}
	n4, v4, err := dump[object.DatapathWeftNet4Key, object.DatapathWeftIpcache](m.net4)
	if err != nil {
		return nil, err
	}
	for i, k := range n4 {
		add(netip.PrefixFrom(addr4(k.Addr), int(k.Prefixlen)), v4[i])
	}
	n6, v6, err := dump[object.DatapathWeftNet6Key, object.DatapathWeftIpcache](m.net6)
	if err != nil {
		return nil, err
	}
	for i, k := range n6 {
		add(netip.PrefixFrom(addr6(k.Addr), int(k.Prefixlen)), v6[i])
	}
	slices.SortFunc(rows, func(a, b IPCacheRow) int { return a.Prefix.Compare(b.Prefix) })
	return rows, nil
}
