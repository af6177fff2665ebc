// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/service/healthcheck"
)

const (
	healthSettle = 100 * time.Millisecond // changes that come together
	healthEvery  = 5 * time.Second        // ports that could not be had are tried again
)

// followHealthChecks tells load balancers which Services have backends here.
func (a *Agent) followHealthChecks(ctx context.Context) error {
	if a.healthChecks == nil {
		return nil
	}
	defer a.healthChecks.Close()
	for {
		txn := a.t.db.ReadTxn()
		_, services := a.t.services.AllWatch(txn)
		_, frontends := a.t.frontends.AllWatch(txn)
		if ok, _ := a.t.frontends.Initialized(txn); ok { // else: nothing is known of backends
			a.healthChecks.Set(a.t.healthChecks())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-services:
		case <-frontends:
		case <-time.After(healthEvery):
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(healthSettle):
		}
	}
}

// healthChecks counts the backends of this node that are ready, for the Services
// that load balancers ask about: of all their frontends, as some have no other than
// the ClusterIP yet.
func (t tables) healthChecks() []healthcheck.Check {
	txn := t.db.ReadTxn()
	byName := map[string]*healthcheck.Check{}
	for s := range t.services.All(txn) {
		if s.HealthPort != 0 && !s.Elsewhere {
			byName[s.FullName()] = &healthcheck.Check{Namespace: s.Namespace, Name: s.Name, Port: s.HealthPort}
		}
	}
	if len(byName) == 0 {
		return nil
	}
	type family struct {
		name string
		v6   bool
	}
	ready := map[family]map[netip.Addr]bool{} // of a pod that has both, one counts
	for f := range t.frontends.All(txn) {
		if byName[f.Name()] == nil {
			continue
		}
		fam := family{f.Name(), f.Key.Addr.Addr().Is6()}
		if ready[fam] == nil {
			ready[fam] = map[netip.Addr]bool{}
		}
		for _, b := range f.Backends {
			if b.Local && !b.Terminating {
				ready[fam][b.Addr.Addr()] = true
			}
		}
	}
	out := make([]healthcheck.Check, 0, len(byName))
	for name, c := range byName {
		c.Endpoints = max(len(ready[family{name, false}]), len(ready[family{name, true}]))
		out = append(out, *c)
	}
	return out
}
