// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	weftv1alpha1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

// ledgerEvery is how often the ledger is looked at while nothing else asks for it.
const ledgerEvery = time.Minute

// fullLook is every how many looks the whole ledger is read if it changed.
const fullLook = 10

// ledgers reads the ledger of a pool; *k8s.Client does.
type ledgers interface {
	Ledger(ctx context.Context, pool string) (*k8s.Ledger, error)
	LedgerMark(ctx context.Context, pool string) (k8s.LedgerMark, error)
}

// poolNode is this node's side of ipam cluster-pool: which ranges it may use,
// and what it publishes so that the operator can choose them. A CiliumNode is a
// message that many can write; the ledger is the truth (DATAPATH rule 16).
type poolNode struct {
	node    string
	conf    config.ClusterPool
	fam     families
	ledgers ledgers
	log     *slog.Logger
	report  func(reason, message string) // an event of this node
	multi   *multiPool                   // of ipam multi-pool, else nil
	changed chan struct{}                // there is something to put into effect or to publish
	due     chan struct{}                // the node's routes may have changed
	news    chan struct{}                // the ledger was read for a claim; its releases are to be looked at

	mu     sync.Mutex
	ledger *k8s.Ledger // as read last, nil before
	looks  int
	notes  []string          // about ranges that are not what they should be
	routes string            // annotation, "" before
	more   int               // routes left out of it
	seen   map[string]uint64 // annotation, by pool; nil before the first look
	holds  []string          // what keeps releases from being seen
}

func newPoolNode(node string, conf config.ClusterPool, fam families, l ledgers, report func(reason, message string), log *slog.Logger) *poolNode {
	return &poolNode{
		node: node, conf: conf, fam: fam, ledgers: l, report: report, log: log, changed: make(chan struct{}, 1), due: make(chan struct{}, 1), news: make(chan struct{}, 1),
	}
}

// Changed is ready whenever something is to be put into effect or to be
// published. On nil it never is.
func (p *poolNode) Changed() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.changed
}

func (p *poolNode) kick() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Ranges returns which ranges this node may use: those that the ledger gives to
// it, once the operator has shown them in the CiliumNode. What is in use stays
// so while the ledger cannot be read. An error says what is missing; then no
// range may be used that is not in current.
func (p *poolNode) Ranges(ctx context.Context, row *table.Node, current []netip.Prefix) ([]netip.Prefix, error) {
	l, err := p.read(ctx, row.PodCIDRs, current)
	if err != nil {
		if len(current) > 0 {
			p.note([]string{fmt.Sprintf("%v: the ranges in use stay in use", err)})
			return current, nil
		}
		p.note(nil)
		return nil, p.missing(row, err)
	}
	use, notes := judge(p.node, l, row.PodCIDRs, current)
	use = p.multi.arrange(l, use, row.PodCIDRs)
	p.note(notes)
	for _, f := range []struct {
		on, v6 bool
		family string
		list   []netip.Prefix
	}{{p.fam.v4, false, "IPv4", p.conf.IPv4CIDRs}, {p.fam.v6, true, "IPv6", p.conf.IPv6CIDRs}} {
		if !f.on || slices.ContainsFunc(use, func(r netip.Prefix) bool { return r.Addr().Is6() == f.v6 }) {
			continue
		}
		if len(f.list) == 0 && row.PoolError == "" && p.multi == nil {
			return nil, fmt.Errorf("node %s has no %s pod range: the pool has none: set ipam.operator.clusterPool%sPodCIDRList (`weft ipam show` proposes free ranges), or %s.enabled=false",
				p.node, f.family, f.family, strings.ToLower(f.family))
		}
		return nil, p.missing(row, fmt.Errorf("the ledger gives it no %s range", f.family))
	}
	return use, nil
}

// missing says why the node has no range.
func (p *poolNode) missing(row *table.Node, err error) error {
	switch {
	case row.PoolError != "":
		return fmt.Errorf("node %s has no pod range: the operator says: %s", p.node, row.PoolError)
	case errors.Is(err, k8s.ErrNoLedger):
		return fmt.Errorf("node %s has no pod range yet: no operator has given out any (%w): see kubectl -n kube-system get deployment cilium-operator", p.node, err)
	}
	return fmt.Errorf("node %s has no pod range yet: %w: is the operator running? See kubectl -n kube-system logs deployment/cilium-operator", p.node, err)
}

// read returns the ledger. One from an earlier look does where it confirms what
// is claimed: a grant is taken back only after its node is gone. While there is
// nothing to confirm, no more is asked than whether the ledger exists.
func (p *poolNode) read(ctx context.Context, claimed, current []netip.Prefix) (*k8s.Ledger, error) {
	p.mu.Lock()
	l := p.ledger
	p.mu.Unlock()
	if l != nil && (len(claimed)+len(current) > 0) && !slices.ContainsFunc(claimed, func(r netip.Prefix) bool { return !slices.Contains(l.Grants[p.node], r) }) {
		return l, nil
	}
	if len(claimed)+len(current) == 0 {
		if _, err := p.ledgers.LedgerMark(ctx, weftv1alpha1.DefaultPool); err != nil {
			return nil, err
		}
		return &k8s.Ledger{}, nil
	}
	l, err := p.fetch(ctx)
	if err == nil {
		select {
		case p.news <- struct{}{}:
		default:
		}
	}
	return l, err
}

// fetch reads the whole ledger and keeps it.
func (p *poolNode) fetch(ctx context.Context) (*k8s.Ledger, error) {
	l, err := p.ledgers.Ledger(ctx, weftv1alpha1.DefaultPool)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ledger = l
	return l, nil
}

// judge decides which ranges may be used, and says what is odd. A range is
// usable if the ledger gives it to this node and the node was told of it: by its
// CiliumNode, or because it is in use already. So a hand that edits the
// CiliumNode neither adds nor takes away.
func judge(node string, l *k8s.Ledger, claimed, current []netip.Prefix) (use []netip.Prefix, notes []string) {
	granted := l.Grants[node]
	for _, r := range granted {
		if slices.Contains(claimed, r) || slices.Contains(current, r) {
			use = append(use, r)
		}
		if slices.Contains(current, r) && !slices.Contains(claimed, r) && len(claimed) > 0 {
			notes = append(notes, fmt.Sprintf("CiliumNode %s does not show %s, which the ledger gives to this node: it stays in use; the operator writes it back", node, r))
		}
	}
	for _, r := range claimed {
		if slices.Contains(granted, r) {
			continue
		}
		notes = append(notes, fmt.Sprintf("CiliumNode %s shows %s, which the ledger gives to %s: it is not used; only the operator writes spec.ipam.podCIDRs", node, r, grantee(l, r)))
	}
	for _, r := range current {
		if !slices.Contains(granted, r) {
			notes = append(notes, fmt.Sprintf("the ledger gives %s no longer to this node but to %s: pods keep their addresses of it, no new ones are given: delete those pods", r, grantee(l, r)))
		}
	}
	return use, notes
}

func grantee(l *k8s.Ledger, r netip.Prefix) string {
	if n := l.Holder(r); n != "" {
		return "node " + n
	}
	return "nobody"
}

// note keeps what is odd for the status, and reports what is new.
func (p *poolNode) note(notes []string) {
	p.mu.Lock()
	old := p.notes
	p.notes = notes
	p.mu.Unlock()
	for _, n := range notes {
		if !slices.Contains(old, n) {
			p.log.Warn("pod ranges of this node are not as they should be", "problem", n)
			p.report("PodRangeRefused", n)
		}
	}
}

// View is a node as the datapath may know it: this node with the ranges in use,
// another one without ranges that the ledger gives to a third.
func (p *poolNode) View(n *table.Node, own []netip.Prefix) *table.Node {
	out := *n
	if n.Local {
		out.PodCIDRs = own
		return &out
	}
	p.mu.Lock()
	l := p.ledger
	p.mu.Unlock()
	if l == nil {
		return n
	}
	out.PodCIDRs = slices.DeleteFunc(slices.Clone(n.PodCIDRs), func(r netip.Prefix) bool {
		if slices.Contains(l.Grants[n.Name], r.Masked()) {
			return false
		}
		other := l.Holder(r)
		return other != "" && other != n.Name
	})
	return &out
}

// Look looks whether the ledger has news, and how far its releases are carried
// out here: kernel returns what names the part of a range that this node's kernel
// still has.
func (p *poolNode) Look(ctx context.Context, kernel func() (holder, error)) {
	l, current, err := p.recent(ctx)
	var seen map[string]uint64
	var holds []string
	if err == nil {
		seen, holds, err = carriedOut(l, kernel)
	}
	if err == nil && len(holds) > 0 && !current {
		// What rested may have been given to a peer meanwhile.
		if l, err = p.fetch(ctx); err == nil {
			seen, holds, err = carriedOut(l, kernel)
		}
	}
	if err != nil {
		p.log.Debug("ledger cannot be looked at", "error", err)
		return
	}
	p.mu.Lock()
	same := p.seen != nil && maps.Equal(p.seen, seen)
	p.seen, p.holds = seen, holds
	p.mu.Unlock()
	if !same {
		p.kick()
	}
}

// recent returns a ledger that has all releases. It need not have all grants,
// as then every agent would read the whole of it whenever a node joins; now and
// then it has. current says that it is the ledger as it stands.
func (p *poolNode) recent(ctx context.Context) (l *k8s.Ledger, current bool, err error) {
	mark, err := p.ledgers.LedgerMark(ctx, weftv1alpha1.DefaultPool)
	if err != nil {
		return nil, false, err
	}
	p.mu.Lock()
	had := p.ledger
	p.looks++
	due := p.looks%fullLook == 0
	p.mu.Unlock()
	switch {
	case had != nil && mark.Version == had.Version:
		return had, true, nil
	case had != nil && mark.Seq == had.Seq && !due:
		return had, false, nil
	}
	if l, err = p.fetch(ctx); err != nil {
		return nil, false, err
	}
	if had == nil || !sameGrants(had, l) {
		p.kick()
	}
	return l, true, nil
}

// holder names what of a range something has, "" for nothing.
type holder func(netip.Prefix) string

// carriedOut returns, by pool, the number of the last release up to which nothing
// of what was released is held here, and what is held of later ones.
func carriedOut(l *k8s.Ledger, kernel func() (holder, error)) (seen map[string]uint64, holds []string, err error) {
	seen = maps.Clone(l.Seqs)
	if seen == nil {
		seen = map[string]uint64{weftv1alpha1.DefaultPool: l.Seq}
	}
	if len(l.Quarantine) == 0 {
		return seen, nil, nil
	}
	held, err := kernel()
	if err != nil {
		return nil, nil, err
	}
	for _, q := range l.Quarantine {
		what := held(q.CIDR)
		if what == "" {
			continue
		}
		holds = append(holds, fmt.Sprintf("%s, which node %s gave back, rests until this node lets go of it: %s", q.CIDR, q.Node, what))
		if q.Seq > 0 {
			pool := cmp.Or(q.Pool, weftv1alpha1.DefaultPool)
			seen[pool] = min(seen[pool], q.Seq-1)
		}
	}
	return seen, holds, nil
}

// sameGrants tells whether nothing changed that concerns the datapath.
func sameGrants(a, b *k8s.Ledger) bool {
	if len(a.Grants) != len(b.Grants) {
		return false
	}
	for node, ranges := range a.Grants {
		if !slices.Equal(ranges, b.Grants[node]) {
			return false
		}
	}
	return true
}

// SetRoutes takes the node's routes as they are now, for the operator to see.
func (p *poolNode) SetRoutes(routes []weftv1alpha1.NodeRoute, more int) error {
	if routes == nil {
		routes = []weftv1alpha1.NodeRoute{}
	}
	b, err := json.Marshal(routes)
	if err != nil {
		return fmt.Errorf("routes of the node: %w", err)
	}
	p.mu.Lock()
	same := p.routes == string(b)
	p.routes, p.more = string(b), more
	p.mu.Unlock()
	if !same {
		p.kick()
	}
	return nil
}

// Annotations are what this node's CiliumNode shall carry.
func (p *poolNode) Annotations() map[string]string {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]string{}
	if p.routes != "" {
		out[weftv1alpha1.NodeRoutesAnnotation] = p.routes
	}
	if p.seen != nil && p.multi == nil {
		out[weftv1alpha1.ReleaseSeenAnnotation] = strconv.FormatUint(p.seen[weftv1alpha1.DefaultPool], 10)
	}
	if p.multi != nil {
		maps.Copy(out, p.multi.annotations(p.seen))
	}
	return out
}

// known are the ranges that are pods', whoever has routes to them: those in
// quarantine may still be announced by a routing daemon.
func (p *poolNode) known() []netip.Prefix {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []netip.Prefix
	if p.ledger != nil {
		for _, ranges := range p.ledger.Grants {
			out = append(out, ranges...)
		}
		for _, q := range p.ledger.Quarantine {
			out = append(out, q.CIDR)
		}
	}
	return out
}

// Problems are sentences for the status; holds are what is on its way.
func (p *poolNode) Problems() (out, holds []string) {
	if p == nil {
		return nil, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out = slices.Clone(p.notes)
	if p.more > 0 {
		out = append(out, fmt.Sprintf("this node has %d routes more than the %d that it shows to the operator: a range of the pool may be granted in spite of one of them: declare those as ReservedCIDR",
			p.more, weftv1alpha1.MaxNodeRoutes))
	}
	return out, slices.Clone(p.holds)
}

// addresses is this node's account of its addresses.
func (a *Agent) addresses() rpc.IPAM {
	st := a.endpoints.IPAM()
	out := rpc.IPAM{Mode: a.cfg.IPAM, Ranges: st.Ranges, Outside: st.Outside, Addresses: []rpc.IPAMAddress{}}
	for _, ep := range a.endpoints.List() {
		for _, ip := range []netip.Addr{ep.IPv4, ep.IPv6} {
			if ip.IsValid() {
				out.Addresses = append(out.Addresses, rpc.IPAMAddress{IP: ip, Owner: ep.Name()})
			}
		}
	}
	slices.SortFunc(out.Addresses, func(x, y rpc.IPAMAddress) int { return x.IP.Compare(y.IP) })
	problems, holds := a.pool.Problems()
	out.Problems = slices.Concat(problems, holds)
	return out
}

// noRange says why this node has no range to give an address from, "" if there
// is no more to say than is usual.
func (a *Agent) noRange() string {
	if a.pool == nil {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.nodeErr == nil {
		return "the agent has not heard of the operator's grant yet: see `weft status` on this node"
	}
	return a.nodeErr.Error()
}

// remedy is what to do when the node's addresses are used up.
func (a *Agent) remedy() string {
	if a.pool == nil {
		return ""
	}
	if a.pool.multi != nil {
		return "the operator was asked for more: see kubectl get ciliumnode " + a.opts.NodeName + " -o yaml, and kubectl get ciliumpodippools"
	}
	p := a.cfg.Pool
	var parts []string
	for _, f := range []struct {
		on     bool
		family string
		cidrs  []netip.Prefix
		mask   int
	}{{a.fam.v4, "IPv4", p.IPv4CIDRs, p.IPv4MaskSize}, {a.fam.v6, "IPv6", p.IPv6CIDRs, p.IPv6MaskSize}} {
		if f.on {
			parts = append(parts, fmt.Sprintf("each node has a /%d of %s (clusterPool%sMaskSize)", f.mask, strings.Trim(fmt.Sprint(f.cidrs), "[]"), f.family))
		}
	}
	return fmt.Sprintf("in pool %s %s; larger ones reach only nodes that join later", weftv1alpha1.DefaultPool, strings.Join(parts, " and "))
}

// setPoolRanges puts into effect what the pool's ledger gives to this node. The
// operator must know the node, and its routes, before it can give anything.
func (a *Agent) setPoolRanges(ctx context.Context, n *table.Node, known bool) ([]netip.Prefix, error) {
	current := a.endpoints.Ranges()
	if known && len(current) == 0 {
		if err := a.readNodeRoutes(); err != nil {
			return nil, err
		}
		a.publish(n)
	}
	if !known {
		n = &table.Node{Name: n.Name} // remembered: what it has is in use already
		if len(current) == 0 {
			return nil, fmt.Errorf("node %s is not known at the API server yet", n.Name)
		}
	}
	ranges, err := a.pool.Ranges(ctx, n, current)
	if slices.Equal(ranges, current) && err == nil {
		return ranges, nil
	}
	if len(ranges) == 0 {
		a.endpoints.ClearRanges()
	} else if serr := a.endpoints.SetPools(a.pool.pooled(ranges)); serr != nil {
		return nil, errors.Join(err, serr)
	}
	a.derive.Refresh()
	if err != nil {
		return nil, errors.Join(err, a.keep(func(m *memory) { m.PodCIDRs, m.Pools = ranges, a.poolNames() }))
	}
	return ranges, nil
}

// followLedger looks at the ledger now and then, once this node's kernel holds
// what the API server's first full lists say.
func (a *Agent) followLedger(ctx context.Context) error {
	if a.pool == nil {
		return nil
	}
	for _, ch := range []<-chan struct{}{a.ipcacheLoop.Synced(), a.routesLoop.Synced()} {
		select {
		case <-ctx.Done():
			return nil
		case <-ch:
		}
	}
	for {
		a.pool.RoutesDue()
		a.pool.Look(ctx, a.inKernel)
		select {
		case <-ctx.Done():
			return nil
		case <-a.pool.news:
		// Not all agents at one moment.
		case <-time.After(ledgerEvery - time.Duration(rand.Int64N(int64(ledgerEvery/5)))):
		}
	}
}

// inKernel reads what ranges are in this node's kernel: in routes of Weft's, or
// in entries of the ipcache maps. What is wanted says nothing of what could not
// be deleted.
func (a *Agent) inKernel() (holder, error) {
	routes, err := a.links.ListRoutes()
	if err != nil {
		return nil, err
	}
	rows, err := a.dp.Maps().IPCache.List()
	if err != nil {
		return nil, err
	}
	return func(r netip.Prefix) string {
		for _, x := range routes {
			if x.Prefix.Overlaps(r) {
				return "route " + x.Prefix.String()
			}
		}
		for _, x := range rows {
			if x.Prefix.Bits() >= r.Bits() && r.Contains(x.Prefix.Addr()) {
				return "ipcache entry " + x.Prefix.String() + " (`weft bpf ipcache list`)"
			}
		}
		return ""
	}, nil
}
