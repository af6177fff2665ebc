// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/binary"
	"net/netip"
)

// NewUDP returns a datagram.
func NewUDP(src, dst netip.AddrPort, data []byte) Packet {
	b := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(data)))
	b = append(b, data...)
	sum := Checksum(pseudo(src.Addr(), dst.Addr(), UDP, len(b)), b)
	if sum == 0 {
		sum = 0xffff // RFC 768: 0 says that there is none
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return Packet{Src: src.Addr(), Dst: dst.Addr(), Proto: UDP, Payload: b}
}

// NewTCP returns a segment.
func NewTCP(src, dst netip.AddrPort, flags uint8, data []byte) Packet {
	b := make([]byte, 20, 20+len(data))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	b[12], b[13] = 5<<4, flags
	b = append(b, data...)
	binary.BigEndian.PutUint16(b[16:], Checksum(pseudo(src.Addr(), dst.Addr(), TCP, len(b)), b))
	return Packet{Src: src.Addr(), Dst: dst.Addr(), Proto: TCP, Payload: b, DF: true}
}

// NewEcho returns an ICMP or ICMPv6 echo request or reply.
func NewEcho(src, dst netip.Addr, id uint16, reply bool, data []byte) Packet {
	typ := uint8(8)
	switch {
	case src.Is6() && reply:
		typ = 129
	case src.Is6():
		typ = 128
	case reply:
		typ = 0
	}
	body := binary.BigEndian.AppendUint16(nil, id)
	body = append(body, 0, 1)
	return NewICMP(src, dst, typ, 0, append(body, data...))
}

// NewICMP returns an ICMP or ICMPv6 message; body is what follows the checksum.
func NewICMP(src, dst netip.Addr, typ, code uint8, body []byte) Packet {
	b := append([]byte{typ, code, 0, 0}, body...)
	proto := uint8(ICMP)
	if src.Is6() {
		proto = ICMPv6
		binary.BigEndian.PutUint16(b[2:], Checksum(pseudo(src, dst, ICMPv6, len(b)), b))
	} else {
		binary.BigEndian.PutUint16(b[2:], Checksum(b))
	}
	return Packet{Src: src, Dst: dst, Proto: proto, Payload: b}
}

// NewError returns an ICMP error about a packet: its rest header and inner bytes.
func NewError(src, dst netip.Addr, typ, code uint8, rest uint32, about Packet) Packet {
	inner := about.Bytes()[EthLen:]
	body := binary.BigEndian.AppendUint32(nil, rest)
	return NewICMP(src, dst, typ, code, append(body, inner[:min(len(inner), 256)]...))
}

// NewNS returns a neighbour solicitation for target, with a source link-layer
// address option unless src is unspecified.
func NewNS(src, dst, target netip.Addr, mac MAC) Packet {
	body := append(make([]byte, 4), target.AsSlice()...)
	if !src.IsUnspecified() {
		body = append(body, 1, 1)
		body = append(body, mac[:]...)
	}
	p := NewICMP(src, dst, 135, 0, body)
	p.TTL = 255
	return p
}

// NewNA returns a neighbour advertisement of target.
func NewNA(src, dst, target netip.Addr, mac MAC) Packet {
	body := append([]byte{0x60, 0, 0, 0}, target.AsSlice()...)
	body = append(append(body, 2, 1), mac[:]...)
	p := NewICMP(src, dst, 136, 0, body)
	p.TTL = 255
	return p
}

// ARPPacket is an ARP message for IPv4 over Ethernet.
type ARPPacket struct {
	EthDst, EthSrc MAC
	Op             uint16 // 1 request, 2 reply
	SenderMAC      MAC
	Sender         netip.Addr
	TargetMAC      MAC
	Target         netip.Addr
}

// Bytes returns the frame.
func (a ARPPacket) Bytes() []byte {
	b := Ethernet(a.EthDst, a.EthSrc, 0x0806)
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, a.Op)
	b = append(append(b, a.SenderMAC[:]...), a.Sender.AsSlice()...)
	return append(append(b, a.TargetMAC[:]...), a.Target.AsSlice()...)
}
