// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"
)

// mtuRetry is how long after a failure pods are given the devices' MTU again.
const mtuRetry = 15 * time.Second

// followMTU keeps the MTU of running pods that of the node's devices, less what
// the routing mode adds, until ctx ends. While no device is selected, nothing is
// known and nothing changes.
func (a *Agent) followMTU(ctx context.Context) error {
	for {
		all, changed := a.t.devices.AllWatch(a.t.db.ReadTxn())
		known := a.cfg.MTU != 0
		for d := range all {
			known = known || d.Selected && d.MTU > 0
		}
		var retry <-chan time.Time
		if known {
			if err := a.endpoints.FollowMTU(ctx); err != nil && ctx.Err() == nil {
				a.log.Error("pods have another MTU than this node's devices allow", "error", err, "again", mtuRetry)
				retry = time.After(mtuRetry)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-retry:
		}
	}
}
