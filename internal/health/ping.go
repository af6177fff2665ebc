// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Numbers of the IP protocols that carry pings (IANA protocol-numbers).
const (
	protoICMP   = 1
	protoICMPv6 = 58
)

// Pinger sends ICMP echo requests from one network namespace.
type Pinger struct {
	// Netns is the path of the namespace to send from; empty is the agent's own.
	Netns string
}

// Ping sends one echo request and waits until its answer comes or ctx ends.
func (p Pinger) Ping(ctx context.Context, addr netip.Addr) (time.Duration, error) {
	conn, err := p.listen(addr.Is6())
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", addr, err)
	}
	defer conn.Close()
	if d, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(d); err != nil {
			return 0, fmt.Errorf("ping %s: %w", addr, err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	id, seq := rand.N(1<<16), rand.N(1<<16)
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if addr.Is6() {
		kind = ipv6.ICMPTypeEchoRequest
	}
	msg, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("weft")}}).Marshal(nil)
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", addr, err)
	}
	start := time.Now()
	if _, err := conn.WriteTo(msg, &net.IPAddr{IP: addr.AsSlice()}); err != nil {
		return 0, fmt.Errorf("ping %s: %w", addr, err)
	}
	for {
		ok, err := answered(conn, addr, id, seq)
		if ok {
			return time.Since(start), nil
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return 0, fmt.Errorf("ping %s: no answer within %s", addr, time.Since(start).Round(10*time.Millisecond))
			}
			return 0, fmt.Errorf("ping %s: %w", addr, err)
		}
	}
}

// answered reads one packet and tells whether it answers the request.
func answered(conn *icmp.PacketConn, addr netip.Addr, id, seq int) (bool, error) {
	buf := make([]byte, 1500)
	n, from, err := conn.ReadFrom(buf)
	if err != nil {
		return false, err
	}
	ip, ok := from.(*net.IPAddr)
	if !ok {
		return false, nil
	}
	src, _ := netip.AddrFromSlice(ip.IP)
	proto := protoICMP
	if addr.Is6() {
		proto = protoICMPv6
	}
	return src.Unmap() == addr && isReply(proto, buf[:n], id, seq), nil
}

// isReply tells whether a packet is the answer to our request; a raw socket gets
// everybody's.
func isReply(proto int, packet []byte, id, seq int) bool {
	m, err := icmp.ParseMessage(proto, packet)
	if err != nil || (m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply) {
		return false
	}
	echo, ok := m.Body.(*icmp.Echo)
	return ok && echo.ID == id && echo.Seq == seq
}

// listen opens a raw socket in the namespace; it stays there wherever it is used.
func (p Pinger) listen(v6 bool) (*icmp.PacketConn, error) {
	open := func() (*icmp.PacketConn, error) {
		if v6 {
			return icmp.ListenPacket("ip6:ipv6-icmp", "::")
		}
		return icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	}
	if p.Netns == "" {
		return open()
	}
	type result struct {
		conn *icmp.PacketConn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := inNetns(p.Netns, open)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// inNetns runs open on a thread in the namespace. It must have its goroutine to
// itself: if the way back fails, the thread stays locked and dies with it.
func inNetns(path string, open func() (*icmp.PacketConn, error)) (*icmp.PacketConn, error) {
	target, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer target.Close()
	runtime.LockOSThread()
	back, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	defer back.Close()
	if err := netns.Set(target); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	conn, openErr := open()
	if err := netns.Set(back); err != nil {
		return conn, errors.Join(openErr, fmt.Errorf("return to own network namespace: %w", err))
	}
	runtime.UnlockOSThread()
	return conn, openErr
}
