// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sandbox

import (
	"fmt"
	"os/exec"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
)

// Space is a network namespace. It lives as long as the program.
type Space struct {
	Name, Path string
	ns         netns.NsHandle
}

// NewSpace makes one, with loopback up.
func NewSpace(name string) (Space, error) {
	path, err := Netns(name)
	if err != nil {
		return Space{}, err
	}
	s, err := OpenSpace(name, path)
	if err != nil {
		return Space{}, err
	}
	return s, IP(name, "link set lo up")
}

// OpenSpace takes one that is there.
func OpenSpace(name, path string) (Space, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return Space{}, fmt.Errorf("network namespace %s: %w", name, err)
	}
	return Space{name, path, ns}, nil
}

// In runs f on a thread that is in the namespace. The thread ends with it, so
// that f may change what it likes of it.
func (s Space) In(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(s.ns); err != nil {
			done <- fmt.Errorf("enter %s: %w", s.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// IP runs ip(8) in a namespace, once for each of lines.
func IP(ns string, lines ...string) error { return iproute("ip", ns, lines) }

// Bridge is the same with bridge(8).
func Bridge(ns string, lines ...string) error { return iproute("bridge", ns, lines) }

func iproute(program, ns string, lines []string) error {
	for _, l := range lines {
		if out, err := exec.Command(program, append([]string{"-n", ns}, strings.Fields(l)...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s -n %s %s: %w: %s", program, ns, l, err, out)
		}
	}
	return nil
}

// Close gives up this reference to the namespace.
func (s Space) Close() error { return s.ns.Close() }

// LoopbackUp brings up loopback in the namespace of the process.
func LoopbackUp() error {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}
