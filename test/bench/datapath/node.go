// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/test/bench/sandbox"
)

const (
	nodeDevice = "eth0" // of nodes, and of pods
	podDevice  = "lxc1" // host's end of a node's pod
	deviceMTU  = 1500
)

// space is a network namespace. It lives as long as the program.
type space struct {
	name, path string
	ns         netns.NsHandle
}

func newSpace(name string) (space, error) {
	path, err := sandbox.Netns(name)
	if err != nil {
		return space{}, err
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return space{}, fmt.Errorf("network namespace %s: %w", name, err)
	}
	return space{name, path, ns}, ip(name, "link set lo up")
}

// in runs f on a thread that is in the namespace. The thread ends with it, so
// that f may change what it likes of it.
func (s space) in(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(s.ns); err != nil {
			done <- fmt.Errorf("enter %s: %w", s.name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// ip runs ip(8) in a namespace, once for each of lines.
func ip(ns string, lines ...string) error { return iproute("ip", ns, lines) }

// bridge is the same with bridge(8).
func bridge(ns string, lines ...string) error { return iproute("bridge", ns, lines) }

func iproute(program, ns string, lines []string) error {
	for _, l := range lines {
		if out, err := exec.Command(program, append([]string{"-n", ns}, strings.Fields(l)...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s -n %s %s: %w: %s", program, ns, l, err, out)
		}
	}
	return nil
}

// node is one end of the wire, with a pod if addPod was called.
type node struct {
	space
	links *link.Links
	index int          // of eth0
	addr  netip.Addr   // its own
	pods  netip.Prefix // of its pods
	pod   space
	podIP netip.Addr
}

// pair is two nodes on one wire, each of which forwards.
type pair [2]*node

func newPair(name string) (p pair, err error) {
	for i := range p {
		if p[i], err = newNode(fmt.Sprintf("%s-%d", name, i+1), i+1); err != nil {
			return p, err
		}
	}
	a, b := p[0], p[1]
	err = ip(a.name, fmt.Sprintf("link add %s mtu %d type veth peer name %s mtu %d netns %s", nodeDevice, deviceMTU, nodeDevice, deviceMTU, b.name))
	for _, n := range p {
		err = errors.Join(err, ip(n.name, fmt.Sprintf("addr add %s/24 dev %s", n.addr, nodeDevice), "link set "+nodeDevice+" up"))
		err = errors.Join(err, n.in(func() (err error) {
			if n.index, err = n.links.ByName(nodeDevice); err != nil {
				return err
			}
			return n.links.EnsureForwarding(true, true)
		}))
	}
	return p, err
}

func newNode(name string, i int) (*node, error) {
	s, err := newSpace(name)
	if err != nil {
		return nil, err
	}
	links, err := link.New("/proc/sys/net", slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return &node{
		space: s, links: links,
		addr: netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}),
		pods: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24),
	}, nil
}

// addPod makes the node's pod, wired as Weft's are. attach, if not nil, is called
// when the device is there and before it is up.
func (n *node) addPod(mtu int, attach func(v link.Veth, index int) error) (index int, err error) {
	if n.pod, err = newSpace(n.name + "-pod"); err != nil {
		return 0, err
	}
	n.podIP = n.pods.Addr().Next().Next()
	v := link.Veth{
		HostIfName: podDevice, Alias: link.AliasPrefix + n.pod.name, Netns: n.pod.path, IfName: nodeDevice, MTU: mtu,
		HostMAC: net.HardwareAddr{2, 0, 0, 0, 0xff, 1}, MAC: net.HardwareAddr{2, 0, 0, 0, 0xaa, 1},
	}
	err = n.in(func() (err error) {
		if index, err = n.links.Create(v); err != nil {
			return err
		}
		if attach != nil {
			if err := attach(v, index); err != nil {
				return err
			}
		}
		return n.links.Up(v, index, link.Addressing{IPs: []netip.Addr{n.podIP}, Src: []netip.Addr{n.addr}}, nil)
	})
	return index, err
}
