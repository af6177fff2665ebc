// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sendDF sends datagrams of size bytes that must not be fragmented until the
// kernel of the pod has learned a smaller path MTU, which it returns.
func sendDF(t *testing.T, s *space, to netip.AddrPort, size int) (int, error) {
	t.Helper()
	c, err := dial(t, s, "udp", to)
	if err != nil {
		return 0, err
	}
	level, discover, do, mtu := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU
	if to.Addr().Is6() {
		level, discover, do, mtu = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU
	}
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var opErr error
	if err := raw.Control(func(fd uintptr) { opErr = unix.SetsockoptInt(int(fd), level, discover, do) }); err != nil || opErr != nil {
		return 0, errors.Join(err, opErr)
	}
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		_, err := c.Write(make([]byte, size))
		if errors.Is(err, syscall.EMSGSIZE) {
			got := 0
			if err := raw.Control(func(fd uintptr) { got, opErr = unix.GetsockoptInt(int(fd), level, mtu) }); err != nil || opErr != nil {
				return 0, errors.Join(err, opErr)
			}
			return got, nil
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("no smaller MTU learned within %s", patience)
}

// eventually sends a datagram until it comes back: each side may lose one while
// it learns the path's MTU.
func eventually(t *testing.T, s *space, to netip.AddrPort, size int) error {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); {
		c, derr := dial(t, s, "udp", to)
		if derr != nil {
			return derr
		}
		if err = exchangeIn(time.Second, c, size); err == nil {
			return nil
		}
	}
	return err
}

// TestPathMTU guards against black holes where a link is narrower than the
// pods: who may not fragment is told, everybody else gets through. Redirects
// bypass the stack's own checks.
func TestPathMTU(t *testing.T) {
	c := newCluster(t)
	n1, n2 := c.nodes[0], c.nodes[1]
	for _, m := range c.nodes {
		m.in(t, func() { ip(t, "link set eth0 mtu 1400") })
	}
	// A local pod with a narrower device, as if made under another MTU.
	narrow := n1.pods[1]
	n1.in(t, func() { ip(t, "link set "+narrow.dev+" mtu 1300") })
	narrow.in(t, func() { ip(t, "link set eth0 mtu 1300") })
	narrow.row.MTU = 1300
	if err := n1.d.Maps().Endpoints.Upsert(narrow.row); err != nil {
		t.Fatal(err)
	}
	for _, fam := range families {
		for _, tc := range []struct {
			name string
			dst  *pod
			mtu  int
		}{{"other node", n2.pods[0], 1400}, {"same node", narrow, 1300}} {
			t.Run(fmt.Sprintf("ipv%d/%s", fam, tc.name), func(t *testing.T) {
				src, to := n1.pods[0].space, ap(tc.dst.addr.of(fam), 8080)
				echoTCP(t, tc.dst.space, to)
				echoUDP(t, tc.dst.space, to)
				before := n1.metrics(t)["from_pod icmp-sent"]
				header := map[int]int{4: 20, 6: 40}[fam]
				mtu, err := sendDF(t, src, to, tc.mtu-header-8+1)
				if err != nil {
					t.Fatal(err)
				}
				if mtu != tc.mtu {
					t.Errorf("pod learned MTU %d, want %d", mtu, tc.mtu)
				}
				if n1.metrics(t)["from_pod icmp-sent"] == before {
					t.Error("the sender was not told by from_pod")
				}
				if err := roundTrip(t, src, "tcp", to, 300000); err != nil {
					t.Error(err)
				}
				if err := eventually(t, src, to, 10000); err != nil {
					t.Errorf("fragmented: %v", err)
				}
			})
		}
	}
	c.noDrops("too-big", "fragment-unknown") // of datagrams whose first fragment was too big
}

// TestStackFragments guards against IPv4 packets without DF getting lost where a
// link is too narrow for them: the stack cuts them up, and the connection then
// stays with the stack both ways.
func TestStackFragments(t *testing.T) {
	c := newCluster(t)
	n1, n2 := c.nodes[0], c.nodes[1]
	for _, m := range c.nodes {
		m.in(t, func() { ip(t, "link set eth0 mtu 1400") })
	}
	src, to := n1.pods[0], ap(n2.pods[0].addr.v4, 8080)
	for _, p := range []*pod{src, n2.pods[0]} {
		p.in(t, func() { sysctl(t, "ipv4/ip_no_pmtu_disc", "1") }) // no DF on new sockets
	}
	echoUDP(t, n2.pods[0].space, to)
	for range 3 {
		if err := roundTrip(t, src.space, "udp", to, 1472); err != nil {
			t.Error(err)
		}
	}
	if n1.metrics(t)["to_net ct-to-stack"] == 0 {
		t.Error("no packet went through the stack: the test did not test anything")
	}
	c.noDrops()
}

// TestPathMTUWithoutOffload guards against errors that the sender throws away,
// because the device of the node that answers does not compute checksums, and
// against a firewall that drops what netfilter calls invalid swallowing the packet
// before it is answered.
func TestPathMTUWithoutOffload(t *testing.T) {
	c := newCluster(t)
	n1, n2 := c.nodes[0], c.nodes[1]
	narrow := n1.pods[0]
	n1.in(t, func() {
		nft(t, invalidDrop)
		ip(t, "link set "+narrow.dev+" mtu 1300")
		if out, err := exec.Command("ethtool", "-K", "eth0", "tx", "off").CombinedOutput(); err != nil {
			t.Fatalf("ethtool: %v: %s", err, out)
		}
	})
	// The pod's own end stays at 1500, and so does the size of segments it asks for. It sends
	// no larger ones than its host's end takes in, which drops them at times and unheard.
	narrow.in(t, func() {
		for _, def := range []string{"-4", "-6"} {
			out, err := exec.Command("ip", def, "route", "show", "default").Output()
			if err != nil {
				t.Fatal(err)
			}
			ip(t, fmt.Sprintf("%s route change %s mtu 1300 advmss 1440", def, strings.TrimSpace(string(out))))
		}
	})
	narrow.row.MTU = 1300
	if err := n1.d.Maps().Endpoints.Upsert(narrow.row); err != nil {
		t.Fatal(err)
	}
	for _, fam := range families {
		to := ap(narrow.addr.of(fam), 8080)
		echoTCP(t, narrow.space, to)
		header := map[int]int{4: 20, 6: 40}[fam]
		mtu, err := sendDF(t, n2.pods[0].space, to, 1300-header-8+1)
		if err != nil {
			t.Errorf("ipv%d: %v", fam, err)
		} else if mtu != 1300 {
			t.Errorf("ipv%d: the sender learned MTU %d, want 1300", fam, mtu)
		}
		// In mid-connection, from a pod that has not learned it yet.
		con, err := dial(t, n2.pods[1].space, "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{100, 100000} {
			if err := exchange(con, size); err != nil {
				t.Errorf("ipv%d: %v", fam, err)
			}
		}
	}
	if m := n1.metrics(t); m["to_pod ct-to-stack"] != 0 || m["from_net peer"] == 0 {
		t.Errorf("a connection left the fast path: %v", m)
	}
	c.noDrops()
}
