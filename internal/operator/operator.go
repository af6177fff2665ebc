// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/transport"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/operator/kube"
)

// Options are what the command line and the pod say.
type Options struct {
	ConfigDir      string
	CredentialsDir string
	Namespace      string // of the Lease
	Identity       string // of this process, unique: the pod's name
	Version        string
	Log            *slog.Logger
	Level          *slog.LevelVar
	Terms          kube.Terms
	// Wrap is put around the transport to the API server, nil for none.
	Wrap transport.WrapperFunc
}

// Times of the leader's loop.
const (
	gather    = 200 * time.Millisecond // what changes together is looked at together
	lookAgain = 30 * time.Second       // for what is not watched: reserved and service ranges
	firstWait = 500 * time.Millisecond // after a round that failed; doubles
	longWait  = 15 * time.Second
)

// operator is one process.
type operator struct {
	opts     Options
	settings *settings
	client   *kube.Client
	cache    *kube.Cache
	elector  *kube.Elector
	report   *reporter
	stats    *stats
	now      func() time.Time
	// beforeWrite is the allocator's.
	beforeWrite func(context.Context)

	mu      sync.Mutex
	problem error // why the last round came to nothing
}

// Run works until ctx ends. Settings that are wrong do not end it: it stays
// unready, says why, and reads them again.
func Run(ctx context.Context, opts Options) error {
	o, err := newOperator(opts)
	if err != nil {
		return err
	}
	return o.run(ctx)
}

func newOperator(opts Options) (*operator, error) {
	o := &operator{opts: opts, settings: newSettings(opts.ConfigDir, opts.Log), now: time.Now}
	cfg := o.start()
	var err error
	if o.client, err = kube.NewClient(kube.Config{
		Server: cfg.K8sAPIServer, CredentialsDir: opts.CredentialsDir, UserAgent: "weft-operator/" + opts.Version, Log: opts.Log, Wrap: opts.Wrap,
	}); err != nil {
		return nil, err
	}
	o.cache = kube.NewCache(o.client)
	o.elector = &kube.Elector{Client: o.client, Namespace: opts.Namespace, Identity: opts.Identity, Terms: opts.Terms, Log: opts.Log}
	o.report = newReporter(opts.Log, o.client, opts.Namespace)
	o.stats, err = newStats(opts.Version, o.elector.Leads, func() bool { _, err := o.settings.get(); return err == nil })
	return o, err
}

// start returns the settings to start with: where there are none that hold, the
// ports at least are the usual ones.
func (o *operator) start() *config.Operator {
	cfg, _ := o.settings.get()
	if cfg == nil {
		cfg = config.DefaultOperator()
	}
	if cfg.Debug && o.opts.Level != nil {
		o.opts.Level.Set(slog.LevelDebug)
	}
	return cfg
}

func (o *operator) run(ctx context.Context) error {
	defer o.client.Close()
	service := o.start().Service
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return serve(ctx, o.opts.Log, "operator-health-port", service.HealthPort, healthHandler(o.ready))
	})
	if service.PrometheusPort != 0 {
		g.Go(func() error {
			return serve(ctx, o.opts.Log, "operator-prometheus-port", service.PrometheusPort, metricsHandler(o.stats.registry))
		})
	}
	g.Go(func() error { return o.settings.run(ctx) })
	g.Go(func() error { return o.report.run(ctx) })
	g.Go(func() error { return o.cache.Run(ctx) })
	g.Go(func() error { return o.elector.Run(ctx, o.lead) })
	return g.Wait()
}

// ready says what keeps the operator from its work, nil if nothing does. One that
// stands by is ready when it could take over.
func (o *operator) ready() error {
	if _, err := o.settings.get(); err != nil {
		return err
	}
	if w := o.cache.Waiting(); w != "" {
		return fmt.Errorf("%s: waiting for %s", o.client.Server(), w)
	}
	if !o.elector.Leads() {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.problem
}

func (o *operator) note(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil && (o.problem == nil || o.problem.Error() != err.Error()) {
		o.opts.Log.Error("nothing can be done", "error", err)
	}
	o.problem = err
}

// lead works until ctx, which ends with the lead.
func (o *operator) lead(ctx context.Context) error {
	defer o.stats.forget()
	w := &worker{
		operator: o,
		collect:  &collector{client: o.client, report: o.report, stats: o.stats, now: o.now, since: map[string]time.Time{}},
		allocate: &allocator{
			client: o.client, cache: o.cache, report: o.report, stats: o.stats, now: o.now, beforeWrite: o.beforeWrite, told: map[string]time.Time{},
		},
	}
	wait := firstWait
	for {
		next, err := w.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			next, wait = wait, min(2*wait, longWait)
		} else {
			wait = firstWait
		}
		if !o.idle(ctx, next, err != nil) {
			return nil
		}
	}
}

// idle waits for something to do, for as long as given at most. After a failure
// it waits out that time whatever happens.
func (o *operator) idle(ctx context.Context, most time.Duration, failed bool) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	changed, settings := o.cache.Changed(), o.settings.changed
	if failed {
		changed, settings = nil, nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	case <-changed:
	case <-settings:
	}
	timer.Reset(gather)
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// worker is what a leader remembers from round to round.
type worker struct {
	*operator

	collect  *collector
	allocate *allocator
}

// round looks at everything once and says when to look again at the latest.
func (w *worker) round(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	next, err := w.work(ctx)
	w.stats.round(time.Since(start), err)
	if err != nil {
		w.note(errors.New(kube.Explain(err)))
	}
	return next, err
}

func (w *worker) work(ctx context.Context) (time.Duration, error) {
	cfg, _ := w.settings.get()
	if cfg == nil {
		return lookAgain, nil // ready says why
	}
	if s := w.cache.Waiting(); s != "" {
		return lookAgain, nil // ready says for what, and the cache when it is over
	}
	due, err := w.collect.round(ctx, w.cache.Snapshot(), cfg.Service.NodesGC)
	if err != nil {
		return 0, err
	}
	var out outcome
	switch cfg.IPAM {
	case config.IPAMClusterPool:
		out, err = w.allocate.round(ctx, cfg)
	case config.IPAMMultiPool:
		out, err = w.allocate.pools(ctx, cfg)
	default:
		w.note(nil)
		return w.until(due), nil
	}
	if err != nil {
		return 0, err
	}
	var problem error
	if out.problem != "" {
		problem = errors.New(out.problem)
	}
	w.note(problem)
	if out.retry {
		return gather, nil
	}
	return w.until(due, out.again), nil
}

// until is how long to wait for the first of some times, at most lookAgain and at
// least a moment: a quarantine that is over may still wait for an agent.
func (w *worker) until(times ...time.Time) time.Duration {
	wait := lookAgain
	for _, t := range times {
		if !t.IsZero() {
			wait = min(wait, max(t.Sub(w.now()), time.Second))
		}
	}
	return wait
}
