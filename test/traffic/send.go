// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// chunk is what the TCP stream sends at a time; it waits for the echo before
// the next, so that the stream is alive all along yet never loads the machine.
const chunk = 4096

// pause between two chunks of the TCP stream.
const pause = 5 * time.Millisecond

// settle is how long the last datagrams may take to arrive.
const settle = time.Second

func send(ctx context.Context, to string, port, rate int, duration time.Duration) (*Report, error) {
	target := net.JoinHostPort(to, strconv.Itoa(port))
	var idb [8]byte
	_, _ = rand.Read(idb[:])
	id := binary.BigEndian.Uint64(idb[:])
	rep := &Report{To: target, Started: time.Now()}

	stream, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("dial tcp %s: %w", target, err)
	}
	defer stream.Close()

	ctx, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	var wg sync.WaitGroup
	var udpErr error
	wg.Go(func() { rep.Sent, udpErr = datagrams(ctx, target, id, rate) })
	wg.Go(func() { echo(ctx, stream, rep) })
	wg.Wait()
	if udpErr != nil {
		return nil, udpErr
	}

	<-time.After(settle) // datagrams in flight: nothing announces the last of them
	t, err := query(target, id, rep.Sent)
	if err != nil {
		return nil, err
	}
	rep.Received, rep.Lost, rep.LongestGapMS = t.Count, rep.Sent-t.Count, t.GapMS
	rep.Overflow = t.Overflow
	for _, seq := range t.Missing {
		rep.Missing = append(rep.Missing, int64(seq)*1000/int64(rate))
	}
	return rep, nil
}

// datagrams sends rate numbered datagrams a second until ctx ends. A late tick
// is caught up with, so that the number sent does not depend on the scheduler.
func datagrams(ctx context.Context, target string, id uint64, rate int) (uint64, error) {
	c, err := net.Dial("udp", target)
	if err != nil {
		return 0, fmt.Errorf("dial udp %s: %w", target, err)
	}
	defer c.Close()
	start, tick := time.Now(), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var seq uint64
	var b [datagramLen]byte
	binary.BigEndian.PutUint64(b[:], id)
	for {
		select {
		case <-ctx.Done():
			return seq, nil
		case <-tick.C:
		}
		for due := uint64(time.Since(start).Seconds() * float64(rate)); seq < due; seq++ {
			binary.BigEndian.PutUint64(b[8:], seq)
			// A refused or unroutable datagram counts as sent: it is lost.
			_, _ = c.Write(b[:])
		}
	}
}

// echo keeps one TCP stream busy until ctx ends and compares what comes back.
func echo(ctx context.Context, c net.Conn, rep *Report) {
	fail := func(err error) {
		rep.TCPResets++
		rep.TCPError = err.Error()
	}
	if _, err := c.Write([]byte{'E'}); err != nil {
		fail(err)
		return
	}
	out, in := make([]byte, chunk), make([]byte, chunk)
	_, _ = rand.Read(out)
	for ctx.Err() == nil {
		begin := time.Now()
		_ = c.SetDeadline(begin.Add(30 * time.Second))
		if _, err := c.Write(out); err != nil {
			fail(err)
			return
		}
		if _, err := io.ReadFull(c, in); err != nil {
			fail(err)
			return
		}
		if !bytes.Equal(in, out) {
			fail(fmt.Errorf("echo differs after %d bytes", rep.TCPBytes))
			return
		}
		rep.TCPBytes += chunk
		rep.LongestStallMS = max(rep.LongestStallMS, time.Since(begin).Milliseconds())
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// query asks the receiver what arrived of a run of sent datagrams.
func query(target string, id, sent uint64) (*tally, error) {
	c, err := net.DialTimeout("tcp", target, 10*time.Second)
	if err != nil {
		return nil, fmt.Errorf("dial tcp %s for the tally: %w", target, err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := binary.Write(c, binary.BigEndian, struct {
		Verb     byte
		ID, Sent uint64
	}{'Q', id, sent}); err != nil {
		return nil, fmt.Errorf("ask for the tally: %w", err)
	}
	var t tally
	if err := json.NewDecoder(c).Decode(&t); err != nil {
		return nil, fmt.Errorf("read the tally: %w", err)
	}
	return &t, nil
}
