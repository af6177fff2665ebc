// SPDX-License-Identifier: Apache-2.0

package reconcile_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/statedb"
	"go.uber.org/goleak"

	"github.com/weft-net/weft/internal/reconcile"
	"github.com/weft-net/weft/internal/reconcile/reconciletest"
	"github.com/weft-net/weft/internal/table"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a target in memory: prefix → owner.
type fake struct {
	mu   sync.Mutex
	held map[netip.Prefix]string
	fail error
	at   []time.Time // of each Update
}

func (f *fake) Update(_ context.Context, obj, _ *table.IPCache, _ bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = append(f.at, time.Now())
	if f.fail != nil {
		return f.fail
	}
	f.held[obj.Prefix] = obj.Owner
	return nil
}

func (f *fake) Delete(_ context.Context, last *table.IPCache) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.held, last.Prefix)
	return nil
}

func (f *fake) Prune(_ context.Context, desired []*table.IPCache) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := map[netip.Prefix]bool{}
	for _, d := range desired {
		keep[d.Prefix] = true
	}
	maps.DeleteFunc(f.held, func(p netip.Prefix, _ string) bool { return !keep[p] })
	return nil
}

func row(key, version int) *table.IPCache {
	return &table.IPCache{
		Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(key)}), 32),
		Owner:  "v" + string(rune('0'+version)),
	}
}

func newTable(t *testing.T) (*statedb.DB, statedb.RWTable[*table.IPCache]) {
	db := statedb.New()
	tbl, err := table.NewIPCache(db)
	if err != nil {
		t.Fatal(err)
	}
	return db, tbl
}

// The faults that the suite guards against stand at each of its cases.
func TestSuiteOverFake(t *testing.T) {
	reconciletest.Run(t, func(t *testing.T) reconciletest.Harness[*table.IPCache] {
		db, tbl := newTable(t)
		f := &fake{held: map[netip.Prefix]string{}}
		return reconciletest.Harness[*table.IPCache]{
			DB: db, Table: tbl, Target: f, Row: row,
			Text: func(r *table.IPCache) (string, string) { return r.Prefix.String(), r.Owner },
			Dump: func(*testing.T) map[string]string {
				f.mu.Lock()
				defer f.mu.Unlock()
				out := map[string]string{}
				for p, o := range f.held {
					out[p.String()] = o
				}
				return out
			},
		}
	})
}

// Guards against a retry storm, and against a retry that never comes: in ten
// minutes of failure the delays double up to the bound and stay there, and a
// change of the row starts anew at once.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, tbl := newTable(t)
		f := &fake{held: map[netip.Prefix]string{}, fail: errors.New("no")}
		l, err := reconcile.New(reconcile.Config[*table.IPCache]{
			Name: "test", DB: db, Table: tbl, Target: f, Log: slog.New(slog.DiscardHandler),
			Backoff: reconcile.Backoff{Min: time.Second, Max: time.Minute},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = l.Run(ctx) }()
		insert := func(r *table.IPCache) {
			txn := db.WriteTxn(tbl)
			if _, _, err := tbl.Insert(txn, r); err != nil {
				t.Error(err)
			}
			txn.Commit()
		}
		insert(row(1, 1))
		time.Sleep(10 * time.Minute) // of the test's own clock
		synctest.Wait()
		n := len(f.at)
		for i := 1; i < n; i++ {
			want := min(time.Second<<(i-1), time.Minute)
			if d := f.at[i].Sub(f.at[i-1]); d > want || d < want*3/4-time.Millisecond {
				t.Errorf("delay %d is %v, want up to %v and at least three quarters of it", i, d, want)
			}
		}
		if n < 14 || n > 22 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		insert(row(1, 2))
		synctest.Wait()
		if len(f.at) != n+1 {
			t.Errorf("a changed row was not tried at once")
		}
		cancel()
		<-done
	})
}

// Guards against a row that a resync writes before its retry is due, and that the
// loop goes on to call failing, or trips over.
func TestResyncEndsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, tbl := newTable(t)
		f := &fake{held: map[netip.Prefix]string{}, fail: errors.New("no")}
		l, err := reconcile.New(reconcile.Config[*table.IPCache]{
			Name: "test", DB: db, Table: tbl, Target: f, Log: slog.New(slog.DiscardHandler),
			Backoff: reconcile.Backoff{Min: time.Minute, Max: time.Minute},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = l.Run(ctx) }()
		txn := db.WriteTxn(tbl)
		if _, _, err := tbl.Insert(txn, row(1, 1)); err != nil {
			t.Error(err)
		}
		txn.Commit()
		synctest.Wait()
		if s := l.Status(); s.Failing != 1 || s.LastError != "no" {
			t.Errorf("while it fails: %+v", s)
		}
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		l.Resync()
		synctest.Wait()
		if s := l.Status(); s.Failing != 0 || s.LastError != "" {
			t.Errorf("after it went well: %+v", s)
		}
		cancel()
		<-done
	})
}
