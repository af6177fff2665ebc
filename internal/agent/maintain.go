// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/flow"
	"github.com/weft-net/weft/internal/table"
)

// sweepMost bounds one round of removing expired translations.
const sweepMost = 1 << 17

// readEvents hands the datapath's records to whoever listens.
func (a *Agent) readEvents(ctx context.Context) error {
	err := a.dp.ReadEvents(ctx, func(e flow.Event) {
		a.metrics.events.WithLabelValues(string(e.Type)).Inc()
		if !a.flows.Active() {
			return
		}
		if e.Endpoint != 0 {
			if ep, _, ok := a.t.endpoints.Get(a.t.db.ReadTxn(), table.EndpointByID.Query(e.Endpoint)); ok {
				e.Pod = ep.Name()
			}
		}
		if e.IfName == "" {
			e.IfName = a.deviceName(e.IfIndex)
		}
		a.flows.Publish(e)
	})
	if err != nil {
		return fmt.Errorf("datapath events: %w", err)
	}
	return nil
}

// deviceName finds a device by its index among the node's and the endpoints'.
func (a *Agent) deviceName(index int) string {
	txn := a.t.db.ReadTxn()
	for d := range a.t.devices.All(txn) {
		if d.Index == index {
			return d.Name
		}
	}
	for ep := range a.t.endpoints.All(txn) {
		if ep.HostIfIndex == index {
			return ep.HostIfName
		}
	}
	return ""
}

// scrub removes, once at the start, what cannot be true from the maps that no
// reconciler compares with what is wanted: an agent before this one, or a person,
// may have left anything there.
func (a *Agent) scrub(context.Context) error {
	done, err := a.dp.Maps().Scrub()
	if err != nil {
		a.log.Warn("maps cannot be looked through for what cannot be true", "error", err)
	}
	if done.Total() > 0 {
		a.log.Info("removed from the maps what could not be true",
			"conntrack", done.Conntrack, "nat", done.NAT, "devices", done.Devices, "fragments", done.Fragments, "networks", done.Networks, "clients", done.Clients)
	}
	return nil
}

// maintain does what is due once in a while.
func (a *Agent) maintain(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.devices.Retry()
		n, err := a.dp.Maps().CT.Sweep(0)
		if err != nil {
			a.log.Warn("expired conntrack entries cannot be removed", "error", err)
		}
		a.metrics.swept.Add(float64(n))
		a.maintainNAT()
	}
}

// maintainNAT removes expired translations and looks for drops by lack of ports.
func (a *Agent) maintainNAT() {
	if !a.masq.translates() {
		return
	}
	if _, err := a.dp.Maps().LBConns.Sweep(sweepMost); err != nil {
		a.log.Warn("expired connections to services cannot be removed", "error", err)
	}
	n, err := a.dp.Maps().NAT.Sweep(sweepMost)
	if err != nil {
		a.log.Warn("expired translations cannot be removed", "error", err)
	}
	a.metrics.natSwept.Add(float64(n))
	rows, err := a.dp.Maps().NAT.List(0)
	counters, cerr := a.dp.Maps().Metrics.List()
	if err = errors.Join(err, cerr); err != nil {
		a.log.Warn("translations cannot be counted", "error", err)
		return
	}
	var dropped uint64
	for _, c := range counters {
		if c.Reason == reason.NATExhausted.String() {
			dropped += c.Packets
		}
	}
	a.masq.observe(dropped, len(rows), time.Now())
}
