// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/ipam/pool"
	"github.com/weft-net/weft/internal/operator/kube"
)

// writers is how many CiliumNodes are written at a time.
const writers = 16

// errorAgain is how long an error that was written for a node stands before a
// new text replaces it: numbers in it move with each node that comes or goes.
const errorAgain = time.Minute

// allocator gives ranges to nodes: it reads the ledger, plans, writes the ledger,
// and only then tells nodes.
type allocator struct {
	client *kube.Client
	cache  *kube.Cache
	report *reporter
	stats  *stats
	now    func() time.Time
	// beforeWrite, if set, is called between the plan and the write of the ledger.
	beforeWrite func(context.Context)

	told map[string]time.Time // when an error was last written for a node
}

// outcome is what a round came to.
type outcome struct {
	// problem says why nothing can be granted at all, "" if something can.
	problem string
	again   time.Time // when a quarantine may end, zero if none does
	retry   bool      // something was overtaken by another writer
}

// round brings the ledger and the CiliumNodes up to what is true now.
func (a *allocator) round(ctx context.Context, cfg *config.Operator) (outcome, error) {
	v := view{snap: a.cache.Snapshot(), cfg: cfg, now: a.now()}
	obj, err := a.client.Ledger(ctx, weftv1.DefaultPool)
	if err != nil {
		return outcome{}, err
	}
	if v.ranges, err = a.client.Forbidden(ctx); err != nil {
		return outcome{}, err
	}
	if obj == nil {
		obj = &weftv1.PodCIDRLedger{ObjectMeta: metav1.ObjectMeta{Name: weftv1.DefaultPool}}
	} else if v.ledger, err = pool.Parse(&obj.Spec); err != nil {
		return outcome{}, err
	}
	if off := missing(poolOf(cfg), cfg); len(off) > 0 {
		problem := v.propose(off)
		return outcome{problem: problem}, a.refuseAll(ctx, &v, problem)
	}
	gone, err := a.confirmGone(ctx, v.vanished())
	if err != nil {
		return outcome{}, err
	}
	demands, losers := v.demands(gone)
	in := v.inputs()
	next, results, findings := pool.Plan(v.ledger, in, demands)
	a.stats.planned(in, next, results)
	a.findings(findings, losers)
	out := outcome{again: next.NextEnd(in.Quarantine)}
	if obj.ResourceVersion == "" || !next.Equal(v.ledger) {
		if obj.ResourceVersion == "" {
			a.report.event(made(results))
		}
		if a.beforeWrite != nil {
			a.beforeWrite(ctx)
		}
		obj.Spec = next.Spec()
		size, err := a.client.WriteLedger(ctx, obj)
		if errors.Is(err, kube.ErrStale) {
			a.stats.conflicts.Inc()
			return outcome{retry: true}, nil
		}
		if err != nil {
			return outcome{}, err
		}
		a.stats.written(size)
	}
	retry, err := a.tell(ctx, &v, results)
	out.retry = retry
	return out, err
}

// made tells of a ledger that there was none of.
func made(results []pool.Result) kube.Event {
	taken := 0
	for _, r := range results {
		if len(r.CIDRs) > len(r.Granted) {
			taken++
		}
	}
	e := kube.Event{Reason: "LedgerMade", Message: fmt.Sprintf("pool %s has a ledger from now on", weftv1.DefaultPool)}
	if taken > 0 {
		e = kube.Event{Warning: true, Reason: "LedgerRebuilt", Message: fmt.Sprintf(
			"the ledger of pool %s was lost: made a new one from the CiliumNodes, %d nodes keep what they have; ranges that rested are free", weftv1.DefaultPool, taken)}
	}
	return e
}

// confirmGone asks the API server itself about nodes that the cache does not
// know: a cache may be behind, and a range that is released while its node lives
// would be given to another.
func (a *allocator) confirmGone(ctx context.Context, names []string) (map[string]bool, error) {
	gone := map[string]bool{}
	for _, name := range names {
		is, err := a.client.Gone(ctx, name)
		if err != nil {
			return nil, err
		}
		if is {
			gone[name] = true
			a.report.log.Info("node is gone, its ranges rest", "node", name)
		}
	}
	return gone, nil
}

// change is what is to be written for one node.
type change struct {
	node    *kube.CiliumNode
	cidrs   []string // what spec.ipam.podCIDRs is to be, nil to leave it
	text    *string  // what the operator's error is to be, nil to leave it
	restore bool     // somebody changed what was written
	// allocated is what spec.ipam.pools.allocated is to be, nil to leave it.
	allocated *[]ciliumv2.IPAMPoolAllocation
}

// tell writes to the CiliumNodes what the ledger says, each that differs once.
func (a *allocator) tell(ctx context.Context, v *view, results []pool.Result) (retry bool, err error) {
	var changes []change
	for _, r := range results {
		cn := v.snap.CiliumNodes[r.Node]
		// Of a node that is gone, Kubernetes' garbage collector and an agent that runs
		// on may be fighting over the object.
		if cn == nil || !cn.Owned || v.node(cn) == nil {
			continue
		}
		c := change{node: cn}
		if want := texts(r.CIDRs); len(want) > 0 && !slices.Equal(want, cn.PodCIDRs) {
			c.cidrs = want
			c.restore = len(cn.PodCIDRs) > 0 && len(v.ledger.Grants[r.Node]) > 0 && len(r.Granted) == 0
		}
		c.text = a.textFor(v, cn, r)
		if c.cidrs != nil || c.text != nil {
			changes = append(changes, c)
		}
	}
	return a.apply(ctx, changes)
}

// textFor returns the operator's word on a node, nil if that stands there already.
func (a *allocator) textFor(v *view, cn *kube.CiliumNode, r pool.Result) *string {
	var errs []string
	for _, e := range r.Refused {
		errs = append(errs, e.Error())
	}
	return a.word(v.now, cn, strings.Join(errs, "; "))
}

func (a *allocator) word(now time.Time, cn *kube.CiliumNode, text string) *string {
	if text == cn.Error || (text != "" && cn.Error != "" && now.Sub(a.told[cn.Name]) < errorAgain) {
		return nil
	}
	return &text
}

// refuseAll tells every node that waits why it gets nothing.
func (a *allocator) refuseAll(ctx context.Context, v *view, problem string) error {
	var changes []change
	for _, name := range slices.Sorted(maps.Keys(v.snap.CiliumNodes)) {
		cn := v.snap.CiliumNodes[name]
		if !v.mayBegin(cn) || len(v.ledger.Grants[name]) > 0 {
			continue
		}
		if text := a.word(v.now, cn, problem); text != nil {
			changes = append(changes, change{node: cn, text: text})
		}
	}
	_, err := a.apply(ctx, changes)
	return err
}

func (a *allocator) apply(ctx context.Context, changes []change) (retry bool, err error) {
	var g errgroup.Group
	g.SetLimit(writers)
	overtaken := make([]bool, len(changes))
	for i, c := range changes {
		g.Go(func() error {
			err := a.write(ctx, c)
			// Its agent wrote, or it went: the watch brings news of it.
			if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
				overtaken[i] = true
				return nil
			}
			return err
		})
	}
	err = g.Wait()
	now := a.now()
	maps.DeleteFunc(a.told, func(_ string, at time.Time) bool { return now.Sub(at) >= errorAgain })
	for _, c := range changes {
		if c.text != nil {
			a.told[c.node.Name] = now
		}
	}
	return slices.Contains(overtaken, true), err
}

func (a *allocator) write(ctx context.Context, c change) error {
	cn := c.node
	if c.cidrs != nil {
		next, err := a.cache.SetPodCIDRs(ctx, cn, c.cidrs)
		if err != nil {
			return err
		}
		a.report.log.Info("node has ranges", "node", cn.Name, "ranges", c.cidrs)
		if c.restore {
			a.report.event(kube.Event{
				Node: cn.Name, Warning: true, Reason: "PodCIDRsRestored",
				Message: fmt.Sprintf("CiliumNode %s named %s, but the ledger of pool %s has %s for it: put back; only the operator changes ranges",
					cn.Name, strings.Join(cn.PodCIDRs, ", "), weftv1.DefaultPool, strings.Join(c.cidrs, ", ")),
			})
		}
		cn = next
	}
	if c.allocated != nil {
		next, err := a.cache.SetAllocated(ctx, cn, *c.allocated)
		if err != nil {
			return err
		}
		a.report.log.Info("node has ranges of pools", "node", cn.Name, "pools", *c.allocated)
		cn = next
	}
	if c.text == nil {
		return nil
	}
	// Once: numbers in the text move, and each would be another event.
	if *c.text != "" && cn.Error == "" {
		a.report.event(kube.Event{Node: cn.Name, Warning: true, Reason: "PodCIDRRefused", Message: *c.text})
	}
	_, err := a.cache.SetError(ctx, cn, *c.text)
	return err
}

// findings reports what is new of what is odd about the pool.
func (a *allocator) findings(findings []pool.Finding, losers map[string]string) {
	var now []string
	for _, f := range findings {
		now = append(now, f.Text)
	}
	for _, node := range slices.Sorted(maps.Keys(losers)) {
		now = append(now, losers[node])
		a.report.once(losers[node], kube.Event{Node: node, Warning: true, Reason: "PodCIDRConflict", Message: losers[node]})
	}
	for _, text := range now {
		a.report.once(text, kube.Event{Warning: true, Reason: "PoolFinding", Message: text})
	}
	a.report.keep(now)
	a.stats.findings.Set(float64(len(now)))
}

// texts writes ranges as CiliumNode holds them.
func texts(ps []netip.Prefix) []string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}
