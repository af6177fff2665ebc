// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/rtnl"
)

// Attributes that package nl does not name: linux/if_link.h, linux/ip.h.
const (
	inet6AddrGenMode       = 8 // IFLA_INET6_ADDR_GEN_MODE
	inetConf               = 1 // IFLA_INET_CONF
	devconfForwarding      = 1 // IPV4_DEVCONF_FORWARDING
	devconfRPFilter        = 8 // IPV4_DEVCONF_RP_FILTER
	maxAlias               = 255
	addrGenModeNone   byte = 1 // IN6_ADDR_GEN_MODE_NONE
)

// Veth describes a pod's pair of devices.
type Veth struct {
	HostIfName string
	Alias      string // of the host's end; cut at 255 bytes
	Netns      string // path of the pod's network namespace
	IfName     string // inside it
	MTU        int    // bytes, of both ends
	BigTCP     BigTCP // of both ends
	HostMAC    net.HardwareAddr
	MAC        net.HardwareAddr
}

// NetnsError says that a path is not a network namespace that a pod can have.
type NetnsError struct {
	Path string
	Err  error
}

func (e *NetnsError) Error() string { return fmt.Sprintf("network namespace %s: %v", e.Path, e.Err) }

// Unwrap returns the cause.
func (e *NetnsError) Unwrap() error { return e.Err }

// ErrIfNameTaken is returned when the pod has an interface of the wanted name
// already, which Weft did not make.
var ErrIfNameTaken = errors.New("the interface exists already and is not Weft's: another network configured this pod; delete the pod")

// Create makes the pair, both ends down, the pod's end right inside its
// namespace: moving it there later would cost a grace period. It returns the
// index of the host's end. What an earlier, interrupted Create of the same name
// left is replaced.
func (l *Links) Create(v Veth) (int, error) {
	ns, err := openNetns(v.Netns)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	c, err := rtnl.Dial()
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", v.HostIfName, err)
	}
	defer c.Close()

	err = l.create(c, v, ns)
	if errors.Is(err, unix.EEXIST) {
		if err := l.clear(v.HostIfName); err != nil {
			return 0, err
		}
		if err = l.create(c, v, ns); errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("link %s in %s: %w", v.IfName, v.Netns, ErrIfNameTaken)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("link %s (veth to %s in %s): create: %w", v.HostIfName, v.IfName, v.Netns, err)
	}
	index, err := indexOf(v.HostIfName)
	if err == nil {
		err = l.mark(c, index, v.Alias)
	}
	if err != nil {
		if old, e := netlink.LinkByName(v.HostIfName); e == nil {
			err = errors.Join(err, netlink.LinkDel(old))
		}
		return 0, fmt.Errorf("link %s: set alias and address generation: %w", v.HostIfName, err)
	}
	return index, nil
}

// clear deletes the pair that an operation left under name, if there is one.
func (l *Links) clear(name string) error {
	old, err := netlink.LinkByName(name)
	switch {
	case isGone(err):
		return nil
	case err != nil:
		return fmt.Errorf("link %s: %w", name, err)
	case old.Type() != "veth":
		return fmt.Errorf("link %s: exists and is a %s, which Weft never makes: rename or delete it", name, old.Type())
	}
	l.log.Info("replacing a link that an interrupted operation left", "link", name)
	if err := netlink.LinkDel(old); err != nil && !isGone(err) {
		return fmt.Errorf("link %s: delete what was left of it: %w", name, err)
	}
	return nil
}

// create makes the pair in one message.
//
// A veth has a queue for each possible CPU unless told otherwise, each an object
// in sysfs that takes time to make under the RTNL. Without XDP on the veth they
// have no use: it sends without queueing or lock.
func (l *Links) create(c *rtnl.Conn, v Veth, ns netns.NsHandle) error {
	end := func(name string, mac net.HardwareAddr) {
		c.String(unix.IFLA_IFNAME, name)
		c.Uint32(unix.IFLA_MTU, uint32(v.MTU))
		c.Attr(unix.IFLA_ADDRESS, mac)
		c.Uint32(unix.IFLA_NUM_TX_QUEUES, 1)
		c.Uint32(unix.IFLA_NUM_RX_QUEUES, 1)
		if v.BigTCP != (BigTCP{}) {
			v.BigTCP.Sizes().append(c)
		}
	}
	c.Begin("", unix.RTM_NEWLINK, rtnl.New, rtnl.Link(0, 0, 0))
	end(v.HostIfName, v.HostMAC)
	info := c.Nest(unix.IFLA_LINKINFO)
	c.String(nl.IFLA_INFO_KIND, "veth")
	data := c.Nest(nl.IFLA_INFO_DATA)
	peer := c.Nest(nl.VETH_INFO_PEER)
	c.Raw(rtnl.Link(0, 0, 0))
	end(v.IfName, v.MAC)
	c.Uint32(unix.IFLA_NET_NS_FD, uint32(ns))
	c.End(peer)
	c.End(data)
	c.End(info)
	return c.Commit()
}

// mark sets in one request what a link cannot be created with: its alias, no
// link-local address of its own, no reverse-path filter, forwarding on, and the
// place that programs are attached to, which they are the cheaper the longer it
// is there (see endpoint.Manager).
func (l *Links) mark(c *rtnl.Conn, index int, alias string) error {
	if len(alias) > maxAlias {
		alias = alias[:maxAlias]
	}
	c.Begin("", unix.RTM_SETLINK, 0, rtnl.Link(index, 0, 0))
	c.Attr(unix.IFLA_IFALIAS, []byte(alias))
	spec := c.Nest(unix.IFLA_AF_SPEC)
	inet := c.Nest(unix.AF_INET)
	conf := c.Nest(inetConf)
	c.Uint32(devconfRPFilter, 0)
	c.Uint32(devconfForwarding, 1)
	c.End(conf)
	c.End(inet)
	if l.ipv6 {
		inet6 := c.Nest(unix.AF_INET6)
		c.Attr(inet6AddrGenMode, []byte{addrGenModeNone})
		c.End(inet6)
	}
	c.End(spec)
	c.Begin("qdisc clsact", unix.RTM_NEWQDISC, rtnl.New, rtnl.TC(index, netlink.MakeHandle(0xffff, 0), netlink.HANDLE_CLSACT, 0))
	c.String(nl.TCA_KIND, "clsact")
	return c.Commit()
}

// indexOf asks for the index of a device with the least that is possible: no
// lock, no dump.
func indexOf(name string) (int, error) {
	s, err := newCarrierSocket()
	if err != nil {
		return 0, err
	}
	defer s.Close()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(int(s), unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("index: %w", err)
	}
	return int(req.Uint32()), nil
}

func linkRequest(proto, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(proto, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	return req
}

// Retire takes a link out of service at once, in well under a millisecond: down,
// which takes its routes and neighbours with it, and in the group that
// DeleteRetired deletes. A link that is gone is no error.
func (l *Links) Retire(name string) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Change = unix.IFF_UP // flags stay 0: down
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(retiredGroup)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !isGone(err) {
		return fmt.Errorf("link %s: take down: %w", name, err)
	}
	return nil
}

// DeleteRetired deletes all retired links in one go. It takes some 20 ms,
// however many there are, and holds the RTNL for most of that.
func (l *Links) DeleteRetired() error {
	req := linkRequest(unix.RTM_DELLINK, 0)
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(retiredGroup)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !isGone(err) {
		return fmt.Errorf("retired links (group %#x): delete: %w", retiredGroup, err)
	}
	return nil
}

// DeleteAll deletes every link that is Weft's, for the uninstaller.
func (l *Links) DeleteAll() error {
	ours, err := l.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range ours {
		errs = append(errs, l.Retire(k.Name))
	}
	return errors.Join(append(errs, l.DeleteRetired())...)
}

// ByName returns the index of a link, 0 if there is none.
func (l *Links) ByName(name string) (int, error) {
	k, err := netlink.LinkByName(name)
	if isGone(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", name, err)
	}
	return k.Attrs().Index, nil
}
