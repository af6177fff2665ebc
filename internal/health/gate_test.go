// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is what a gate lives in; its fields may change while the gate runs.
type world struct {
	mu      sync.Mutex
	proof   error
	proofs  int
	peers   []health.Peer
	silent  map[netip.Addr]bool
	open    error
	opened  int
	failing time.Time
	told    []string
}

func (w *world) Run(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.proofs++
	return w.proof
}

func (w *world) Ping(_ context.Context, a netip.Addr) (time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent[a] {
		return 0, errors.New("no answer")
	}
	return time.Millisecond, nil
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) gate() *health.Gate {
	return &health.Gate{
		Proof: w, Echo: w, Log: slog.New(slog.DiscardHandler),
		Peers: func() []health.Peer { w.mu.Lock(); defer w.mu.Unlock(); return slices.Clone(w.peers) },
		Open: func(context.Context) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.open == nil {
				w.opened++
			}
			return w.open
		},
		FailingSince: func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.failing },
		Report: func(ready bool, reason string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if ready {
				reason = "ready: " + reason
			}
			w.told = append(w.told, reason)
		},
	}
}

func run(t *testing.T, g *health.Gate) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	synctest.Wait()
}

func after(d time.Duration) {
	time.Sleep(d) // of the bubble's clock
	synctest.Wait()
}

func wantProven(t *testing.T, g *health.Gate, want bool, message string) {
	t.Helper()
	_, got := g.Proven()
	c := g.Component()
	if got != want || (g.CNIStatus() == nil) != want || (c.State == rpc.StateOK) != want || !strings.Contains(c.Message, message) {
		t.Errorf("proven %v, CNI status %v, component %+v; want %v and %q", got, g.CNIStatus(), c, want, message)
	}
}

var (
	peer4 = netip.MustParseAddr("10.244.1.1")
	peer6 = netip.MustParseAddr("fd00:1::1")
	other = netip.MustParseAddr("10.244.2.1")
)

// Guards against a first node of a cluster that waits for peers for ever.
func TestNoPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{peers: []health.Peer{{Name: "n2", Addrs: []netip.Addr{peer4}}}, silent: map[netip.Addr]bool{peer4: true}}
		g := w.gate()
		run(t, g)
		wantProven(t, g, true, "no ready peer to reach: round trip skipped")
	})
}

// Guards against a node that takes pods although nothing on it works, and
// against one that never tries again.
func TestProofFailsThenWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{proof: errors.New("proof: ping 169.254.77.1: no answer")}
		g := w.gate()
		run(t, g)
		after(5 * time.Minute)
		wantProven(t, g, false, "169.254.77.1")
		if w.opened != 0 {
			t.Error("the gate opened")
		}
		if w.proofs < 10 || w.proofs > 20 {
			t.Errorf("%d proofs in five minutes, want some 14", w.proofs)
		}
		if len(w.told) != 1 {
			t.Errorf("told %q, want the one reason once", w.told)
		}
		w.set(func() { w.proof = nil })
		after(time.Minute)
		wantProven(t, g, true, "no ready peer")
	})
}

// Guards against a node that cannot reach any peer and takes pods; against
// blaming peers before they had their time; and against needing every peer.
func TestPeersUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			peers:  []health.Peer{{Name: "n2", Ready: true, Addrs: []netip.Addr{peer4, peer6}}, {Name: "n3", Ready: true, Addrs: []netip.Addr{other}}},
			silent: map[netip.Addr]bool{peer4: true, peer6: true, other: true},
		}
		g := w.gate()
		run(t, g)
		after(20 * time.Second)
		wantProven(t, g, false, "waiting for a ready peer's answer")
		after(20 * time.Second)
		wantProven(t, g, false, "no ready peer answers on its health address: n2 (10.244.1.1), n3 (10.244.2.1), n2 (fd00:1::1)")
		if len(w.told) != 1 {
			t.Errorf("told %q, want one", w.told)
		}
		w.set(func() { delete(w.silent, other) })
		after(5 * time.Second)
		wantProven(t, g, false, "n2 (fd00:1::1)") // IPv6 is still dark
		w.set(func() { delete(w.silent, peer6) })
		after(5 * time.Second)
		wantProven(t, g, true, "round trip to n3 (10.244.2.1), n2 (fd00:1::1)")
		if w.opened != 1 {
			t.Errorf("opened %d times", w.opened)
		}
	})
}

// Guards against a ready node that a partition, or our restart, takes out of
// service (DATAPATH rule 18).
func TestNeverUnready(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			proof:  errors.New("no"),
			peers:  []health.Peer{{Name: "n2", Ready: true, Addrs: []netip.Addr{peer4}}},
			silent: map[netip.Addr]bool{peer4: true},
		}
		g := w.gate()
		g.Restored(time.Now())
		run(t, g)
		after(time.Hour)
		wantProven(t, g, true, "proven before this agent started")
		if w.proofs != 0 || w.opened != 0 {
			t.Errorf("%d proofs, opened %d times; want none", w.proofs, w.opened)
		}
	})
}

// Guards against STATUS failing for the fault of one pod, failing too early, not
// failing at all, and never recovering.
func TestAddsImpossible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{}
		g := w.gate()
		run(t, g)
		wantProven(t, g, true, "")
		w.set(func() { w.failing = time.Now() })
		after(2 * time.Minute)
		wantProven(t, g, true, "") // the proof goes well: it is the pods' fault
		w.set(func() { w.proof, w.failing = errors.New("ADD: disk full"), time.Now() })
		after(50 * time.Second)
		wantProven(t, g, true, "")
		after(20 * time.Second)
		if err := g.CNIStatus(); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("CNI status %v, want the reason", err)
		}
		w.set(func() { w.proof = nil })
		after(15 * time.Second)
		wantProven(t, g, true, "")
	})
}

// Guards against a node that counts as proven although its configuration could
// not be written.
func TestOpenFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{open: errors.New("write /etc/cni/net.d/05-weft.conflist: no space left on device")}
		g := w.gate()
		run(t, g)
		after(time.Minute)
		wantProven(t, g, false, "no space left on device")
		w.set(func() { w.open = nil })
		after(time.Minute)
		wantProven(t, g, true, "")
	})
}

// Guards against a peer that is forgotten, or remembered after it left.
func TestPeersComponent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{peers: []health.Peer{{Name: "n2", Addrs: []netip.Addr{peer4, peer6}}}, silent: map[netip.Addr]bool{peer6: true}}
		p := &health.Peers{Echo: w, List: func() []health.Peer { w.mu.Lock(); defer w.mu.Unlock(); return slices.Clone(w.peers) }}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = p.Run(ctx) }()
		after(time.Minute)
		if c := p.Component(); c.State != rpc.StateWarning || !strings.Contains(c.Message, "1 of 2 health addresses do not answer: n2 (fd00:1::1) since") {
			t.Errorf("%+v", c)
		}
		w.set(func() { w.silent = nil })
		after(15 * time.Second)
		if c := p.Component(); c.State != rpc.StateOK || c.Message != "2 of 2 health addresses answer" {
			t.Errorf("%+v", c)
		}
		w.set(func() { w.peers = nil })
		after(15 * time.Second)
		if r := p.Results(); len(r) != 0 {
			t.Errorf("results of a peer that left: %v", r)
		}
		cancel()
		<-done
	})
}
