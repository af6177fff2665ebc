// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/rtnl"
)

// Resize sets the MTU of both ends of a running pair to v.MTU. The end that
// sends what could be too large goes first: the pod's when it shrinks, the
// host's when it grows. index is that of the host's end. With an empty v.Netns
// only the host's end is changed. Routes follow their devices.
func (l *Links) Resize(v Veth, index int, grows bool) error {
	steps := []func() error{func() error { return resizePod(v, index) }, func() error { return resizeHost(v, index) }}
	if grows {
		steps[0], steps[1] = steps[1], steps[0]
	}
	var errs []error
	for _, step := range steps {
		errs = append(errs, step())
	}
	return errors.Join(errs...)
}

func resizeHost(v Veth, index int) error {
	c, err := rtnl.Dial()
	if err != nil {
		return fmt.Errorf("link %s: %w", v.HostIfName, err)
	}
	defer c.Close()
	if err := resize(c, index, v.MTU); err != nil {
		return fmt.Errorf("link %s: %w", v.HostIfName, err)
	}
	return nil
}

func resizePod(v Veth, index int) error {
	if v.Netns == "" {
		return nil
	}
	return insidePod(v, index, func(c *rtnl.Conn, pod int) error { return resize(c, pod, v.MTU) })
}

func resize(c *rtnl.Conn, index, mtu int) error {
	c.Begin(fmt.Sprintf("set MTU %d", mtu), unix.RTM_SETLINK, 0, rtnl.Link(index, 0, 0))
	c.Uint32(unix.IFLA_MTU, uint32(mtu))
	return c.Commit()
}
