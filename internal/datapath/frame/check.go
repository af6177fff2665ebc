// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Parsed is what Parse reads out of a frame.
type Parsed struct {
	DstMAC, SrcMAC MAC
	EtherType      uint16
	Src, Dst       netip.Addr
	TTL            uint8
	Proto          uint8
	Payload        []byte // transport header and data
}

// SrcPort returns the source port of TCP, UDP or SCTP, 0 where there is none.
func (p *Parsed) SrcPort() uint16 { return p.port(0) }

// DstPort is SrcPort for the destination.
func (p *Parsed) DstPort() uint16 { return p.port(2) }

func (p *Parsed) port(at int) uint16 {
	if len(p.Payload) < 4 || (p.Proto != TCP && p.Proto != UDP && p.Proto != SCTP) {
		return 0
	}
	return binary.BigEndian.Uint16(p.Payload[at:])
}

// Parse reads a frame without options, extension headers or fragments, and
// checks every checksum in it.
func Parse(b []byte) (Parsed, error) {
	var p Parsed
	if len(b) < EthLen {
		return p, errors.New("no Ethernet header")
	}
	p.DstMAC, p.SrcMAC = MAC(b[0:6]), MAC(b[6:12])
	p.EtherType = binary.BigEndian.Uint16(b[12:])
	ip := b[EthLen:]
	switch p.EtherType {
	case 0x0800:
		return p, p.parse4(ip)
	case 0x86dd:
		return p, p.parse6(ip)
	}
	return p, nil
}

func (p *Parsed) parse4(ip []byte) error {
	if len(ip) < 20 || ip[0] != 0x45 {
		return fmt.Errorf("not a plain IPv4 header: % x", ip[:min(len(ip), 20)])
	}
	if Checksum(ip[:20]) != 0 {
		return errors.New("IPv4 header checksum is wrong")
	}
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if total < 20 || total > len(ip) {
		return fmt.Errorf("IPv4 total length %d of %d bytes", total, len(ip))
	}
	p.TTL, p.Proto, p.Payload = ip[8], ip[9], ip[20:total]
	p.Src, p.Dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	if p.Proto == ICMP && Checksum(p.Payload) != 0 {
		return errors.New("ICMP checksum is wrong")
	}
	return p.checkTransport()
}

func (p *Parsed) parse6(ip []byte) error {
	if len(ip) < 40 || ip[0]>>4 != 6 {
		return errors.New("not an IPv6 header")
	}
	n := int(binary.BigEndian.Uint16(ip[4:]))
	if 40+n > len(ip) {
		return fmt.Errorf("IPv6 payload length %d of %d bytes", n, len(ip)-40)
	}
	p.Proto, p.TTL, p.Payload = ip[6], ip[7], ip[40:40+n]
	p.Src, p.Dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	if p.Proto == ICMPv6 && Checksum(pseudo(p.Src, p.Dst, ICMPv6, n), p.Payload) != 0 {
		return errors.New("ICMPv6 checksum is wrong")
	}
	return p.checkTransport()
}

func (p *Parsed) checkTransport() error {
	if p.Proto != TCP && p.Proto != UDP {
		return nil
	}
	if Checksum(pseudo(p.Src, p.Dst, p.Proto, len(p.Payload)), p.Payload) != 0 {
		return fmt.Errorf("checksum of protocol %d is wrong", p.Proto)
	}
	return nil
}
