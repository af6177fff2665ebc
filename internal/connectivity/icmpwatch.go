// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// watchedBody is how many bytes of an echo request tell whose it is: the token
// and the first of the cell's own.
const watchedBody = tokenSize + 16

// drainLimit is how long what has arrived may take to be read.
const drainLimit = 100 * time.Millisecond

// icmpWatch notes from where echo requests arrive at this host: its kernel
// answers them, and tells the sender nothing.
type icmpWatch struct {
	token Token
	conns []net.PacketConn
	wg    sync.WaitGroup

	mu   sync.Mutex
	from map[[watchedBody]byte]netip.Addr
}

// watchICMP begins to listen on the addresses. Without the right to do so, and
// where the system has no such sockets, nothing is noted.
func watchICMP(ctx context.Context, token Token, addrs []netip.Addr) *icmpWatch {
	w := &icmpWatch{token: token, from: map[[watchedBody]byte]netip.Addr{}}
	for _, a := range addrs {
		network, request := "ip4:icmp", byte(icmp4EchoRequest)
		if a.Is6() {
			network, request = "ip6:ipv6-icmp", icmp6EchoRequest
		}
		var lc net.ListenConfig
		c, err := lc.ListenPacket(ctx, network, a.String())
		if err != nil {
			continue
		}
		if ip, ok := c.(*net.IPConn); ok {
			_ = ip.SetReadBuffer(4 << 20) // the kernel caps it; less than asked still works
		}
		w.conns = append(w.conns, c)
		w.wg.Go(func() { w.read(c, request) })
	}
	return w
}

// read ends when stop sets a deadline.
func (w *icmpWatch) read(c net.PacketConn, request byte) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		b := buf[:n]
		if len(b) < icmpHeader+watchedBody || b[0] != request || [tokenSize]byte(b[icmpHeader:]) != w.token {
			continue
		}
		if ip, ok := from.(*net.IPAddr); ok {
			if a, ok := netip.AddrFromSlice(ip.IP); ok {
				w.mu.Lock()
				w.from[[watchedBody]byte(b[icmpHeader:])] = plain(a)
				w.mu.Unlock()
			}
		}
	}
}

// stop reads what has arrived and ends.
func (w *icmpWatch) stop() {
	for _, c := range w.conns {
		_ = c.SetReadDeadline(time.Now().Add(drainLimit)) // a socket that is broken ends its reader as well
	}
	w.wg.Wait()
	for _, c := range w.conns {
		_ = c.Close() // nothing was written
	}
}

// judge lets cells fail whose echo was answered but whose requests came from
// elsewhere than they should. Bodies that are too short to tell are left alone.
func (w *icmpWatch) judge(cells []Cell, results map[int]Result) {
	for i := range cells {
		c := &cells[i]
		res, ran := results[c.ID]
		if !ran || res.Error != "" || c.Proto != ICMP || len(c.Source) == 0 || res.Bytes < watchedBody {
			continue
		}
		from, ok := w.from[[watchedBody]byte(payload(w.token, c.ID, watchedBody))]
		if !ok {
			continue
		}
		res.Source = from.String()
		if !slices.Contains(c.Source, from) {
			res.Error = c.wrongSource(from).Error()
		}
		results[c.ID] = res
	}
}
