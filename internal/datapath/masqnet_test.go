// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
)

// outside is a node with pods, a router, and a server that knows no way to pods.
type outside struct {
	*machine
	c              *cluster
	router, server *space
	at             host // the server
}

func newOutside(t *testing.T) *outside {
	t.Helper()
	needRoot(t)
	c := &cluster{t: t}
	o := &outside{machine: c.newMachine(1), c: c, router: newSpace(t, "rt"), server: newSpace(t, "sv"), at: world}
	c.nodes = [2]*machine{o.machine, o.machine}
	gw := newHost("10.9.0.254", "fd00:9::fe")
	srvGW := newHost("192.0.2.1", "2001:db8:9::1")
	ip(t, "link add ro-eth type veth peer name ro-n")
	ip(t, "link add rs-eth type veth peer name rs-s")
	ip(t, "link set ro-eth netns n1 name eth0")
	ip(t, "link set ro-n netns rt")
	ip(t, "link set rs-eth netns rt")
	ip(t, "link set rs-s netns sv name eth0")
	addr := func(dev string, h host) {
		up(t, dev)
		ip(t, fmt.Sprintf("addr add %s/24 dev %s", h.v4, dev))
		ip(t, fmt.Sprintf("addr add %s/64 dev %s nodad", h.v6, dev))
	}
	defaults := func(via host) {
		ip(t, "route add default via "+via.v4.String())
		ip(t, "route add default via "+via.v6.String())
	}
	o.router.in(t, func() {
		addr("ro-n", gw)
		addr("rs-eth", srvGW)
		sysctl(t, "ipv4/conf/all/forwarding", "1")
		sysctl(t, "ipv6/conf/all/forwarding", "1")
	})
	o.server.in(t, func() {
		addr("eth0", o.at)
		defaults(srvGW)
	})
	o.in(t, func() {
		addr("eth0", o.addr)
		defaults(gw)
		eth := link(t, "eth0").Attrs().Index
		if err := errors.Join(
			o.d.SyncDevices([]datapath.Device{{Name: "eth0", Index: eth}}),
			o.d.Maps().NAT.SetDevices([]maps.NATDevice{{Index: eth, IPv4: o.addr.v4, IPv6: o.addr.v6}}),
		); err != nil {
			t.Fatal(err)
		}
		// Half a flow in netfilter's eyes would show here.
		nft(t, "table inet strict {\nchain forward {\ntype filter hook forward priority 0;\nct state invalid counter drop\nct state new,established,related accept\n}\n}\n")
	})
	c.addPod(o.machine, 1)
	c.addPod(o.machine, 2)
	c.fillIPCache(o.machine, &machine{addr: newHost("10.9.0.2", "fd00:9::2")})
	o.masq(t, natMin, natMax)
	return o
}

func (o *outside) masq(t *testing.T, low, high uint16) {
	t.Helper()
	cfg := maps.DefaultConfig()
	cfg.NodeIPv4, cfg.NodeIPv6 = o.addr.v4, o.addr.v6
	cfg.Masquerade = maps.Masquerade{IPv4: true, IPv6: true, PortMin: low, PortMax: high}
	if err := o.d.SetConfig(cfg); err != nil {
		t.Fatal(err)
	}
}

// tellTCP serves: whoever connects is told his address as seen from here.
func tellTCP(t testing.TB, s *space, at netip.AddrPort) {
	t.Helper()
	var l net.Listener
	s.in(t, func() {
		var err error
		if l, err = net.Listen("tcp", at.String()); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "%-60s", c.RemoteAddr())
			_ = c.Close()
		}
	}()
}

// TestMasqueradedTraffic guards against connections that work in single packets
// only: real sockets, offloads, fragments, netfilter in between.
func TestMasqueradedTraffic(t *testing.T) {
	o := newOutside(t)
	src := o.pods[0].space
	for _, fam := range families {
		a := o.at.of(fam)
		echoTCP(t, o.server, ap(a, 80))
		echoUDP(t, o.server, ap(a, 53))
		tellTCP(t, o.server, ap(a, 81))
		c, err := dial(t, src, "tcp", ap(a, 81))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 60)
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
		var seen string
		_, _ = fmt.Sscan(string(buf), &seen)
		if got := netip.MustParseAddrPort(seen); got.Addr() != o.addr.of(fam) || got.Port() < natMin {
			t.Errorf("the server saw %s", got)
		}
		if err := roundTrip(t, src, "tcp", ap(a, 80), 4<<20); err != nil {
			t.Error(err)
		}
		for _, size := range []int{1, 1000, 1472, 4000, 9001} {
			if err := roundTrip(t, src, "udp", ap(a, 53), size); err != nil {
				t.Error(err)
			}
			if err := ping(t, src, a, size); err != nil {
				t.Error(err)
			}
		}
		// A narrow link behind the router: the pod must be told. The server keeps to it, for a
		// veth takes nothing in that is larger than its MTU, but does not say so (MSS).
		o.router.in(t, func() { ip(t, "link set rs-eth mtu 1300") })
		gw := map[int]string{4: "192.0.2.1", 6: "2001:db8:9::1"}[fam]
		o.server.in(t, func() { ip(t, "route change default via "+gw+" dev eth0 mtu 1300 advmss 1440") })
		if err := roundTrip(t, src, "tcp", ap(a, 80), 1<<20); err != nil {
			t.Errorf("over a narrow link: %v", err)
		}
		o.router.in(t, func() { ip(t, "link set rs-eth mtu 1500") })
		// A closed port is refused, not silent: TCP by RST, UDP by an ICMP error.
		if _, err := dial(t, src, "tcp", ap(a, 82)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("closed port: %v", err)
		}
		if err := roundTrip(t, src, "udp", ap(a, 82), 1); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("closed UDP port: %v", err)
		}
		// The host itself still talks, and does not lose what is its own.
		if err := roundTrip(t, o.space, "tcp", ap(a, 80), 1000); err != nil {
			t.Error(err)
		}
	}
	o.c.noDrops()
	o.in(t, func() { noInvalid(t) })
	if rows, err := o.d.Maps().NAT.List(0); err != nil || len(rows) < 20 {
		t.Errorf("%d translations, %v", len(rows), err)
	}
}

// bound dials from a port, also from one that others use to elsewhere.
func bound(t *testing.T, s *space, network string, port int, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var err error
	s.in(t, func() {
		d := net.Dialer{Timeout: patience, Control: func(_, _ string, rc syscall.RawConn) error {
			var opErr error
			if err := rc.Control(func(fd uintptr) { opErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); err != nil {
				return err
			}
			return opErr
		}}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{Port: port}
		} else {
			d.LocalAddr = &net.TCPAddr{Port: port}
		}
		c, err = d.Dial(network, to.String())
	})
	if err != nil {
		return nil, fmt.Errorf("%s from %s:%d: %w", network, s.name, port, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, c.SetDeadline(time.Now().Add(patience))
}

// TestHostAndPodSamePort is DATAPATH rule 8: pod and host with the same source
// port to the same server at the same time, whoever was first, with so few
// ports that each of them is contended.
func TestHostAndPodSamePort(t *testing.T) {
	o := newOutside(t)
	const low, n = 50000, 8
	o.masq(t, low, low+n-1)
	port := uint16(1000)
	for _, fam := range families {
		for _, network := range []string{"tcp", "udp"} {
			for _, podFirst := range []bool{true, false} {
				port++
				to := ap(o.at.of(fam), port)
				if network == "tcp" {
					echoTCP(t, o.server, to)
				} else {
					echoUDP(t, o.server, to)
				}
				var conns []net.Conn
				for i := range n / 2 {
					first, second := o.pods[0].space, o.space
					if !podFirst {
						first, second = second, first
					}
					for _, s := range []*space{first, second} {
						c, err := bound(t, s, network, low+2*i, to)
						if err != nil {
							t.Fatalf("pod first %t: %v", podFirst, err)
						}
						if err := exchange(c, 100); err != nil {
							t.Fatalf("pod first %t: %v", podFirst, err)
						}
						conns = append(conns, c)
					}
				}
				for _, c := range conns { // all of them at once still talk
					if err := exchange(c, 1000); err != nil {
						t.Errorf("pod first %t: %v", podFirst, err)
					}
					_ = c.Close()
				}
			}
		}
	}
	o.c.noDrops()
	o.in(t, func() { noInvalid(t) })
}

// noInvalid fails the test if netfilter of this namespace saw half a flow.
func noInvalid(t testing.TB) {
	t.Helper()
	out := nftList(t)
	if !strings.Contains(out, "counter packets 0") {
		t.Errorf("netfilter saw invalid packets:\n%s", out)
	}
}

// TestManyAtOnce guards against two flows of many that get one port.
func TestManyAtOnce(t *testing.T) {
	o := newOutside(t)
	to := ap(o.at.v4, 80)
	echoTCP(t, o.server, to)
	const flows = 300
	o.masq(t, 50000, 50511)
	conns := make([]net.Conn, 0, 2*flows)
	for range flows {
		for _, p := range o.pods {
			c, err := dial(t, p.space, "tcp", to)
			if err != nil {
				if m := o.metrics(t); m["to_net nat-exhausted"] > 0 {
					break // 32 attempts near the end may not find the last port
				}
				t.Fatal(err)
			}
			conns = append(conns, c)
			if len(conns) == 400 {
				break
			}
		}
		if len(conns) == 400 {
			break
		}
	}
	if len(conns) < 400 {
		t.Fatalf("only %d of 400 connections with 512 ports", len(conns))
	}
	var wg sync.WaitGroup
	errs := make(chan error, len(conns))
	for _, c := range conns {
		wg.Go(func() { errs <- exchange(c, 2000) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	seen := map[uint16]bool{}
	rows, err := o.d.Maps().NAT.List(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if seen[r.NodePort] {
			t.Errorf("port %d twice", r.NodePort)
		}
		seen[r.NodePort] = true
	}
}

// TestRestartKeepsTranslations guards against connections that break when the
// agent ends and a new one takes over.
func TestRestartKeepsTranslations(t *testing.T) {
	o := newOutside(t)
	to := ap(o.at.v4, 80)
	echoTCP(t, o.server, to)
	c, err := dial(t, o.pods[0].space, "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(c, 1000); err != nil {
		t.Fatal(err)
	}
	o.in(t, func() {
		if err := o.d.Close(); err != nil {
			t.Fatal(err)
		}
		o.d = open(t, datapath.Options{Root: o.root, IPv4: true, IPv6: true, Masquerade: true})
	})
	o.masq(t, natMin, natMax)
	if err := exchange(c, 1<<20); err != nil {
		t.Error(err)
	}
	if _, err := o.d.Maps().NAT.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := exchange(c, 1<<20); err != nil {
		t.Errorf("after a flush: %v", err)
	}
}

func nftList(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "table", "inet", "strict").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	return string(out)
}
