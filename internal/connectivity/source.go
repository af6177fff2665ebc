// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
)

// How a probe learns which source address arrived at the far end, beside the
// echo itself. TCP: a bit in the length asks, and in front of the echo comes a
// byte with the length of the address and the address as text. UDP: the token
// and this question, answered by the token and the address as text.
const (
	askSource    = 1 << 31
	askedUDP     = "which source address arrives?"
	maxAddrText  = 64
	noSourceText = "the far end did not say which source address arrived"
)

// asksSource says whether the far end has to tell which source it saw: an echo
// reply of ICMP comes from its kernel, which tells nothing (but see icmpWatch).
func (c *Cell) asksSource() bool { return len(c.Source) > 0 && c.Proto != ICMP }

// checkSource says what is wrong with the source that the far end saw.
func (c *Cell) checkSource(seen netip.Addr) error {
	switch {
	case !c.asksSource() || slices.Contains(c.Source, seen):
		return nil
	case !seen.IsValid():
		return errors.New(noSourceText)
	}
	return c.wrongSource(seen)
}

func (c *Cell) wrongSource(seen netip.Addr) error {
	return fmt.Errorf("arrived from %s; it should come from %s", seen, c.SourceIs)
}

// writeSource tells the client of a connection its own address.
func writeSource(c net.Conn) error {
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return err
	}
	text := plain(from.Addr()).String()
	_, err = c.Write(append([]byte{byte(len(text))}, text...))
	return err
}

// readSource reads what writeSource wrote.
func readSource(c io.Reader) (netip.Addr, error) {
	var n [1]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return netip.Addr{}, err
	}
	if n[0] > maxAddrText {
		return netip.Addr{}, errors.New(noSourceText)
	}
	text := make([]byte, n[0])
	if _, err := io.ReadFull(c, text); err != nil {
		return netip.Addr{}, err
	}
	return parseSource(text)
}

func parseSource(text []byte) (netip.Addr, error) {
	a, err := netip.ParseAddr(string(text))
	if err != nil {
		return a, errors.New(noSourceText)
	}
	return a, nil
}

func isQuestion(b []byte, t Token) bool {
	rest, ok := bytes.CutPrefix(b, t[:])
	return ok && string(rest) == askedUDP
}

func sourceAnswer(t Token, from netip.Addr) []byte {
	return append(t[:], plain(from).String()...)
}

// askDatagram asks on the socket that the echo uses next: the same flow, for
// whoever translates it on the way.
func askDatagram(conn net.Conn, t Token) (netip.Addr, error) {
	if _, err := conn.Write(append(t[:], askedUDP...)); err != nil {
		return netip.Addr{}, at("send", reason(err))
	}
	buf := make([]byte, maxDatagram)
	n, err := conn.Read(buf)
	if err != nil {
		return netip.Addr{}, at("receive", reason(err))
	}
	text, ok := bytes.CutPrefix(buf[:n], t[:])
	if !ok || len(text) > maxAddrText {
		return netip.Addr{}, errors.New(noSourceText)
	}
	return parseSource(text)
}

// plain is the address without what belongs to the socket it was read from.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
