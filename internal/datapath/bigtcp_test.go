// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/kerneltest"
	dplink "github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/maps"
)

// bigSize is what the agent gives devices that allow it.
const bigSize = 196608

// needBigTCP skips the test on a kernel whose devices have no bound for IPv4.
func needBigTCP(t testing.TB) {
	t.Helper()
	needRoot(t)
	var err error
	if link(t, "lo").Attrs().GSOIPv4MaxSize == 0 {
		err = errors.New("the loopback device has no such bound")
	}
	kerneltest.Need(t, "BIG TCP of IPv4", "6.3", err)
}

// bigTCP bounds the super-packets of a device, of both families, as the agent does.
func bigTCP(t testing.TB, s *space, dev string, size int) {
	t.Helper()
	s.in(t, func() {
		l, err := dplink.New("/proc/sys/net", nil)
		if err == nil {
			err = l.SetSizes(link(t, dev).Attrs().Index, dplink.BigTCP{IPv4: size, IPv6: size}.Sizes())
		}
		if err != nil {
			t.Fatalf("%s: %s: %v", s.name, dev, err)
		}
	})
}

// bigPods switches BIG TCP on for both ends of all pods.
func bigPods(t testing.TB, m *machine, size int) {
	t.Helper()
	bigOn(t, m)
	for _, p := range m.pods {
		bigTCP(t, m.space, p.dev, size)
		bigTCP(t, p.space, "eth0", size)
	}
}

// bigOn tells the programs of BIG TCP, as the agent does.
func bigOn(t testing.TB, m *machine) {
	t.Helper()
	cfg, err := m.d.Maps().Config.Get()
	if err == nil {
		cfg.BigTCP6 = true
		err = m.d.SetConfig(cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// largest watches how long the IP packets get that a device of s takes in, while
// they are whole. The returned function ends it and tells the longest, in bytes.
func largest(t testing.TB, s *space, dev string) func() int {
	t.Helper()
	var fd int
	s.in(t, func() {
		var err error
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link(t, dev).Attrs().Index}); err != nil {
			t.Fatal(err)
		}
	})
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	most := make(chan int, 1)
	go func() { // ends when the returned function is called
		longest, buf := 0, make([]byte, 1)
		for !stop.Load() {
			n, from, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
			if a, ok := from.(*unix.SockaddrLinklayer); err == nil && ok && a.Pkttype != unix.PACKET_OUTGOING {
				longest = max(longest, n)
			}
		}
		most <- longest
	}()
	return func() int {
		stop.Store(true)
		defer unix.Close(fd)
		return <-most
	}
}

// stream sends size bytes over a TCP connection that from opens to an address of
// to, or with down gets as many from there, and compares what arrives.
func stream(t testing.TB, from, to *space, at netip.AddrPort, size int, down bool) error {
	t.Helper()
	var l net.Listener
	to.in(t, func() {
		var err error
		if l, err = net.Listen("tcp", at.String()); err != nil {
			t.Fatal(err)
		}
	})
	defer l.Close()
	block := make([]byte, 1<<20+4099) // not a multiple of pages: what is shifted shows
	_, _ = rand.NewChaCha8([32]byte{1}).Read(block)
	first, second := swallow, pour
	if down {
		first, second = pour, swallow
	}
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = first(c.(*net.TCPConn), block, size)
		}
		served <- err
	}()
	c, err := dial(t, from, "tcp", at)
	if err == nil {
		err = second(c.(*net.TCPConn), block, size)
	}
	if err != nil {
		return fmt.Errorf("%s to %s: %w", from.name, at, err)
	}
	return <-served
}

// pour writes size bytes of repeated blocks and waits for the other side's end.
func pour(c *net.TCPConn, block []byte, size int) error {
	err := c.SetDeadline(time.Now().Add(6 * patience))
	for left := size; left > 0 && err == nil; left -= len(block) {
		_, err = c.Write(block[:min(left, len(block))])
	}
	if err = errors.Join(err, c.CloseWrite()); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes back: %w", n, err)
	}
	return c.Close()
}

// swallow wants size bytes of repeated blocks and no more.
func swallow(c *net.TCPConn, block []byte, size int) error {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(6 * patience)); err != nil {
		return err
	}
	in := make([]byte, len(block))
	for left := size; left > 0; left -= len(block) {
		n := min(left, len(block))
		if _, err := io.ReadFull(c, in[:n]); err != nil {
			return fmt.Errorf("%d bytes from the end: %w", left, err)
		}
		if !bytes.Equal(in[:n], block[:n]) {
			return fmt.Errorf("%d bytes from the end: arrived changed", left)
		}
	}
	if n, err := c.Read(in); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes more than were sent: %w", n, err)
	}
	return nil
}

// streamed is large enough for the window to open and for hundreds of super-packets.
const streamed = 128 << 20

// meanOf is how long the packets were that a hook counted, in bytes, since before.
func (m *machine) meanOf(t testing.TB, hook, reason string, before maps.MetricRow) (int, maps.MetricRow) {
	t.Helper()
	rows, err := m.d.Maps().Metrics.List()
	if err != nil {
		t.Fatal(err)
	}
	var now maps.MetricRow
	for _, r := range rows {
		if r.Hook == hook && r.Reason == reason {
			now = r
		}
	}
	if now.Packets == before.Packets {
		return 0, now
	}
	return int((now.Bytes - before.Bytes) / (now.Packets - before.Packets)), now
}

// TestBigTCP guards against super-packets of more than 64 KiB getting lost, cut up
// or spoiled between pods of two nodes: their IPv4 header has no length, and their
// IPv6 header one more behind it.
func TestBigTCP(t *testing.T) {
	needBigTCP(t)
	c := newCluster(t)
	a, b := c.nodes[0], c.nodes[1]
	for _, m := range c.nodes {
		bigTCP(t, m.space, "eth0", bigSize)
		bigPods(t, m, bigSize)
	}
	for _, fam := range families {
		_, before := a.meanOf(t, "from_pod", "neigh", maps.MetricRow{})
		_, inBefore := b.meanOf(t, "from_net", "peer", maps.MetricRow{})
		stop := largest(t, b.space, "eth0")
		if err := stream(t, a.pods[0].space, b.pods[0].space, ap(b.pods[0].addr.of(fam), 9000), streamed, false); err != nil {
			t.Errorf("ipv%d: %v", fam, err)
		}
		out, _ := a.meanOf(t, "from_pod", "neigh", before)
		in, _ := b.meanOf(t, "from_net", "peer", inBefore)
		if most := stop(); most <= dplink.LegacySize || most > bigSize || out <= dplink.LegacySize || in <= dplink.LegacySize {
			t.Errorf("ipv%d: on the wire up to %d bytes, out %d and in %d in the mean", fam, most, out, in)
		}
		// Host and pod, by the stack, both ways.
		for _, way := range []struct {
			from, to *space
			at       host
		}{{a.space, b.pods[0].space, b.pods[0].addr}, {b.pods[0].space, a.space, a.addr}, {a.space, a.pods[0].space, a.pods[0].addr}, {a.pods[0].space, a.space, a.addr}} {
			if err := stream(t, way.from, way.to, ap(way.at.of(fam), 9001), streamed/4, false); err != nil {
				t.Errorf("ipv%d: %v", fam, err)
			}
		}
	}
	c.noDrops("too-big") // IPv6 of pods to hosts, until they leave room for the jumbo header
}

// TestBigTCPMasqueraded guards against super-packets that leave with the node's
// address and a wrong checksum, or come back so.
func TestBigTCPMasqueraded(t *testing.T) {
	needBigTCP(t)
	o := newOutside(t)
	for _, dev := range []struct {
		s    *space
		name string
	}{{o.space, "eth0"}, {o.router, "ro-n"}, {o.router, "rs-eth"}, {o.server, "eth0"}} {
		bigTCP(t, dev.s, dev.name, bigSize)
	}
	bigPods(t, o.machine, bigSize)
	for _, fam := range families {
		for _, down := range []bool{false, true} {
			watched, dev := o.router, "ro-n"
			if down {
				watched, dev = o.space, "eth0"
			}
			stop := largest(t, watched, dev)
			if err := stream(t, o.pods[0].space, o.server, ap(o.at.of(fam), 9000), streamed, down); err != nil {
				t.Errorf("ipv%d: %v", fam, err)
			}
			if most := stop(); most <= dplink.LegacySize {
				t.Errorf("ipv%d, down %t: up to %d bytes", fam, down, most)
			}
		}
	}
	o.c.noDrops("too-big")
	o.in(t, func() { noInvalid(t) })
}

// TestBigTCPNarrower guards against super-packets getting lost where the next
// device takes smaller ones: the kernel cuts them up.
func TestBigTCPNarrower(t *testing.T) {
	needBigTCP(t)
	c := newCluster(t)
	a, b := c.nodes[0], c.nodes[1]
	bigPods(t, a, bigSize)
	for _, dev := range []string{"eth0", a.pods[1].dev} {
		bigTCP(t, a.space, dev, dplink.LegacySize)
	}
	bigTCP(t, a.pods[1].space, "eth0", dplink.LegacySize)
	for _, fam := range families {
		_, before := a.meanOf(t, "from_pod", "neigh", maps.MetricRow{})
		stop := largest(t, b.space, "eth0")
		if err := stream(t, a.pods[0].space, b.pods[0].space, ap(b.pods[0].addr.of(fam), 9000), streamed/4, false); err != nil {
			t.Errorf("ipv%d, the node's device: %v", fam, err)
		}
		if out, _ := a.meanOf(t, "from_pod", "neigh", before); out <= dplink.LegacySize {
			t.Errorf("ipv%d: the pod sent %d bytes in the mean: the test does not test anything", fam, out)
		}
		if most := stop(); most > dplink.LegacySize {
			t.Errorf("ipv%d: the wire carried %d bytes at once", fam, most)
		}
		if err := stream(t, a.pods[0].space, a.pods[1].space, ap(a.pods[1].addr.of(fam), 9000), streamed/4, false); err != nil {
			t.Errorf("ipv%d, another pod: %v", fam, err)
		}
		if err := stream(t, b.space, a.pods[1].space, ap(a.pods[1].addr.of(fam), 9001), streamed/4, false); err != nil {
			t.Errorf("ipv%d, from another host: %v", fam, err)
		}
	}
	c.noDrops()
}

// TestBigTCPTooBig guards against a connection that hangs when its path gets
// narrower, because the error quotes a header without a length and the sender
// cannot tell whose it is.
func TestBigTCPTooBig(t *testing.T) {
	needBigTCP(t)
	c := newCluster(t)
	a, b := c.nodes[0], c.nodes[1]
	for _, m := range c.nodes {
		bigTCP(t, m.space, "eth0", bigSize)
		bigPods(t, m, bigSize)
	}
	wire := func(mtu int) {
		for _, m := range c.nodes {
			m.in(t, func() { ip(t, fmt.Sprintf("link set eth0 mtu %d", mtu)) })
			if err := m.d.Maps().Ways.Changed(); err != nil { // as the agent, once the kernel says so
				t.Fatal(err)
			}
		}
	}
	for _, s := range []*space{a.pods[0].space, b.pods[0].space} {
		// What a sender that begins small again sends first would be refused, and
		// tell it of the MTU, before it sends a super-packet.
		s.in(t, func() { sysctl(t, "ipv4/tcp_slow_start_after_idle", "0") })
	}
	for _, fam := range families {
		wire(1500)
		to := ap(b.pods[0].addr.of(fam), 9000)
		echoTCP(t, b.pods[0].space, to)
		con, err := dial(t, a.pods[0].space, "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(con, 16<<20); err != nil {
			t.Fatal(err)
		}
		// How long the first packet is that meets the narrower wire is up to the
		// sender: the wire gets narrower until it was a super-packet.
		refused := 0
		for mtu := 1450; refused <= dplink.LegacySize && mtu >= 1300; mtu -= 50 {
			_, before := a.meanOf(t, "from_pod", "too-big", maps.MetricRow{})
			wire(mtu)
			if err := exchange(con, 16<<20); err != nil {
				t.Fatalf("ipv%d, MTU %d: %v", fam, mtu, err)
			}
			var now maps.MetricRow
			refused, now = a.meanOf(t, "from_pod", "too-big", before)
			t.Logf("ipv%d, MTU %d: %d packets of %d bytes were refused", fam, mtu, now.Packets-before.Packets, refused)
		}
		if refused <= dplink.LegacySize {
			t.Errorf("ipv%d: no super-packet was refused: the test does not test anything", fam)
		}
	}
	c.noDrops("too-big")
}

// TestBigTCPOverlay guards against connections that stall where pods' super-packets
// are larger than the tunnel takes, as those that were connected before the mode
// changed, and against a tunnel that takes them getting them cut up.
func TestBigTCPOverlay(t *testing.T) {
	needBigTCP(t)
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		a, b := c.nodes[0], c.nodes[1]
		tunnel := c.tunnelTakes(a) > dplink.LegacySize
		for i, m := range c.nodes {
			bigPods(t, m, bigSize)
			bigTCP(t, m.space, "eth0", bigSize)
			bigTCP(t, c.router, fmt.Sprintf("r%d", i+1), bigSize)
			if tunnel {
				bigTCP(t, m.space, "weft_vxlan", bigSize)
			}
		}
		for _, fam := range families {
			stop := largest(t, b.space, "weft_vxlan")
			if err := stream(t, a.pods[0].space, b.pods[0].space, ap(b.pods[0].addr.of(fam), 9000), streamed/4, false); err != nil {
				t.Errorf("ipv%d: %v", fam, err)
			}
			most := stop()
			t.Logf("ipv%d over ipv%d: the tunnel takes large ones: %t; up to %d bytes", fam, c.underlay, tunnel, most)
			if (most > dplink.LegacySize) != tunnel {
				t.Errorf("ipv%d: the tunnel carried up to %d bytes", fam, most)
			}
		}
		c.noDrops()
	})
}

// tunnelTakes asks the kernel what its VXLAN takes, in bytes.
func (c *overlayCluster) tunnelTakes(m *machine) int {
	c.t.Helper()
	most := 0
	m.in(c.t, func() { most = int(link(c.t, "weft_vxlan").Attrs().TSOMaxSize) })
	return most
}
