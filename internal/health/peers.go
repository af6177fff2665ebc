// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/rpc"
)

// Intervals of the probes of peers. A round touches probeBatch peers at most, so
// that the load of a probe does not grow with the cluster.
const (
	probeInterval = 10 * time.Second
	probeFirst    = time.Second
	probeBatch    = 32
	probeTimeout  = time.Second
)

// Peer is another node with the addresses of its health endpoint.
type Peer struct {
	Name  string
	Ready bool
	Addrs []netip.Addr
}

// PeerResult is what the last probe of one address of a peer found.
type PeerResult struct {
	Name  string        `json:"name"`
	Addr  netip.Addr    `json:"addr"`
	RTT   time.Duration `json:"rtt"`
	Error string        `json:"error,omitempty"`
	Since time.Time     `json:"since"` // of the present outcome
	At    time.Time     `json:"at"`
}

// Peers probes the other nodes' health endpoints at a low rate.
type Peers struct {
	List func() []Peer
	Echo Echo

	mu      sync.Mutex
	results map[netip.Addr]PeerResult
	next    int
}

// Run probes until ctx ends.
func (p *Peers) Run(ctx context.Context) error {
	for {
		p.round(ctx)
		wait := probeInterval - rand.N(probeInterval/5)
		if len(p.Results()) == 0 {
			wait = probeFirst // the peers are not known yet
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (p *Peers) round(ctx context.Context) {
	peers := p.List()
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
	known := map[netip.Addr]bool{}
	for _, peer := range peers {
		for _, a := range peer.Addrs {
			known[a] = true
		}
	}
	p.mu.Lock()
	for a := range p.results {
		if !known[a] {
			delete(p.results, a)
		}
	}
	start := p.next
	p.next += probeBatch
	p.mu.Unlock()

	var wg sync.WaitGroup
	for i := range min(probeBatch, len(peers)) {
		peer := peers[(start+i)%len(peers)]
		for _, a := range peer.Addrs {
			wg.Go(func() { p.probe(ctx, peer.Name, a) })
		}
	}
	wg.Wait()
}

// probe pings one address, up to three times.
func (p *Peers) probe(ctx context.Context, name string, a netip.Addr) {
	r := PeerResult{Name: name, Addr: a}
	for range 3 {
		pctx, cancel := context.WithTimeout(ctx, probeTimeout)
		rtt, err := p.Echo.Ping(pctx, a)
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.RTT, r.Error = rtt, ""
		if err == nil {
			break
		}
		r.Error = err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r.At = time.Now()
	r.Since = r.At
	if old, ok := p.results[a]; ok && (old.Error == "") == (r.Error == "") {
		r.Since = old.Since
	}
	if p.results == nil {
		p.results = map[netip.Addr]PeerResult{}
	}
	p.results[a] = r
}

// Results returns the last result of each address, by name and address.
func (p *Peers) Results() []PeerResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]PeerResult, 0, len(p.results))
	for _, r := range p.results {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b PeerResult) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.Addr.Compare(b.Addr))
	})
	return out
}

// Component reports the results.
func (p *Peers) Component() rpc.Component {
	c := rpc.Component{Name: "Peers", State: rpc.StateOK}
	var bad []string
	results := p.Results()
	for _, r := range results {
		if r.Error != "" {
			bad = append(bad, fmt.Sprintf("%s (%s) since %s", r.Name, r.Addr, time.Since(r.Since).Round(time.Second)))
			c.Details = append(c.Details, fmt.Sprintf("%s %s: %s", r.Name, r.Addr, r.Error))
			continue
		}
		c.Details = append(c.Details, fmt.Sprintf("%s %s: %s", r.Name, r.Addr, r.RTT.Round(time.Microsecond)))
	}
	switch {
	case len(results) == 0 && !slices.ContainsFunc(p.List(), func(x Peer) bool { return len(x.Addrs) > 0 }):
		c.Message = "no peer has published a health address"
	case len(results) == 0:
		c.Message = "not probed yet"
	case len(bad) > 0:
		c.State = rpc.StateWarning
		c.Message = fmt.Sprintf("%d of %d health addresses do not answer: %s", len(bad), len(results), strings.Join(bad[:min(3, len(bad))], ", "))
	default:
		c.Message = fmt.Sprintf("%d of %d health addresses answer", len(results), len(results))
	}
	return c
}
