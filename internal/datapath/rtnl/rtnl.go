// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package rtnl sends rtnetlink requests in batches: what attaching a pod asks of
// the kernel goes in a few system calls instead of one socket, one message and
// one answer for each. The kernel works on a batch in order, before the system
// call returns (net/netlink/af_netlink.c, netlink_rcv_skb), and goes on after a
// message that it refuses.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Flags of a message besides NLM_F_REQUEST.
const (
	Create  = unix.NLM_F_CREATE
	New     = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	Replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
)

// nested marks an attribute that holds others: linux/netlink.h.
const nested = 1 << 15

// answerSize holds a message about a device, which is the longest answer.
const answerSize = 16 << 10

// Error is the kernel's answer to one message.
type Error struct {
	What  string // as told to Begin
	Errno unix.Errno
}

func (e *Error) Error() string {
	if e.What == "" {
		return e.Errno.Error()
	}
	return e.What + ": " + e.Errno.Error()
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// Conn is a socket and the batch that is being written. It belongs to the
// network namespace that the thread of Dial was in, and to one goroutine.
type Conn struct {
	fd    int
	seq   uint32 // of the last message begun
	first uint32 // of the batch
	out   []byte
	in    []byte
	at    int // of the last message in out
	sent  []message
}

type message struct {
	what     string
	tolerate []unix.Errno
}

// Dial opens a socket.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	// Without a copy of the request in each answer; an older kernel sends it all the same.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return &Conn{fd: fd, first: 1, out: make([]byte, 0, 2048)}, nil
}

// Close closes the socket. What was begun and not committed is forgotten.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Begin begins a message; what names it in errors. header is the family's
// structure that follows the netlink header, e.g. struct ifinfomsg.
func (c *Conn) Begin(what string, typ, flags uint16, header []byte) {
	c.at = len(c.out)
	c.seq++
	c.sent = append(c.sent, message{what: what})
	c.out = binary.NativeEndian.AppendUint32(c.out, 0) // length
	c.out = binary.NativeEndian.AppendUint16(c.out, typ)
	c.out = binary.NativeEndian.AppendUint16(c.out, flags|unix.NLM_F_REQUEST)
	c.out = binary.NativeEndian.AppendUint32(c.out, c.seq)
	c.out = binary.NativeEndian.AppendUint32(c.out, 0) // port: the kernel's
	c.Raw(header)
}

// Raw appends bytes to the message, padded.
func (c *Conn) Raw(b []byte) {
	c.out = append(c.out, b...)
	for len(c.out)%unix.NLMSG_ALIGNTO != 0 {
		c.out = append(c.out, 0)
	}
	binary.NativeEndian.PutUint32(c.out[c.at:], uint32(len(c.out)-c.at))
}

// Attr appends an attribute.
func (c *Conn) Attr(typ uint16, value []byte) {
	c.out = binary.NativeEndian.AppendUint16(c.out, uint16(unix.SizeofRtAttr+len(value)))
	c.out = binary.NativeEndian.AppendUint16(c.out, typ)
	c.Raw(value)
}

// Uint32 appends an attribute in the machine's byte order.
func (c *Conn) Uint32(typ uint16, v uint32) {
	c.Attr(typ, binary.NativeEndian.AppendUint32(nil, v))
}

// String appends an attribute that ends with a zero byte.
func (c *Conn) String(typ uint16, s string) { c.Attr(typ, append([]byte(s), 0)) }

// Nest opens an attribute that holds those that follow until its end, for which
// it returns the place.
func (c *Conn) Nest(typ uint16) int {
	at := len(c.out)
	c.Attr(typ|nested, nil)
	return at
}

// End ends the attribute that Nest opened.
func (c *Conn) End(nest int) { binary.NativeEndian.PutUint16(c.out[nest:], uint16(len(c.out)-nest)) }

// Tolerate makes answers of the last message begun no errors.
func (c *Conn) Tolerate(errnos ...unix.Errno) { c.sent[len(c.sent)-1].tolerate = errnos }

// Commit sends the batch and waits for its end. The error is an *Error about the
// first message that the kernel refused; those after it were tried nevertheless.
func (c *Conn) Commit() error {
	_, err := c.commit(false)
	return err
}

// Get sends a batch of one request and returns the body of its answer, the
// family's structure and the attributes. It is valid until the next call.
func (c *Conn) Get() ([]byte, error) { return c.commit(true) }

func (c *Conn) commit(answer bool) ([]byte, error) {
	sent, first := c.sent, c.first
	if len(sent) == 0 {
		return nil, nil
	}
	if !answer { // an answer is as good as an acknowledgement
		flags := c.out[c.at+6:]
		binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	}
	out := c.out
	c.out, c.sent, c.first = c.out[:0], nil, c.seq+1
	if err := ignoringEINTR(func() error { return unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) }); err != nil {
		return nil, os.NewSyscallError("send to rtnetlink", err)
	}
	if c.in == nil {
		c.in = make([]byte, answerSize)
	}
	var refused error
	for {
		n, err := c.receive()
		if err != nil {
			return nil, err
		}
		for b := c.in[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := binary.NativeEndian.Uint32(b)
			if size < unix.SizeofNlMsghdr || int(size) > len(b) {
				return nil, errors.New("rtnetlink: answer is cut off")
			}
			typ, seq, body := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:size]
			b = b[min(len(b), int(size+3)&^3):]
			if seq < first || seq > c.seq {
				continue // of a batch that was given up
			}
			if typ != unix.NLMSG_ERROR {
				return body, refused
			}
			if err := sent[seq-first].judge(body); refused == nil {
				refused = err
			}
			if seq == c.seq {
				return nil, refused
			}
		}
	}
}

// judge reads struct nlmsgerr.
func (m message) judge(body []byte) error {
	if len(body) < 4 {
		return errors.New("rtnetlink: answer is cut off")
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	if errno == 0 || slices.Contains(m.tolerate, errno) {
		return nil
	}
	return &Error{What: m.what, Errno: errno}
}

func (c *Conn) receive() (n int, err error) {
	err = ignoringEINTR(func() (err error) {
		n, _, err = unix.Recvfrom(c.fd, c.in, 0)
		return err
	})
	if err != nil {
		return 0, os.NewSyscallError("receive from rtnetlink", err)
	}
	return n, nil
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
