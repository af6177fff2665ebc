// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"
)

// Guards against a receiver that calls lost what arrived late or twice.
func TestTallyCountsEachDatagramOnce(t *testing.T) {
	var tl tally
	now := time.Now()
	for _, seq := range []uint64{0, 1, 1, 3, 2, 70, 3} {
		tl.add(seq, now)
	}
	if tl.Count != 5 {
		t.Errorf("count %d of 0, 1, 2, 3 and 70", tl.Count)
	}
	if got := tl.missing(5); !slices.Equal(got, []uint64{4}) {
		t.Errorf("missing of the first five: %v, want 4 alone", got)
	}
	if got := tl.missing(72); len(got) != maxMissing || got[0] != 4 {
		t.Errorf("missing is not bounded: %v", got)
	}
}

// Guards against a sender that reports nothing when it is stopped early, which
// is how the kill test stops it.
func TestSendReportsWhenStopped(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- receive(ctx, 19000) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	listening(t, "127.0.0.1:19000")
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	rep, err := send(short, "127.0.0.1", 19000, 1000, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Sent == 0 || rep.Lost != 0 || rep.TCPResets != 0 || rep.TCPBytes == 0 {
		t.Errorf("on loopback: %+v", rep)
	}
}

// listening waits until somebody accepts connections at addr.
func listening(t *testing.T, addr string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
