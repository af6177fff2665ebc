// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"net/netip"

	"github.com/weft-net/weft/internal/datapath/object"
)

// Addresses and ports stand in the maps in network order; the generated types
// show them as integers of the host.

func raw4(a netip.Addr) uint32 {
	if !a.Is4() {
		return 0
	}
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

func raw6(a netip.Addr) (w object.DatapathV6addr) {
	if !a.Is6() {
		return w
	}
	b := a.As16()
	for i := range w.W {
		w.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func addr4(v uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

func addr6(w object.DatapathV6addr) netip.Addr {
	var b [16]byte
	for i := range w.W {
		binary.NativeEndian.PutUint32(b[4*i:], w.W[i])
	}
	return netip.AddrFrom16(b)
}

func port(v uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], v)
	return binary.BigEndian.Uint16(b[:])
}

// mapped returns an address of either family in one field, IPv4 as ::ffff:a.b.c.d;
// an invalid one as zeros.
func mapped(a netip.Addr) object.DatapathV6addr {
	if !a.IsValid() {
		return object.DatapathV6addr{}
	}
	return raw6(netip.AddrFrom16(a.As16()))
}

func unmapped(w object.DatapathV6addr) netip.Addr {
	a := addr6(w).Unmap()
	if a.Is6() && a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
