// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// segmentSize is what a connection sends at most at once, and what it told the
// other side that it takes, in bytes without TCP options.
func segmentSize(t *testing.T, c net.Conn) (sends, takes int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var size int
	var opErr error
	err = raw.Control(func(fd uintptr) {
		if size, opErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG); opErr == nil {
			info, opErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		}
	})
	if err != nil || opErr != nil {
		t.Fatal(err, opErr)
	}
	takes = int(info.Advmss)
	if info.Options&1 != 0 { // TCPI_OPT_TIMESTAMPS: each segment carries one
		size, takes = size+12, takes+12
	}
	return size, takes
}

// fragments counts what a namespace has cut up, and what it could not.
func fragments(t *testing.T, s *space) int {
	t.Helper()
	n := 0
	s.in(t, func() {
		b4, err4 := os.ReadFile("/proc/thread-self/net/snmp")
		b6, err6 := os.ReadFile("/proc/thread-self/net/snmp6")
		if err4 != nil || err6 != nil {
			t.Fatal(err4, err6)
		}
		for line := range strings.Lines(string(b6)) {
			if f := strings.Fields(line); strings.HasPrefix(f[0], "Ip6Frag") {
				v, _ := strconv.Atoi(f[1])
				n += v
			}
		}
		lines := strings.Split(string(b4), "\n")
		names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
		for i, name := range names {
			if strings.HasPrefix(name, "Frag") {
				v, _ := strconv.Atoi(values[i])
				n += v
			}
		}
	})
	return n
}

// TestOverlaySegmentSize guards against TCP segments that fit pods' links and not
// the overlay: what is negotiated must, in both directions, so that nothing is
// fragmented and nobody has to be told.
func TestOverlaySegmentSize(t *testing.T) {
	eachUnderlay(t, func(t *testing.T, c *overlayCluster) {
		from, to := c.nodes[0].pods[0], c.nodes[1].pods[0]
		for _, fam := range families {
			want := 1500 - overhead[c.underlay] - map[int]int{4: 20, 6: 40}[fam] - 20
			at := ap(to.addr.of(fam), 8080)
			echoTCP(t, to.space, at)
			con, err := dial(t, from.space, "tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			if err := exchange(con, 4<<20); err != nil {
				t.Errorf("ipv%d: %v", fam, err)
			}
			if sends, takes := segmentSize(t, con); sends != want || takes != want {
				t.Errorf("ipv%d: sends segments of %d bytes and takes %d, want %d", fam, sends, takes, want)
			}
		}
		for _, s := range []*space{c.nodes[0].space, c.nodes[1].space, c.router, from.space, to.space} {
			if n := fragments(t, s); n != 0 {
				t.Errorf("%s: %d fragments", s.name, n)
			}
		}
		for _, m := range c.nodes {
			got := m.metrics(t)
			for _, hook := range []string{"from_pod", "to_overlay", "from_overlay"} {
				if n := got[hook+" too-big"] + got[hook+" icmp-sent"]; n != 0 {
					t.Errorf("%s: %s refused or answered %d packets as too big", m.name, hook, n)
				}
			}
			if got["from_pod tunnel"] == 0 {
				t.Error(fmt.Sprint("the overlay carried nothing: ", got))
			}
		}
		c.noDrops()
	})
}
