// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// largeParallel bounds the 64 KB datagrams that one probe has in flight: each
// fills a good part of a default socket buffer at the far end.
const largeParallel = 3

// ProbePlan is what one probe runs. It travels as JSON.
type ProbePlan struct {
	Token       string        `json:"token"`
	Timeout     time.Duration `json:"timeout"` // of one attempt at one cell
	Retries     int           `json:"retries"` // further attempts after a failed one
	Concurrency int           `json:"concurrency"`
	DNSName     string        `json:"dnsName,omitempty"` // to ask for; "": from resolv.conf
	// Wait lists addresses to connect to before the first cell, each for at most
	// WaitLimit: Services take a moment until every node knows them.
	Wait      []netip.AddrPort `json:"wait,omitempty"`
	WaitLimit time.Duration    `json:"waitLimit,omitempty"`
	Cells     []Cell           `json:"cells"`
}

// Result is the outcome of one cell that ran.
type Result struct {
	ID       int           `json:"id"`
	Error    string        `json:"error,omitempty"`  // "" for passed
	Bytes    int           `json:"bytes,omitempty"`  // of payload
	MTU      int           `json:"mtu,omitempty"`    // of the source's route
	Source   string        `json:"source,omitempty"` // address that the far end saw, if the cell asks for it
	Attempts int           `json:"attempts,omitempty"`
	Took     time.Duration `json:"took"` // of the last attempt
}

// Probe runs the plan's cells and calls emit with each result, from one
// goroutine at a time, in the order in which they end; 64 KB come last.
func Probe(ctx context.Context, plan *ProbePlan, emit func(Result) error) error {
	token, err := ParseToken(plan.Token)
	if err != nil {
		return err
	}
	p := &prober{plan: plan, token: token, large: make(chan struct{}, largeParallel)}
	p.wait(ctx)
	small, large := phases(plan.Cells)
	return errors.Join(p.runAll(ctx, small, emit), p.runAll(ctx, large, emit), ctx.Err())
}

// phases puts the small exchanges before the large ones: while a neighbour is
// being resolved the kernel holds back some 200 KB for it and drops the
// rest, which would look like loss.
func phases(cells []Cell) (small, large []*Cell) {
	rank := map[Size]int{MTU: 1, MTUPlus1: 2}
	for i := range cells {
		if c := &cells[i]; c.Size == Max {
			large = append(large, c)
		} else {
			small = append(small, c)
		}
	}
	slices.SortStableFunc(small, func(a, b *Cell) int { return rank[a.Size] - rank[b.Size] })
	return small, large
}

// runAll runs the cells, so many at a time, and returns when all have ended.
func (p *prober) runAll(ctx context.Context, todo []*Cell, emit func(Result) error) error {
	cells := make(chan *Cell)
	results := make(chan Result)
	go func() { // ends when all cells are taken or the context ends
		defer close(cells)
		for _, c := range todo {
			select {
			case cells <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	var wg sync.WaitGroup
	for range max(p.plan.Concurrency, 1) {
		wg.Go(func() {
			for c := range cells {
				results <- p.run(ctx, c)
			}
		})
	}
	go func() {
		wg.Wait()
		close(results)
	}()
	var failed error
	for r := range results { // always to the end, so that no worker is left behind
		if failed == nil {
			failed = emit(r)
		}
	}
	return failed
}

type prober struct {
	plan  *ProbePlan
	token Token
	large chan struct{}
}

// run tries one cell until it passes or its attempts are used up.
func (p *prober) run(ctx context.Context, c *Cell) Result {
	r := Result{ID: c.ID}
	if c.Proto != TCP && c.Size == Max {
		p.large <- struct{}{}
		defer func() { <-p.large }()
	}
	for r.Attempts <= c.retries(p.plan) && ctx.Err() == nil {
		r.Attempts++
		start := time.Now()
		err := p.attempt(ctx, c, &r)
		r.Took = time.Since(start)
		if err == nil {
			r.Error = ""
			return r
		}
		r.Error = err.Error()
	}
	if r.Attempts == 0 {
		r.Error = "not run: " + context.Cause(ctx).Error()
	}
	return r
}

// retries is how many attempts the cell has after its first.
func (c *Cell) retries(plan *ProbePlan) int {
	if c.LearnsMTU {
		return max(plan.Retries, 1)
	}
	return plan.Retries
}

func (p *prober) attempt(ctx context.Context, c *Cell, r *Result) error {
	ctx, cancel := context.WithTimeout(ctx, p.plan.Timeout)
	defer cancel()
	switch c.Size {
	case Handshake:
		return p.explain(ctx, handshake(ctx, c))
	case Query:
		return p.explain(ctx, query(ctx, c, p.plan.DNSName))
	case Connect:
		return p.explain(ctx, connect(ctx, c))
	}
	mtu, err := routeMTU(c.Addr)
	if err != nil {
		return err
	}
	r.MTU = mtu
	r.Bytes = payloadSize(c, mtu)
	sent := payload(p.token, c.ID, r.Bytes)
	var seen netip.Addr
	switch c.Proto {
	case TCP:
		seen, err = echoTCP(ctx, c, p.token, sent)
	case UDP:
		seen, err = echoUDP(ctx, c, p.token, sent)
	default:
		err = echoICMP(ctx, c, sent)
	}
	if seen.IsValid() {
		r.Source = seen.String()
	}
	if err == nil {
		err = c.checkSource(seen)
	}
	return p.explain(ctx, err)
}

// explain turns a deadline into the sentence that a reader needs.
func (p *prober) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var ne net.Error
	if ctx.Err() != nil || (errors.As(err, &ne) && ne.Timeout()) {
		if step, ok := errors.AsType[*stepError](err); ok {
			return fmt.Errorf("%s: no answer within %s", step.step, p.plan.Timeout)
		}
		return fmt.Errorf("no answer within %s", p.plan.Timeout)
	}
	return err
}

// stepError says in which step of a cell something went wrong.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

func at(step string, err error) error {
	if err == nil {
		return nil
	}
	return &stepError{step: step, err: err}
}

// wait connects to each address of the plan's Wait until that works. What
// still does not work then is for the cells to report.
func (p *prober) wait(ctx context.Context) {
	if len(p.plan.Wait) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, p.plan.WaitLimit)
	defer cancel()
	var wg sync.WaitGroup
	for _, to := range p.plan.Wait {
		wg.Go(func() { waitConnect(ctx, to) })
	}
	wg.Wait()
}

func waitConnect(ctx context.Context, to netip.AddrPort) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		d := net.Dialer{Timeout: time.Second}
		c, err := d.DialContext(ctx, "tcp", to.String())
		if err == nil {
			_ = c.Close() // only the handshake counts
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
