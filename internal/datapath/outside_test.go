// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// edge is a cluster of two nodes that share their wire with a host which is none of
// them: who asks services from outside.
type edge struct {
	*cluster
	client *space
	at     host // the client
	vip    host // of a load balancer: the network leads it to the first node
	nextID uint32
}

const edgePorts = 30080 // the first NodePort

func newEdge(t *testing.T) *edge {
	t.Helper()
	needRoot(t)
	e := &edge{
		cluster: &cluster{t: t}, client: newSpace(t, "cl"), at: newHost("10.9.0.100", "fd00:9::100"),
		vip: newHost("203.0.113.10", "2001:db8:113::10"), nextID: 1,
	}
	wire := newSpace(t, "sw")
	wire.in(t, func() { ip(t, "link add br0 type bridge"); up(t, "br0") })
	plug := func(name, dev string) {
		ip(t, fmt.Sprintf("link add %s-e type veth peer name %s-b", name, name))
		ip(t, fmt.Sprintf("link set %s-e netns %s name %s", name, name, dev))
		ip(t, fmt.Sprintf("link set %s-b netns sw", name))
		wire.in(t, func() {
			ip(t, fmt.Sprintf("link set %s-b master br0", name))
			up(t, name+"-b")
		})
	}
	for i := range e.nodes {
		e.nodes[i] = e.newMachine(i + 1)
		plug(e.nodes[i].name, "eth0")
	}
	plug("cl", "eth0")
	for i, m := range e.nodes {
		e.wireNode(m, e.nodes[1-i])
	}
	e.client.in(t, func() {
		up(t, "eth0")
		ip(t, fmt.Sprintf("addr add %s/24 dev eth0", e.at.v4))
		ip(t, fmt.Sprintf("addr add %s/64 dev eth0 nodad", e.at.v6))
		for _, fam := range families {
			ip(t, fmt.Sprintf("route add %s via %s", e.vip.of(fam), e.nodes[0].addr.of(fam)))
		}
	})
	return e
}

func (e *edge) wireNode(m, other *machine) {
	t := e.t
	m.in(t, func() {
		up(t, "eth0")
		ip(t, "addr add "+m.addr.v4.String()+"/24 dev eth0")
		ip(t, "addr add "+m.addr.v6.String()+"/64 dev eth0 nodad")
		for f, p := range other.nets {
			ip(t, fmt.Sprintf("route add %s via %s", p, other.addr.of(families[f])))
		}
		eth := link(t, "eth0").Attrs().Index
		must(t, m.d.SyncDevices([]datapath.Device{{Name: "eth0", Index: eth}}))
		must(t, m.d.Maps().NAT.SetDevices([]maps.NATDevice{{Index: eth, IPv4: m.addr.v4, IPv6: m.addr.v6}}))
		// Half a connection in netfilter's eyes would show here.
		nft(t, "table inet strict {\nchain forward {\ntype filter hook forward priority 0;\nct state invalid counter drop\n}\n}\n")
	})
	for n := range 2 {
		e.addPod(m, n+1)
	}
	e.fillIPCache(m, other)
	cfg := maps.DefaultConfig()
	cfg.NodeIPv4, cfg.NodeIPv6 = m.addr.v4, m.addr.v6
	cfg.Masquerade = maps.Masquerade{PortMin: natMin, PortMax: natMax}
	cfg.Outside = maps.Outside{IPv4: true, IPv6: true}
	must(t, m.d.SetConfig(cfg))
}

// frontend has the first node serve an address by backends; one without an address
// is a NodePort.
func (e *edge) frontend(at netip.AddrPort, proto uint8, backends ...netip.AddrPort) *table.Frontend {
	e.t.Helper()
	f := &table.Frontend{
		Key: table.FrontendKey{Addr: at, Proto: proto}, Namespace: "a", Service: "b", Type: table.FrontendLoadBalancer,
		ServiceID: uint32(at.Port()), Flags: table.FrontendBoth,
	}
	if at.Addr().IsUnspecified() {
		f.Type = table.FrontendNodePort
	}
	for _, b := range backends {
		f.Backends = append(f.Backends, table.BackendRef{ID: e.nextID, Addr: b, Proto: proto})
		e.nextID++
	}
	must(e.t, e.nodes[0].d.Maps().Services.Upsert(*f))
	return f
}

// Guards against services that do not answer from outside, answer by another address
// than they were asked at, hide the client from backends of the node that was asked,
// or send the client's own address where the answer would go past that node; and
// against hostPorts that do not answer, or at addresses that are not the node's.
func TestServicesFromOutside(t *testing.T) {
	e := newEdge(t)
	e.askEverything(t)
	e.askHostPorts(t)
	e.noDrops("icmp-redirect")
	if e.nodes[0].metrics(t)["to_net icmp-redirect"] == 0 {
		t.Error("the client was told the way to backends that it does not know")
	}
	e.nodes[0].in(t, func() {
		if out := nftList(t); !strings.Contains(out, "packets 0 ") {
			t.Errorf("netfilter saw parts of connections alone:\n%s", out)
		}
	})
}

// Guards against the same where the other node's pods are reached by the overlay: the
// network between knows nothing of pods, and packets of the client's size do not fit.
func TestServicesFromOutsideByOverlay(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		e := newOverlayEdge(t, c)
		e.askEverything(t)
		e.askHostPorts(t) // pods of the other node come by the overlay, too
		e.noDrops()
	})
}

// newOverlayEdge puts the client behind the router of an overlay's nodes.
func newOverlayEdge(t *testing.T, c *overlayCluster) *edge {
	t.Helper()
	e := &edge{
		cluster: c.cluster, client: newSpace(t, "cl"), at: newHost("192.0.2.9", "2001:db8:9::9"),
		vip: newHost("203.0.113.10", "2001:db8:113::10"), nextID: 1,
	}
	m := c.nodes[0]
	c.router.in(t, func() {
		ip(t, "link add to-cl type veth peer name eth0 netns cl")
		up(t, "to-cl")
		ip(t, "addr add 192.0.2.1/24 dev to-cl")
		ip(t, "addr add 2001:db8:9::1/64 dev to-cl nodad")
		for _, fam := range families {
			ip(t, fmt.Sprintf("route add %s via %s dev r1 onlink", e.vip.of(fam), m.addr.of(fam)))
		}
	})
	e.client.in(t, func() {
		up(t, "eth0")
		ip(t, fmt.Sprintf("addr add %s/24 dev eth0", e.at.v4))
		ip(t, fmt.Sprintf("addr add %s/64 dev eth0 nodad", e.at.v6))
		ip(t, "route add default via 192.0.2.1")
		ip(t, "route add default via 2001:db8:9::1")
	})
	var devices []maps.NATDevice
	m.in(t, func() {
		for _, dev := range []string{"eth0", "weft_vxlan"} {
			devices = append(devices, maps.NATDevice{Index: link(t, dev).Attrs().Index, IPv4: m.addr.v4, IPv6: m.addr.v6})
		}
	})
	must(t, m.d.Maps().NAT.SetDevices(devices))
	cfg, err := m.d.Maps().Config.Get()
	must(t, err)
	cfg.Masquerade = maps.Masquerade{PortMin: natMin, PortMax: natMax}
	cfg.Outside = maps.Outside{IPv4: true, IPv6: true}
	must(t, m.d.SetConfig(cfg))
	return e
}

// answerer is somebody who answers for services of the first node.
type answerer struct {
	name string
	at   *space
	addr netip.Addr
	sees netip.Addr // who asks
}

func (e *edge) answerers(fam int) []answerer {
	a, b := e.nodes[0], e.nodes[1]
	return []answerer{
		{"pod of this node", a.pods[0].space, a.pods[0].addr.of(fam), e.at.of(fam)},
		{"pod of another node", b.pods[0].space, b.pods[0].addr.of(fam), a.addr.of(fam)},
		{"process of this node", a.space, a.addr.of(fam), e.at.of(fam)},
		{"process of another node", b.space, b.addr.of(fam), a.addr.of(fam)},
	}
}

// askEverything has the client talk to every kind of backend by every kind of address.
func (e *edge) askEverything(t *testing.T) {
	port := uint16(edgePorts)
	for _, fam := range families {
		for _, back := range e.answerers(fam) {
			echoTCP(t, back.at, ap(back.addr, 8080))
			echoUDP(t, back.at, ap(back.addr, 8080))
			tellTCP(t, back.at, ap(back.addr, 8081))
			for name, addrs := range map[string][2]netip.Addr{
				"NodePort":                {unspecified(fam), e.nodes[0].addr.of(fam)},
				"load balancer's address": {e.vip.of(fam), e.vip.of(fam)},
			} {
				port++
				t.Run(fmt.Sprintf("ipv%d %s, %s", fam, name, back.name), func(t *testing.T) {
					for _, proto := range []uint8{table.ProtoTCP, table.ProtoUDP} {
						e.frontend(ap(addrs[0], port), proto, ap(back.addr, 8080))
					}
					e.frontend(ap(addrs[0], port+1000), table.ProtoTCP, ap(back.addr, 8081))
					askAll(t, e.client, ap(addrs[1], port))
					if got := seenBy(t, e.client, ap(addrs[1], port+1000)); got.Addr() != back.sees {
						t.Errorf("the backend sees %s, want %s", got, back.sees)
					}
				})
			}
		}
	}
}

// askAll talks to a service by TCP and by datagrams, larger ones among them.
func askAll(t *testing.T, from *space, at netip.AddrPort) {
	t.Helper()
	if err := roundTrip(t, from, "tcp", at, 4<<20); err != nil {
		t.Error(err)
	}
	for _, size := range []int{100, 4000} { // the latter in fragments
		err := roundTrip(t, from, "udp", at, size)
		if errors.Is(err, syscall.EMSGSIZE) { // so the client learns of the path's MTU
			err = roundTrip(t, from, "udp", at, size)
		}
		if err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func unspecified(fam int) netip.Addr {
	if fam == 4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// seenBy asks a server who it is that asks.
func seenBy(t *testing.T, s *space, at netip.AddrPort) (seen netip.AddrPort) {
	t.Helper()
	c, err := dial(t, s, "tcp", at)
	if err != nil {
		t.Error(err)
		return seen
	}
	defer c.Close()
	seen, err = readSeen(c)
	if err != nil {
		t.Error(err)
	}
	return seen
}

// readSeen reads what a server of tellTCP says.
func readSeen(c net.Conn) (netip.AddrPort, error) {
	buf := make([]byte, 60)
	n, err := c.Read(buf)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(strings.TrimSpace(string(buf[:n])))
}
