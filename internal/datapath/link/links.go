// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// AliasPrefix begins the alias of every link that Weft made.
	AliasPrefix = "weft:"
	// Protocol is the route protocol number of Weft's routes.
	Protocol = 87
	// HostPrefix begins the name of the host's end of every veth pair.
	HostPrefix = "lxc"
	// retiredGroup is the interface group of links that wait for deletion.
	// Links of one group go in one kernel operation: 30 links cost as much as
	// one, some 20 ms, spent waiting for a grace period with the RTNL held.
	retiredGroup = 0x5EF70DE1
)

// Gateways of pods. Nobody holds these addresses; pods have permanent
// neighbour entries for them.
var (
	gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	gateway6 = netip.MustParseAddr("fe80::1")
)

// Gateway returns the next hop of a pod's default route for the family of a.
func Gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return gateway4
	}
	return gateway6
}

// procRoots are where /proc/sys/net may be, the host's own mount first: in a
// container /proc/sys is read-only.
var procRoots = []string{"/host/proc/sys/net", "/proc/sys/net"}

// Links works on the links of the network namespace that the process is in.
type Links struct {
	proc string
	ipv6 bool // the kernel speaks it
	log  *slog.Logger
}

// New returns Links that write sysctls below proc; empty means
// /host/proc/sys/net if it exists and /proc/sys/net otherwise.
func New(proc string, log *slog.Logger) (*Links, error) {
	if log == nil {
		log = slog.Default()
	}
	if proc != "" {
		return newLinks(proc, log), nil
	}
	for _, p := range procRoots {
		if fi, err := os.Stat(p + "/ipv4"); err == nil && fi.IsDir() {
			return newLinks(p, log), nil
		}
	}
	return nil, fmt.Errorf("none of %s is there: mount the host's /proc/sys/net at %s", strings.Join(procRoots, ", "), procRoots[0])
}

func newLinks(proc string, log *slog.Logger) *Links {
	_, err := os.Stat(proc + "/ipv6/conf")
	return &Links{proc: proc, ipv6: err == nil, log: log}
}

// Link is one of Weft's links.
type Link struct {
	Name    string
	Index   int
	Alias   string
	MAC     string
	MTU     int
	Retired bool // waits for Delete
}

// List returns the links of this namespace whose alias says that they are
// Weft's.
func (l *Links) List() ([]Link, error) {
	all, err := listLinks()
	if err != nil {
		return nil, err
	}
	var ours []Link
	for _, k := range all {
		a := k.Attrs()
		if !strings.HasPrefix(a.Alias, AliasPrefix) {
			continue
		}
		ours = append(ours, Link{
			Name: a.Name, Index: a.Index, Alias: a.Alias, MAC: a.HardwareAddr.String(), MTU: a.MTU,
			Retired: a.Group == retiredGroup,
		})
	}
	return ours, nil
}

// listLinks dumps all links. A dump that the kernel calls inconsistent, because
// links changed meanwhile, is taken anew a few times.
func listLinks() ([]netlink.Link, error) {
	var all []netlink.Link
	err := retryDump(func() (err error) {
		all, err = netlink.LinkList()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return all, nil
}

func retryDump(dump func() error) error {
	var err error
	for range 5 {
		if err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return err
}

// isGone reports errors that mean that a link is not there.
func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

// hostNet returns a as a network of one address.
func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}
