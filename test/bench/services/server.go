// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/test/bench/load"
	"github.com/weft-net/weft/test/bench/sandbox"
)

// backends is how many endpoints a Service has. Those that are asked are ports of
// one pod, one after the other.
const backends = 10

// listen serves all backends of a pod from one thread, as long as the process
// lives: it answers a byte with the number of the backend.
func listen(s sandbox.Space, at netip.AddrPort) error {
	done := make(chan error, 1)
	go func() {
		_ = s.In(func() error {
			e, err := newServer(at)
			if err == nil {
				err = load.Pin(load.ServerCPU)
			}
			done <- err
			if err != nil {
				return err
			}
			return e.run()
		})
	}()
	return <-done
}

// server is a poller: which backend a descriptor belongs to, and whether it listens.
type server struct {
	fd        int
	backend   map[int32]byte
	listening map[int32]bool
}

func newServer(at netip.AddrPort) (e *server, err error) {
	e = &server{backend: map[int32]byte{}, listening: map[int32]bool{}}
	if e.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	for i := range backends {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		err = errors.Join(
			unix.Bind(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port()) + i}),
			unix.Listen(fd, 1024), e.add(fd, byte(i)),
		)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", at, err)
		}
		e.listening[int32(fd)] = true
	}
	return e, nil
}

func (e *server) add(fd int, backend byte) error {
	e.backend[int32(fd)] = backend
	return unix.EpollCtl(e.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

func (e *server) run() error {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(e.fd, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for _, ev := range events[:max(n, 0)] {
			if !e.listening[ev.Fd] {
				e.answer(ev.Fd)
				continue
			}
			c, _, err := unix.Accept4(int(ev.Fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != nil {
				continue // the client has given up: it tells
			}
			if err := e.add(c, e.backend[ev.Fd]); err != nil {
				return err
			}
		}
	}
}

// answer answers once, or closes.
func (e *server) answer(fd int32) {
	b := make([]byte, 1)
	n, err := unix.Read(int(fd), b)
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if err == nil && n == 1 {
		b[0] = e.backend[fd]
		if _, err = unix.Write(int(fd), b); err == nil {
			return
		}
	}
	delete(e.backend, fd)
	_ = unix.Close(int(fd)) // leaves the poller, too
}
