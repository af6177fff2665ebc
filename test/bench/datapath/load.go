// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/test/bench/load"
	"github.com/weft-net/weft/test/bench/sandbox"
)

// The load is plain system calls that block, each connection on a thread of its
// own: what a poller or a scheduler of Go's would add, every variant would pay,
// and differences would look smaller than they are.
const (
	loadPort   = 7000
	responders = 32
	datagram   = 64 // bytes of payload
)

// result is one measurement.
type result struct {
	rate float64 // a second
	cpu  float64 // seconds of processor time for each
}

// respond serves connections in the variant's server: one byte for each byte.
func respond(v *variant) error {
	return v.server.In(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Bind(fd, sockaddr(v.addr)), unix.Listen(fd, 1024)); err != nil {
			return fmt.Errorf("listen on %s: %w", v.addr, err)
		}
		for range responders {
			go func() {
				_ = v.server.In(func() error { return errors.Join(load.Pin(load.ServerCPU), accept(fd)) })
			}()
		}
		return nil
	})
}

// accept serves one connection after the other, as long as the program lives. A
// client that gets no answer tells.
func accept(fd int) error {
	b := make([]byte, 1)
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			continue
		}
		_ = unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		for {
			if n, err := unix.Read(c, b); err != nil || n == 0 {
				break
			}
			if _, err := unix.Write(c, b); err != nil {
				break
			}
		}
		_ = unix.Close(c)
	}
}

// server4 is where the server listens.
func (v *variant) server4() netip.AddrPort { return netip.AddrPortFrom(v.addr, loadPort) }

func sockaddr(a netip.Addr) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.As4(), Port: loadPort}
}

// client is one connection's work: prepare before the clock starts, once over and
// over until it ends.
type client struct {
	prepare func() error
	once    func() error
	end     func() error
}

// requestResponse asks over a connection that stays.
func requestResponse(v *variant) client {
	fd := -1
	return client{
		prepare: func() (err error) {
			if fd, err = load.Dial(v.server4()); err != nil {
				return err
			}
			_, err = load.Ask(fd)
			return err
		},
		once: func() error { _, err := load.Ask(fd); return err },
		end:  func() error { return unix.Close(fd) },
	}
}

// connectRequestResponse makes a connection for each question.
func connectRequestResponse(v *variant) client {
	nothing := func() error { return nil }
	return client{prepare: nothing, end: nothing, once: func() error { _, err := load.Once(v.server4()); return err }}
}

// transactions runs so many clients for d.
func transactions(v *variant, conns int, d time.Duration, cpu load.Processors, kind func(*variant) client) (result, error) {
	var ready, done sync.WaitGroup
	var stop atomic.Bool
	start := make(chan struct{})
	counts, errs := make([]int, conns), make([]error, conns)
	for i := range conns {
		ready.Add(1)
		done.Go(func() {
			prepared := sync.OnceFunc(ready.Done)
			defer prepared()
			errs[i] = v.client.In(func() error {
				c := kind(v)
				err := errors.Join(load.Pin(load.ClientCPU), c.prepare())
				prepared()
				if err != nil {
					return err
				}
				<-start
				for !stop.Load() {
					if err := c.once(); err != nil {
						return err
					}
					counts[i]++
				}
				return c.end()
			})
		})
	}
	ready.Wait()
	r, err := clocked(cpu, func() int {
		close(start)
		<-time.After(d)
		stop.Store(true)
		done.Wait()
		n := 0
		for _, c := range counts {
			n += c
		}
		return n
	})
	return r, errors.Join(err, errors.Join(errs...))
}

// clocked runs f, which returns how much it did.
func clocked(cpu load.Processors, f func() int) (result, error) {
	before, err := cpu.Used()
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	n := f()
	took := time.Since(began)
	after, err := cpu.Used()
	if err != nil {
		return result{}, err
	}
	if n == 0 {
		return result{}, errors.New("nothing got through")
	}
	return result{rate: float64(n) / took.Seconds(), cpu: (after - before).Seconds() / float64(n)}, nil
}

// datagrams sends UDP as fast as one thread can, and counts what arrives.
func datagrams(v *variant, d time.Duration, cpu load.Processors) (result, error) {
	in, err := udpSocket(v.server, func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20), unix.Bind(fd, sockaddr(v.addr)))
	})
	if err != nil {
		return result{}, err
	}
	defer unix.Close(in)
	out, err := udpSocket(v.client, func(fd int) error { return unix.Connect(fd, sockaddr(v.addr)) })
	if err != nil {
		return result{}, err
	}
	defer unix.Close(out)

	var stop atomic.Bool
	var wg sync.WaitGroup
	var received int
	var sendErr, recvErr error
	wg.Go(func() { recvErr = v.server.In(func() (err error) { received, err = receive(in, &stop); return err }) })
	r, err := clocked(cpu, func() int {
		wg.Go(func() { sendErr = v.client.In(func() error { return send(out, &stop) }) })
		<-time.After(d)
		stop.Store(true)
		wg.Wait()
		return received
	})
	return r, errors.Join(err, sendErr, recvErr)
}

func udpSocket(s sandbox.Space, f func(fd int) error) (fd int, err error) {
	err = s.In(func() error {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return f(fd)
	})
	return fd, err
}

func send(fd int, stop *atomic.Bool) error {
	b := make([]byte, datagram)
	if err := load.Pin(load.ClientCPU); err != nil {
		return err
	}
	for !stop.Load() {
		if _, err := unix.Write(fd, b); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

func receive(fd int, stop *atomic.Bool) (n int, err error) {
	soon := unix.Timeval{Usec: 10_000} // how long it waits after the last one
	if err := errors.Join(load.Pin(load.ServerCPU), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &soon)); err != nil {
		return 0, err
	}
	b := make([]byte, 2*datagram)
	for {
		_, err := unix.Read(fd, b)
		switch {
		case err == nil:
			n++
		case errors.Is(err, unix.EAGAIN) && stop.Load():
			return n, nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return n, fmt.Errorf("receive: %w", err)
		}
	}
}
