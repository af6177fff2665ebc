// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A datagram is a run's id and a sequence number, both big-endian 64 bit.
const datagramLen = 16

// maxRuns bounds what a receiver remembers.
const maxRuns = 1024

// tally is what arrived of one run.
type tally struct {
	seen     []uint64 // bitmap over sequence numbers
	Count    uint64   `json:"count"`
	GapMS    int64    `json:"gapMs"`
	Missing  []uint64 `json:"missing"`  // filled in by missing
	Overflow uint64   `json:"overflow"` // of all runs of this receiver
	last     time.Time
	started  bool
}

// maxMissing bounds how many lost datagrams are named.
const maxMissing = 20

// missing lists the first sequence numbers below sent that did not arrive.
func (t *tally) missing(sent uint64) []uint64 {
	var list []uint64
	for seq := uint64(0); seq < sent && seq < 1<<26 && len(list) < maxMissing; seq++ {
		if seq/64 >= uint64(len(t.seen)) || t.seen[seq/64]&(1<<(seq%64)) == 0 {
			list = append(list, seq)
		}
	}
	return list
}

func (t *tally) add(seq uint64, now time.Time) {
	if seq >= 1<<26 {
		return
	}
	for uint64(len(t.seen))*64 <= seq {
		t.seen = append(t.seen, 0)
	}
	if bit := uint64(1) << (seq % 64); t.seen[seq/64]&bit == 0 {
		t.seen[seq/64] |= bit
		t.Count++
	}
	if t.started {
		t.GapMS = max(t.GapMS, now.Sub(t.last).Milliseconds())
	}
	t.started, t.last = true, now
}

type receiver struct {
	mu         sync.Mutex
	runs       map[uint64]*tally
	overflowed uint64 // before this receiver began
}

// receive serves until ctx ends: datagrams are counted, TCP connections either
// echo ("E" as first byte) or ask for a run's tally ("Q", the id, and how many
// datagrams were sent).
func receive(ctx context.Context, port int) error {
	addr := fmt.Sprintf(":%d", port)
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return fmt.Errorf("listen udp %s: %w", addr, err)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		_ = pc.Close()
		return fmt.Errorf("listen tcp %s: %w", addr, err)
	}
	if uc, ok := pc.(*net.UDPConn); ok {
		largeBuffer(uc, 8<<20) // the receiver must not be what loses datagrams
	}
	r := &receiver{runs: map[uint64]*tally{}, overflowed: overflows()}
	var wg sync.WaitGroup
	wg.Go(func() { r.datagrams(pc) })
	wg.Go(func() { r.streams(ln) })
	<-ctx.Done()
	_ = pc.Close()
	_ = ln.Close()
	wg.Wait()
	return nil
}

func (r *receiver) datagrams(pc net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, _, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		if n < datagramLen {
			continue
		}
		id := binary.BigEndian.Uint64(buf)
		r.mu.Lock()
		t := r.runs[id]
		if t == nil && len(r.runs) < maxRuns {
			t = &tally{}
			r.runs[id] = t
		}
		if t != nil {
			t.add(binary.BigEndian.Uint64(buf[8:]), time.Now())
		}
		r.mu.Unlock()
	}
}

func (r *receiver) streams(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go r.stream(c)
	}
}

func (r *receiver) stream(c net.Conn) {
	defer c.Close()
	br := bufio.NewReader(c)
	verb, err := br.ReadByte()
	if err != nil {
		return
	}
	switch verb {
	case 'E':
		_, _ = io.Copy(c, br)
	case 'Q':
		var q struct{ ID, Sent uint64 }
		if binary.Read(br, binary.BigEndian, &q) != nil {
			return
		}
		r.mu.Lock()
		t := tally{}
		if have := r.runs[q.ID]; have != nil {
			t = *have
		}
		t.Missing = t.missing(q.Sent)
		r.mu.Unlock()
		t.Overflow = overflows() - r.overflowed
		_ = json.NewEncoder(c).Encode(&t)
	}
}
