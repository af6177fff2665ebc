// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1alpha1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/k8s"
)

const (
	// poolsEvery is how often it is counted what this node needs of its pools,
	// for pods that went.
	poolsEvery = 5 * time.Second
	// waitingFor is how long a pod that got no address counts as one that wants
	// one; the kubelet tries again well within that.
	waitingFor = 3 * time.Minute
	// spareFor is how long a range must have been of no use before it is given back.
	spareFor = time.Minute
)

// choices says which pools a pod chooses; *k8s.Client does.
type choices interface {
	PoolChoice(ctx context.Context, namespace, pod string) (v4, v6 string, err error)
}

// multiPool is this node's side of ipam multi-pool beyond what poolNode does:
// which pool a pod gets its addresses from, how much to ask of each, and what to
// give back.
type multiPool struct {
	main    string         // pool of pods that choose none
	ahead   map[string]int // free addresses to keep, by pool
	fam     families
	choices choices
	kick    func()
	now     func() time.Time

	mu        sync.Mutex
	waiting   map[string]want // pods that got no address, by namespace/name
	spare     map[netip.Prefix]time.Time
	giving    map[netip.Prefix]bool // no longer used, and on their way back
	requested []ciliumv2.IPAMPoolRequest
}

// want is what a pod waits for.
type want struct {
	pools ipam.Choice
	since time.Time
}

func newMultiPool(conf config.MultiPool, fam families, c choices, kick func()) (*multiPool, error) {
	ahead, err := conf.Ahead()
	if err != nil {
		return nil, err
	}
	m := &multiPool{
		main: weftv1alpha1.DefaultPool, ahead: ahead, fam: fam, choices: c, kick: kick, now: time.Now,
		waiting: map[string]want{}, spare: map[netip.Prefix]time.Time{}, giving: map[netip.Prefix]bool{},
	}
	m.count(ipam.Status{})
	return m, nil
}

// Choose implements endpoint.PoolChooser.
func (m *multiPool) Choose(ctx context.Context, namespace, pod string) (ipam.Choice, error) {
	v4, v6, err := m.choices.PoolChoice(ctx, namespace, pod)
	return ipam.Choice{V4: cmp.Or(v4, m.main), V6: cmp.Or(v6, m.main)}, err
}

// Outcome implements endpoint.PoolChooser.
func (m *multiPool) Outcome(namespace, pod string, pools ipam.Choice, err error) {
	var short *ipam.ExhaustedError
	key := namespace + "/" + pod
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		delete(m.waiting, key)
	case errors.As(err, &short):
		m.waiting[key] = want{pools, m.now()}
	}
}

// need is what is wanted of a pool, in addresses by family.
type need [2]uint64

// count brings what is asked for, and what can be given back, up to date. It
// reports whether either changed.
func (m *multiPool) count(st ipam.Status) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	needs, capacity := m.needs(st), map[string]*need{}
	for _, r := range st.Ranges {
		if capacity[r.Pool] == nil {
			capacity[r.Pool] = &need{}
		}
		c := &capacity[r.Pool][v6of(r.Prefix)]
		*c = max(*c, *c+r.Total)
	}
	var requested []ciliumv2.IPAMPoolRequest
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		n := needs[name]
		requested = append(requested, ciliumv2.IPAMPoolRequest{Pool: name, Needed: ciliumv2.IPAMPoolDemand{
			IPv4Addrs: int(min(n[0], math.MaxInt32)), IPv6Addrs: int(min(n[1], math.MaxInt32)),
		}})
	}
	changed := !slices.Equal(requested, m.requested)
	m.requested = requested
	return m.release(st, needs, capacity) || changed
}

// needs says how many addresses of each pool this node needs: those in use or at
// rest, those that pods wait for, and some ahead. The sum is rounded up, so that
// not every pod makes a write.
func (m *multiPool) needs(st ipam.Status) map[string]*need {
	out := map[string]*need{}
	of := func(pool string) *need {
		if out[pool] == nil {
			out[pool] = &need{}
		}
		return out[pool]
	}
	of(m.main)
	for _, r := range st.Ranges {
		if n := r.Used + r.Quarantined; n > 0 {
			of(r.Pool)[v6of(r.Prefix)] += n
		}
	}
	for key, w := range m.waiting {
		if m.now().Sub(w.since) > waitingFor {
			delete(m.waiting, key)
			continue
		}
		of(w.pools.V4)[0]++
		of(w.pools.V6)[1]++
	}
	for pool := range m.ahead {
		of(pool)
	}
	for pool, n := range out {
		step := uint64(m.ahead[pool])
		for i, on := range []bool{m.fam.v4, m.fam.v6} {
			switch {
			case !on:
				n[i] = 0
			case step > 0:
				n[i] = (n[i]/step + 1 + min(n[i]%step, 1)) * step
			case pool == m.main:
				n[i] = max(n[i], 1) // the health endpoint lives there
			}
		}
	}
	return out
}

// release finds ranges that nobody uses and that are not needed. The first of
// each family stays: the health endpoint's address is of it.
func (m *multiPool) release(st ipam.Status, needs, capacity map[string]*need) (changed bool) {
	var keep [2]bool
	spare := map[netip.Prefix]time.Time{}
	var can []ipam.RangeStatus
	for _, r := range st.Ranges {
		if i := v6of(r.Prefix); !keep[i] {
			keep[i] = true
			continue
		}
		if r.Used+r.Quarantined == 0 {
			can = append(can, r)
		}
	}
	for _, r := range slices.Backward(can) {
		i := v6of(r.Prefix)
		var least uint64
		if n := needs[r.Pool]; n != nil {
			least = n[i]
		}
		have := &capacity[r.Pool][i]
		if *have-r.Total < least {
			continue
		}
		since, ok := m.spare[r.Prefix]
		if !ok {
			since = m.now()
		}
		spare[r.Prefix] = since
		*have -= r.Total
		if m.now().Sub(since) >= spareFor && !m.giving[r.Prefix] {
			m.giving[r.Prefix] = true
			changed = true
		}
	}
	m.spare = spare
	return changed
}

// arrange leaves out what is on its way back, and puts the ranges of the main
// pool first. claimed is what the CiliumNode shows: what it no longer does has
// been taken back.
func (m *multiPool) arrange(l *k8s.Ledger, use, claimed []netip.Prefix) []netip.Prefix {
	if m == nil {
		return use
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for r := range m.giving {
		if !slices.Contains(claimed, r) {
			delete(m.giving, r)
			delete(m.spare, r)
		}
	}
	use = slices.DeleteFunc(use, func(r netip.Prefix) bool { return m.giving[r] })
	slices.SortStableFunc(use, func(a, b netip.Prefix) int {
		return cmp.Or(boolCompare(l.Pools[a] != m.main, l.Pools[b] != m.main), cmp.Compare(l.Pools[a], l.Pools[b]))
	})
	return use
}

// annotations are what the operator is to know besides what is asked for.
func (m *multiPool) annotations(seen map[string]uint64) map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]string{}
	put := func(key string, v any) {
		if b, err := json.Marshal(v); err == nil {
			out[key] = string(b)
		}
	}
	back := []string{}
	for r := range m.giving {
		back = append(back, r.String())
	}
	slices.Sort(back)
	put(weftv1alpha1.GiveBackAnnotation, back)
	if seen != nil {
		put(weftv1alpha1.ReleaseSeenPoolsAnnotation, seen)
	}
	return out
}

func v6of(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 1
	}
	return 0
}

// Requested is what this node asks of pools, nil where there is one only.
func (p *poolNode) Requested() []ciliumv2.IPAMPoolRequest {
	if p == nil || p.multi == nil {
		return nil
	}
	p.multi.mu.Lock()
	defer p.multi.mu.Unlock()
	return slices.Clone(p.multi.requested)
}

// pooled are ranges with their pools.
func (p *poolNode) pooled(ranges []netip.Prefix) []ipam.Range {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]ipam.Range, len(ranges))
	for i, r := range ranges {
		out[i].Prefix = r
		if p.multi != nil && p.ledger != nil {
			out[i].Pool = p.ledger.Pools[r]
		}
	}
	return out
}

// ranges are the ranges of a memory, with their pools.
func (m memory) ranges(fam families) []ipam.Range {
	var out []ipam.Range
	for i, p := range m.PodCIDRs {
		if p.Addr().Is4() && !fam.v4 || p.Addr().Is6() && !fam.v6 {
			continue
		}
		r := ipam.Range{Prefix: p}
		if i < len(m.Pools) {
			r.Pool = m.Pools[i]
		}
		out = append(out, r)
	}
	return out
}

// poolNames are the pools of the ranges in use, nil where there is one only.
func (a *Agent) poolNames() []string {
	if a.pool == nil || a.pool.multi == nil {
		return nil
	}
	var out []string
	for _, r := range a.endpoints.IPAM().Ranges {
		out = append(out, r.Pool)
	}
	return out
}

// chooser is nil where there is one pool only.
func (a *Agent) chooser() endpoint.PoolChooser {
	if a.pool == nil || a.pool.multi == nil {
		return nil
	}
	return poolChooser{a}
}

// poolChooser is multiPool's choice; what came of it is counted at once.
type poolChooser struct{ a *Agent }

func (c poolChooser) Choose(ctx context.Context, namespace, pod string) (ipam.Choice, error) {
	return c.a.pool.multi.Choose(ctx, namespace, pod)
}

func (c poolChooser) Outcome(namespace, pod string, pools ipam.Choice, err error) {
	c.a.pool.multi.Outcome(namespace, pod, pools, err)
	c.a.countPools()
}

func (a *Agent) countPools() {
	if a.pool.multi.count(a.endpoints.IPAM()) {
		a.pool.kick()
	}
}

// followPools counts what this node needs of its pools.
func (a *Agent) followPools(ctx context.Context) error {
	if a.pool == nil || a.pool.multi == nil {
		return nil
	}
	tick := time.NewTicker(poolsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			a.countPools()
		}
	}
}
