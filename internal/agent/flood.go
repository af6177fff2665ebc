// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

const (
	floodEvery = 5 * time.Second
	// floodShown is how long a flood that is over stays in the status: whoever is
	// called because of it should still find it.
	floodShown = 5 * time.Minute
)

// floodWatch notices that new connections push each other out of the small
// conntrack tables before they can have been answered, and names the endpoint at
// which they are aimed, or which opens them. Established connections live in
// other tables and are not affected (DATAPATH rule 7).
type floodWatch struct {
	capacity int                          // connections that a small table holds
	opened   func() (uint64, error)       // how many were made so far
	young    func() ([]maps.Young, error) // whose are there now, most first
	name     func(id uint16) string       // of an endpoint's pod

	mu      sync.Mutex
	last    uint64
	at      time.Time // of last; zero: none yet
	message string
	seen    time.Time // when message was last true
	on      bool      // it was at the last look
}

// look compares with the last look. began says that a flood was not there before.
func (w *floodWatch) look(now time.Time) (began bool, err error) {
	n, err := w.opened()
	if err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	last, at := w.last, w.at
	w.last, w.at = n, now
	was := w.on
	w.on = !at.IsZero() && n > last && n-last > uint64(w.capacity)
	if !w.on {
		return false, nil
	}
	whose, err := w.young() // a flood is told also if nobody can be named
	w.message, w.seen = w.describe(n-last, now.Sub(at), whose), now
	return !was, err
}

func (w *floodWatch) describe(n uint64, within time.Duration, whose []maps.Young) string {
	s := fmt.Sprintf("%d new connections in %s, and room for %d until they go on: the youngest push each other out, established ones stay", n, within.Round(time.Second), w.capacity)
	if len(whose) == 0 {
		return s
	}
	y := whose[0]
	if y.Received >= y.Opened {
		return fmt.Sprintf("%s; most are sent to %s, by %d addresses: see `weft monitor --pod %s`, and keep them out before this node or at the sender", s, w.name(y.Endpoint), y.Peers, w.name(y.Endpoint))
	}
	return fmt.Sprintf("%s; most are opened by %s, to %d addresses: see what that pod does", s, w.name(y.Endpoint), y.Peers)
}

// Component is the line of `weft status`.
func (w *floodWatch) Component(now time.Time) rpc.Component {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := rpc.Component{Name: "Conntrack", State: rpc.StateOK}
	switch {
	case w.on:
		c.State, c.Message = rpc.StateWarning, w.message
	case !w.seen.IsZero() && now.Sub(w.seen) < floodShown:
		c.State, c.Message = rpc.StateWarning, fmt.Sprintf("until %s: %s", w.seen.Format(time.TimeOnly), w.message)
	}
	return c
}

func (a *Agent) newFloodWatch() *floodWatch {
	return &floodWatch{
		capacity: a.dp.Maps().CT.YoungCapacity(),
		opened:   func() (uint64, error) { return a.dp.Maps().Metrics.Total(reason.CTNew) },
		young:    a.dp.Maps().CT.Young,
		name: func(id uint16) string {
			if ep, _, ok := a.t.endpoints.Get(a.t.db.ReadTxn(), table.EndpointByID.Query(id)); ok {
				return ep.Name()
			}
			return fmt.Sprintf("endpoint %d", id)
		},
	}
}

// followFloods looks for floods until ctx ends.
func (a *Agent) followFloods(ctx context.Context) error {
	tick := time.NewTicker(floodEvery)
	defer tick.Stop()
	for {
		began, err := a.floods.look(time.Now())
		if err != nil {
			a.log.Warn("new connections cannot be counted", "error", err)
		}
		if began {
			msg := a.floods.Component(time.Now()).Message
			a.log.Warn("flood of new connections", "what", msg)
			a.report(k8s.EventWarning, "ConnectionFlood", msg)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
