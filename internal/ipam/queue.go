// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"slices"
	"time"
)

// Released is an address at rest.
type Released struct {
	Addr netip.Addr `json:"addr"`
	At   time.Time  `json:"at"`
}

// queue holds released addresses, the oldest first, each once.
type queue struct {
	list []Released
	set  map[netip.Addr]struct{}
}

func newQueue() *queue { return &queue{set: map[netip.Addr]struct{}{}} }

func (q *queue) len() int          { return len(q.list) }
func (q *queue) at(i int) Released { return q.list[i] }
func (q *queue) all() []Released   { return slices.Clone(q.list) }
func (q *queue) has(a netip.Addr) bool {
	_, ok := q.set[a]
	return ok
}

// push appends a; if it is there already, its rest starts anew.
func (q *queue) push(a netip.Addr, at time.Time) {
	q.remove(a)
	q.set[a] = struct{}{}
	q.list = append(q.list, Released{Addr: a, At: at})
}

// remove takes a out. Nearly always it is the head, which costs nothing.
func (q *queue) remove(a netip.Addr) {
	if !q.has(a) {
		return
	}
	delete(q.set, a)
	if q.list[0].Addr == a {
		q.list = q.list[1:] // append moves the rest to a new array in time
		return
	}
	q.list = slices.DeleteFunc(q.list, func(r Released) bool { return r.Addr == a })
}

// unshift puts a before all others, no younger than the oldest of them.
func (q *queue) unshift(a netip.Addr, at time.Time) {
	q.remove(a)
	if len(q.list) > 0 && q.list[0].At.Before(at) {
		at = q.list[0].At
	}
	q.set[a] = struct{}{}
	q.list = slices.Insert(q.list, 0, Released{Addr: a, At: at})
}
