// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	mrand "math/rand/v2"
)

// Bytes of headers in front of a payload (RFC 791, RFC 8200, RFC 768, RFC 792).
const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
	icmpHeader = 8
	maxLength  = 65535 // of an IPv4 packet, of an IPv6 payload, of a UDP datagram
	maxStream  = 64 << 10
)

// tokenSize is the length of a token in bytes.
const tokenSize = 16

// Token lets the run's own probes, and nobody else, use the echo servers.
type Token [tokenSize]byte

// NewToken makes an unguessable token.
func NewToken() Token {
	var t Token
	_, _ = rand.Read(t[:]) // never fails, crypto/rand since Go 1.24
	return t
}

// String is the token in hexadecimal, as ParseToken reads it.
func (t Token) String() string { return hex.EncodeToString(t[:]) }

// ParseToken reads what String wrote.
func ParseToken(s string) (Token, error) {
	var t Token
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != tokenSize {
		return t, fmt.Errorf("token: must be %d hexadecimal digits", 2*tokenSize)
	}
	copy(t[:], b)
	return t, nil
}

// payloadSize returns how many bytes the cell sends where the source's route
// has the given MTU.
func payloadSize(c *Cell, mtu int) int {
	headers := ipv4Header + icmpHeader
	largest := maxLength - headers
	if c.Family == IPv6 {
		headers = ipv6Header + icmpHeader
		largest = maxLength - icmpHeader
	}
	if c.Proto == TCP {
		headers, largest = 0, maxStream
	}
	switch c.Size {
	case OneByte:
		return 1
	case MTU:
		return min(mtu-headers, largest)
	case MTUPlus1:
		return min(mtu+1-headers, largest)
	}
	return largest
}

// payload makes the bytes to send: reproducible, unlike those of any other
// cell, and without a period that a lost or doubled segment could hide behind.
// Those that can hold the token start with it.
func payload(t Token, id, size int) []byte {
	b := make([]byte, size)
	var seed [32]byte
	copy(seed[:], t[:])
	seed[tokenSize], seed[tokenSize+1], seed[tokenSize+2] = byte(id), byte(id>>8), byte(id>>16)
	_, _ = mrand.NewChaCha8(seed).Read(b) // never fails
	if size >= tokenSize {
		copy(b, t[:])
	}
	return b
}

// compare says how the echo differs from what was sent.
func compare(sent, got []byte) error {
	if bytes.Equal(sent, got) {
		return nil
	}
	if len(got) != len(sent) {
		return fmt.Errorf("sent %d bytes, %d came back", len(sent), len(got))
	}
	for i := range sent {
		if sent[i] != got[i] {
			return fmt.Errorf("byte %d of %d came back changed: sent %#02x, got %#02x", i, len(sent), sent[i], got[i])
		}
	}
	return nil
}
