// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
)

// ICMP types (RFC 792, RFC 4443).
const (
	icmp4EchoReply   = 0
	icmp4EchoRequest = 8
	icmp6EchoRequest = 128
	icmp6EchoReply   = 129
)

// whole says whether the cell's datagrams must travel in one packet.
func whole(c *Cell) bool { return c.Size == OneByte || c.Size == MTU }

// echoTCP returns the source address that the far end saw, if the cell asks.
func echoTCP(ctx context.Context, c *Cell, t Token, sent []byte) (seen netip.Addr, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(c.Addr, c.Port).String())
	if err != nil {
		return seen, at("connect", reason(err))
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline() // attempt sets one
	if err := conn.SetDeadline(deadline); err != nil {
		return seen, err
	}
	length := uint32(len(sent))
	if c.asksSource() {
		length |= askSource
	}
	head := binary.BigEndian.AppendUint32(append([]byte{}, t[:]...), length)
	written := make(chan error, 1)
	go func() { // ends with the connection, which is closed on return
		_, err := conn.Write(append(head, sent...))
		written <- err
	}()
	if c.asksSource() {
		if seen, err = readSource(conn); err != nil {
			return seen, at("source address", reason(err))
		}
	}
	got := make([]byte, len(sent))
	n, err := io.ReadFull(conn, got)
	if err != nil {
		return seen, at(fmt.Sprintf("echo stopped after %d of %d bytes", n, len(sent)), reason(err))
	}
	if err := <-written; err != nil {
		return seen, at("send", reason(err))
	}
	return seen, compare(sent, got)
}

// connect opens a TCP connection, and sends nothing on it.
func connect(ctx context.Context, c *Cell) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(c.Addr, c.Port).String())
	if err != nil {
		return at("connect", reason(err))
	}
	return conn.Close()
}

// echoUDP returns the source address that the far end saw, if the cell asks.
func echoUDP(ctx context.Context, c *Cell, t Token, sent []byte) (seen netip.Addr, err error) {
	d := net.Dialer{Control: fragmentation(c.Family == IPv6, whole(c))}
	conn, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(c.Addr, c.Port).String())
	if err != nil {
		return seen, reason(err)
	}
	defer conn.Close()
	if u, ok := conn.(*net.UDPConn); ok {
		_ = u.SetReadBuffer(4 << 20) // the kernel caps it; less than asked still works
		_ = u.SetWriteBuffer(4 << 20)
	}
	deadline, _ := ctx.Deadline() // attempt sets one
	if err := conn.SetDeadline(deadline); err != nil {
		return seen, err
	}
	switch {
	case c.asksSource():
		if seen, err = askDatagram(conn, t); err != nil {
			return seen, at("source address", err)
		}
	case len(sent) < tokenSize:
		if err := exchange(conn, t[:]); err != nil {
			return seen, at("greeting", err)
		}
	}
	return seen, exchange(conn, sent)
}

func exchange(conn net.Conn, sent []byte) error {
	if _, err := conn.Write(sent); err != nil {
		return at("send", reason(err))
	}
	got := make([]byte, maxDatagram)
	n, err := conn.Read(got)
	if err != nil {
		return at("receive", reason(err))
	}
	return compare(sent, got[:n])
}

// echoICMP sends one echo request and takes its reply. Replies of others to a
// raw socket are passed over.
func echoICMP(ctx context.Context, c *Cell, sent []byte) error {
	f, raw, err := openICMP(c.Addr, whole(c))
	if err != nil {
		return err
	}
	defer f.Close()
	return echoOver(ctx, f, raw, c, sent)
}

// echoOver is echoICMP over a socket of openICMP.
func echoOver(ctx context.Context, f *os.File, raw bool, c *Cell, sent []byte) error {
	deadline, _ := ctx.Deadline() // callers set one
	if err := f.SetDeadline(deadline); err != nil {
		return err
	}
	v6 := c.Family == IPv6
	id, seq := uint16(rand.N(1<<16)), uint16(c.ID) //nolint:gosec // to tell replies apart, not a secret
	if _, err := f.Write(echoRequest(v6, id, seq, sent)); err != nil {
		return at("send", reason(err))
	}
	buf := make([]byte, maxDatagram+ipv4Header)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return at("receive", reason(err))
		}
		b := buf[:n]
		if raw && !v6 {
			if b = stripIPv4(b); b == nil {
				continue
			}
		}
		if body, ok := echoReply(v6, raw, id, seq, b); ok {
			return compare(sent, body)
		}
	}
}

// stripIPv4 cuts off the header, nil if there is none.
func stripIPv4(b []byte) []byte {
	if len(b) < ipv4Header {
		return nil
	}
	if ihl := int(b[0]&0xf) * 4; ihl >= ipv4Header && ihl <= len(b) {
		return b[ihl:]
	}
	return nil
}

// echoRequest makes the message. The checksum counts for raw IPv4 sockets only:
// the kernel computes the others.
func echoRequest(v6 bool, id, seq uint16, body []byte) []byte {
	b := make([]byte, icmpHeader, icmpHeader+len(body))
	b[0] = icmp4EchoRequest
	if v6 {
		b[0] = icmp6EchoRequest
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	b = append(b, body...)
	if !v6 {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// echoReply returns the body of the reply to our request. A ping socket has an
// id of its own and only sees its own replies.
func echoReply(v6, raw bool, id, seq uint16, b []byte) ([]byte, bool) {
	want := byte(icmp4EchoReply)
	if v6 {
		want = icmp6EchoReply
	}
	if len(b) < icmpHeader || b[0] != want || binary.BigEndian.Uint16(b[6:]) != seq {
		return nil, false
	}
	if raw && binary.BigEndian.Uint16(b[4:]) != id {
		return nil, false
	}
	return b[icmpHeader:], true
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// reason cuts an error of the net package down to its cause: pair and protocol
// stand in the report already.
func reason(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil && !op.Timeout() {
		return op.Err
	}
	return err
}
