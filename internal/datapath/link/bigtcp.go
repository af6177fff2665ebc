// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/rtnl"
)

// LegacySize is how large a super-packet grows without BIG TCP, in bytes:
// GSO_LEGACY_MAX_SIZE of linux/netdevice.h, every device's default.
const LegacySize = 65536

// Sizes bound the super-packets of a device, in bytes: those of TCP that it is
// given to send (GSO), and those that it puts together of what comes in (GRO).
// 0 is a bound that the kernel does not know, or that is not to be changed.
type Sizes struct {
	GSO4 int `json:"gso4"` // IFLA_GSO_IPV4_MAX_SIZE, since Linux 6.3
	GRO4 int `json:"gro4"`
	GSO6 int `json:"gso6"` // IFLA_GSO_MAX_SIZE: beyond LegacySize of IPv6 alone
	GRO6 int `json:"gro6"`
}

// SizedDevice is a device with its bounds.
type SizedDevice struct {
	Name  string
	Index int
	// Most is what the device and its driver take: IFLA_TSO_MAX_SIZE, since
	// Linux 5.19; 0: not told.
	Most int
	Sizes
}

// BigTCP is how large pods' super-packets may grow, in bytes, by family. 0 leaves
// the kernel's default, LegacySize.
type BigTCP struct{ IPv4, IPv6 int }

// Sizes are the bounds that both ends of a pod's pair are to have.
func (b BigTCP) Sizes() Sizes {
	v4, v6 := max(b.IPv4, LegacySize), max(b.IPv6, LegacySize)
	return Sizes{GSO4: v4, GRO4: v4, GSO6: v6, GRO6: v6}
}

// Known returns s without the bounds that the kernel of d does not know.
func (d SizedDevice) Known(s Sizes) Sizes {
	if d.GSO4 == 0 {
		s.GSO4, s.GRO4 = 0, 0
	}
	if d.GRO6 == 0 {
		s.GRO6 = 0
	}
	return s
}

// SizedDevices returns all devices of this namespace.
func (l *Links) SizedDevices() ([]SizedDevice, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	out := make([]SizedDevice, len(links))
	for i, k := range links {
		out[i] = sized(k.Attrs())
	}
	return out, nil
}

func sized(a *netlink.LinkAttrs) SizedDevice {
	return SizedDevice{
		Name: a.Name, Index: a.Index, Most: clamped(a.TSOMaxSize),
		Sizes: Sizes{GSO4: clamped(a.GSOIPv4MaxSize), GRO4: clamped(a.GROIPv4MaxSize), GSO6: clamped(a.GSOMaxSize), GRO6: clamped(a.GROMaxSize)},
	}
}

func clamped(n uint32) int { return int(min(n, math.MaxInt32)) }

// SetSizes sets the bounds of a device. A kernel that is told of IPv6's at most
// LegacySize sets IPv4's to the same: so both families go together, IPv6 first.
func (l *Links) SetSizes(index int, s Sizes) error {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return setSizes(c, index, s)
}

func setSizes(c *rtnl.Conn, index int, s Sizes) error {
	c.Begin(fmt.Sprintf("bounds of super-packets %+v", s), unix.RTM_SETLINK, 0, rtnl.Link(index, 0, 0))
	s.append(c)
	return c.Commit()
}

// append adds the bounds to the message about a link that is being written.
func (s Sizes) append(c *rtnl.Conn) {
	for _, a := range []struct {
		typ  uint16
		size int
	}{
		{unix.IFLA_GSO_MAX_SIZE, s.GSO6},
		{unix.IFLA_GRO_MAX_SIZE, s.GRO6},
		{unix.IFLA_GSO_IPV4_MAX_SIZE, s.GSO4},
		{unix.IFLA_GRO_IPV4_MAX_SIZE, s.GRO4},
	} {
		if a.size > 0 {
			c.Uint32(a.typ, uint32(a.size))
		}
	}
}

// SetPodSizes sets the bounds of both ends of a running pair, the host's last:
// where that has them, the pod's has. index is that of the host's end. With an
// empty v.Netns only the host's end is changed.
func (l *Links) SetPodSizes(v Veth, index int, s Sizes) error {
	if v.Netns != "" {
		err := insidePod(v, index, func(c *rtnl.Conn, pod int) error { return setSizes(c, pod, s) })
		if err != nil {
			return err
		}
	}
	if err := l.SetSizes(index, s); err != nil {
		return fmt.Errorf("link %s: %w", v.HostIfName, err)
	}
	return nil
}

// insidePod runs f in the pod's namespace, with the index of the pod's end.
func insidePod(v Veth, index int, f func(c *rtnl.Conn, pod int) error) error {
	ns, err := openNetns(v.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	err = inside(ns, func() (err error) {
		c, err := rtnl.Dial()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		end, err := podEnd(c, v, index)
		if err != nil {
			return err
		}
		return f(c, end.index)
	})
	if err != nil {
		return fmt.Errorf("link %s in %s: %w", v.IfName, v.Netns, err)
	}
	return nil
}
