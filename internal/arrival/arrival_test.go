// SPDX-License-Identifier: Apache-2.0

package arrival_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/arrival"
	"github.com/weft-net/weft/internal/table"
)

func at(second int) time.Time { return time.Unix(int64(second), 0) }

// Guards against a change that is counted from another event's arrival: rows of
// one transaction, of the next, deletions, and rows that no event is behind.
func TestArrivalsOfChanges(t *testing.T) {
	db := statedb.New()
	routes, err := table.NewRoutes(db)
	if err != nil {
		t.Fatal(err)
	}
	txn := db.WriteTxn(routes)
	changes, err := routes.Changes(txn)
	if err != nil {
		t.Fatal(err)
	}
	txn.Commit()
	var log arrival.Log
	row := func(n byte) *table.Route {
		return &table.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 0}), 24)}
	}
	write := func(arrived time.Time, f func(statedb.WriteTxn)) {
		txn := db.WriteTxn(routes)
		f(txn)
		log.Note(routes.Revision(txn), arrived)
		txn.Commit()
	}
	insert := func(ns ...byte) func(statedb.WriteTxn) {
		return func(txn statedb.WriteTxn) {
			for _, n := range ns {
				if _, _, err := routes.Insert(txn, row(n)); err != nil {
					t.Error(err)
				}
			}
		}
	}
	write(at(1), insert(1, 2))
	write(at(2), insert(3))
	write(at(3), func(statedb.WriteTxn) {}) // an event that changed nothing
	write(time.Time{}, insert(4))
	write(at(5), func(txn statedb.WriteTxn) {
		if _, _, err := routes.Delete(txn, row(1)); err != nil {
			t.Error(err)
		}
	})
	want := map[string]time.Time{
		"10.0.1.0/24": at(5), "10.0.2.0/24": at(1), "10.0.3.0/24": at(2), "10.0.4.0/24": {},
	}
	rtxn := db.ReadTxn()
	seq, _ := changes.Next(rtxn)
	seen := 0
	for c, rev := range seq {
		seen++
		if got := log.At(rev); !got.Equal(want[c.Object.Prefix.String()]) {
			t.Errorf("%s (deleted %t): %s, want %s", c.Object.Prefix, c.Deleted, got, want[c.Object.Prefix.String()])
		}
	}
	if seen != 4 {
		t.Errorf("%d changes", seen)
	}
	upto := routes.Revision(rtxn)
	write(at(6), insert(5))
	log.Forget(upto)
	if got := log.At(routes.Revision(db.ReadTxn())); !got.Equal(at(6)) {
		t.Errorf("after Forget the next change is of %s", got)
	}
	if got := log.At(upto + 100); !got.IsZero() {
		t.Errorf("a change that was never noted arrived at %s", got)
	}
}

// Guards against a log that nobody reads and that grows as long as the agent runs.
func TestBound(t *testing.T) {
	var log arrival.Log
	for i := range 1 << 18 {
		log.Note(statedb.Revision(i+1), at(i+1))
	}
	if got := log.At(1); got.Equal(at(1)) {
		t.Error("the first of 2^18 notes is still there")
	}
	if got := log.At(1 << 18); !got.Equal(at(1 << 18)) {
		t.Errorf("the last note is of %s", got)
	}
}

// Guards against an unknown arrival that hides a known one.
func TestEarlier(t *testing.T) {
	for _, c := range [][3]time.Time{{at(1), at(2), at(1)}, {at(2), at(1), at(1)}, {{}, at(2), at(2)}, {at(2), {}, at(2)}, {}} {
		if got := arrival.Earlier(c[0], c[1]); !got.Equal(c[2]) {
			t.Errorf("%s, %s: %s", c[0], c[1], got)
		}
	}
}
