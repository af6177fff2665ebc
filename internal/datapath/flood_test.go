// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// rawSocket sends frames out of a device of a namespace, past all that hooks its egress.
func rawSocket(t *testing.T, s *space, device string) int {
	t.Helper()
	fd := -1
	s.in(t, func() {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link(t, device).Attrs().Index}); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// push sends a frame, again for as long as the other end takes no more.
func push(fd int, frame []byte) error {
	end := time.Now().Add(patience)
	for {
		_, err := unix.Write(fd, frame)
		if !errors.Is(err, unix.ENOBUFS) || time.Now().After(end) {
			return err
		}
		runtime.Gosched()
	}
}

// pushSYNs has clients that do not exist open connections, by frames from one space to
// another on the same wire.
func pushSYNs(t *testing.T, from, by *space, fam int, to netip.AddrPort, syns int) {
	t.Helper()
	fd := rawSocket(t, from, "eth0")
	var mine, theirs net.HardwareAddr
	from.in(t, func() { mine = link(t, "eth0").Attrs().HardwareAddr })
	by.in(t, func() { theirs = link(t, "eth0").Attrs().HardwareAddr })
	for i := range syns {
		p := frame.NewTCP(ap(spoofed(fam, i), uint16(1024+i%50000)), to, frame.SYN, nil)
		copy(p.SrcMAC[:], mine)
		copy(p.DstMAC[:], theirs)
		if err := push(fd, p.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
}

// spoofed is the i-th address of somebody who does not exist (RFC 2544; RFC 5180).
func spoofed(fam, i int) netip.Addr {
	if fam == 4 {
		return netip.AddrFrom4([4]byte{198, 18 + byte(i>>16&1), byte(i >> 8), byte(i)})
	}
	a := [16]byte{0x20, 0x01, 0x00, 0x02}
	binary.BigEndian.PutUint32(a[12:], uint32(i))
	return netip.AddrFrom16(a)
}

// TestMillionSYNs guards against a flood at one pod that ends what others have
// (DATAPATH rule 7): a thousand connections, idle all the while, go on, over the
// path that they had, and a new one is opened. WEFT_FLOOD_SYNS=1000000 makes the
// flood as long as the rule says; the tables are full long before.
func TestFloodKeepsIdleSockets(t *testing.T) {
	syns := 100_000
	if s := os.Getenv("WEFT_FLOOD_SYNS"); s != "" {
		var err error
		if syns, err = strconv.Atoi(s); err != nil {
			t.Fatalf("WEFT_FLOOD_SYNS: %v", err)
		}
	}
	for _, fam := range families {
		t.Run(fmt.Sprintf("ipv%d", fam), func(t *testing.T) { floodOnePod(t, fam, syns) })
	}
}

func floodOnePod(t *testing.T, fam, syns int) {
	const idle = 1000
	c := newCluster(t)
	n1, n2 := c.nodes[0], c.nodes[1]
	victim, src := n1.pods[0], n2.pods[0]
	to := ap(victim.addr.of(fam), 8080)
	echoTCP(t, victim.space, to)
	n2.in(t, func() { // the victim's answers end here
		ip(t, "route add blackhole 198.18.0.0/15")
		ip(t, "-6 route add blackhole 2001:2::/48")
	})
	conns := make([]net.Conn, idle)
	for i := range conns {
		var err error
		if conns[i], err = dial(t, src.space, "tcp", to); err != nil {
			t.Fatal(err)
		}
		if err := exchange(conns[i], 10); err != nil {
			t.Fatal(err)
		}
	}
	before, begin := n1.metrics(t), time.Now()
	pushSYNs(t, n2.space, n1.space, fam, to, syns)
	took := time.Since(begin)
	made := n1.metrics(t)
	t.Logf("%d SYNs in %s", syns, took)
	if got := made["from_net stack"] - before["from_net stack"]; got < uint64(syns)*9/10 {
		t.Fatalf("only %d of %d SYNs came in", got, syns)
	}
	young, err := n1.d.Maps().CT.Young()
	if err != nil {
		t.Fatal(err)
	}
	if len(young) == 0 || young[0].Endpoint != victim.row.ID || young[0].Received < testSizes.CTNew/2 || young[0].Peers < testSizes.CTNew/2 {
		t.Errorf("the victim is endpoint %d, and young connections are %+v", victim.row.ID, young)
	}
	if n, err := n1.d.Maps().Metrics.Total(reason.CTNew); err != nil || n < uint64(syns)*9/10 {
		t.Errorf("%d new connections are counted of %d: %v", n, syns, err)
	}
	if dead := stillGo(conns); dead > 0 {
		t.Errorf("%d of %d idle connections do not go on", dead, idle)
	}
	after := n1.metrics(t)
	if got := after["from_net peer"] - made["from_net peer"]; got < idle {
		t.Errorf("%d packets came by the fast path, want %d: connections lost their entries", got, idle)
	}
	if err := roundTrip(t, src.space, "tcp", to, 100); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}

// stillGo says how many connections do not answer.
func stillGo(conns []net.Conn) (dead int) {
	for _, c := range conns {
		if exchange(c, 10) != nil {
			dead++
		}
	}
	return dead
}
