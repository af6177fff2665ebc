// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/test/bench/sandbox"
)

const (
	nodeDevice = "eth0" // of nodes, and of pods
	podDevice  = "lxc1" // host's end of a node's pod
	deviceMTU  = 1500
)

// node is one end of the wire, with a pod if addPod was called.
type node struct {
	sandbox.Space
	links *link.Links
	index int          // of eth0
	addr  netip.Addr   // its own
	pods  netip.Prefix // of its pods
	pod   sandbox.Space
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
	err = sandbox.IP(a.Name, fmt.Sprintf("link add %s mtu %d type veth peer name %s mtu %d netns %s", nodeDevice, deviceMTU, nodeDevice, deviceMTU, b.Name))
	for _, n := range p {
		err = errors.Join(err, sandbox.IP(n.Name, fmt.Sprintf("addr add %s/24 dev %s", n.addr, nodeDevice), "link set "+nodeDevice+" up"))
		err = errors.Join(err, n.In(func() (err error) {
			if n.index, err = n.links.ByName(nodeDevice); err != nil {
				return err
			}
			return n.links.EnsureForwarding(true, true)
		}))
	}
	return p, err
}

func newNode(name string, i int) (*node, error) {
	s, err := sandbox.NewSpace(name)
	if err != nil {
		return nil, err
	}
	links, err := link.New("/proc/sys/net", slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return &node{
		Space: s, links: links,
		addr: netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}),
		pods: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24),
	}, nil
}

// addPod makes the node's pod, wired as Weft's are. attach, if not nil, is called
// when the device is there and before it is up.
func (n *node) addPod(mtu int, attach func(v link.Veth, index int) error) (index int, err error) {
	if n.pod, err = sandbox.NewSpace(n.Name + "-pod"); err != nil {
		return 0, err
	}
	n.podIP = n.pods.Addr().Next().Next()
	v := link.Veth{
		HostIfName: podDevice, Alias: link.AliasPrefix + n.pod.Name, Netns: n.pod.Path, IfName: nodeDevice, MTU: mtu,
		HostMAC: net.HardwareAddr{2, 0, 0, 0, 0xff, 1}, MAC: net.HardwareAddr{2, 0, 0, 0, 0xaa, 1},
	}
	err = n.In(func() (err error) {
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
