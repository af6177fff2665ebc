// SPDX-License-Identifier: Apache-2.0

// Package arrival remembers when the events behind the rows of a table arrived.
// Rows are compared with one another, so a time of arrival has no place in them;
// a deleted row could not carry the time of its deletion either. The revision
// that a change has anyway leads to it.
package arrival

import (
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/cilium/statedb"
)

// most bounds a log that nobody reads: beyond it the older half is forgotten.
const most = 1 << 16

// Log belongs to one table. The zero value is empty, and a nil one knows nothing.
type Log struct {
	mu    sync.Mutex
	notes []note
}

type note struct {
	upto statedb.Revision
	at   time.Time
}

// Note says that the changes after the note before, up to and including the
// revision, are the work of an event that arrived at at; zero: of none. It is
// called in the transaction that makes them, before the commit shows them.
func (l *Log) Note(upto statedb.Revision, at time.Time) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.notes); n > 0 && l.notes[n-1].upto >= upto {
		return // nothing changed
	}
	if len(l.notes) >= most {
		l.notes = slices.Delete(l.notes, 0, most/2)
	}
	l.notes = append(l.notes, note{upto, at})
}

// At returns when the event behind a change arrived, zero if there was none or
// it is not known.
func (l *Log) At(rev statedb.Revision) time.Time {
	if l == nil {
		return time.Time{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := sort.Search(len(l.notes), func(i int) bool { return l.notes[i].upto >= rev })
	if i == len(l.notes) {
		return time.Time{}
	}
	return l.notes[i].at
}

// Forget drops what is about changes up to the revision.
func (l *Log) Forget(upto statedb.Revision) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := sort.Search(len(l.notes), func(i int) bool { return l.notes[i].upto > upto })
	if l.notes = slices.Delete(l.notes, 0, i); len(l.notes) == 0 {
		l.notes = nil // the log of a first full list is large
	}
}

// Earlier returns the earlier of two arrivals; one that is zero does not count.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
