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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	ciliumv2alpha1 "github.com/weft-net/weft/api/cilium.io/v2alpha1"
	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/ipam/pool"
	"github.com/weft-net/weft/internal/operator/kube"
)

// maxBlocks bounds how many blocks of a family a node may have from one pool,
// whatever its agent asks for.
const maxBlocks = 256

// named is one pool of mode multi-pool, with its ledger.
type named struct {
	pool   pool.Pool
	known  bool // its CiliumPodIPPool is there
	obj    *weftv1.PodCIDRLedger
	ledger pool.Ledger
}

// pools is round for mode multi-pool: each pool has a ledger of its own, and a
// node is told when all of them are written.
func (a *allocator) pools(ctx context.Context, cfg *config.Operator) (outcome, error) {
	v := view{snap: a.cache.Snapshot(), cfg: cfg, now: a.now()}
	all, err := a.namedPools(ctx, cfg)
	if err != nil {
		return outcome{}, err
	}
	if v.ranges, err = a.client.Forbidden(ctx); err != nil {
		return outcome{}, err
	}
	round := &poolsRound{allocator: a, view: v, all: all, gone: map[string]bool{}, nodes: map[string]*nodeOutcome{}}
	out := outcome{problem: round.none()}
	var findings []pool.Finding
	for _, name := range slices.Sorted(maps.Keys(all)) {
		again, found, err := round.plan(ctx, all[name])
		if errors.Is(err, kube.ErrStale) {
			a.stats.conflicts.Inc()
			return outcome{retry: true}, nil
		}
		if err != nil {
			return outcome{}, err
		}
		findings = append(findings, found...)
		if !again.IsZero() && (out.again.IsZero() || again.Before(out.again)) {
			out.again = again
		}
	}
	a.findings(findings, nil)
	out.retry, err = a.apply(ctx, round.changes())
	return out, err
}

// namedPools are the pools that there are, and those of which a ledger is left.
func (a *allocator) namedPools(ctx context.Context, cfg *config.Operator) (map[string]*named, error) {
	objs, err := a.client.Pools(ctx)
	if err != nil {
		return nil, err
	}
	ledgers, err := a.client.Ledgers(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string]*named{}
	for name, o := range objs {
		all[name] = &named{pool: namedPool(o, cfg), known: true}
	}
	for name, obj := range ledgers {
		if all[name] == nil {
			all[name] = &named{pool: pool.Pool{Name: name, Object: "CiliumPodIPPool " + name}}
		}
		all[name].obj = obj
		if all[name].ledger, err = pool.Parse(&obj.Spec); err != nil {
			return nil, fmt.Errorf("pool %s: %w", name, err)
		}
	}
	for name, n := range all {
		if n.obj == nil {
			n.obj = &weftv1.PodCIDRLedger{ObjectMeta: metav1.ObjectMeta{Name: name}}
		}
	}
	return all, nil
}

// namedPool reads a CiliumPodIPPool. Ranges that cannot be read stay as invalid
// ones, so that they are named; families that are off are left out.
func namedPool(o *ciliumv2alpha1.CiliumPodIPPool, cfg *config.Operator) pool.Pool {
	p := pool.Pool{Name: o.Name, Object: "CiliumPodIPPool " + o.Name}
	read := func(cidrs []ciliumv2alpha1.PoolCIDR, mask int) pool.Family {
		f := pool.Family{MaskSize: mask}
		for _, c := range cidrs {
			r, err := netip.ParsePrefix(string(c))
			if err != nil {
				r = netip.Prefix{}
			}
			f.CIDRs = append(f.CIDRs, r)
		}
		return f
	}
	if s := o.Spec.IPv4; s != nil && cfg.EnableIPv4 {
		p.V4 = read(s.CIDRs, s.MaskSize)
	}
	if s := o.Spec.IPv6; s != nil && cfg.EnableIPv6 {
		p.V6 = read(s.CIDRs, s.MaskSize)
	}
	return p
}

// poolsRound is one look at all pools.
type poolsRound struct {
	*allocator

	view  view
	all   map[string]*named
	gone  map[string]bool // nodes of ledgers; whether they are known to be gone
	nodes map[string]*nodeOutcome
}

// nodeOutcome is what a node gets of all pools.
type nodeOutcome struct {
	allocated []ciliumv2.IPAMPoolAllocation
	errs      []string
}

func (r *poolsRound) of(node string) *nodeOutcome {
	if r.nodes[node] == nil {
		r.nodes[node] = &nodeOutcome{}
	}
	return r.nodes[node]
}

// none says that there is no pool at all, "" if there is one.
func (r *poolsRound) none() string {
	for _, n := range r.all {
		if n.known {
			return ""
		}
	}
	var taken []netip.Prefix
	for _, h := range r.view.hazards() {
		taken = append(taken, h.CIDR)
	}
	var free []string
	v6, mask := false, 16
	if !r.view.cfg.EnableIPv4 {
		v6, mask = true, 56
	}
	for _, p := range pool.Free(taken, v6, mask, proposals) {
		free = append(free, p.String())
	}
	return "ipam multi-pool: there is no CiliumPodIPPool, and pods that choose none are of the pool default: make that one, with a range that nothing in your network uses, as far as the nodes' routes tell one of " +
		strings.Join(free, ", ")
}

// plan brings one pool's ledger up to date and notes what its nodes get.
func (r *poolsRound) plan(ctx context.Context, n *named) (again time.Time, findings []pool.Finding, err error) {
	v := r.view
	v.pool, v.ledger = n.pool.Name, n.ledger
	for _, name := range v.vanished() {
		if _, asked := r.gone[name]; !asked {
			gone, err := r.confirmGone(ctx, []string{name})
			if err != nil {
				return again, nil, err
			}
			r.gone[name] = gone[name]
		}
	}
	in := v.inputs()
	in.Pool = n.pool
	in.Others, in.Hazards = r.others(n, in.Hazards)
	next, results, findings := pool.Plan(n.ledger, in, v.poolDemands(n, r.gone))
	r.stats.planned(in, next, results)
	if n.obj.ResourceVersion == "" || !next.Equal(n.ledger) {
		if r.beforeWrite != nil {
			r.beforeWrite(ctx)
		}
		n.obj.Spec = next.Spec()
		size, err := r.client.WriteLedger(ctx, n.obj)
		if err != nil {
			return again, nil, err
		}
		r.stats.written(size)
		n.ledger = next // what the pools after this one must keep clear of
	}
	for _, res := range results {
		o := r.of(res.Node)
		if len(res.CIDRs) > 0 {
			alloc := ciliumv2.IPAMPoolAllocation{Pool: n.pool.Name}
			for _, c := range res.CIDRs {
				alloc.CIDRs = append(alloc.CIDRs, ciliumv2.IPAMPodCIDR(c.String()))
			}
			o.allocated = append(o.allocated, alloc)
		}
		for _, e := range res.Refused {
			o.errs = append(o.errs, e.Error())
		}
	}
	return next.NextEnd(in.Quarantine), findings, nil
}

// others are the other pools, as they are wanted and as their ledgers have them,
// and what nodes hold of them.
func (r *poolsRound) others(n *named, hazards []pool.Hazard) ([]pool.Pool, []pool.Hazard) {
	var out []pool.Pool
	hazards = slices.Clone(hazards)
	ours := append(slices.Clone(n.pool.V4.CIDRs), n.pool.V6.CIDRs...)
	add := func(p netip.Prefix, where string) {
		if slices.ContainsFunc(ours, p.Overlaps) {
			hazards = append(hazards, pool.Hazard{CIDR: p, Kind: pool.NodeRange, Where: where})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.all)) {
		o := r.all[name]
		if o == n {
			continue
		}
		before := o.ledger.Pool
		before.Name = name
		out = append(out, o.pool, before)
		for node, ps := range o.ledger.Grants {
			for _, p := range ps {
				add(p, "node "+node+", pool "+name)
			}
		}
		for _, q := range o.ledger.Quarantine {
			add(q.CIDR, "quarantine of pool "+name)
		}
	}
	return out, hazards
}

// poolDemands are the living nodes with what they want of a pool.
func (v *view) poolDemands(n *named, gone map[string]bool) []pool.Demand {
	var out []pool.Demand
	said := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(v.snap.CiliumNodes)) {
		cn := v.snap.CiliumNodes[name]
		held := v.ledger.Grants[name]
		d := pool.Demand{Node: name}
		for _, p := range cn.Pools.GiveBack {
			if slices.Contains(held, p) {
				d.GiveBack = append(d.GiveBack, p)
			}
		}
		// Where the ledger knows the node its word stands.
		if len(held) == 0 {
			d.Held = allocatedOf(cn, n.pool.Name)
		}
		if !cn.Owned || len(held) == 0 && len(d.Held) == 0 && !v.mayBegin(cn) {
			continue
		}
		if v.mayBegin(cn) {
			for _, q := range cn.Pools.Requested {
				if q.Pool == n.pool.Name {
					d.V4 = blocks(held, d.GiveBack, false, q.Needed.IPv4Addrs, n.pool.V4, v.cfg.EnableIPv4)
					d.V6 = blocks(held, d.GiveBack, true, q.Needed.IPv6Addrs, n.pool.V6, v.cfg.EnableIPv6)
				}
			}
		}
		said[name] = true
		if d.V4+d.V6+len(held)+len(d.Held) > 0 {
			out = append(out, d)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v.ledger.Grants)) {
		if !said[name] && !gone[name] {
			out = append(out, pool.Demand{Node: name})
		}
	}
	return out
}

// blocks says how many blocks make so many addresses, with those that are held.
func blocks(held, back []netip.Prefix, v6 bool, addrs int, f pool.Family, on bool) int {
	if !on || addrs <= 0 {
		return 0
	}
	need, n := uint64(addrs), 0
	for _, p := range held {
		if p.Addr().Is6() != v6 || slices.Contains(back, p) {
			continue
		}
		n++
		need -= min(need, ipam.Capacity(p))
	}
	bits := 32
	if v6 {
		bits = 128
	}
	// Of a pool without a size nothing is granted; the refusal says so.
	per := uint64(1)
	if f.MaskSize > 0 && f.MaskSize <= bits {
		like := netip.IPv4Unspecified()
		if v6 {
			like = netip.IPv6Unspecified()
		}
		per = max(1, ipam.Capacity(netip.PrefixFrom(like, f.MaskSize)))
	}
	more := need / per
	if need%per > 0 {
		more++
	}
	return n + int(min(more, uint64(max(0, maxBlocks-n))))
}

// allocatedOf is what a CiliumNode names as its ranges of a pool, without what it
// gives back.
func allocatedOf(cn *kube.CiliumNode, name string) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range cn.Pools.Allocated {
		for _, c := range a.CIDRs {
			if p, err := netip.ParsePrefix(string(c)); err == nil && a.Pool == name && !slices.Contains(cn.Pools.GiveBack, p.Masked()) {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

// changes are what is to be written to CiliumNodes.
func (r *poolsRound) changes() []change {
	var out []change
	problem := r.none()
	for _, name := range slices.Sorted(maps.Keys(r.view.snap.CiliumNodes)) {
		cn := r.view.snap.CiliumNodes[name]
		if !cn.Owned || r.view.node(cn) == nil {
			continue
		}
		o := r.of(name)
		if problem != "" {
			o.errs = append(o.errs, problem)
		}
		for _, q := range cn.Pools.Requested {
			if n := r.all[q.Pool]; problem == "" && (n == nil || !n.known) && q.Needed.IPv4Addrs+q.Needed.IPv6Addrs > 0 {
				o.errs = append(o.errs, fmt.Sprintf("pool %s: there is no CiliumPodIPPool of that name: make it, or correct the annotation %s of the pods or namespaces that ask for it",
					q.Pool, ciliumv2alpha1.PoolAnnotation))
			}
		}
		c := change{node: cn, text: r.word(r.view.now, cn, strings.Join(o.errs, "; "))}
		if !kube.SameAllocated(o.allocated, cn.Pools.Allocated) {
			c.allocated = &o.allocated
		}
		if c.text != nil || c.allocated != nil {
			out = append(out, c)
		}
	}
	return out
}
