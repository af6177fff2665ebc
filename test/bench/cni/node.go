// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/cni"
)

// Addresses of the node that is played.
const (
	nodeName = "bench"
	nodeAddr = "192.0.2.1"
	bpffs    = "/sys/fs/bpf"
)

// prepare turns the namespaces into a node: mounts that the root does not see,
// a device with the node's address.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	for _, m := range []struct{ kind, path string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"bpf", bpffs}, {"tmpfs", "/run"},
	} {
		if err := unix.Mount(m.kind, m.path, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.path, err)
		}
	}
	// On some systems /var/run is a directory and not a link to /run.
	if err := os.MkdirAll("/run/weft", 0o755); err != nil {
		return err
	}
	if p, err := filepath.EvalSymlinks("/var/run"); err != nil || p != "/run" {
		if err := unix.Mount("/run", "/var/run", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount /var/run: %w", err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	la := netlink.NewLinkAttrs()
	la.Name = "eth0"
	dev := &netlink.Bridge{LinkAttrs: la}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeAddr), Mask: net.CIDRMask(24, 32)}}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(dev)); err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	if err := errors.Join(netlink.AddrAdd(dev, addr), netlink.LinkSetUp(dev)); err != nil {
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
	dir := "/run/netns"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	pods := make([]pod, n)
	for i := range pods {
		name := fmt.Sprintf("pod-%d", i)
		pods[i] = pod{id: fmt.Sprintf("%064x", i+1), name: name, netns: filepath.Join(dir, name)}
		if err := newNetns(pods[i].netns); err != nil {
			return nil, fmt.Errorf("network namespace %s: %w", name, err)
		}
	}
	return pods, nil
}

func newNetns(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	return <-done
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
