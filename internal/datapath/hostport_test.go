// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// hostPort has the first node serve a hostPort by a pod, and makes the other one have
// the same, by nobody.
func (e *edge) hostPort(at netip.AddrPort, proto uint8, pod netip.AddrPort) {
	f := e.frontend(at, proto, pod)
	f.Type = table.FrontendHostPort
	must(e.t, e.nodes[0].d.Maps().Services.Upsert(*f))
	f.Backends = nil
	must(e.t, e.nodes[1].d.Maps().Services.Upsert(*f))
}

// portmapRules do what the portmap plugin does for a hostPort, but lead astray; %s is
// its family, and somewhere of it.
const portmapRules = `table %[1]s portmap {
	chain prerouting {
		type nat hook prerouting priority -100;
		fib daddr type local meta l4proto { tcp, udp } th dport 18080-18084 counter dnat to %[2]s
	}
}
`

// askHostPorts asks a pod of the first node at the ports that it has there, from
// everywhere but the node itself, with rules beside it as those of the portmap plugin:
// they are chained to the same pods, and must see nothing of what is translated.
func (e *edge) askHostPorts(t *testing.T) {
	m := e.nodes[0]
	m.in(t, func() {
		nft(t, fmt.Sprintf(portmapRules, "ip", "192.0.2.66"))
		nft(t, fmt.Sprintf(portmapRules, "ip6", "2001:db8::66"))
	})
	for _, fam := range families {
		pod, node, elsewhere := m.pods[0], m.addr.of(fam), e.vip.of(fam)
		to := ap(pod.addr.of(fam), 80)
		echoTCP(t, pod.space, to)
		echoUDP(t, pod.space, to)
		tellTCP(t, pod.space, ap(pod.addr.of(fam), 81))
		for _, proto := range []uint8{table.ProtoTCP, table.ProtoUDP} {
			e.hostPort(ap(unspecified(fam), 18080), proto, to)
			e.hostPort(ap(node, 18082), proto, to)
			e.hostPort(ap(elsewhere, 18083), proto, to)
		}
		e.hostPort(ap(unspecified(fam), 18081), table.ProtoTCP, ap(pod.addr.of(fam), 81))
		for name, from := range map[string]*space{
			"outside": e.client, "the other node": e.nodes[1].space, "a pod of the other node": e.nodes[1].pods[0].space,
			"a pod of the node, past its socket": m.pods[1].space, "itself, past its socket": pod.space,
		} {
			t.Run(fmt.Sprintf("ipv%d from %s", fam, name), func(t *testing.T) {
				for _, port := range []uint16{18080, 18082} {
					for network, size := range map[string]int{"tcp": 1 << 20, "udp": 1000} {
						if err := roundTrip(t, from, network, ap(node, port), size); err != nil {
							t.Errorf("%s to port %d: %v", network, port, err)
						}
					}
				}
			})
		}
		if got := seenBy(t, e.client, ap(node, 18081)); got.Addr() != e.at.of(fam) {
			t.Errorf("ipv%d: the pod sees %s, and %s asks", fam, got, e.at.of(fam))
		}
		if _, err := dialFor(t, e.client, ap(elsewhere, 18083), 300*time.Millisecond); err == nil {
			t.Errorf("ipv%d: a hostPort answers at %s, which is not the node's", fam, elsewhere)
		}
	}
	m.in(t, func() {
		out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		must(t, err)
		if strings.Count(string(out), "counter packets 0 bytes 0 dnat") != 2 {
			t.Errorf("rules of the portmap plugin saw connections that Weft serves:\n%s", out)
		}
	})
	if n := m.metrics(t)["from_net svc-new"]; n == 0 {
		t.Error("no connection was given a backend")
	}
}

// Guards against NodePorts, and hostPorts without a hostIP, at addresses of the node that
// nodePort.addresses leaves out, and against hostPorts that name one and do not answer.
func TestNodePortAddresses(t *testing.T) {
	e := newEdge(t)
	m := e.nodes[0]
	for _, fam := range families {
		pod, open, closed := m.pods[0], m.addr.of(fam), e.vip.of(fam)
		m.in(t, func() { ip(t, fmt.Sprintf("addr add %s dev eth0 nodad", netip.PrefixFrom(closed, closed.BitLen()))) })
		row := maps.IPCacheRow{Prefix: netip.PrefixFrom(closed, closed.BitLen()), Identity: table.IdentityHost, Kind: table.KindHost}
		to := ap(pod.addr.of(fam), 80)
		echoTCP(t, pod.space, to)
		e.frontend(ap(unspecified(fam), edgePorts), table.ProtoTCP, to)
		e.hostPort(ap(unspecified(fam), 8080), table.ProtoTCP, to)
		e.hostPort(ap(closed, 8081), table.ProtoTCP, to)
		for _, row.NoNodePort = range []bool{false, true} {
			must(t, m.d.Maps().IPCache.Upsert(row))
			for _, port := range []uint16{edgePorts, 8080, 8081} {
				if err := roundTrip(t, e.client, "tcp", ap(open, port), 1000); err != nil && port != 8081 {
					t.Errorf("%s: %v", ap(open, port), err)
				}
				c, err := dialFor(t, e.client, ap(closed, port), patience)
				if err == nil {
					_ = c.Close()
				}
				if want := port == 8081 || !row.NoNodePort; (err == nil) != want {
					t.Errorf("%s, left out %v: %v", ap(closed, port), row.NoNodePort, err)
				}
			}
		}
	}
	e.noDrops("icmp-redirect")
}

// Guards against hostPorts that sockets of the node or of its pods do not reach, against
// a pod's loopback that is taken for the node's, against those of this node that
// answer for another one, and against ports that a pod keeps the node from.
func TestSocketsHostPort(t *testing.T) {
	n := newSocketNode(t)
	type places struct{ own, shut, other, elsewhere, loopback, any netip.Addr }
	parse := netip.MustParseAddr
	at := map[bool]places{
		false: {parse("192.0.2.1"), parse("192.0.2.4"), parse("192.0.2.2"), parse("192.0.2.3"), parse("127.0.0.1"), netip.IPv4Unspecified()},
		true:  {parse("2001:db8::1"), parse("2001:db8::4"), parse("2001:db8::2"), parse("2001:db8::3"), parse("::1"), netip.IPv6Unspecified()},
	}
	for _, p := range at {
		for a, row := range map[netip.Addr]maps.IPCacheRow{
			p.own: {Kind: table.KindHost}, p.shut: {Kind: table.KindHost, NoNodePort: true}, p.other: {Kind: table.KindNode},
		} {
			row.Prefix, row.Identity = netip.PrefixFrom(a, a.BitLen()), 2
			must(t, n.Maps().IPCache.Upsert(row))
		}
	}
	eachClient(t, n, func(t *testing.T, c client, host bool) {
		p := at[c.is6()]
		c.patience = 200 * time.Millisecond // for what is not to come
		for port, a := range map[uint16]netip.Addr{8080: p.any, 8081: p.own, 8082: p.loopback, 8083: p.elsewhere, 8084: p.shut} {
			f := clusterIP(c, 1)
			f.Key.Addr, f.Type, f.ServiceID = netip.AddrPortFrom(a, port), table.FrontendHostPort, uint32(port)
			upsert(t, n, f)
		}
		for to, want := range map[netip.AddrPort]bool{
			ap(p.own, 8080): true, ap(p.shut, 8080): false, ap(p.other, 8080): false, ap(p.elsewhere, 8080): false, ap(p.loopback, 8080): host,
			ap(p.own, 8081): true, ap(p.loopback, 8081): false,
			ap(p.own, 8082): false, ap(p.loopback, 8082): host,
			ap(p.elsewhere, 8083): false, ap(p.shut, 8084): true,
		} {
			if r, err := c.once(to); (err == nil) != want {
				t.Errorf("%s: %v %v, want an answer: %v", to, r.from, err, want)
			}
		}
		s, err := c.open()
		must(t, err)
		defer s.close()
		if err := unix.Bind(s.fd, s.sockaddr(ap(p.loopback, 8080))); err != nil {
			t.Errorf("a pod's hostPort keeps the node from its port: %v", err)
		}
	})
}

// Guards against nodePort.bindProtection=false that still keeps the node from ports.
func TestSocketsBindNodePorts(t *testing.T) {
	n := newSocketNode(t, func(o *datapath.Options) { o.SocketLB.BindNodePorts = true })
	eachClient(t, n, func(t *testing.T, c client, _ bool) {
		f := clusterIP(c, 1)
		f.Key.Addr, f.Type = ap(unspecified(map[bool]int{false: 4, true: 6}[c.is6()]), 30080), table.FrontendNodePort
		upsert(t, n, f)
		s, err := c.open()
		must(t, err)
		defer s.close()
		if err := unix.Bind(s.fd, s.sockaddr(f.Key.Addr)); err != nil {
			t.Error(err)
		}
	})
}
