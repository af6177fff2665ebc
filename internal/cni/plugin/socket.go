// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// connect is the most that one attempt to connect may take.
const connect = time.Second

// socket is a blocking connection to the agent. Package net would start a poller
// and its threads for it, which is a good part of the plugin's life: a runtime
// that makes a hundred pods at once executes a hundred plugins.
type socket struct {
	fd   int
	path string
}

// dial connects. The connection's reads and writes fail with
// os.ErrDeadlineExceeded at ctx's deadline; its cancellation is not looked at.
func dial(ctx context.Context, path string) (*socket, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	s := &socket{fd: fd, path: path}
	left := limits["ADD"].total
	if d, ok := ctx.Deadline(); ok {
		left = time.Until(d)
	}
	// While the agent's queue is full, connecting waits.
	err = s.limit(min(left, connect), syscall.SO_SNDTIMEO)
	if err == nil {
		err = s.do("connect", func() (int, error) { return 0, syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}) })
	}
	if err == nil {
		err = s.limit(left, syscall.SO_SNDTIMEO, syscall.SO_RCVTIMEO)
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// limit sets timeouts. The kernel takes 0 for none.
func (s *socket) limit(d time.Duration, opts ...int) error {
	tv := syscall.NsecToTimeval(max(d, time.Millisecond).Nanoseconds())
	for _, o := range opts {
		if err := syscall.SetsockoptTimeval(s.fd, syscall.SOL_SOCKET, o, &tv); err != nil {
			return fmt.Errorf("%s: timeout: %w", s.path, err)
		}
	}
	return nil
}

func (s *socket) do(op string, f func() (int, error)) error {
	_, err := s.count(op, f)
	return err
}

// count repeats what a signal interrupted. The runtime's own signals come with
// SA_RESTART, which does not cover sockets with a timeout.
func (s *socket) count(op string, f func() (int, error)) (int, error) {
	for {
		n, err := f()
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			err = os.ErrDeadlineExceeded
		}
		return 0, &os.PathError{Op: op, Path: s.path, Err: err}
	}
}

func (s *socket) Read(b []byte) (int, error) {
	n, err := s.count("read", func() (int, error) { return syscall.Read(s.fd, b) })
	if err == nil && n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, err
}

func (s *socket) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n, err := s.count("write", func() (int, error) { return syscall.SendmsgN(s.fd, b[written:], nil, nil, syscall.MSG_NOSIGNAL) })
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

func (s *socket) Close() error { return syscall.Close(s.fd) }
