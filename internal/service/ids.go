// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/table"
)

// numbers gives out 1 to max, those never given first and then those given back,
// the oldest first: what the kernel still remembers of a number's last owner has
// the longest time to go.
type numbers struct {
	max  uint32
	next uint32   // the lowest that was never given
	free []uint32 // given back, oldest first
}

func newNumbers(most uint32) numbers { return numbers{max: most, next: 1} }

// take gives a number, or 0 when all are in use.
func (n *numbers) take() uint32 {
	if n.next <= n.max {
		n.next++
		return n.next - 1
	}
	if len(n.free) == 0 {
		return 0
	}
	id := n.free[0]
	n.free = n.free[1:]
	return id
}

// resume goes on from numbers that are in use already; they are sorted, each
// there once, and from 1 to max. Those between them come after the higher ones,
// as they may have been somebody's a moment ago.
func (n *numbers) resume(used []uint32) {
	for _, id := range used {
		for ; n.next < id; n.next++ {
			n.free = append(n.free, n.next)
		}
		n.next = id + 1
	}
}

// put takes a number back.
func (n *numbers) put(id uint32) { n.free = append(n.free, id) }

// backendKey is what a backend's id stands for.
type backendKey struct {
	addr  netip.AddrPort
	proto uint8
}

// backends holds the ids of backends. One is kept while some Service's slices
// name it, ready or not: an endpoint that is unready for a moment stays the same
// one for what the kernel remembers of it.
type backends struct {
	numbers
	byKey map[backendKey]uint32
	byID  []backend
	idle  []uint32 // that lost their last Service since the last settle
}

type backend struct {
	key  backendKey
	refs int32 // Services that name it; 0: restored, and not named yet
}

func newBackends(most uint32) *backends {
	return &backends{numbers: newNumbers(most), byKey: map[backendKey]uint32{}, byID: make([]backend, 1)}
}

// restore gives backends the ids that the kernel has for them. What contradicts
// itself, or is beyond the maximum, is left out.
func (b *backends) restore(rows []table.Frontend) {
	var used []uint32
	for _, r := range rows {
		for _, ref := range r.Backends {
			key := backendKey{ref.Addr, ref.Proto}
			if ref.ID == 0 || ref.ID > b.max || b.byKey[key] != 0 || (int(ref.ID) < len(b.byID) && b.byID[ref.ID].key.proto != 0) {
				continue
			}
			b.set(key, ref.ID)
			used = append(used, ref.ID)
		}
	}
	slices.Sort(used)
	b.resume(used)
}

func (b *backends) set(key backendKey, id uint32) {
	for len(b.byID) <= int(id) {
		b.byID = append(b.byID, backend{})
	}
	b.byID[id] = backend{key: key}
	b.byKey[key] = id
}

// get returns the id of a backend, a new one if it has none; 0: there is no more.
// It is the caller's until hold.
func (b *backends) get(key backendKey) uint32 {
	if id := b.byKey[key]; id != 0 {
		return id
	}
	id := b.take()
	if id != 0 {
		b.set(key, id)
	}
	return id
}

// hold notes that a Service names the ids now, and named was before. Both are
// sorted. What nobody names is freed when all that changed is known: a backend may
// go from one Service to another.
func (b *backends) hold(now, was []uint32) {
	for len(now) > 0 || len(was) > 0 {
		switch {
		case len(was) == 0 || (len(now) > 0 && now[0] < was[0]):
			b.byID[now[0]].refs++
			now = now[1:]
		case len(now) == 0 || was[0] < now[0]:
			if b.byID[was[0]].refs--; b.byID[was[0]].refs == 0 {
				b.idle = append(b.idle, was[0])
			}
			was = was[1:]
		default:
			now, was = now[1:], was[1:]
		}
	}
}

// settle frees the ids that nobody names any more. It comes after all ids of a
// commit are given: rows that the kernel still has may name them. It reports whether there were any.
func (b *backends) settle() (freed bool) {
	for _, id := range b.idle {
		freed = b.drop(id) || freed
	}
	b.idle = b.idle[:0]
	return freed
}

// drop frees an id unless somebody names it, or it is freed already.
func (b *backends) drop(id uint32) bool {
	if b.byID[id].refs != 0 || b.byID[id].key.proto == 0 {
		return false
	}
	delete(b.byKey, b.byID[id].key)
	b.byID[id] = backend{}
	b.put(id)
	return true
}

// abandon frees the restored ids that nobody names. It reports whether there were any.
func (b *backends) abandon() (freed bool) {
	for id := range b.byID {
		freed = b.drop(uint32(id)) || freed
	}
	return freed
}
