// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"sync"
)

// turns bounds the operations at work. Those that begin go before those that
// have begun and wait to go on: the kernel attaches programs for nothing once an
// RCU grace period has passed since the device got its hooks, and else makes all
// wait for one that it enforces, with the RTNL held (net/sched/sch_generic.c,
// mini_qdisc_pair_swap). In a burst, making the devices of all pods first lets
// that time pass while there is work to do; a pod that comes alone waits for nobody.
type turns struct {
	mu      sync.Mutex
	free    int
	waiting [2][]chan struct{} // those that begin, and those that go on
	row     int                // turns given to beginners since one that goes on had its
}

const (
	beginning = 0
	goingOn   = 1
	// longestRow keeps beginners from shutting all others out.
	longestRow = 128
)

// take waits for a turn until ctx ends.
func (t *turns) take(ctx context.Context, kind int) error {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return nil
	}
	given := make(chan struct{})
	t.waiting[kind] = append(t.waiting[kind], given)
	t.mu.Unlock()
	select {
	case <-given:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	for i, w := range t.waiting[kind] {
		if w == given {
			t.waiting[kind] = append(t.waiting[kind][:i], t.waiting[kind][i+1:]...)
			t.mu.Unlock()
			return ctx.Err()
		}
	}
	t.mu.Unlock()
	t.give() // it was given at the same moment
	return ctx.Err()
}

// give ends a turn.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	kind := beginning
	if len(t.waiting[beginning]) == 0 || t.row >= longestRow && len(t.waiting[goingOn]) > 0 {
		kind = goingOn
	}
	if len(t.waiting[kind]) == 0 {
		t.free++
		return
	}
	if t.row++; kind == goingOn {
		t.row = 0
	}
	close(t.waiting[kind][0])
	t.waiting[kind] = t.waiting[kind][1:]
}
