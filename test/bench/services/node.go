// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/test/bench/sandbox"
)

// Every node has the same addresses: none of them knows of the others.
const (
	nodeAddr    = "10.9.0.1"
	outsideAddr = "10.9.0.254"
	podRange    = "10.244.1.0/24"
	device      = "eth0" // of nodes, pods and clients outside
)

// node is a node with a client pod, a backend pod, and a client outside.
type node struct {
	name     string
	services int
	sandbox.Space
	outside, client, backend sandbox.Space
	cgroup                   string
	pods                     *podsProcess
	podIP                    netip.Addr // of the backend
}

// newNode makes what all nodes have: its wire, the namespaces of its pods, its
// cgroup and the process of its pods. The pods are not attached yet.
func newNode(name string, services int, cgroups string) (n *node, err error) {
	n = &node{name: name, services: services, cgroup: filepath.Join(cgroups, name)}
	if err := os.MkdirAll(n.cgroup, 0o755); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		space  *sandbox.Space
		suffix string
	}{{&n.Space, ""}, {&n.outside, "-outside"}, {&n.client, "-client"}, {&n.backend, "-backend"}} {
		if *s.space, err = sandbox.NewSpace(name + s.suffix); err != nil {
			return nil, err
		}
	}
	err = errors.Join(
		sandbox.IP(n.Name, fmt.Sprintf("link add %s type veth peer name %s netns %s", device, device, n.outside.Name),
			"addr add "+nodeAddr+"/24 dev "+device, "link set "+device+" up"),
		sandbox.IP(n.outside.Name, "addr add "+outsideAddr+"/24 dev "+device, "link set "+device+" up"),
		// What is not translated is refused at once, instead of leading outside.
		sandbox.IP(n.Name, "route add default via "+outsideAddr, "route add unreachable "+serviceRange),
		setSysctls(n.Space, map[string]string{"ip_forward": "1", "icmp_ratelimit": "0"}),
	)
	// The client closes first: its ports are used again after a second.
	for _, s := range []sandbox.Space{n.outside, n.client, n.backend} {
		err = errors.Join(err, setSysctls(s, map[string]string{
			"tcp_tw_reuse": "1", "ip_local_port_range": "1024 65535", "tcp_congestion_control": "reno",
		}))
	}
	if err := errors.Join(err, reachable(n.Space)); err != nil {
		return nil, err
	}
	n.pods, err = newPods(n.cgroup)
	return n, err
}

func setSysctls(s sandbox.Space, values map[string]string) error {
	return s.In(func() error {
		for name, value := range values {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// serve makes the backend pod answer, at podIP.
func (n *node) serve() error {
	_, err := n.pods.do(order{Netns: n.backend.Path, Serve: netip.AddrPortFrom(n.podIP, backendPort)})
	return err
}

// wire attaches both pods as Weft's are, but without any program: the kernel routes.
func (n *node) wire() error {
	links, err := link.New("/proc/sys/net", slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	for i, s := range []sandbox.Space{n.client, n.backend} {
		n.podIP = netip.MustParsePrefix(podRange).Addr().Next()
		for range i + 1 {
			n.podIP = n.podIP.Next()
		}
		v := link.Veth{
			HostIfName: fmt.Sprintf("lxc%d", i), Alias: link.AliasPrefix + s.Name, Netns: s.Path, IfName: device, MTU: 1500,
			HostMAC: net.HardwareAddr{2, 0, 0, 0, 0xff, byte(i)}, MAC: net.HardwareAddr{2, 0, 0, 0, 0xaa, byte(i)},
		}
		err := n.In(func() error {
			index, err := links.Create(v)
			if err != nil {
				return err
			}
			return links.Up(v, index, link.Addressing{IPs: []netip.Addr{n.podIP}, Src: []netip.Addr{netip.MustParseAddr(nodeAddr)}}, nil)
		})
		if err != nil {
			return err
		}
	}
	return n.serve()
}
