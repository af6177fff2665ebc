// SPDX-License-Identifier: Apache-2.0

// Package frame builds and checks Ethernet frames for the tests of the datapath
// and its self-test: every field may be set to what no sane stack would send.
package frame

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Protocol numbers and lengths.
const (
	ICMP     = 1
	TCP      = 6
	UDP      = 17
	AH       = 51
	ICMPv6   = 58
	SCTP     = 132
	HopByHop = 0
	Routing  = 43
	Fragment = 44
	DestOpts = 60

	EthLen = 14
)

// TCP flags.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	PSH = 0x08
	ACK = 0x10
)

// MAC is an Ethernet address.
type MAC = [6]byte

// Ext is an IPv6 extension header. Body is what follows its first two bytes; it
// is padded to a multiple of 8 (of 4 for AH).
type Ext struct {
	Type uint8
	Body []byte
}

// Packet describes an IP packet. The zero values of TTL and MACs are replaced by
// 64 and by addresses that the tests of the datapath use.
type Packet struct {
	SrcMAC, DstMAC MAC
	Src, Dst       netip.Addr
	Proto          uint8
	Payload        []byte // transport header and data, checksums done
	TTL            uint8
	TOS            uint8
	DF             bool
	ID             uint32
	Offset         int  // bytes, a multiple of 8
	More           bool // more fragments follow
	Frag           bool // carry a fragment header (IPv6) even if Offset and More are zero
	Options        []byte
	Ext            []Ext
	// Overrides of what would be computed; nil leaves it alone.
	TotalLen *int   // IPv4 total length, IPv6 payload length
	IHL      *uint8 // IPv4 header length in words
	Version  *uint8
	Pad      int // bytes of Ethernet padding behind the packet
}

// Bytes returns the frame.
func (p Packet) Bytes() []byte {
	if p.TTL == 0 {
		p.TTL = 64
	}
	var ip []byte
	etherType := uint16(0x0800)
	if p.Src.Is4() {
		ip = p.ipv4()
	} else {
		ip, etherType = p.ipv6(), 0x86dd
	}
	out := append(Ethernet(p.DstMAC, p.SrcMAC, etherType), ip...)
	return append(out, make([]byte, p.Pad)...)
}

// Ethernet returns a frame header.
func Ethernet(dst, src MAC, etherType uint16) []byte {
	return binary.BigEndian.AppendUint16(append(dst[:], src[:]...), etherType)
}

func (p Packet) ipv4() []byte {
	opts := append([]byte(nil), p.Options...)
	for len(opts)%4 != 0 {
		opts = append(opts, 0)
	}
	h := make([]byte, 20, 20+len(opts)+len(p.Payload))
	h = append(h, opts...)
	version, ihl, total := uint8(4), uint8(len(h)/4), len(h)+len(p.Payload)
	override(&version, p.Version)
	override(&ihl, p.IHL)
	override(&total, p.TotalLen)
	h[0], h[1] = version<<4|ihl, p.TOS
	binary.BigEndian.PutUint16(h[2:], uint16(total))
	binary.BigEndian.PutUint16(h[4:], uint16(p.ID))
	frag := uint16(p.Offset / 8)
	if p.More {
		frag |= 0x2000
	}
	if p.DF {
		frag |= 0x4000
	}
	binary.BigEndian.PutUint16(h[6:], frag)
	h[8], h[9] = p.TTL, p.Proto
	copy(h[12:], p.Src.AsSlice())
	copy(h[16:], p.Dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], Checksum(h))
	return append(h, p.Payload...)
}

func (p Packet) ipv6() []byte {
	exts := append([]Ext(nil), p.Ext...)
	if p.Frag || p.More || p.Offset != 0 {
		body := make([]byte, 6)
		v := uint16(p.Offset)
		if p.More {
			v |= 1
		}
		binary.BigEndian.PutUint16(body, v)
		binary.BigEndian.PutUint32(body[2:], p.ID)
		exts = append(exts, Ext{Fragment, body})
	}
	var rest []byte
	next := p.Proto
	for _, ext := range slices.Backward(exts) {
		rest = append(ext.bytes(next), rest...)
		next = ext.Type
	}
	rest = append(rest, p.Payload...)
	h := make([]byte, 40, 40+len(rest))
	version, length := uint8(6), len(rest)
	override(&version, p.Version)
	override(&length, p.TotalLen)
	h[0], h[1] = version<<4|p.TOS>>4, p.TOS<<4
	binary.BigEndian.PutUint16(h[4:], uint16(length))
	h[6], h[7] = next, p.TTL
	copy(h[8:], p.Src.AsSlice())
	copy(h[24:], p.Dst.AsSlice())
	return append(h, rest...)
}

func (e Ext) bytes(next uint8) []byte {
	b := append([]byte{next, 0}, e.Body...)
	unit, minus := 8, 1
	if e.Type == AH {
		unit, minus = 4, 2
	}
	for len(b)%unit != 0 || len(b) < 8 {
		b = append(b, 0)
	}
	if e.Type != Fragment {
		b[1] = uint8(len(b)/unit - minus)
	}
	return b
}

func override[T any](v, with *T) {
	if with != nil {
		*v = *with
	}
}

// Fragments cuts the packet into fragments whose payload is at most size bytes,
// a multiple of 8.
func (p Packet) Fragments(size int) []Packet {
	var out []Packet
	for off := 0; off < len(p.Payload); off += size {
		f := p
		end := min(off+size, len(p.Payload))
		f.Payload, f.Offset, f.More, f.Frag = p.Payload[off:end], off, end < len(p.Payload), true
		out = append(out, f)
	}
	return out
}

// Checksum is the Internet checksum (RFC 1071) over parts, each of even length
// but for the last.
func Checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func pseudo(src, dst netip.Addr, proto uint8, n int) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return append(b, 0, 0, 0, proto)
}
