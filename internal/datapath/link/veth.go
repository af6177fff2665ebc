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
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, fmt.Errorf("netlink socket: %w", err)
	}
	defer h.Close()

	index, err := l.create(h, v, ns)
	if errors.Is(err, unix.EEXIST) {
		if err := l.clear(h, v.HostIfName); err != nil {
			return 0, err
		}
		if index, err = l.create(h, v, ns); errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("link %s in %s: %w", v.IfName, v.Netns, ErrIfNameTaken)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("link %s (veth to %s in %s): create: %w", v.HostIfName, v.IfName, v.Netns, err)
	}
	if err := l.mark(index, v.Alias); err != nil {
		if old, e := h.LinkByIndex(index); e == nil {
			err = errors.Join(err, h.LinkDel(old))
		}
		return 0, fmt.Errorf("link %s: set alias and address generation: %w", v.HostIfName, err)
	}
	return index, nil
}

// clear deletes the pair that an operation left under name, if there is one.
func (l *Links) clear(h *netlink.Handle, name string) error {
	old, err := h.LinkByName(name)
	switch {
	case isGone(err):
		return nil
	case err != nil:
		return fmt.Errorf("link %s: %w", name, err)
	case old.Type() != "veth":
		return fmt.Errorf("link %s: exists and is a %s, which Weft never makes: rename or delete it", name, old.Type())
	}
	l.log.Info("replacing a link that an interrupted operation left", "link", name)
	if err := h.LinkDel(old); err != nil && !isGone(err) {
		return fmt.Errorf("link %s: delete what was left of it: %w", name, err)
	}
	return nil
}

func (l *Links) create(h *netlink.Handle, v Veth, ns netns.NsHandle) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = v.HostIfName, v.MTU, v.HostMAC
	pair := netlink.NewVeth(attrs)
	// A veth has a queue for each possible CPU unless told otherwise, each an
	// object in sysfs that takes time to make under the RTNL. Without XDP on the
	// veth they have no use: it sends without queueing or lock.
	pair.NumTxQueues, pair.NumRxQueues, pair.PeerNumTxQueues, pair.PeerNumRxQueues = 1, 1, 1, 1
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerNamespace = v.IfName, v.MAC, netlink.NsFd(ns)
	if err := h.LinkAdd(pair); err != nil {
		return 0, err
	}
	return pair.Attrs().Index, nil
}

// mark sets in one message what a link cannot be created with: its alias, no
// link-local address of its own, no reverse-path filter, forwarding on.
func (l *Links) mark(index int, alias string) error {
	req := linkRequest(unix.RTM_SETLINK, index)
	if len(alias) > maxAlias {
		alias = alias[:maxAlias]
	}
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil)
	conf.AddRtAttr(devconfRPFilter, nl.Uint32Attr(0))
	conf.AddRtAttr(devconfForwarding, nl.Uint32Attr(1))
	if l.hasIPv6() {
		spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(inet6AddrGenMode, []byte{addrGenModeNone})
	}
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
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
