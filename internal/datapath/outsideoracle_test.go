// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/service/oracle"
	"github.com/weft-net/weft/internal/table"
)

// visitor asks the services of a shop from outside, packet by packet.
type visitor struct {
	*shop
	n     *node
	asked uint32 // clients so far
	tally map[string]int
}

// client returns an address that nobody had before: session affinity knows it by that.
func (v *visitor) client(v6 bool) netip.AddrPort {
	v.asked++
	i := v.asked
	a := netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)})
	if v6 {
		a = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
	}
	return netip.AddrPortFrom(a, uint16(1024+v.r.IntN(60000)))
}

// ask sends the first packet of a connection, and returns the backend that it got.
func (v *visitor) ask(from, to netip.AddrPort, proto uint8) netip.AddrPort {
	v.t.Helper()
	p := frame.NewUDP(from, to, []byte("x"))
	if proto == table.ProtoTCP {
		p = frame.NewTCP(from, to, frame.SYN, nil)
	}
	p.DstMAC, p.SrcMAC = hostMAC, peerMAC
	v.n.quiet(reason.FromNet, v.n.eth, p.Bytes())
	v.n.drain()
	rows, err := v.m.LBConns.List(0)
	must(v.t, err)
	_, err = v.m.LBConns.Flush()
	must(v.t, err)
	for _, r := range rows {
		if r.Client == from && r.Service == to {
			return r.Backend
		}
	}
	return netip.AddrPort{}
}

// destination returns one that some service has, mostly. Cluster IPs are not among them:
// they answer at sockets alone.
func (v *visitor) destination() netip.AddrPort {
	if len(v.world.Services) == 0 || v.r.IntN(8) == 0 {
		return netip.AddrPortFrom(address(v.r, v.r.IntN(2) == 0, externalNet, 4), uint16(80+v.r.IntN(3)))
	}
	svc := v.world.Services[v.r.IntN(len(v.world.Services))]
	p := svc.Ports[v.r.IntN(len(svc.Ports))]
	all := []netip.AddrPort{netip.AddrPortFrom(v.world.NodeAddrs[v.r.IntN(len(v.world.NodeAddrs))], uint16(max(30000, p.NodePort)))}
	for _, a := range svc.ExternalIPs {
		all = append(all, netip.AddrPortFrom(a, uint16(p.Port)))
	}
	for _, in := range svc.Ingress {
		all = append(all, netip.AddrPortFrom(in.Addr, uint16(p.Port)))
	}
	return all[v.r.IntN(len(all))]
}

// judge compares what a client gets with what the oracle says.
func (v *visitor) judge(to netip.AddrPort, proto uint8) {
	v.t.Helper()
	from := v.client(to.Addr().Is6())
	want := v.world.Ask(oracle.Outside, to, proto)
	one := v.world.Spread(from, to, proto)
	got := v.ask(from, to, proto)
	switch {
	case want.Service == "" || len(want.Backends) == 0:
		v.tally["nobody"]++
		if got.IsValid() {
			v.t.Fatalf("%s/%d (service %q) has no backends: %s was sent to %s", to, proto, want.Service, from, got)
		}
		return
	case one.IsValid():
		v.tally["table"]++
		if got != one {
			v.t.Fatalf("%s/%d (%s): %s was sent to %s, by the table it is %s; the kernel has:\n%s", to, proto, want.Service, from, got, one, v.rows(to))
		}
	default:
		v.tally["random"]++
		if !slices.Contains(want.Backends, got) {
			v.t.Fatalf("%s/%d (%s): %s was sent to %s, may be sent to %v; the kernel has:\n%s", to, proto, want.Service, from, got, want.Backends, v.rows(to))
		}
	}
	at := slices.IndexFunc(v.world.Services, func(s *table.Service) bool { return s.FullName() == want.Service })
	if v.world.Services[at].Affinity == 0 {
		return
	}
	v.tally["sticky"]++
	if again := v.ask(netip.AddrPortFrom(from.Addr(), from.Port()+1), to, proto); again != got {
		v.t.Fatalf("%s/%d (%s): %s was sent to %s, and then to %s", to, proto, want.Service, from, got, again)
	}
}

// Guards against a packet from outside that gets a backend which the contract of Services
// does not give it; and with Maglev, another one than the table of the paper says: then
// nodes would differ, and a client that is led from one to another would lose its connection.
func TestOutsideAgreesWithOracle(t *testing.T) {
	sizes := testSizes
	sizes.Services, sizes.Backends, sizes.Affinity, sizes.LBConns, sizes.LBConnNew, sizes.Maglev = 256, 1024, 4096, 256, 256, 512
	n := newNode(t, datapath.Options{Sizes: sizes, Outside: true})
	n.config(func(c *maps.Config) {
		c.Outside = maps.Outside{IPv4: true, IPv6: true}
		c.Masquerade = maps.Masquerade{PortMin: natMin, PortMax: natMax}
	})
	v := visitor{shop: newShop(t, n.d.Maps()), n: n, tally: map[string]int{}}
	v.world.NodeAddrs = slices.DeleteFunc(v.world.NodeAddrs, func(a netip.Addr) bool { return a.As16()[15] != 1 }) // it forwards for no other node
	for range 300 {
		v.change()
		for range 12 {
			v.judge(v.destination(), []uint8{table.ProtoTCP, table.ProtoUDP}[v.r.IntN(2)])
		}
	}
	t.Logf("%v", v.tally)
	for _, kind := range []string{"nobody", "table", "random", "sticky"} {
		if v.tally[kind] < 10 {
			t.Errorf("the worlds say little: %v", v.tally)
		}
	}
}
