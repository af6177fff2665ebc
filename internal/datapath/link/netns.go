// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// openNetns opens a pod's network namespace. That it is one, and not the one
// that the agent is in, is checked here: configuring the node's own devices as
// if they were a pod's would cut the node off.
func openNetns(path string) (netns.NsHandle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return netns.None(), &NetnsError{Path: path, Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(ns), &fs); err == nil && fs.Type != unix.NSFS_MAGIC && fs.Type != unix.PROC_SUPER_MAGIC {
		err = errors.New("is not a namespace file")
		return netns.None(), errors.Join(&NetnsError{Path: path, Err: err}, ns.Close())
	}
	own, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		return netns.None(), errors.Join(fmt.Errorf("own network namespace: %w", err), ns.Close())
	}
	defer own.Close()
	if own.Equal(ns) {
		err := errors.New("is the node's own: pods of the host network are not attached")
		return netns.None(), errors.Join(&NetnsError{Path: path, Err: err}, ns.Close())
	}
	return ns, nil
}

// inside runs f on a thread that is in ns for that time. Sysctl files below
// /proc/sys/net, and new sockets, are those of the calling thread's namespace.
// It has a goroutine of its own: should the way back fail, the thread stays
// locked to it and ends with it, rather than serve others in the wrong namespace.
func inside(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- switched(ns, f) }()
	return <-done
}

func switched(ns netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	back, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer back.Close()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter: %w", err)
	}
	ferr := f()
	if err := netns.Set(back); err != nil {
		return errors.Join(ferr, fmt.Errorf("return to own network namespace: %w", err))
	}
	runtime.UnlockOSThread()
	return ferr
}

// podHandle returns a netlink handle in ns, after f ran there with it.
func podHandle(ns netns.NsHandle, f func(*netlink.Handle) error) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := inside(ns, func() (err error) {
		if h, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		if err := f(h); err != nil {
			h.Close()
			return err
		}
		return nil
	})
	return h, err
}
