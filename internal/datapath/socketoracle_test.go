// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	svcmodel "github.com/weft-net/weft/internal/service"
	"github.com/weft-net/weft/internal/service/maglev"
	"github.com/weft-net/weft/internal/service/oracle"
	"github.com/weft-net/weft/internal/table"
)

// shop is random Services, the model that makes rows of them, and the kernel that
// has the rows.
type shop struct {
	t     *testing.T
	r     *rand.Rand
	m     *maps.Set
	model *svcmodel.Model
	world oracle.World
	made  int
}

// address returns where things of both families may be.
func address(r *rand.Rand, v6 bool, net, of int) netip.Addr {
	i := byte(r.IntN(of) + 1)
	if v6 {
		return netip.AddrFrom16([16]byte{0xfd, byte(net), 15: i})
	}
	return netip.AddrFrom4([4]byte{10, byte(net), 0, i})
}

const (
	clusterNet, externalNet, podNet, nodeNet = 96, 97, 98, 99 // the second byte of addresses
	shopPods                                 = 20
)

// shopTable is what Maglev tables are like in a shop.
var shopTable = maglev.Table{Size: 509, Seed: maglev.Seed{7, 3}}

func newShop(t *testing.T, m *maps.Set) *shop {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := &shop{t: t, m: m, r: rand.New(rand.NewPCG(seed, 1))}
	s.model = svcmodel.New(svcmodel.Config{
		Node: "n1", IPv4: true, IPv6: true, MaxFrontends: 256, MaxBackends: 1000,
		Maglev: svcmodel.Maglev{Default: true, Annotations: true, MaxTables: 256, Slots: shopTable.Size},
	})
	m.Services.SetMaglev(shopTable)
	s.world = oracle.World{Node: "n1", IPv4: true, IPv6: true, Algorithm: table.AlgorithmMaglev, Annotations: true, Maglev: shopTable}
	for _, v6 := range []bool{false, true} {
		for i, kind := range []table.HostKind{table.KindHost, table.KindNode} {
			a := netip.AddrFrom4([4]byte{10, nodeNet, 0, byte(i + 1)})
			if v6 {
				a = netip.AddrFrom16([16]byte{0xfd, nodeNet, 15: byte(i + 1)})
			}
			s.world.NodeAddrs = append(s.world.NodeAddrs, a)
			if kind == table.KindNode {
				s.world.OtherNodes = append(s.world.OtherNodes, a)
			}
			must(t, m.IPCache.Upsert(maps.IPCacheRow{Prefix: netip.PrefixFrom(a, a.BitLen()), Identity: 2, Kind: kind}))
		}
	}
	return s
}

// newSocketShop is a shop in whose services sockets are sent to backends.
func newSocketShop(t *testing.T) *shop {
	n := newSocketNode(t, func(o *datapath.Options) { o.Outside, o.Sizes.Maglev = true, 512 }) // tables are there, and not for sockets
	s := newShop(t, n.Maps())
	for _, to := range []string{"10.0.0.0/8", "fd00::/8"} { // nobody has to be there to connect by UDP
		_, dst, err := net.ParseCIDR(to)
		if err != nil {
			t.Fatal(err)
		}
		route := &netlink.Route{LinkIndex: 1, Dst: dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
		if err := netlink.RouteReplace(route); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.RouteDel(route) })
	}
	return s
}

// newService makes up a Service with a name of a few.
func (s *shop) newService() *table.Service {
	r := s.r
	s.made++
	svc := &table.Service{
		Namespace: "default", Name: fmt.Sprintf("s%d", r.IntN(8)), Created: time.Unix(int64(s.made), 0),
		Type:          []string{table.ServiceClusterIP, table.ServiceNodePort, table.ServiceLoadBalancer}[r.IntN(3)],
		InternalLocal: r.IntN(4) == 0, ExternalLocal: r.IntN(3) == 0,
	}
	if r.IntN(3) == 0 {
		svc.Affinity = time.Hour
	}
	if r.IntN(4) == 0 {
		svc.Algorithm = table.AlgorithmRandom
	}
	for _, v6 := range []bool{false, true} {
		if r.IntN(4) > 0 {
			svc.ClusterIPs = append(svc.ClusterIPs, address(r, v6, clusterNet, 10))
		}
		if r.IntN(3) == 0 {
			svc.ExternalIPs = append(svc.ExternalIPs, address(r, v6, externalNet, 4))
		}
		if r.IntN(3) == 0 {
			svc.Ingress = append(svc.Ingress, table.ServiceIngress{Addr: address(r, v6, externalNet, 4), Proxy: r.IntN(3) == 0})
		}
	}
	for i := range 1 + r.IntN(2) {
		p := table.ServicePortSpec{Name: fmt.Sprintf("p%d", i), Proto: []uint8{table.ProtoUDP, table.ProtoTCP}[r.IntN(2)], Port: int32(80 + i)}
		if svc.Type != table.ServiceClusterIP && r.IntN(4) > 0 {
			p.NodePort = int32(30000 + r.IntN(4))
		}
		svc.Ports = append(svc.Ports, p)
	}
	return svc
}

func (s *shop) newSlice() *table.EndpointSlice {
	r := s.r
	v6 := r.IntN(2) == 0
	sl := &table.EndpointSlice{Namespace: "default", Name: fmt.Sprintf("e%d", r.IntN(12)), Service: fmt.Sprintf("s%d", r.IntN(8)), V6: v6}
	for i := range 2 {
		for _, proto := range []uint8{table.ProtoUDP, table.ProtoTCP} {
			sl.Ports = append(sl.Ports, table.SlicePort{Name: fmt.Sprintf("p%d", i), Proto: proto, Port: int32(8080 + i)})
		}
	}
	for range r.IntN(shopPods) {
		e := table.SliceEndpoint{Addr: address(r, v6, podNet, shopPods)}
		e.Node = []string{"n1", "n2"}[e.Addr.As16()[15]%2] // whichever slice says so
		switch r.IntN(4) {
		case 0:
			e.Serving, e.Terminating = true, true
		case 1: // neither
		default:
			e.Ready, e.Serving = true, true
		}
		if !slices.ContainsFunc(sl.Endpoints, func(o table.SliceEndpoint) bool { return o.Addr == e.Addr }) {
			sl.Endpoints = append(sl.Endpoints, e)
		}
	}
	return sl
}

// change tells model and oracle of something new, and the kernel of what follows.
func (s *shop) change() {
	w := &s.world
	switch s.r.IntN(5) {
	case 0, 1:
		svc := s.newService()
		w.Services = slices.DeleteFunc(w.Services, func(o *table.Service) bool { return o.Name == svc.Name })
		w.Services = append(w.Services, svc)
		s.model.SetService(svc, time.Time{})
	case 2:
		if len(w.Services) > 4 {
			gone := w.Services[s.r.IntN(len(w.Services))]
			w.Services = slices.DeleteFunc(w.Services, func(o *table.Service) bool { return o == gone })
			s.model.DeleteService(gone.Namespace, gone.Name, time.Time{})
		}
	default:
		sl := s.newSlice()
		w.Slices = slices.DeleteFunc(w.Slices, func(o *table.EndpointSlice) bool { return o.Name == sl.Name })
		w.Slices = append(w.Slices, sl)
		slices.SortFunc(w.Slices, func(a, b *table.EndpointSlice) int { return strings.Compare(a.Name, b.Name) }) // as the model has them
		s.model.SetSlice(sl, time.Time{})
	}
	for again := true; again; again = s.model.Pending() {
		for _, c := range s.model.Commit() {
			var err error
			if c.Deleted {
				err = s.m.Services.Delete(c.Row.Key)
			} else {
				err = s.m.Services.Upsert(*c.Row)
			}
			if err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// somewhere returns a destination, often a service's.
func (s *shop) somewhere(v6 bool) netip.AddrPort {
	switch s.r.IntN(8) {
	case 0, 1:
		return netip.AddrPortFrom(address(s.r, v6, nodeNet, 3), uint16(30000+s.r.IntN(5))) // the third is no node's
	case 2, 3:
		return netip.AddrPortFrom(address(s.r, v6, externalNet, 4), uint16(80+s.r.IntN(3)))
	}
	for _, svc := range s.world.Services[s.r.IntN(len(s.world.Services)+1):] {
		for _, a := range svc.ClusterIPs {
			if a.Is6() == v6 {
				return netip.AddrPortFrom(a, uint16(80+s.r.IntN(2)))
			}
		}
	}
	return netip.AddrPortFrom(address(s.r, v6, clusterNet, 10), uint16(80+s.r.IntN(3)))
}

// sentTo returns the backend that a socket was sent to, none if it was not.
func (s *shop) sentTo(fd int, v6 bool) netip.AddrPort {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		s.t.Fatal(err)
	}
	m := s.m.Raw("weft_sk")
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	binary.NativeEndian.PutUint64(key, cookie)
	for i := range byte(shopPods) {
		for port := range uint16(2) {
			a := netip.AddrFrom4([4]byte{10, podNet, 0, i + 1})
			if v6 {
				a = netip.AddrFrom16([16]byte{0xfd, podNet, 15: i + 1})
			}
			raw := a.As16()
			copy(key[8:], raw[:])
			binary.BigEndian.PutUint16(key[24:], 8080+port)
			err := m.Lookup(key, value)
			if err == nil {
				return netip.AddrPortFrom(a, 8080+port)
			}
			if !errors.Is(err, ebpf.ErrKeyNotExist) {
				s.t.Fatal(err)
			}
		}
	}
	return netip.AddrPort{}
}

// rows tells what the kernel has for a destination.
func (s *shop) rows(to netip.AddrPort) string {
	var out strings.Builder
	fs, err := s.m.Services.List()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range fs {
		if f.Key.Addr.Port() == to.Port() && (f.Key.Addr.Addr() == to.Addr() || f.Key.Addr.Addr().IsUnspecified()) {
			fmt.Fprintf(&out, "%s: flags %d, affinity %s, %v\n", f.Key, f.Flags, f.Affinity, f.Backends)
		}
	}
	return out.String()
}

// judge connects and compares with what the oracle says.
func (s *shop) judge(c client, to netip.AddrPort) (services, refused int) {
	sock, err := c.open()
	if err != nil {
		s.t.Fatal(err)
	}
	defer sock.close()
	if c.proto == unix.IPPROTO_TCP { // nobody listens: only where it is sent counts
		if err := unix.SetNonblock(sock.fd, true); err != nil {
			s.t.Fatal(err)
		}
	}
	want := s.world.Ask(oracle.Host, to, uint8(c.proto))
	err = unix.Connect(sock.fd, sock.sockaddr(to))
	got := s.sentTo(sock.fd, c.is6())
	switch {
	case want.Service == "":
		if got.IsValid() {
			s.t.Fatalf("%s %s is no service, and was sent to %s", c.name, to, got)
		}
	case len(want.Backends) == 0:
		if !errors.Is(err, unix.ECONNREFUSED) || got.IsValid() {
			s.t.Fatalf("%s %s (%s) has no backends: %v, sent to %s", c.name, to, want.Service, err, got)
		}
		return 1, 1
	case !slices.Contains(want.Backends, got):
		s.t.Fatalf("%s %s (%s) was sent to %v (%v), may be sent to %v; the kernel has:\n%s", c.name, to, want.Service, got, err, want.Backends, s.rows(to))
	default:
		return 1, 0
	}
	return 0, 0
}

// Guards against a socket that is sent where the contract of Services does not send
// it: random Services of all types, policies and states, random changes, and an
// oracle that knows no rows.
func TestSocketsAgreeWithOracle(t *testing.T) {
	s := newSocketShop(t)
	var cs []client
	for _, c := range clients() {
		if c.connected {
			cs = append(cs, c)
		}
	}
	services, refused, asked := 0, 0, 0
	for range 400 {
		s.change()
		for range 12 {
			c := cs[s.r.IntN(len(cs))]
			n, r := s.judge(c, s.somewhere(c.is6()))
			services, refused, asked = services+n, refused+r, asked+1
		}
	}
	t.Logf("%d of %d destinations were services, %d of them without backends", services, asked, refused)
	if services < asked/10 || refused == 0 || refused == services {
		t.Errorf("the worlds say little: %d of %d destinations were services, %d without backends", services, asked, refused)
	}
}
