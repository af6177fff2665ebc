// SPDX-License-Identifier: Apache-2.0

//go:build linux

package load

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/sys/unix"
)

// timeout is how many seconds later an answer is lost.
const timeout = 3

// Dial connects by system calls that block: what a poller or a scheduler of Go's
// would add, every variant would pay, and differences would look smaller than
// they are.
func Dial(to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	late := unix.Timeval{Sec: timeout}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &late),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &late),
		unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}),
	)
	if err != nil {
		return -1, errors.Join(fmt.Errorf("connect to %s: %w", to, err), unix.Close(fd))
	}
	return fd, nil
}

// Ask sends a byte and waits for one.
func Ask(fd int) (byte, error) {
	b := []byte{1}
	if _, err := unix.Write(fd, b); err != nil {
		return 0, fmt.Errorf("request: %w", err)
	}
	n, err := unix.Read(fd, b)
	if err == nil && n != 1 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, fmt.Errorf("no response: %w", err)
	}
	return b[0], nil
}

// Once makes a connection for one question, and returns the answer.
func Once(to netip.AddrPort) (byte, error) {
	fd, err := Dial(to)
	if err != nil {
		return 0, err
	}
	b, err := Ask(fd)
	return b, errors.Join(err, unix.Close(fd))
}
