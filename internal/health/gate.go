// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/rpc"
)

// Times of the gate.
const (
	peerPatience = 30 * time.Second // all ready peers silent for so long: say so
	peerRetry    = 2 * time.Second
	addPatience  = 60 * time.Second // ADDs failing for so long: CNI STATUS may fail
	addCheck     = 10 * time.Second
	proofFirst   = time.Second
	proofLongest = 30 * time.Second
)

// ErrNotProven is what CNI STATUS says before the first proof.
var ErrNotProven = errors.New("this node has not been proven yet")

// Prover carries out the local proof; Proof does.
type Prover interface {
	Run(ctx context.Context) error
}

// Gate holds the node back until it is proven.
type Gate struct {
	Proof Prover
	Peers func() []Peer                   // with those that are not ready
	Echo  Echo                            // to peers
	Open  func(ctx context.Context) error // makes the node take pods: CNI configuration and what goes with it
	// FailingSince says since when every ADD of a pod has failed; zero: the last
	// one went well. May be nil.
	FailingSince func() time.Time
	Report       func(ready bool, reason string) // told of each change, for events; may be nil
	Log          *slog.Logger

	mu       sync.Mutex
	state    gateState
	reason   string // why not proven, or how
	provenAt time.Time
	broken   error // why no ADD is possible, proven
}

type gateState int

const (
	gateWaiting gateState = iota // for what the proof needs
	gateProving
	gateProven
)

// Restored says that the node was proven earlier in this boot and that what it
// was proven with is still in place.
func (g *Gate) Restored(at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state, g.provenAt, g.reason = gateProven, at, "proven before this agent started"
}

// Proven tells whether the node takes pods, and since when.
func (g *Gate) Proven() (time.Time, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.provenAt, g.state == gateProven
}

// Wait says what the proof waits for. It is shown as long as nothing was tried.
func (g *Gate) Wait(reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == gateWaiting {
		g.reason = reason
	}
}

// Run proves the node unless that was done before, opens the gate, and then
// watches over ADDs until ctx ends.
func (g *Gate) Run(ctx context.Context) error {
	if _, done := g.Proven(); !done {
		if !g.prove(ctx) {
			return nil
		}
	}
	return g.watchAdds(ctx)
}

// prove returns false if ctx ended first.
func (g *Gate) prove(ctx context.Context) bool {
	g.holdBack("a first ADD, ping and DEL is under way")
	if !g.retry(ctx, "proof", g.Proof.Run) {
		return false
	}
	how, ok := g.reachPeer(ctx)
	if !ok {
		return false
	}
	if !g.retry(ctx, "open", g.Open) {
		return false
	}
	g.mu.Lock()
	g.state, g.reason, g.provenAt = gateProven, how, time.Now()
	g.mu.Unlock()
	g.Log.Info("node is proven and takes pods", "peers", how)
	g.report(true, how)
	return true
}

// retry repeats f until it succeeds; it returns false if ctx ended first.
func (g *Gate) retry(ctx context.Context, what string, f func(context.Context) error) bool {
	delay := proofFirst
	for {
		err := f(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		g.Log.Warn("node is not ready", "step", what, "error", err, "retry", delay)
		if g.holdBack(err.Error()) {
			g.report(false, err.Error())
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(delay):
		}
		delay = min(2*delay, proofLongest)
	}
}

// reachPeer returns once a ready peer has answered in each family that ready
// peers have, or once there is none. It says how.
func (g *Gate) reachPeer(ctx context.Context) (how string, ok bool) {
	start, told := time.Now(), false
	for {
		silent, answered, n := g.roundTrip(ctx)
		if ctx.Err() != nil {
			return "", false
		}
		switch {
		case n == 0:
			return "no ready peer to reach: round trip skipped", true
		case len(silent) == 0:
			return fmt.Sprintf("round trip to %s", strings.Join(answered, ", ")), true
		}
		why := fmt.Sprintf("no ready peer answers on its health address: %s: check that nothing between the nodes drops packets of pod ranges, and that routes to them exist (`weft status`, Routing)", strings.Join(silent, ", "))
		if time.Since(start) >= peerPatience {
			if changed := g.holdBack(why); !told || changed {
				told = true
				g.Log.Warn("node is not ready", "step", "peers", "error", why)
				g.report(false, why)
			}
		} else {
			g.holdBack("waiting for a ready peer's answer")
		}
		select {
		case <-ctx.Done():
			return "", false
		case <-time.After(peerRetry):
		}
	}
}

// roundTrip pings ready peers until one answers in each family. silent names the
// addresses of a family in which nobody did.
func (g *Gate) roundTrip(ctx context.Context) (silent, answered []string, peers int) {
	var ready []Peer
	for _, p := range g.Peers() {
		if p.Ready && len(p.Addrs) > 0 {
			ready = append(ready, p)
		}
	}
	for _, v6 := range []bool{false, true} {
		var tried []string
		found := ""
		for _, p := range ready {
			for _, a := range p.Addrs {
				if a.Is6() != v6 || found != "" {
					continue
				}
				if err := g.ping(ctx, a); err != nil {
					tried = append(tried, fmt.Sprintf("%s (%s)", p.Name, a))
					continue
				}
				found = fmt.Sprintf("%s (%s)", p.Name, a)
			}
			if len(tried) >= 3 { // silence of three is silence enough for one round
				break
			}
		}
		switch {
		case found != "":
			answered = append(answered, found)
		default:
			silent = append(silent, tried...)
		}
	}
	return silent, answered, len(ready)
}

func (g *Gate) ping(ctx context.Context, a netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	_, err := g.Echo.Ping(ctx, a)
	return err
}

// watchAdds tries the local proof when pods' ADDs have failed for a while: if
// that fails too, no ADD is possible and CNI STATUS says so, until one is again.
// If the proof goes well, the failures are those pods' own.
func (g *Gate) watchAdds(ctx context.Context) error {
	tick := time.NewTicker(addCheck)
	defer tick.Stop()
	var cleared time.Time // failures up to then are the pods' own
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		since := time.Time{}
		if g.FailingSince != nil {
			since = g.FailingSince()
		}
		if since.Before(cleared) && !since.IsZero() {
			since = cleared
		}
		g.mu.Lock()
		was := g.broken
		if since.IsZero() && was != nil {
			g.broken = nil
		}
		g.mu.Unlock()
		if since.IsZero() || (was == nil && time.Since(since) < addPatience) {
			continue
		}
		err := g.Proof.Run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		g.mu.Lock()
		g.broken = err
		g.mu.Unlock()
		switch {
		case err != nil && was == nil:
			g.Log.Error("no pod can be added", "error", err)
			g.report(false, err.Error())
		case err == nil:
			cleared = time.Now()
			if was != nil {
				g.Log.Info("pods can be added again")
				g.report(true, "pods can be added again")
			}
		}
	}
}

// CNIStatus is the answer to CNI STATUS: nil unless the node was never proven,
// or no ADD has been possible for a minute.
func (g *Gate) CNIStatus() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != gateProven {
		return fmt.Errorf("%w: %s", ErrNotProven, g.reason)
	}
	if g.broken != nil {
		return fmt.Errorf("no pod can be added: %w", g.broken)
	}
	return nil
}

// Component reports the gate.
func (g *Gate) Component() rpc.Component {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := rpc.Component{Name: "Node proof", State: rpc.StateOK}
	switch {
	case g.state != gateProven:
		c.State, c.Message = rpc.StateFailing, g.reason
	case g.broken != nil:
		c.State, c.Message = rpc.StateFailing, g.broken.Error()
	default:
		c.Message = fmt.Sprintf("%s, %s", g.provenAt.Format(time.DateTime), g.reason)
	}
	return c
}

// holdBack says why the node is not proven yet, and tells whether that is news.
func (g *Gate) holdBack(reason string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	changed := g.state != gateProving || g.reason != reason
	g.state, g.reason = gateProving, reason
	return changed
}

func (g *Gate) report(ready bool, reason string) {
	if g.Report != nil {
		g.Report(ready, reason)
	}
}
