// SPDX-License-Identifier: Apache-2.0

package reconcile_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/arrival"
	"github.com/weft-net/weft/internal/reconcile"
	"github.com/weft-net/weft/internal/table"
)

// Guards against a latency that leaves out the time in which a row failed or was
// overtaken by the next change, that counts what no event is behind, or that
// counts a row twice; and against retries and full rounds that nobody counts.
func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, tbl := newTable(t)
		f := &fake{held: map[netip.Prefix]string{}}
		var log arrival.Log
		var got []time.Duration
		l, err := reconcile.New(reconcile.Config[*table.IPCache]{
			Name: "test", DB: db, Table: tbl, Target: f, Log: slog.New(slog.DiscardHandler),
			Backoff: reconcile.Backoff{Min: 10 * time.Second, Max: 10 * time.Second},
			Latency: reconcile.Latency{
				Arrived: log.At, Taken: log.Forget,
				Observe: func(d time.Duration) { got = append(got, d) },
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = l.Run(ctx) }()
		write := func(arrived time.Time, f func(statedb.WriteTxn) error) {
			txn := db.WriteTxn(tbl)
			if err := f(txn); err != nil {
				t.Error(err)
			}
			log.Note(tbl.Revision(txn), arrived)
			txn.Commit()
			synctest.Wait()
		}
		insert := func(r *table.IPCache) func(statedb.WriteTxn) error {
			return func(txn statedb.WriteTxn) error { _, _, err := tbl.Insert(txn, r); return err }
		}
		expect := func(what string, want ...time.Duration) {
			t.Helper()
			if !slices.Equal(got, want) {
				t.Errorf("%s: observed %v, want %v", what, got, want)
			}
			got = nil
		}
		write(time.Now().Add(-3*time.Second), insert(row(1, 1)))
		expect("written at once", 3*time.Second)
		write(time.Time{}, insert(row(2, 1)))
		expect("no event")
		write(time.Now().Add(-time.Second), func(txn statedb.WriteTxn) error { _, _, err := tbl.Delete(txn, row(1, 1)); return err })
		expect("deleted", time.Second)

		f.mu.Lock()
		f.fail = errors.New("no")
		f.mu.Unlock()
		write(time.Now(), insert(row(1, 2)))
		time.Sleep(4 * time.Second) // of the test's own clock
		write(time.Now(), insert(row(1, 3)))
		if s := l.Status(); s.Retries != 0 || s.Errors != 2 {
			t.Errorf("two first attempts: %+v", s)
		}
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		expect("while it fails")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(got) != 1 || got[0] < 11500*time.Millisecond || got[0] > 14*time.Second {
			t.Errorf("failed, changed, retried: observed %v, want one of 4 s and a delay of 7.5 to 10 s", got)
		}
		got = nil
		if s := l.Status(); s.Retries != 1 {
			t.Errorf("one retry: %+v", s)
		}
		time.Sleep(time.Second)
		l.Resync()
		synctest.Wait()
		expect("a resync")
		if s := l.Status(); !s.PrunedAt.Equal(time.Now()) {
			t.Errorf("the last full round was just now, not %s", s.PrunedAt)
		}
		if !log.At(1).IsZero() {
			t.Error("what was taken is still noted")
		}
		cancel()
		<-done
	})
}
