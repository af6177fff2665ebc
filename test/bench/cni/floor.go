// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/rtnl"
)

// The floor: what no plugin written in Go, and no network that gives each pod a
// veth pair, can be faster than on this machine at this moment. It is measured in
// between the figures that it is for, so that a busy neighbour hits both.
const (
	floorSocket = "/run/floor.sock"
	floorVeth   = "floor" // prefix of host ends
	vethPeer    = 1       // VETH_INFO_PEER of linux/veth.h
)

// floor serves trivial plugins: attach, if there is one, gives the pod something first.
type floor struct {
	l      net.Listener
	wg     sync.WaitGroup
	attach func(netns string) error
}

func newFloor(attach func(netns string) error) (*floor, error) {
	l, err := net.Listen("unix", floorSocket)
	if err != nil {
		return nil, err
	}
	f := &floor{l: l, attach: attach}
	f.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.serve(conn) })
		}
	})
	return f, nil
}

func (f *floor) stop() error {
	err := f.l.Close()
	f.wg.Wait()
	return err
}

// serve hangs up without an answer when something is wrong: the client tells.
func (f *floor) serve(conn net.Conn) {
	defer conn.Close()
	b := make([]byte, 256)
	n, err := conn.Read(b)
	if err != nil {
		return
	}
	if f.attach != nil {
		if err := f.attach(string(b[:n])); err != nil {
			fmt.Fprintln(os.Stderr, "floor:", err)
			return
		}
	}
	_, _ = conn.Write(b[:1])
}

// bare gives pods a pair each, in one message, one pod after the other, as the
// kernel's lock would have it anyway.
type bare struct {
	mu sync.Mutex
	c  *rtnl.Conn
	n  int
}

func (b *bare) attach(netns string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	return bareVeth(b.c, fmt.Sprintf("%s%d", floorVeth, b.n), netns)
}

// bareVeth makes a pair that nobody could use: no address, no route, down.
func bareVeth(c *rtnl.Conn, name, netns string) error {
	ns, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	c.Begin(name, unix.RTM_NEWLINK, rtnl.New, rtnl.Link(0, 0, 0))
	end := func(name string) {
		c.String(unix.IFLA_IFNAME, name)
		c.Uint32(unix.IFLA_NUM_TX_QUEUES, 1)
		c.Uint32(unix.IFLA_NUM_RX_QUEUES, 1)
	}
	end(name)
	info := c.Nest(unix.IFLA_LINKINFO)
	c.String(1, "veth") // IFLA_INFO_KIND
	data := c.Nest(2)   // IFLA_INFO_DATA
	peer := c.Nest(vethPeer)
	c.Raw(rtnl.Link(0, 0, 0))
	end("eth0")
	c.Uint32(unix.IFLA_NET_NS_FD, uint32(ns.Fd()))
	c.End(peer)
	c.End(data)
	c.End(info)
	return c.Commit()
}

// clear deletes the pairs of floors, in one operation.
func clearFloor(c *rtnl.Conn) error {
	const group = 0xF100
	ifs, err := net.Interfaces()
	if err != nil {
		return err
	}
	n := 0
	for _, i := range ifs {
		if strings.HasPrefix(i.Name, floorVeth) {
			n++
			c.Begin(i.Name, unix.RTM_SETLINK, 0, rtnl.Link(i.Index, 0, 0))
			c.Uint32(unix.IFLA_GROUP, group)
			if err := c.Commit(); err != nil {
				return err
			}
		}
	}
	if n == 0 {
		return nil
	}
	c.Begin("delete", unix.RTM_DELLINK, 0, rtnl.Link(0, 0, 0))
	c.Attr(unix.IFLA_GROUP, binary.NativeEndian.AppendUint32(nil, group))
	return c.Commit()
}

// floors measures one round of each.
func floors(pods []pod, program string, into series) (err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	w, err := newWork()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	b := &bare{c: c}
	exe := func(p pod) error { return execFloor(into, program, p) }
	for _, k := range []struct {
		name   string
		attach func(netns string) error
		order  func([]pod, func(pod) error) (samples, error)
		call   func(pod) error
	}{
		{"floor_exec", nil, oneByOne, exe},
		{"floor_exec_burst", nil, together, exe},
		{"floor_exec_veth_burst", b.attach, together, exe},
		{"floor_veth_flood", b.attach, together, askFloor},
		{"floor_pod_flood", w.attach, together, askFloor},
	} {
		f, err := newFloor(k.attach)
		if err != nil {
			return err
		}
		s, err := k.order(pods, k.call)
		if err = errors.Join(err, clearFloor(c), f.stop()); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		into.add(k.name, s)
	}
	return nil
}

func execFloor(all series, program string, p pod) error {
	cmd := exec.Command(program, floorSocket)
	cmd.Env = p.environment("ADD")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", p.name, err, out)
	}
	all.add("floor_exec_cpu", samples{cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()})
	return nil
}

func askFloor(p pod) error {
	conn, err := net.Dial("unix", floorSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(p.netns)); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}
