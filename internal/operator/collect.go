// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/operator/kube"
)

// collector removes CiliumNodes whose Node is gone, once they have been so for a
// while. Kubernetes' own garbage collector does it for those that name their Node
// as owner; some do not, and some clusters run without it.
type collector struct {
	client *kube.Client
	report *reporter
	stats  *stats
	now    func() time.Time

	since map[string]time.Time // when a CiliumNode was first seen without its Node, by UID
}

// round removes what is due and says when to look again.
func (c *collector) round(ctx context.Context, s kube.Snapshot, grace time.Duration) (again time.Time, err error) {
	now := c.now()
	dangling := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(s.CiliumNodes)) {
		cn := s.CiliumNodes[name]
		if grace == 0 || !cn.Owned || nodeOf(s, cn) != nil {
			continue
		}
		dangling[cn.UID] = true
		since, known := c.since[cn.UID]
		if !known {
			since, c.since[cn.UID] = now, now
		}
		due := since.Add(grace)
		if now.Before(due) {
			if again.IsZero() || due.Before(again) {
				again = due
			}
			continue
		}
		if err := c.remove(ctx, cn, now.Sub(since)); err != nil {
			return again, err
		}
	}
	maps.DeleteFunc(c.since, func(uid string, _ time.Time) bool { return !dangling[uid] })
	return again, nil
}

// remove asks the API server itself before it believes the cache.
func (c *collector) remove(ctx context.Context, cn *kube.CiliumNode, after time.Duration) error {
	uid, err := c.client.NodeUID(ctx, cn.Name)
	if err != nil {
		return err
	}
	if uid != "" && (cn.NodeUID == "" || uid == cn.NodeUID) {
		return nil
	}
	if err := c.client.DeleteCiliumNode(ctx, cn); err != nil {
		return err
	}
	c.stats.removed.Inc()
	c.report.event(kube.Event{Node: cn.Name, Reason: "CiliumNodeRemoved", Message: fmt.Sprintf(
		"CiliumNode %s had no Node for %s: removed; its ranges rest before others get them", cn.Name, after.Round(time.Second))})
	return nil
}
