// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"strings"
	"sync"
	"sync/atomic"
)

// DefaultBuffer is how many events a subscription holds for its reader.
const DefaultBuffer = 4096

// Broadcaster hands each published event to every subscription that wants it.
// The zero value is ready to use. All methods may be called concurrently.
type Broadcaster struct {
	mu   sync.RWMutex
	subs map[*Subscription]struct{}
}

// Publish hands the event on and never blocks: a subscription whose buffer is
// full loses the event and counts it.
func (b *Broadcaster) Publish(e Event) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for s := range b.subs {
		s.offer(e)
	}
}

// Active says whether anybody listens, so that a producer can save itself the
// work of filling in names for nobody.
func (b *Broadcaster) Active() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.subs) > 0
}

// Subscribe delivers the events that f selects from now on, through a buffer
// of DefaultBuffer events. Close the subscription when done.
func (b *Broadcaster) Subscribe(f Filter) *Subscription {
	return b.SubscribeBuffer(f, DefaultBuffer)
}

// SubscribeBuffer is Subscribe with a buffer of size events (at least 2, so
// that there is room for a report of loss beside an event).
func (b *Broadcaster) SubscribeBuffer(f Filter, size int) *Subscription {
	s := &Subscription{owner: b, filter: f, events: make(chan Event, max(size, 2))}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs == nil {
		b.subs = make(map[*Subscription]struct{})
	}
	b.subs[s] = struct{}{}
	return s
}

// Subscription is one reader's share of the events.
type Subscription struct {
	owner  *Broadcaster
	filter Filter
	events chan Event
	once   sync.Once
	lost   atomic.Uint64

	mu       sync.Mutex // serialises offers, so that loss is reported in its place
	unvoiced uint64     // lost since the last report that was delivered
}

// Events delivers the events in the order of Publish. Where events were lost
// an event of type TypeLost stands in their place and says how many. The
// channel is closed by Close.
func (s *Subscription) Events() <-chan Event { return s.events }

// Lost returns how many events the subscription has lost so far.
func (s *Subscription) Lost() uint64 { return s.lost.Load() }

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.once.Do(func() {
		s.owner.mu.Lock()
		defer s.owner.mu.Unlock()
		delete(s.owner.subs, s)
		// No Publish runs while the write lock is held, so nobody sends on the
		// closed channel.
		close(s.events)
	})
}

func (s *Subscription) offer(e Event) {
	if !s.filter.Match(&e) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Only offers send, and they are serialised: the room seen here can only grow.
	room := cap(s.events) - len(s.events)
	need := 1
	if s.unvoiced > 0 {
		need = 2
	}
	if room < need {
		s.lost.Add(1)
		s.unvoiced++
		return
	}
	if s.unvoiced > 0 {
		s.events <- Event{Time: e.Time, Type: TypeLost, Lost: s.unvoiced}
		s.unvoiced = 0
	}
	s.events <- e
}

// Match says whether the filter selects the event. Reports of loss always pass.
func (f Filter) Match(e *Event) bool {
	if e.Type == TypeLost {
		return true
	}
	if f.Type != "" && f.Type != e.Type {
		return false
	}
	if f.Pod == "" || f.Pod == e.Pod {
		return true
	}
	if strings.Contains(f.Pod, "/") {
		return false
	}
	_, name, ok := strings.Cut(e.Pod, "/")
	return ok && name == f.Pod
}
