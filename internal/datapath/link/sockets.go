// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// UDPSocket is a connected UDP socket.
type UDPSocket struct {
	Cookie uint64 // as SO_COOKIE and BPF programs have it
	Remote netip.AddrPort
}

// ErrNoDestroy is wrapped where the kernel cannot end sockets of others.
var ErrNoDestroy = errors.New("the kernel has no CONFIG_INET_DIAG_DESTROY")

// DestroyUDP ends the connected UDP sockets of a network namespace that match asks
// for: their owners get ECONNABORTED from what they do next, and may connect anew. An
// empty path is the node's own namespace.
func (l *Links) DestroyUDP(path string, match func(UDPSocket) bool) (int, error) {
	n, err := destroyUDP(path, match)
	if err != nil {
		return n, fmt.Errorf("end UDP sockets: %w", err)
	}
	return n, nil
}

func destroyUDP(path string, match func(UDPSocket) bool) (int, error) {
	ns := netns.None()
	if path != "" {
		var err error
		if ns, err = openNetns(path); err != nil {
			return 0, err
		}
		defer ns.Close()
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	n := 0
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		all, err := h.SocketDiagUDP(family)
		if err != nil {
			return n, fmt.Errorf("list: %w", err)
		}
		for _, s := range all {
			u, ok := connected(s)
			if !ok || !match(u) {
				continue
			}
			done, err := destroy(ns, s)
			if err != nil {
				return n, fmt.Errorf("to %s: %w", u.Remote, err)
			}
			n += done
		}
	}
	return n, nil
}

// connected tells whether a socket has a peer, and who it is.
func connected(s *netlink.Socket) (UDPSocket, bool) {
	a, ok := netip.AddrFromSlice(s.ID.Destination)
	if !ok || s.ID.DestinationPort == 0 {
		return UDPSocket{}, false
	}
	return UDPSocket{
		Cookie: uint64(s.ID.Cookie[0]) | uint64(s.ID.Cookie[1])<<32,
		Remote: netip.AddrPortFrom(a.Unmap(), s.ID.DestinationPort),
	}, true
}

// destroyRequest is struct inet_diag_req_v2 of linux/inet_diag.h.
type destroyRequest struct{ socket *netlink.Socket }

// Len implements nl.NetlinkRequestData.
func (destroyRequest) Len() int { return 56 }

// Serialize implements nl.NetlinkRequestData.
func (r destroyRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.socket.Family, unix.IPPROTO_UDP
	binary.NativeEndian.PutUint32(b[4:], 1<<r.socket.State)
	id := r.socket.ID
	binary.BigEndian.PutUint16(b[8:], id.SourcePort)
	binary.BigEndian.PutUint16(b[10:], id.DestinationPort)
	copy(b[12:28], addrBytes(r.socket.Family, id.Source))
	copy(b[28:44], addrBytes(r.socket.Family, id.Destination))
	binary.NativeEndian.PutUint32(b[44:], id.Interface)
	binary.NativeEndian.PutUint32(b[48:], id.Cookie[0])
	binary.NativeEndian.PutUint32(b[52:], id.Cookie[1])
	return b
}

func addrBytes(family uint8, ip net.IP) []byte {
	if v4 := ip.To4(); v4 != nil && family == unix.AF_INET {
		return v4
	}
	return ip.To16()
}

// sockDestroy is SOCK_DESTROY of linux/sock_diag.h.
const sockDestroy = 21

// destroy ends a socket; one that went meanwhile, or whose numbers are another
// one's by now, is no error.
func destroy(ns netns.NsHandle, s *netlink.Socket) (int, error) {
	c, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: c}}
	req.AddData(destroyRequest{s})
	_, err = req.Execute(unix.NETLINK_INET_DIAG, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return 0, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, ErrNoDestroy
	case err != nil:
		return 0, err
	}
	return 1, nil
}
