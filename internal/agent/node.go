// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/table"
)

// healthContainer names the health endpoint's attachment.
const healthContainer = "weft-health"

// followNode puts this node's row into effect whenever it changes, and again
// after a while where that failed.
func (a *Agent) followNode(ctx context.Context) error {
	delay := retryShort
	for {
		row, _, watch, ok := a.t.nodes.GetWatch(a.t.db.ReadTxn(), table.NodeByName.Query(a.opts.NodeName))
		var err error
		switch remembered := a.remembered(); {
		case ok:
			err = a.applyNode(ctx, row, true)
			if err == nil {
				a.publish(row)
			}
		case remembered != nil:
			err = a.applyNode(ctx, remembered, false)
		default:
			err = fmt.Errorf("node %s is not known at the API server yet", a.opts.NodeName)
		}
		a.mu.Lock()
		told := a.nodeErr != nil && err != nil && a.nodeErr.Error() == err.Error()
		a.nodeErr = err
		a.mu.Unlock()
		var retry <-chan time.Time
		if err != nil {
			if !told {
				a.log.Warn("node is not set up yet", "error", err)
			}
			a.gate.Wait(err.Error())
			retry = time.After(delay)
			delay = min(2*delay, retryLongest)
		} else {
			delay = retryShort
		}
		select {
		case <-ctx.Done():
			return nil
		case <-watch:
		case <-a.pool.Changed():
		case <-retry:
		case <-a.republish:
		}
	}
}

// applyNode carries addresses and ranges of this node to all that depend on
// them. known says that n is the API server's word.
func (a *Agent) applyNode(ctx context.Context, n *table.Node, known bool) error {
	addrs := a.enabled(n.Addrs)
	if err := a.checkAddrs(n, addrs); err != nil {
		return err
	}
	a.watcher.SetNodeAddrs(addrs)
	devs, err := a.links.Devices(link.Selection{Globs: a.cfg.Devices, NodeAddrs: addrs})
	if err != nil {
		return err
	}
	a.devices.Settle()
	if err := a.devices.Set(devs); err != nil {
		return err
	}
	a.masq.Set(addrs, devs)
	if err := a.configure(addrs); err != nil {
		return err
	}
	if err := a.endpoints.SetNodeAddrs(addrs); err != nil {
		return err
	}
	ranges, err := a.setRanges(ctx, n, known)
	if err != nil {
		return err
	}
	if err := a.ensureHealth(ctx); err != nil {
		return err
	}
	if err := a.keep(func(m *memory) { m.UID, m.Addrs, m.PodCIDRs, m.Pools = n.UID, addrs, ranges, a.poolNames() }); err != nil {
		return err
	}
	if err := a.overlay.check(); err != nil {
		return err
	}
	a.beginOnce.Do(func() { close(a.begin) })
	return nil
}

// setRanges puts the node's ranges into effect and returns them.
func (a *Agent) setRanges(ctx context.Context, n *table.Node, known bool) ([]netip.Prefix, error) {
	if a.pool != nil {
		return a.setPoolRanges(ctx, n, known)
	}
	if len(n.PodCIDRs) == 0 {
		return nil, fmt.Errorf("node %s has no podCIDRs: start kube-controller-manager with --allocate-node-cidrs=true and --cluster-cidr", n.Name)
	}
	return n.PodCIDRs, a.endpoints.SetRanges(a.enabledRanges(n.PodCIDRs))
}

// publish tells the other nodes what this one has.
func (a *Agent) publish(n *table.Node) {
	info := k8s.NodeInfo{
		UID: n.UID, BootID: a.memFile.bootID, ProviderID: n.ProviderID,
		Addrs: a.enabled(n.Addrs), HealthIPs: a.healthIPs, Annotations: a.pool.Annotations(), Tunnel: a.overlay.announce(),
		Requested: a.pool.Requested(),
	}
	if a.pool == nil {
		info.PodCIDRs = a.endpoints.Ranges()
	}
	a.publisher.Set(info)
}

// remembered returns what is known of the node from an earlier life, or nil.
func (a *Agent) remembered() *table.Node {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.mem.PodCIDRs) == 0 {
		return nil
	}
	return a.mem.row()
}

// checkAddrs wants an address for each family that is on.
func (a *Agent) checkAddrs(n *table.Node, addrs []netip.Addr) error {
	for _, f := range []struct {
		on, v6 bool
		name   string
	}{{a.fam.v4, false, "IPv4"}, {a.fam.v6, true, "IPv6"}} {
		if f.on && !slices.ContainsFunc(addrs, func(x netip.Addr) bool { return x.Is6() == f.v6 }) {
			return fmt.Errorf("node %s has no InternalIP of %s, which is on: start its kubelet with --node-ip for each family, or switch the family off", n.Name, f.name)
		}
	}
	return nil
}

// ensureHealth makes the endpoint that answers the peers' probes.
func (a *Agent) ensureHealth(ctx context.Context) error {
	if _, err := os.Stat(a.opts.Paths.HealthNetns); err != nil {
		return fmt.Errorf("network namespace of the health endpoint: %w: `weft-agent init` makes it, the DaemonSet's first container", err)
	}
	ips := a.endpoints.HealthAddrs()
	if slices.Equal(a.healthIPs, ips) {
		return nil
	}
	_, err := a.endpoints.Add(ctx, endpoint.AddRequest{
		Kind: table.EndpointHealth, ContainerID: healthContainer, IfName: "eth0", Netns: a.opts.Paths.HealthNetns,
		Namespace: "weft", Pod: "health", IPs: ips,
	})
	if err != nil {
		return fmt.Errorf("health endpoint: %w", err)
	}
	a.healthIPs = ips
	return nil
}

// keep changes what is remembered of the node, if that is a change.
func (a *Agent) keep(f func(*memory)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := a.mem
	f(&next)
	if next.UID == a.mem.UID && next.ProvenAt.Equal(a.mem.ProvenAt) &&
		slices.Equal(next.Addrs, a.mem.Addrs) && slices.Equal(next.PodCIDRs, a.mem.PodCIDRs) && slices.Equal(next.Pools, a.mem.Pools) {
		return nil
	}
	if err := a.memFile.save(next); err != nil {
		return err
	}
	a.mem = next
	return nil
}

// routesLook is how often the node's routes are looked at though nothing was
// announced: the kernel drops IPv4 routes without a word when their device goes
// down or loses its last address.
const routesLook = 30 * time.Second

// followWays has programs ask the routing table anew once it may say something else.
func (a *Agent) followWays(ctx context.Context) error {
	return a.links.WatchWays(ctx, a.dp.Maps().Ways.Changed)
}

// followRoutes has routes written again that somebody deleted or changed, and
// looks anew at those on which peers across a router depend.
func (a *Agent) followRoutes(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		done <- a.links.WatchRoutes(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	tick := time.NewTicker(routesLook)
	defer tick.Stop()
	for {
		_, devices := a.t.devices.AllWatch(a.t.db.ReadTxn())
		select {
		case err := <-done:
			return err
		case <-changed:
		case <-devices:
		case <-tick.C:
		}
		a.derive.Refresh()
		a.pool.RoutesDue()
		var desired []*table.Route
		for r := range a.t.routes.All(a.t.db.ReadTxn()) {
			desired = append(desired, r)
		}
		drifted, err := routeTarget{a.links}.drifted(desired)
		if err != nil {
			a.log.Warn("routes of the node cannot be read", "error", err)
			continue
		}
		if drifted {
			a.routesLoop.Resync()
		}
		// Another manager that deletes in a loop must not be answered in a loop.
		select {
		case <-ctx.Done():
			return <-done
		case <-time.After(time.Second):
		}
	}
}

// followForward keeps pods' packets accepted in FORWARD.
func (a *Agent) followForward(ctx context.Context) error {
	accepted := false
	for {
		good, wait := a.ensureForward(ctx)
		if good && !accepted {
			accepted = true
			close(a.accepted)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// ensureForward tells whether pods' packets are accepted, or nothing is there to
// accept them with, and when to look again.
func (a *Agent) ensureForward(ctx context.Context) (good bool, again time.Duration) {
	err := a.links.EnsureForward(ctx, link.Forwarded{IPv4: a.fam.v4, IPv6: a.fam.v6, Services: a.cfg.SocketLB.NodePort})
	missing := new(link.MissingError)
	good = err == nil || errors.As(err, &missing)
	if ctx.Err() != nil {
		return good, 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil && (a.acceptErr == nil || a.acceptErr.Error() != err.Error()) {
		a.log.Warn("accept rules in FORWARD are not as they should be", "error", err)
	}
	a.acceptErr = err
	if !good {
		return good, retryShort
	}
	return good, acceptEvery
}

// checkCilium ends the agent if a running Cilium is found. It asks until it has
// an answer.
func (a *Agent) checkCilium(ctx context.Context) error {
	select {
	case <-a.cleared:
		return nil
	default:
	}
	delay := retryShort
	for {
		found, err := a.client.FindCilium(ctx)
		switch {
		case err == nil && found != "":
			return errors.New(found)
		case err == nil:
			close(a.cleared)
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
			delay = min(2*delay, retryLongest)
		}
	}
}

// publishEndpoints starts once it is known what the API server holds: the
// writer spares calls for what is there already.
func (a *Agent) publishEndpoints(ctx context.Context) error {
	for _, t := range []statedb.TableMeta{a.t.pods, a.t.nodes} {
		if ok, ch := t.Initialized(a.t.db.ReadTxn()); !ok {
			select {
			case <-ctx.Done():
				return nil
			case <-ch:
			}
		}
	}
	return a.endpointLoop.Run(ctx)
}

// markReady takes the taint off and sets the condition, whenever either is not
// so on a node that is proven.
func (a *Agent) markReady(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.openGate:
	}
	delay := retryShort
	for {
		row, _, watch, ok := a.t.nodes.GetWatch(a.t.db.ReadTxn(), table.NodeByName.Query(a.opts.NodeName))
		var retry <-chan time.Time
		if ok && (row.AgentNotReady || !row.NetworkReady) {
			if err := a.client.MarkReady(ctx); err != nil {
				a.log.Debug("node cannot be marked ready", "error", err)
				retry = time.After(delay)
				delay = min(2*delay, retryLongest)
			} else {
				delay = retryShort
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-watch:
		case <-retry:
		}
	}
}
