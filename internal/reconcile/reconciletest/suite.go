// SPDX-License-Identifier: Apache-2.0

// Package reconciletest is the suite that every target of a reconcile.Loop must
// pass, the fake in memory as well as the real one in the kernel.
package reconciletest

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/reconcile"
)

// Harness is one target under test. Dump shows what it holds as key → value in
// any stable text form; Row makes the desired row of a key, and versions of one
// key must differ in Dump.
type Harness[Obj any] struct {
	DB     *statedb.DB
	Table  statedb.RWTable[Obj]
	Target reconcile.Target[Obj]
	Row    func(key, version int) Obj
	Dump   func(t *testing.T) map[string]string
	// Text is the pair that Dump shows for a row.
	Text func(Obj) (key, value string)
}

// Run puts a new harness through each case.
func Run[Obj any](t *testing.T, fresh func(t *testing.T) Harness[Obj]) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *bench[Obj])
	}{
		{"rows are written, changed and deleted", follow[Obj]},
		{"nothing is pruned before the table is initialised", noEarlyPrune[Obj]},
		{"what nobody wants is pruned", prunes[Obj]},
		{"a failed prune is retried", retriesPrune[Obj]},
		{"a failing row does not hold up others", isolates[Obj]},
		{"a delete that failed is retried", retriesDelete[Obj]},
		{"resync repairs the target", resyncs[Obj]},
		{"update receives what was written last", remembers[Obj]},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := fresh(t)
			b := &bench[Obj]{Harness: h, faulty: &faulty[Obj]{Target: h.Target}}
			c.run(t, b)
		})
	}
}

type bench[Obj any] struct {
	Harness[Obj]
	faulty *faulty[Obj]
}

// faulty fails calls on demand and notes what Update was told.
type faulty[Obj any] struct {
	reconcile.Target[Obj]
	failUpdate func(Obj) bool
	deletes    atomic.Int32 // calls of Delete that are to fail
	prunes     atomic.Int32
	lasts      chan string
	text       func(Obj) (string, string)
}

var errInjected = errors.New("injected")

func (f *faulty[Obj]) Update(ctx context.Context, obj, last Obj, had bool) error {
	if f.failUpdate != nil && f.failUpdate(obj) {
		return errInjected
	}
	if f.lasts != nil {
		v := "nothing"
		if had {
			_, v = f.text(last)
		}
		f.lasts <- v
	}
	return f.Target.Update(ctx, obj, last, had)
}

func (f *faulty[Obj]) Delete(ctx context.Context, last Obj) error {
	if f.deletes.Add(-1) >= 0 {
		return errInjected
	}
	return f.Target.Delete(ctx, last)
}

func (f *faulty[Obj]) Prune(ctx context.Context, desired []Obj) error {
	if f.prunes.Add(-1) >= 0 {
		return errInjected
	}
	return f.Target.Prune(ctx, desired)
}

func (b *bench[Obj]) start(t *testing.T) *reconcile.Loop[Obj] {
	t.Helper()
	l, err := reconcile.New(reconcile.Config[Obj]{
		Name: "test", DB: b.DB, Table: b.Table, Target: b.faulty,
		Log:     slog.New(slog.DiscardHandler),
		Backoff: reconcile.Backoff{Min: time.Millisecond, Max: 5 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return l
}

func (b *bench[Obj]) insert(t *testing.T, rows ...Obj) {
	t.Helper()
	txn := b.DB.WriteTxn(b.Table)
	defer txn.Commit()
	for _, r := range rows {
		if _, _, err := b.Table.Insert(txn, r); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *bench[Obj]) remove(t *testing.T, rows ...Obj) {
	t.Helper()
	txn := b.DB.WriteTxn(b.Table)
	defer txn.Commit()
	for _, r := range rows {
		if _, _, err := b.Table.Delete(txn, r); err != nil {
			t.Fatal(err)
		}
	}
}

// pending keeps the table from being initialised until the returned func runs.
func (b *bench[Obj]) pending(t *testing.T) func() {
	t.Helper()
	txn := b.DB.WriteTxn(b.Table)
	done := b.Table.RegisterInitializer(txn, "test")
	txn.Commit()
	return func() {
		txn := b.DB.WriteTxn(b.Table)
		done(txn)
		txn.Commit()
	}
}

// seed puts a row into the target behind the loop's back.
func (b *bench[Obj]) seed(t *testing.T, row Obj) {
	t.Helper()
	var none Obj
	if err := b.Target.Update(t.Context(), row, none, false); err != nil {
		t.Fatal(err)
	}
}

// holds waits until the target holds exactly the rows.
func (b *bench[Obj]) holds(t *testing.T, rows ...Obj) {
	t.Helper()
	want := map[string]string{}
	for _, r := range rows {
		k, v := b.Text(r)
		want[k] = v
	}
	eventually(t, func() (bool, any, any) {
		got := b.Dump(t)
		return maps.Equal(got, want), got, want
	})
}

func eventually(t *testing.T, cond func() (ok bool, got, want any)) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		ok, got, want := cond()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %v, want %v", got, want)
		}
		<-tick.C
	}
}

func follow[Obj any](t *testing.T, b *bench[Obj]) {
	b.insert(t, b.Row(1, 1)) // exists before the loop does
	b.start(t)
	b.insert(t, b.Row(2, 1))
	b.holds(t, b.Row(1, 1), b.Row(2, 1))
	b.insert(t, b.Row(2, 2))
	b.remove(t, b.Row(1, 1))
	b.holds(t, b.Row(2, 2))
}

func noEarlyPrune[Obj any](t *testing.T, b *bench[Obj]) {
	initialise := b.pending(t)
	b.seed(t, b.Row(9, 1))
	l := b.start(t)
	b.insert(t, b.Row(1, 1))
	b.holds(t, b.Row(1, 1), b.Row(9, 1))
	select {
	case <-l.Synced():
		t.Error("synced before the table is initialised")
	default:
	}
	initialise()
	b.holds(t, b.Row(1, 1))
	<-l.Synced()
	if s := l.Status(); s.Prunes != 1 || !s.Pruned {
		t.Errorf("status %+v, want one prune", s)
	}
}

func prunes[Obj any](t *testing.T, b *bench[Obj]) {
	b.seed(t, b.Row(8, 1))
	b.seed(t, b.Row(1, 1))
	b.insert(t, b.Row(1, 2))
	b.start(t)
	b.holds(t, b.Row(1, 2))
}

func retriesPrune[Obj any](t *testing.T, b *bench[Obj]) {
	b.faulty.prunes.Store(3)
	b.seed(t, b.Row(8, 1))
	l := b.start(t)
	b.holds(t)
	<-l.Synced()
	if s := l.Status(); s.Errors != 3 || s.LastError != "" {
		t.Errorf("status %+v, want three errors, none of them current", s)
	}
}

func isolates[Obj any](t *testing.T, b *bench[Obj]) {
	bad, _ := b.Text(b.Row(1, 1))
	var heal atomic.Bool
	b.faulty.failUpdate = func(o Obj) bool {
		k, _ := b.Text(o)
		return k == bad && !heal.Load()
	}
	b.insert(t, b.Row(1, 1), b.Row(2, 1))
	l := b.start(t)
	b.insert(t, b.Row(3, 1))
	b.holds(t, b.Row(2, 1), b.Row(3, 1))
	eventually(t, func() (bool, any, any) {
		s := l.Status()
		return s.Failing == 1 && s.LastError == errInjected.Error(), s, "one failing row"
	})
	heal.Store(true)
	b.holds(t, b.Row(1, 1), b.Row(2, 1), b.Row(3, 1))
}

func retriesDelete[Obj any](t *testing.T, b *bench[Obj]) {
	b.insert(t, b.Row(1, 1))
	b.start(t)
	b.holds(t, b.Row(1, 1))
	b.faulty.deletes.Store(2)
	b.remove(t, b.Row(1, 1))
	b.holds(t)
}

func resyncs[Obj any](t *testing.T, b *bench[Obj]) {
	b.insert(t, b.Row(1, 1))
	l := b.start(t)
	b.holds(t, b.Row(1, 1))
	<-l.Synced()
	if err := b.Target.Delete(t.Context(), b.Row(1, 1)); err != nil {
		t.Fatal(err)
	}
	b.seed(t, b.Row(7, 1))
	l.Resync()
	b.holds(t, b.Row(1, 1))
}

func remembers[Obj any](t *testing.T, b *bench[Obj]) {
	b.faulty.lasts, b.faulty.text = make(chan string, 10), b.Text
	b.start(t)
	for v := 1; v <= 3; v++ {
		b.insert(t, b.Row(1, v))
		want := "nothing"
		if v > 1 {
			_, want = b.Text(b.Row(1, v-1))
		}
		if got := <-b.faulty.lasts; got != want {
			t.Errorf("version %d: update was told %q, want %q", v, got, want)
		}
	}
}
