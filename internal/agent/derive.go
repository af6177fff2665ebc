// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/arrival"
	"github.com/weft-net/weft/internal/table"
)

// routesRefresh is how often foreign routes are looked at again while a peer
// depends on them. Netlink's own notifications are not enough: the table may
// have changed while the agent did not run.
const routesRefresh = 10 * time.Second

// tables are all the tables of the agent.
type tables struct {
	db        *statedb.DB
	endpoints statedb.RWTable[*table.Endpoint]
	nodes     statedb.RWTable[*table.Node]
	pods      statedb.RWTable[*table.RemotePod]
	ipcache   statedb.RWTable[*table.IPCache]
	devices   statedb.RWTable[*table.Device]
	routes    statedb.RWTable[*table.Route]
	services  statedb.RWTable[*table.Service]
	slices    statedb.RWTable[*table.EndpointSlice]
	hostPorts statedb.RWTable[*table.PodHostPorts]
	frontends statedb.RWTable[*table.Frontend]
	arrived   arrivals
}

// arrivals say of each table when what led to its changes arrived from the API server.
type arrivals struct {
	nodes, pods, ipcache, routes *arrival.Log
	services, slices, frontends  *arrival.Log
	hostPorts                    *arrival.Log
}

func newTables() (t tables, err error) {
	t.db = statedb.New()
	t.arrived = arrivals{
		nodes: &arrival.Log{}, pods: &arrival.Log{}, ipcache: &arrival.Log{}, routes: &arrival.Log{},
		services: &arrival.Log{}, slices: &arrival.Log{}, frontends: &arrival.Log{}, hostPorts: &arrival.Log{},
	}
	for _, f := range []func() error{
		func() error { t.endpoints, err = table.NewEndpoints(t.db); return err },
		func() error { t.nodes, err = table.NewNodes(t.db); return err },
		func() error { t.pods, err = table.NewRemotePods(t.db); return err },
		func() error { t.ipcache, err = table.NewIPCache(t.db); return err },
		func() error { t.devices, err = table.NewDevices(t.db); return err },
		func() error { t.routes, err = table.NewRoutes(t.db); return err },
		func() error { t.services, err = table.NewServices(t.db); return err },
		func() error { t.slices, err = table.NewEndpointSlices(t.db); return err },
		func() error { t.hostPorts, err = table.NewHostPorts(t.db); return err },
		func() error { t.frontends, err = table.NewFrontends(t.db); return err },
	} {
		if err := f(); err != nil {
			return t, err
		}
	}
	return t, nil
}

// deriver turns what is known into what is wanted: ipcache entries and routes.
// It is the only writer of those two tables.
type deriver struct {
	t       tables
	fam     families
	direct  bool                           // auto-direct-node-routes
	foreign func() ([]netip.Prefix, error) // routes of others in the main table
	view    func(*table.Node) *table.Node  // a node with the ranges that are believed; nil: all are
	// nodePorts are where addresses of nodes must lie for NodePorts to answer there; empty: anywhere.
	nodePorts []netip.Prefix
	log       *slog.Logger

	refresh chan struct{}
	claims  *claims
	self    *table.Node
	done    []func(statedb.WriteTxn) // initialisers of the desired tables, nil when done

	tunnels map[netip.Addr]nodeTunnel // by address of the node, as the ipcache shows it
	held    *work                     // what waits until all nodes are known; nil: nothing

	mu       sync.Mutex
	problems []string
	overlay  overlayView
}

// newDeriver registers the desired tables' initialisers: nothing is pruned in
// the kernel before every input was complete once.
func newDeriver(t tables, fam families, direct bool, foreign func() ([]netip.Prefix, error), log *slog.Logger) *deriver {
	txn := t.db.WriteTxn(t.ipcache, t.routes)
	defer txn.Commit()
	return &deriver{
		t: t, fam: fam, direct: direct, foreign: foreign, log: log, claims: newClaims(), refresh: make(chan struct{}, 1),
		done: []func(statedb.WriteTxn){
			t.ipcache.RegisterInitializer(txn, "derivation"),
			t.routes.RegisterInitializer(txn, "derivation"),
		},
	}
}

// Refresh has routes and nodes' ranges derived anew, as the kernel's own routes,
// or what is believed of the ranges, may have changed.
func (d *deriver) Refresh() {
	select {
	case d.refresh <- struct{}{}:
	default:
	}
}

// inputs are the changes of the deriver's source tables.
type inputs struct {
	nodes     statedb.ChangeIterator[*table.Node]
	pods      statedb.ChangeIterator[*table.RemotePod]
	endpoints statedb.ChangeIterator[*table.Endpoint]
	devices   statedb.ChangeIterator[*table.Device]
}

func (d *deriver) watch() (in inputs, err error) {
	txn := d.t.db.WriteTxn(d.t.nodes, d.t.pods, d.t.endpoints, d.t.devices)
	defer txn.Commit()
	for _, f := range []func() error{
		func() error { in.nodes, err = d.t.nodes.Changes(txn); return err },
		func() error { in.pods, err = d.t.pods.Changes(txn); return err },
		func() error { in.endpoints, err = d.t.endpoints.Changes(txn); return err },
		func() error { in.devices, err = d.t.devices.Changes(txn); return err },
	} {
		if err := f(); err != nil {
			return in, fmt.Errorf("derivation: %w", err)
		}
	}
	return in, nil
}

// Run derives until ctx ends.
func (d *deriver) Run(ctx context.Context) error {
	in, err := d.watch()
	if err != nil {
		return err
	}
	defer in.nodes.Close()
	defer in.pods.Close()
	defer in.endpoints.Close()
	defer in.devices.Close()
	tick := time.NewTicker(routesRefresh)
	defer tick.Stop()
	again, anew := true, false // routes; nodes too
	for {
		txn := d.t.db.ReadTxn()
		work, wake := d.take(in, txn)
		if anew {
			d.retake(txn, work)
		}
		if work.routes = work.routes || again; work.routes {
			d.retunnel(txn, work)
		}
		if err := d.commit(txn, work); err != nil {
			return err
		}
		again, anew = false, false
		select {
		case <-ctx.Done():
			return nil
		case <-wake.nodes:
		case <-wake.pods:
		case <-wake.endpoints:
		case <-wake.devices:
		case <-wake.initialised:
		case <-d.refresh:
			again, anew = true, d.view != nil
		case <-tick.C:
			again = len(d.Problems()) > 0 || !d.direct
		}
	}
}

// wake holds the channels that announce more work.
type wake struct {
	nodes, pods, endpoints, devices, initialised <-chan struct{}
}

// work is what has to be derived, with the arrival of the first event behind it;
// zero where none is.
type work struct {
	prefixes map[netip.Prefix]time.Time
	routes   bool
	nodes    time.Time // of what happened to nodes, and so to routes
}

func (w *work) touch(p netip.Prefix, arrived time.Time) {
	w.prefixes[p] = arrival.Earlier(w.prefixes[p], arrived)
}

// take applies all changes up to txn to the claims.
func (d *deriver) take(in inputs, txn statedb.ReadTxn) (*work, wake) {
	out := &work{prefixes: map[netip.Prefix]time.Time{}}
	var arrived time.Time // of the change at hand
	set := func(owner string, cs []claim) {
		for _, p := range d.claims.set(owner, cs) {
			out.touch(p, arrived)
		}
	}
	nodes, wn := in.nodes.Next(txn)
	for c, rev := range nodes {
		arrived = d.t.arrived.nodes.At(rev)
		out.routes, out.nodes = true, arrival.Earlier(out.nodes, arrived)
		if c.Deleted {
			set(nodeOwner(c.Object.Name), nil)
			continue
		}
		set(nodeOwner(c.Object.Name), nodeClaims(d.seen(c.Object), d.fam))
		if c.Object.Local && (d.self == nil || !slices.Equal(d.self.Addrs, c.Object.Addrs)) {
			// Which CiliumEndpoints are our own is told by our addresses. Those of which
			// there is news below count from that.
			d.self, arrived = c.Object, time.Time{}
			for p := range d.t.pods.All(txn) {
				set(podOwner(p), podClaims(p, d.self, d.fam))
			}
		}
	}
	pods, wp := in.pods.Next(txn)
	for c, rev := range pods {
		arrived = d.t.arrived.pods.At(rev)
		if c.Deleted {
			set(podOwner(c.Object), nil)
		} else {
			set(podOwner(c.Object), podClaims(c.Object, d.self, d.fam))
		}
	}
	d.t.arrived.nodes.Forget(d.t.nodes.Revision(txn))
	d.t.arrived.pods.Forget(d.t.pods.Revision(txn))
	arrived = time.Time{} // what follows is this node's own
	endpoints, we := in.endpoints.Next(txn)
	for c := range endpoints {
		if c.Deleted {
			set(endpointOwner(c.Object), nil)
		} else {
			set(endpointOwner(c.Object), endpointClaims(c.Object))
		}
	}
	devices, wd := in.devices.Next(txn)
	for c := range devices {
		out.routes = true
		if c.Deleted {
			set(deviceOwner(c.Object), nil)
		} else {
			set(deviceOwner(c.Object), deviceClaims(c.Object, d.fam))
		}
	}
	return out, wake{wn, wp, we, wd, d.initialised(txn)}
}

// seen is a node with the ranges that are believed.
func (d *deriver) seen(n *table.Node) *table.Node {
	if d.view == nil {
		return n
	}
	return d.view(n)
}

// retake makes the claims of all nodes anew.
func (d *deriver) retake(txn statedb.ReadTxn, w *work) {
	for n := range d.t.nodes.All(txn) {
		for _, p := range d.claims.set(nodeOwner(n.Name), nodeClaims(d.seen(n), d.fam)) {
			w.touch(p, time.Time{})
		}
	}
}

// initialised returns a channel that closes when the first table that is not
// complete becomes so, or nil if all are.
func (d *deriver) initialised(txn statedb.ReadTxn) <-chan struct{} {
	for _, t := range []statedb.TableMeta{d.t.nodes, d.t.pods, d.t.endpoints, d.t.devices} {
		if ok, ch := t.Initialized(txn); !ok {
			return ch
		}
	}
	return nil
}

// commit writes what changed. txn is the snapshot that the claims stand for.
func (d *deriver) commit(txn statedb.ReadTxn, w *work) error {
	complete := d.done != nil && d.initialised(txn) == nil
	d.hold(txn, w)
	if len(w.prefixes) == 0 && !w.routes && !complete {
		return nil
	}
	wtxn := d.t.db.WriteTxn(d.t.ipcache, d.t.routes)
	defer wtxn.Abort()
	for p, arrived := range w.prefixes {
		if err := d.commitPrefix(wtxn, p); err != nil {
			return err
		}
		d.t.arrived.ipcache.Note(d.t.ipcache.Revision(wtxn), arrived)
	}
	if w.routes || complete {
		if err := d.commitRoutes(txn, wtxn); err != nil {
			return err
		}
		d.t.arrived.routes.Note(d.t.routes.Revision(wtxn), w.nodes)
	}
	if complete {
		for _, f := range d.done {
			f(wtxn)
		}
		d.done = nil
	}
	wtxn.Commit()
	return nil
}

func (d *deriver) commitPrefix(wtxn statedb.WriteTxn, p netip.Prefix) error {
	old, _, had := d.t.ipcache.Get(wtxn, table.IPCacheByPrefix.Query(p))
	row, want := d.claims.winner(p)
	row = d.closed(d.tunnelled(row))
	var err error
	switch {
	case want && (!had || *old != row):
		_, _, err = d.t.ipcache.Insert(wtxn, &row)
	case !want && had:
		_, _, err = d.t.ipcache.Delete(wtxn, old)
	}
	if err != nil {
		return fmt.Errorf("ipcache %s: %w", p, err)
	}
	return nil
}

// closed marks the address of a node at which NodePorts do not answer.
func (d *deriver) closed(row table.IPCache) table.IPCache {
	if len(d.nodePorts) > 0 && (row.Kind == table.KindHost || row.Kind == table.KindNode) {
		row.NoNodePort = !slices.ContainsFunc(d.nodePorts, func(p netip.Prefix) bool { return p.Contains(row.Prefix.Addr()) })
	}
	return row
}

func (d *deriver) commitRoutes(txn statedb.ReadTxn, wtxn statedb.WriteTxn) error {
	foreign, err := d.foreign()
	if err != nil {
		d.log.Warn("routes of the node cannot be read", "error", err)
	}
	r := routing{direct: d.direct, fam: d.fam, foreign: foreign, overlay: d.overlaid()}
	for n := range d.t.nodes.All(txn) {
		r.nodes = append(r.nodes, d.seen(n))
	}
	for dev := range d.t.devices.All(txn) {
		r.devices = append(r.devices, dev)
	}
	want, problems := r.routes()
	d.note(problems)
	keep := map[netip.Prefix]bool{}
	for _, route := range want {
		keep[route.Prefix] = true
		if old, _, ok := d.t.routes.Get(wtxn, table.RouteByPrefix.Query(route.Prefix)); ok && *old == *route {
			continue
		}
		if _, _, err := d.t.routes.Insert(wtxn, route); err != nil {
			return fmt.Errorf("route %s: %w", route.Prefix, err)
		}
	}
	for old := range d.t.routes.All(wtxn) {
		if keep[old.Prefix] {
			continue
		}
		if _, _, err := d.t.routes.Delete(wtxn, old); err != nil {
			return fmt.Errorf("route %s: %w", old.Prefix, err)
		}
	}
	return nil
}

func (d *deriver) note(problems []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range problems {
		if !slices.Contains(d.problems, p) {
			d.log.Warn("pods of a node cannot be reached", "problem", p)
		}
	}
	d.problems = problems
}

// Problems returns a sentence for each range of a node that cannot be routed.
func (d *deriver) Problems() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.problems)
}
