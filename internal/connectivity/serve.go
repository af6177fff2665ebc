// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Bounds of a server.
const (
	udpSockets     = 16               // a burst of large datagrams spreads over their buffers
	maxConns       = 256              // TCP connections at a time
	connDeadline   = 30 * time.Second // of one TCP connection
	greetingExpiry = time.Minute      // of a source that presented the token
	maxSources     = 4096             // sources remembered
	maxDatagram    = 1 << 16
)

// ServeConfig is what an echo server needs.
type ServeConfig struct {
	Addrs []netip.Addr // to listen on, and on no others
	Port  uint16       // of TCP and UDP
	Token Token
}

// Serve echoes to whoever knows the token until the context ends. It listens
// before it calls ready (may be nil).
//
// TCP: the token, the number of bytes to come (4 bytes, big endian), the bytes;
// they come back as they arrive. UDP: a datagram that begins with the token
// comes back, and from then on every datagram of its source. A client that asks
// (source.go) is told which source address arrived.
func Serve(ctx context.Context, cfg ServeConfig, ready func()) error {
	if len(cfg.Addrs) == 0 {
		return errors.New("serve: no address to listen on")
	}
	s := &server{token: cfg.Token, sources: map[netip.AddrPort]time.Time{}, conns: make(chan struct{}, maxConns)}
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range cfg.Addrs {
		if err := s.listen(ctx, g, netip.AddrPortFrom(a, cfg.Port)); err != nil {
			_ = s.close() // nothing was served yet
			return fmt.Errorf("serve: %w", errors.Join(err, g.Wait()))
		}
	}
	g.Go(func() error {
		<-ctx.Done()
		return s.close()
	})
	if ready != nil {
		ready()
	}
	if err := g.Wait(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

type server struct {
	token Token
	conns chan struct{} // one element a connection
	open  []io.Closer   // listeners

	mu      sync.Mutex
	sources map[netip.AddrPort]time.Time // that presented the token, and when
}

func (s *server) close() error {
	var errs []error
	for _, c := range s.open {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// listen opens TCP and UDP on the address and serves them.
func (s *server) listen(ctx context.Context, g *errgroup.Group, at netip.AddrPort) error {
	lc := net.ListenConfig{Control: shareAddress}
	ln, err := lc.Listen(ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	s.open = append(s.open, ln)
	g.Go(func() error { return s.acceptAll(ctx, ln) })
	for range udpSockets {
		pc, err := lc.ListenPacket(ctx, "udp", at.String())
		if err != nil {
			return err
		}
		s.open = append(s.open, pc)
		uc, ok := pc.(*net.UDPConn)
		if !ok {
			return fmt.Errorf("udp %s: unexpected %T", at, pc)
		}
		_ = uc.SetReadBuffer(4 << 20) // the kernel caps it; less than asked still works
		g.Go(func() error { return s.echoDatagrams(uc) })
	}
	return nil
}

func (s *server) acceptAll(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		select {
		case s.conns <- struct{}{}:
		default:
			_ = c.Close() // full: the client sees a reset and says so
			continue
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // unblocks reads at the end
			s.echoStream(c)
			stop()
			_ = c.Close() // the stream has been answered or is broken
			<-s.conns
		})
	}
}

// echoStream serves one connection. A client without the token gets nothing.
func (s *server) echoStream(c net.Conn) {
	if err := c.SetDeadline(time.Now().Add(connDeadline)); err != nil {
		return
	}
	var head [tokenSize + 4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil || !bytes.Equal(head[:tokenSize], s.token[:]) {
		return
	}
	length := binary.BigEndian.Uint32(head[tokenSize:])
	n := int64(length &^ askSource)
	if n > maxStream {
		return
	}
	if length&askSource != 0 {
		if err := writeSource(c); err != nil {
			return
		}
	}
	if _, err := io.CopyN(c, c, n); err != nil {
		return
	}
	// Wait for the client to close, so that the reset of an early close cannot
	// overtake the last bytes.
	_, _ = io.Copy(io.Discard, io.LimitReader(c, 1))
}

func (s *server) echoDatagrams(c *net.UDPConn) error {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil || !s.admits(from, buf[:n]) {
			continue // an ICMP error of an earlier reply, or somebody else's datagram
		}
		answer := buf[:n]
		if isQuestion(answer, s.token) {
			answer = sourceAnswer(s.token, from.Addr())
		}
		_, _ = c.WriteToUDPAddrPort(answer, from) // what gets lost is the probe's to report
	}
}

// admits says whether the datagram is of this run: it begins with the token, or
// its source presented the token of late.
func (s *server) admits(from netip.AddrPort, b []byte) bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.HasPrefix(b, s.token[:]) {
		seen, ok := s.sources[from]
		return ok && now.Sub(seen) < greetingExpiry
	}
	if len(s.sources) >= maxSources {
		for k, seen := range s.sources {
			if now.Sub(seen) >= greetingExpiry {
				delete(s.sources, k)
			}
		}
	}
	if len(s.sources) < maxSources {
		s.sources[from] = now
	}
	return true
}
