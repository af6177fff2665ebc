// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// inIPVS is where virtual services are.
const inIPVS = "IPVS"

// ipvsProc lists virtual services; it is there once the kernel has loaded IPVS.
const ipvsProc = "/proc/thread-self/net/ip_vs"

// virtualService is one that IPVS balances.
type virtualService struct {
	proto string // TCP, UDP, SCTP
	at    netip.AddrPort
}

func (v virtualService) String() string { return v.proto + " " + v.at.String() }

// virtualServices returns those of IPVS that are kube-proxy's: at an address of its
// device, or at a port that its sets hold as a node port. Others may balance with
// IPVS too, keepalived for one.
func virtualServices(context.Context) ([]Object, error) {
	f, err := os.Open(ipvsProc)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("virtual services of IPVS: %w", err)
	}
	defer f.Close()
	all, err := parseIPVS(f)
	if err != nil {
		return nil, fmt.Errorf("virtual services of IPVS: %w", err)
	}
	own, err := ipvsOwner()
	if err != nil {
		return nil, fmt.Errorf("virtual services of IPVS: %w", err)
	}
	var out []Object
	for _, v := range all {
		if own.has(v) {
			out = append(out, Object{KindService, inIPVS, v.String()})
		}
	}
	return out, nil
}

// owner knows a virtual service of kube-proxy.
type owner struct {
	addrs map[netip.Addr]bool
	ports map[string]map[uint16]bool // by protocol
}

func (o owner) has(v virtualService) bool {
	return o.addrs[v.at.Addr()] || o.ports[v.proto][v.at.Port()]
}

func ipvsOwner() (owner, error) {
	o := owner{addrs: map[netip.Addr]bool{}, ports: map[string]map[uint16]bool{}}
	l, err := netlink.LinkByName(device)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); err != nil && !none {
		return o, fmt.Errorf("device %s: %w", device, err)
	} else if !none {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return o, fmt.Errorf("device %s: addresses: %w", device, err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				o.addrs[ip.Unmap()] = true
			}
		}
	}
	for proto, name := range nodePortSets() {
		ports := map[uint16]bool{}
		for _, family := range []string{"", "6-"} {
			r, err := netlink.IpsetList(setName(family, name))
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return o, fmt.Errorf("set %s: %w", setName(family, name), err)
			}
			for _, e := range r.Entries {
				if e.Port != nil {
					ports[*e.Port] = true
				}
			}
		}
		o.ports[proto] = ports
	}
	return o, nil
}

// parseIPVS reads the kernel's list (net/netfilter/ipvs/ip_vs_ctl.c,
// ip_vs_info_seq_show). Services by firewall mark are left out: kube-proxy makes
// none.
func parseIPVS(r io.Reader) ([]virtualService, error) {
	var out []virtualService
	for sc := bufio.NewScanner(r); ; {
		if !sc.Scan() {
			return out, sc.Err()
		}
		f := strings.Fields(sc.Text())
		if len(f) < 2 || protoNumber(f[0]) == 0 {
			continue
		}
		i := strings.LastIndexByte(f[1], ':')
		if i < 0 {
			return nil, fmt.Errorf("%q is no address and port", f[1])
		}
		port, err := strconv.ParseUint(f[1][i+1:], 16, 16)
		if err != nil {
			return nil, fmt.Errorf("%q: port: %w", f[1], err)
		}
		addr, err := ipvsAddr(f[1][:i])
		if err != nil {
			return nil, fmt.Errorf("%q: %w", f[1], err)
		}
		out = append(out, virtualService{f[0], netip.AddrPortFrom(addr, uint16(port))})
	}
}

// ipvsAddr reads 0A600001 or [fd00:...].
func ipvsAddr(s string) (netip.Addr, error) {
	if v6, ok := strings.CutPrefix(s, "["); ok {
		return netip.ParseAddr(strings.TrimSuffix(v6, "]"))
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return netip.Addr{}, err
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok || !a.Is4() {
		return a, errors.New("no IPv4 address")
	}
	return a, nil
}

func protoNumber(name string) uint16 {
	return map[string]uint16{"TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP, "SCTP": unix.IPPROTO_SCTP}[name]
}

// From linux/ip_vs.h.
const (
	ipvsFamily     = "IPVS"
	ipvsVersion    = 1
	ipvsDelService = 3
	ipvsService    = 1 // attribute that holds the following
	ipvsAF         = 1
	ipvsProtocol   = 2
	ipvsAddress    = 3
	ipvsPort       = 4
)

func removeVirtualService(_ context.Context, o Object) error {
	proto, at, ok := strings.Cut(o.Name, " ")
	ap, err := netip.ParseAddrPort(at)
	if !ok || err != nil {
		return fmt.Errorf("no protocol, address and port: %w", err)
	}
	family, err := netlink.GenlFamilyGet(ipvsFamily)
	if err != nil {
		return fmt.Errorf("netlink family %s: %w", ipvsFamily, err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: ipvsDelService, Version: ipvsVersion})
	req.AddData(virtualService{proto, ap}.attr())
	if _, err = req.Execute(unix.NETLINK_GENERIC, 0); errors.Is(err, unix.ESRCH) {
		return nil // somebody was quicker
	}
	return err
}

// attr names the service to the kernel.
func (v virtualService) attr() *nl.RtAttr {
	af := uint16(unix.AF_INET6)
	if v.at.Addr().Is4() {
		af = unix.AF_INET
	}
	addr := make([]byte, 16) // of both families
	copy(addr, v.at.Addr().AsSlice())
	a := nl.NewRtAttr(ipvsService, nil)
	a.AddRtAttr(ipvsAF, nl.Uint16Attr(af))
	a.AddRtAttr(ipvsProtocol, nl.Uint16Attr(protoNumber(v.proto)))
	a.AddRtAttr(ipvsAddress, addr)
	a.AddRtAttr(ipvsPort, binary.BigEndian.AppendUint16(nil, v.at.Port()))
	return a
}
