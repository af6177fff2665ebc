// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// runCells runs each probe's cells through exec, all probes at once.
func (r *runner) runCells(ctx context.Context, cells []Cell, all int) map[int]Result {
	var mu sync.Mutex
	results := make(map[int]Result, all)
	failed := 0
	take := func(res Result) {
		mu.Lock()
		defer mu.Unlock()
		results[res.ID] = res
		if res.Error != "" {
			failed++
		}
		r.say.Cells(len(results), failed, all)
	}
	var g errgroup.Group
	g.SetLimit(parallelExec)
	for pod, plan := range r.shard(cells) {
		g.Go(func() error {
			run, where := r.exec, "pod "+pod
			if pod == here {
				run, where = r.probeHere, pod
			}
			done, err := run(ctx, pod, plan, take)
			if err == nil && len(done) == len(plan.Cells) {
				return nil
			}
			if err == nil {
				err = errors.New("it ended early")
			}
			for i := range plan.Cells {
				if c := &plan.Cells[i]; !done[c.ID] {
					take(Result{ID: c.ID, Error: fmt.Sprintf("not run: probe in %s: %s", where, err)})
				}
			}
			return nil
		})
	}
	_ = g.Wait() // errors stand in the results
	return results
}

// shard gives each probe the cells that start from it.
func (r *runner) shard(cells []Cell) map[string]*ProbePlan {
	hosts := map[string]string{}
	for i := range r.topo.Nodes {
		hosts[r.topo.Nodes[i].Name] = r.topo.Nodes[i].Host.Name
	}
	plans := map[string]*ProbePlan{}
	for i := range cells {
		c := &cells[i]
		if !c.Runs() {
			continue
		}
		pod := c.From.Name
		switch c.From.Kind {
		case KindNode:
			pod = hosts[c.From.Node]
		case KindOutside:
			pod = here
		}
		plan := plans[pod]
		if plan == nil {
			plan = &ProbePlan{
				Token: r.token.String(), Timeout: r.opts.CellTimeout, Retries: r.opts.Retries,
				Concurrency: concurrency, WaitLimit: waitServices,
			}
			plans[pod] = plan
		}
		if at := netip.AddrPortFrom(c.Addr, c.Port); c.Path == Hairpin && !slices.Contains(plan.Wait, at) {
			plan.Wait = append(plan.Wait, at) // until kube-proxy knows the Service
		}
		plan.Cells = append(plan.Cells, *c)
	}
	return plans
}

// exec runs `weft connectivity probe` in the pod, hands on its results as they
// come and returns which cells have one.
func (r *runner) exec(ctx context.Context, pod string, plan *ProbePlan, take func(Result)) (map[int]bool, error) {
	in, err := json.Marshal(plan)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := stallLimit(plan)
	stalled := time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("nothing came back for %s: the API server may not reach its node", limit))
	})
	defer stalled.Stop()
	out, w := io.Pipe()
	var stderr limitedBuffer
	ended := make(chan error, 1)
	go func() {
		err := r.api.Exec(ctx, pod, []string{"/usr/bin/weft", "connectivity", "probe"}, bytes.NewReader(in), w, &stderr)
		_ = w.CloseWithError(io.EOF)
		ended <- err
	}()
	done := map[int]bool{}
	dec := json.NewDecoder(out)
	var derr error
	for {
		var res Result
		if derr = dec.Decode(&res); derr != nil {
			break
		}
		stalled.Reset(limit)
		done[res.ID] = true
		take(res)
	}
	_ = out.CloseWithError(io.ErrClosedPipe) // the far side must not block on a reader that gave up
	err = <-ended
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if msg := strings.TrimSpace(stderr.String()); err != nil && msg != "" {
		err = errors.New(msg)
	}
	if err == nil && !errors.Is(derr, io.EOF) {
		err = fmt.Errorf("results: %w", derr)
	}
	return done, err
}

// stallLimit is how long a probe may be silent. Whatever is broken, each cell
// ends with its timeout; a probe that says nothing for longer cannot be heard.
func stallLimit(plan *ProbePlan) time.Duration {
	const slack = 15 * time.Second // for exec itself
	retries := plan.Retries
	for i := range plan.Cells {
		retries = max(retries, plan.Cells[i].retries(plan))
	}
	limit := time.Duration(retries+1)*plan.Timeout + slack
	if len(plan.Wait) > 0 {
		limit += plan.WaitLimit
	}
	return limit
}

// limitedBuffer keeps the first 4 KiB.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := 4096 - b.Len(); room > 0 {
		_, _ = b.Buffer.Write(p[:min(room, len(p))]) // never fails
	}
	return len(p), nil
}
