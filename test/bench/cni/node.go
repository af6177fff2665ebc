// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/test/bench/sandbox"
)

// Addresses of the node that is played.
const (
	nodeName = "bench"
	nodeAddr = "192.0.2.1"
	nodeSix  = "2001:db8::1"
	bpffs    = sandbox.BPFFS
)

// prepare turns the namespaces into a node: mounts that the root does not see,
// a device with the node's address.
func prepare() error {
	if err := sandbox.Mount(); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/weft", 0o755); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	la := netlink.NewLinkAttrs()
	la.Name = "eth0"
	dev := &netlink.Bridge{LinkAttrs: la}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeAddr), Mask: net.CIDRMask(24, 32)}}
	six := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeSix), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(dev)); err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	if err := errors.Join(netlink.AddrAdd(dev, addr), netlink.AddrAdd(dev, six), netlink.LinkSetUp(dev)); err != nil {
		return fmt.Errorf("device eth0: %w", err)
	}
	return nil
}

// pod is a sandbox, as a runtime would make it.
type pod struct {
	id    string
	name  string
	netns string
}

func newPods(n int) ([]pod, error) {
	pods := make([]pod, n)
	for i := range pods {
		name := fmt.Sprintf("pod-%d", i)
		path, err := sandbox.Netns(name)
		if err != nil {
			return nil, err
		}
		pods[i] = pod{id: fmt.Sprintf("%064x", i+1), name: name, netns: path}
	}
	return pods, nil
}

// request is what the plugin would send.
func (p pod) request(command string) cni.Request {
	return cni.Request{Command: command, ContainerID: p.id, Netns: p.netns, IfName: "eth0", Args: p.args()}
}

func (p pod) args() string {
	return "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=" + p.name + ";K8S_POD_INFRA_CONTAINER_ID=" + p.id
}

// environment is what the runtime executes the plugin with.
func (p pod) environment(command string) []string {
	return []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.netns, "CNI_IFNAME=eth0",
		"CNI_ARGS=" + p.args(), "CNI_PATH=/opt/cni/bin", "PATH=" + os.Getenv("PATH"),
	}
}
