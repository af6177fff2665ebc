// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// client is how a test's client talks: with what socket, and by which calls.
type client struct {
	name      string
	proto     int // unix.IPPROTO_*
	v6socket  bool
	connected bool
	mapped    bool // an IPv6 socket that talks IPv4
	patience  time.Duration
}

func clients() []client {
	const patience = 5 * time.Second
	var out []client
	for _, fam := range []struct {
		name         string
		v6, isMapped bool
	}{{"ipv4", false, false}, {"ipv6", true, false}, {"mapped", true, true}} {
		out = append(out,
			client{fam.name + "/tcp", unix.IPPROTO_TCP, fam.v6, true, fam.isMapped, patience},
			client{fam.name + "/udp connected", unix.IPPROTO_UDP, fam.v6, true, fam.isMapped, patience},
			client{fam.name + "/udp unconnected", unix.IPPROTO_UDP, fam.v6, false, fam.isMapped, patience},
		)
	}
	return out
}

// family is that of the packets.
func (c client) is6() bool { return c.v6socket && !c.mapped }

// sock is one socket of a client, in the namespace where it was made.
type sock struct {
	client
	fd int
}

func (c client) open() (*sock, error) {
	domain, kind := unix.AF_INET, unix.SOCK_STREAM
	if c.v6socket {
		domain = unix.AF_INET6
	}
	if c.proto == unix.IPPROTO_UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, c.proto)
	if err != nil {
		return nil, err
	}
	wait := unix.NsecToTimeval(int64(c.patience))
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &wait); err != nil {
			return nil, errors.Join(err, unix.Close(fd))
		}
	}
	return &sock{c, fd}, nil
}

func (s *sock) close() { _ = unix.Close(s.fd) }

func (s *sock) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if s.v6socket {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// reply is what a client learned.
type reply struct {
	from string         // the server that answered says its own address
	peer netip.AddrPort // who it is, say getpeername or recvmsg
}

// ask sends a request and waits for the answer. A connected socket connects once.
func (s *sock) ask(to netip.AddrPort) (reply, error) {
	if !s.connected {
		if err := unix.Sendto(s.fd, []byte("who"), 0, s.sockaddr(to)); err != nil {
			return reply{}, fmt.Errorf("sendto: %w", err)
		}
	} else {
		if _, err := unix.Getpeername(s.fd); err != nil {
			if err := unix.Connect(s.fd, s.sockaddr(to)); err != nil {
				return reply{}, fmt.Errorf("connect: %w", err)
			}
		}
		if _, err := unix.Write(s.fd, []byte("who")); err != nil {
			return reply{}, fmt.Errorf("write: %w", err)
		}
	}
	buf := make([]byte, 128)
	n, from, err := unix.Recvfrom(s.fd, buf, 0)
	if err != nil {
		return reply{}, fmt.Errorf("recvfrom: %w", err)
	}
	r := reply{from: string(buf[:n]), peer: addrPort(from)}
	if s.connected {
		peer, err := unix.Getpeername(s.fd)
		if err != nil {
			return reply{}, fmt.Errorf("getpeername: %w", err)
		}
		if s.proto == unix.IPPROTO_UDP && addrPort(peer) != r.peer {
			return reply{}, fmt.Errorf("recvfrom says that %s answered, getpeername that it is %s", r.peer, addrPort(peer))
		}
		r.peer = addrPort(peer)
	}
	return r, nil
}

// once asks with a socket of its own.
func (c client) once(to netip.AddrPort) (reply, error) {
	s, err := c.open()
	if err != nil {
		return reply{}, err
	}
	defer s.close()
	return s.ask(to)
}

// allow is a program of somebody else's that lets everything pass.
func allow() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}
}
