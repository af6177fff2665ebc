// SPDX-License-Identifier: Apache-2.0

// Package reconcile carries the rows of a table to where they take effect: a
// BPF map, the routing table, the API server. One Loop serves one table and one
// target. It writes changed rows, deletes removed ones, and prunes what nobody
// wants once the whole of the desired state is known; each failure is retried by
// itself with exponential backoff while everything else goes on.
//
// Why this is not statedb's own reconciler stands in
// docs/decisions/0003-own-reconciler.md.
package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cilium/statedb"
)

// Target is where rows take effect. Its methods are called from one goroutine
// and must be idempotent: a failed call may have done half of its work.
type Target[Obj any] interface {
	// Update writes obj. last is what was last written under the same key, and
	// had tells whether there was anything: a row that moves (another device,
	// another owner) is taken back from its old place by this call.
	Update(ctx context.Context, obj, last Obj, had bool) error
	// Delete removes what was last written; nothing there is no error.
	Delete(ctx context.Context, last Obj) error
	// Prune removes from the target all that is in none of the desired rows.
	Prune(ctx context.Context, desired []Obj) error
}

// Config of a Loop.
type Config[Obj any] struct {
	Name   string // in logs, metrics and the status
	DB     *statedb.DB
	Table  statedb.Table[Obj]
	Target Target[Obj]
	Log    *slog.Logger
	// Backoff bounds the delay of retries; zero means 100 ms to 30 s.
	Backoff Backoff
	// PruneInterval repeats the prune; zero prunes once, and after Resync.
	PruneInterval time.Duration
	Latency       Latency
}

// Latency is how long rows are on their way. The zero value does not measure.
type Latency struct {
	// Arrived returns when what led to a row's change arrived; zero where that is
	// not known, and the change is then left out.
	Arrived func(statedb.Revision) time.Time
	// Taken is told that all changes up to a revision have been asked for.
	Taken func(statedb.Revision)
	// Observe is told the time from the arrival until the target had the row. A row
	// that failed, or changed again meanwhile, counts from its first arrival.
	Observe func(time.Duration)
}

// Backoff is the first and the longest delay of a retry.
type Backoff struct {
	Min, Max time.Duration
}

// delay grows by powers of two from Min to Max, less up to a quarter so that
// many agents, or many rows, that failed together do not return together.
func (b Backoff) delay(failures int) time.Duration {
	d := b.Max
	if failures < 30 {
		d = min(b.Min<<(failures-1), b.Max)
	}
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}

// Status is an account of a Loop.
type Status struct {
	Name      string
	Objects   int    // rows the loop answers for
	Failing   int    // rows whose last attempt failed
	Pruned    bool   // the last prune that was due went well
	LastError string // of a row or prune that is failing now
	Updates   uint64 // successful calls since the start, and failed ones
	Deletes   uint64
	Prunes    uint64
	Errors    uint64
	Retries   uint64    // attempts at rows and prunes that had failed
	PrunedAt  time.Time // when the last prune went well
}

// Loop keeps one target equal to one table.
type Loop[Obj any] struct {
	cfg     Config[Obj]
	changes statedb.ChangeIterator[Obj]
	resync  chan struct{}
	synced  chan struct{}

	rows    map[string]*row[Obj]
	due     map[string]struct{} // keys to write now
	retry   map[string]struct{} // keys that wait for their time
	pruneAt time.Time           // zero: not planned
	pruneN  int                 // failures in a row
	pruneE  error

	mu     sync.Mutex
	status Status
}

type row[Obj any] struct {
	want     Obj
	deleted  bool
	revision statedb.Revision
	last     Obj
	had      bool
	failures int
	next     time.Time
	err      error
	arrived  time.Time // of what is not written yet; zero: not known
}

// New returns a loop that has seen nothing yet; rows that exist already count as
// changes. Run does the work.
func New[Obj any](cfg Config[Obj]) (*Loop[Obj], error) {
	if cfg.Backoff.Min <= 0 {
		cfg.Backoff.Min = 100 * time.Millisecond
	}
	if cfg.Backoff.Max < cfg.Backoff.Min {
		cfg.Backoff.Max = max(30*time.Second, cfg.Backoff.Min)
	}
	txn := cfg.DB.WriteTxn(cfg.Table)
	defer txn.Abort()
	changes, err := cfg.Table.Changes(txn)
	if err != nil {
		return nil, fmt.Errorf("reconciler %s: %w", cfg.Name, err)
	}
	txn.Commit()
	return &Loop[Obj]{
		cfg: cfg, changes: changes,
		resync: make(chan struct{}, 1), synced: make(chan struct{}),
		rows: map[string]*row[Obj]{}, due: map[string]struct{}{}, retry: map[string]struct{}{},
		status: Status{Name: cfg.Name},
	}, nil
}

// Resync writes every row again and prunes, as after a doubt about the target.
func (l *Loop[Obj]) Resync() {
	select {
	case l.resync <- struct{}{}:
	default:
	}
}

// Synced is closed once the table was initialised, every row was written and
// the first prune went well.
func (l *Loop[Obj]) Synced() <-chan struct{} { return l.synced }

// Status returns the loop's account of itself.
func (l *Loop[Obj]) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Run works until ctx ends and returns nil then. What was written stays.
func (l *Loop[Obj]) Run(ctx context.Context) error {
	defer l.changes.Close()
	l.pruneAt = time.Now()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		txn := l.cfg.DB.ReadTxn()
		watch := l.take(txn)
		initialised, initWatch := l.cfg.Table.Initialized(txn)
		if initialised {
			initWatch = nil // closed from now on
		}
		l.write(ctx)
		if initialised {
			l.prune(ctx)
		}
		l.publish(initialised)
		timer.Reset(l.sleep(initialised))
		select {
		case <-ctx.Done():
			return nil
		case <-watch:
		case <-initWatch:
		case <-timer.C:
		case <-l.resync:
			for key := range l.rows {
				l.due[key] = struct{}{}
			}
			l.pruneAt = time.Now()
		}
	}
}

// take notes the changes up to txn and returns the channel that announces more.
func (l *Loop[Obj]) take(txn statedb.ReadTxn) <-chan struct{} {
	seq, watch := l.changes.Next(txn)
	for change, rev := range seq {
		key := string(l.cfg.Table.PrimaryIndexer().ObjectToKey(change.Object))
		r := l.rows[key]
		if r == nil {
			r = &row[Obj]{}
			l.rows[key] = r
		}
		r.want, r.deleted, r.revision, r.failures = change.Object, change.Deleted, rev, 0
		l.due[key] = struct{}{}
		delete(l.retry, key)
		if l.cfg.Latency.Arrived != nil && r.arrived.IsZero() {
			r.arrived = l.cfg.Latency.Arrived(rev)
		}
	}
	if l.cfg.Latency.Taken != nil {
		l.cfg.Latency.Taken(l.cfg.Table.Revision(txn))
	}
	return watch
}

// write attempts every row that is due, in the order in which they changed.
func (l *Loop[Obj]) write(ctx context.Context) {
	now := time.Now()
	for key := range l.retry {
		if !l.rows[key].next.After(now) {
			l.due[key] = struct{}{}
			delete(l.retry, key)
		}
	}
	if len(l.due) == 0 {
		return
	}
	keys := make([]string, 0, len(l.due))
	for key := range l.due {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Compare(l.rows[a].revision, l.rows[b].revision) })
	for _, key := range keys {
		if ctx.Err() != nil {
			return
		}
		delete(l.due, key)
		l.attempt(ctx, key)
	}
}

func (l *Loop[Obj]) attempt(ctx context.Context, key string) {
	r := l.rows[key]
	delete(l.retry, key) // a resync may come before its time
	if r.failures > 0 {
		l.count(func(s *Status) { s.Retries++ })
	}
	if r.deleted {
		last := r.want
		if r.had {
			last = r.last
		}
		r.err = l.cfg.Target.Delete(ctx, last)
	} else {
		r.err = l.cfg.Target.Update(ctx, r.want, r.last, r.had)
	}
	if r.err != nil {
		r.failures++
		r.next = time.Now().Add(l.cfg.Backoff.delay(r.failures))
		l.retry[key] = struct{}{}
		l.count(func(s *Status) { s.Errors++ })
		// Told at the first failure and then ever more rarely: 1, 2, 4, 8, ...
		if r.failures&(r.failures-1) == 0 && !errors.Is(r.err, context.Canceled) {
			l.cfg.Log.Warn("a row cannot be written", "reconciler", l.cfg.Name, "delete", r.deleted,
				"row", fmt.Sprint(any(r.want)), "failures", r.failures, "error", r.err)
		}
		return
	}
	if r.failures > 0 {
		l.cfg.Log.Info("a row is written after failures", "reconciler", l.cfg.Name, "failures", r.failures)
	}
	r.failures = 0
	if !r.arrived.IsZero() && l.cfg.Latency.Observe != nil {
		l.cfg.Latency.Observe(time.Since(r.arrived))
	}
	r.arrived = time.Time{}
	if r.deleted {
		delete(l.rows, key)
		l.count(func(s *Status) { s.Deletes++ })
		return
	}
	r.last, r.had = r.want, true
	l.count(func(s *Status) { s.Updates++ })
}

// prune hands the target the rows that the loop has taken, which is the whole of
// the table: it is called only once the table is initialised.
func (l *Loop[Obj]) prune(ctx context.Context) {
	if l.pruneAt.IsZero() || time.Now().Before(l.pruneAt) || ctx.Err() != nil {
		return
	}
	desired := make([]Obj, 0, len(l.rows))
	for _, r := range l.rows {
		if !r.deleted {
			desired = append(desired, r.want)
		}
	}
	if l.pruneN > 0 {
		l.count(func(s *Status) { s.Retries++ })
	}
	l.pruneE = l.cfg.Target.Prune(ctx, desired)
	if l.pruneE != nil {
		l.pruneN++
		l.pruneAt = time.Now().Add(l.cfg.Backoff.delay(l.pruneN))
		l.count(func(s *Status) { s.Errors++ })
		if l.pruneN&(l.pruneN-1) == 0 && !errors.Is(l.pruneE, context.Canceled) {
			l.cfg.Log.Warn("stale entries cannot be removed", "reconciler", l.cfg.Name, "failures", l.pruneN, "error", l.pruneE)
		}
		return
	}
	l.pruneN, l.pruneAt = 0, time.Time{}
	if l.cfg.PruneInterval > 0 {
		l.pruneAt = time.Now().Add(l.cfg.PruneInterval)
	}
	l.count(func(s *Status) { s.Prunes++; s.PrunedAt = time.Now() })
}

// sleep returns how long nothing is due.
func (l *Loop[Obj]) sleep(initialised bool) time.Duration {
	d := time.Hour
	for key := range l.retry {
		d = min(d, time.Until(l.rows[key].next))
	}
	if initialised && !l.pruneAt.IsZero() {
		d = min(d, time.Until(l.pruneAt))
	}
	return max(d, 0)
}

func (l *Loop[Obj]) count(f func(*Status)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.status)
}

// publish brings the status up to date and closes synced when its time has come.
func (l *Loop[Obj]) publish(initialised bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.status
	s.Objects, s.Failing, s.LastError = len(l.rows), len(l.retry), ""
	s.Pruned = s.Prunes > 0 && l.pruneE == nil
	for key := range l.retry {
		s.LastError = l.rows[key].err.Error()
		break
	}
	if l.pruneE != nil {
		s.LastError = l.pruneE.Error()
	}
	if initialised && s.Pruned && s.Failing == 0 && len(l.due) == 0 {
		select {
		case <-l.synced:
		default:
			close(l.synced)
		}
	}
}
