// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rtnl

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Link is struct ifinfomsg. Only the flags in change are set.
func Link(index int, flags, change uint32) []byte {
	b := make([]byte, 0, unix.SizeofIfInfomsg)
	b = append(b, unix.AF_UNSPEC, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// Addr is struct ifaddrmsg.
func Addr(family uint8, bits int, flags uint8, index int) []byte {
	return binary.NativeEndian.AppendUint32([]byte{family, uint8(bits), flags, unix.RT_SCOPE_UNIVERSE}, uint32(index))
}

// Neigh is struct ndmsg.
func Neigh(family uint8, index int, state uint16) []byte {
	b := []byte{family, 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint16(b, state)
	return append(b, 0, 0)
}

// Route is struct rtmsg of a unicast route in the main table.
func Route(family uint8, bits int, protocol, scope uint8) []byte {
	b := []byte{family, uint8(bits), 0, 0, unix.RT_TABLE_MAIN, protocol, scope, unix.RTN_UNICAST}
	return binary.NativeEndian.AppendUint32(b, 0)
}

// TC is struct tcmsg.
func TC(index int, handle, parent, info uint32) []byte {
	b := []byte{unix.AF_UNSPEC, 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, handle)
	b = binary.NativeEndian.AppendUint32(b, parent)
	return binary.NativeEndian.AppendUint32(b, info)
}
