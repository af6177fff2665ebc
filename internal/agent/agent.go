// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/cni/server"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/flow"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/reconcile"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/service/healthcheck"
	"github.com/weft-net/weft/internal/table"
)

// Times of the agent.
const (
	cniStart     = 10 * time.Second // for the CNI socket to appear
	firstCheck   = 2 * time.Second  // for the API server's word on a running Cilium
	sweepEvery   = 30 * time.Second // of expired conntrack entries
	pruneEvery   = 10 * time.Minute // of what nobody wants, beside the first time
	acceptEvery  = time.Minute      // look at the accept rules in FORWARD
	retryShort   = time.Second
	retryLongest = 15 * time.Second
)

// Agent is one run of weft-agent.
type Agent struct {
	opts  Options
	cfg   *config.Config
	log   *slog.Logger
	fam   families
	start time.Time

	t       tables
	metrics *metrics
	flows   *flow.Broadcaster
	proxy   *kubeProxy

	dp           *datapath.Datapath
	links        *link.Links
	endpoints    *endpoint.Manager
	cni          *server.Server
	watcher      *link.DeviceWatcher
	devices      *nodeDevices
	overlay      *overlay
	floods       *floodWatch
	masq         *masquerader
	bigTCP       *bigTCP
	derive       *deriver
	services     *services // nil: kube-proxy's alone
	socketLB     *socketLB
	healthChecks *healthcheck.Server // nil: off
	fill         *fillWatch

	client    *k8s.Client
	pool      *poolNode // of ipam cluster-pool, else nil
	reflect   *k8s.Reflect
	publisher *k8s.Publisher

	ipcacheLoop  *reconcile.Loop[*table.IPCache]
	routesLoop   *reconcile.Loop[*table.Route]
	endpointLoop *reconcile.Loop[*table.Endpoint]

	gate      *health.Gate
	healthIPs []netip.Addr // of the health endpoint as made last; only followNode's
	peers     *health.Peers
	memFile   memoryFile
	reports   chan report
	// openGate is closed when the node may be marked ready at the API server.
	openGate  chan struct{}
	openOnce  sync.Once
	republish chan struct{} // to followNode: what this node says of itself changed
	beginOnce sync.Once
	begin     chan struct{} // closed when the node's addresses and ranges are in effect
	cleared   chan struct{} // closed when no running Cilium was found
	accepted  chan struct{} // closed when FORWARD accepted pods' packets once

	mu        sync.Mutex
	mem       memory
	nodeErr   error // why the node's row could not be put into effect
	acceptErr error // of the rules in FORWARD
	listening int   // monitors
}

// report is something to tell the API server as an event.
type report struct {
	kind            k8s.EventType
	reason, message string
}

// Run is the agent: it returns nil when ctx ended and an error when it cannot go
// on. Either way all that it put into the kernel stays and forwards.
func Run(ctx context.Context, opts Options) error {
	lock, err := lockRun(opts.Paths)
	if err != nil {
		return err
	}
	defer lock.Close()
	a, err := newAgent(ctx, opts)
	if err != nil {
		return err
	}
	defer a.close()
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	g, within := errgroup.WithContext(within)
	if err := a.serve(within, g); err != nil {
		cancel()
		if ctx.Err() != nil { // told to end before it had begun: no error of this agent
			return g.Wait()
		}
		// What ended the group is the cause; that the socket was not served follows.
		return cmp.Or(g.Wait(), err)
	}
	a.background(within, g)
	return g.Wait()
}

func newAgent(ctx context.Context, opts Options) (*Agent, error) {
	a := &Agent{
		opts: opts, log: opts.Log, start: time.Now(), flows: &flow.Broadcaster{},
		reports: make(chan report, 16), openGate: make(chan struct{}), republish: make(chan struct{}, 1), begin: make(chan struct{}),
		cleared: make(chan struct{}), accepted: make(chan struct{}),
	}
	var err error
	if a.cfg, err = config.Load(opts.Paths.Config); err != nil {
		return nil, err
	}
	if a.cfg.Debug && opts.Level != nil {
		opts.Level.Set(slog.LevelDebug)
	}
	a.fam = families{a.cfg.EnableIPv4, a.cfg.EnableIPv6}
	a.proxy = newKubeProxy(a.cfg.SocketLB.Enabled, a.cfg.SocketLB.NodePort, a.cfg.KubeProxyReplacement)
	if opts.NodeName == "" {
		return nil, errors.New("the node's name is not known: set K8S_NODE_NAME or --node-name")
	}
	if err := a.remember(); err != nil {
		return nil, err
	}
	if a.t, err = newTables(); err != nil {
		return nil, err
	}
	if a.metrics, err = newMetrics(opts.Version); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if err := a.newKubernetes(ctx); err != nil {
		return nil, err
	}
	if err := a.newDatapath(ctx); err != nil {
		a.close()
		return nil, err
	}
	if err := a.newLoops(); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// remember loads what the agent knows of its node from an earlier life.
func (a *Agent) remember() error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	a.memFile = memoryFile{path: a.opts.Paths.node(), bootID: boot, node: a.opts.NodeName, ipam: a.cfg.IPAM}
	if a.mem, err = a.memFile.load(); err != nil {
		a.log.Warn("state of the node is not known from before", "error", err)
	}
	return nil
}

// newKubernetes makes the client, and on a node that was never proven looks for
// a running Cilium before anything is touched. A server that does not answer is
// asked again in the background, and no pod is taken before it did.
func (a *Agent) newKubernetes(ctx context.Context) (err error) {
	a.client, err = k8s.NewClient(k8s.Config{
		NodeName: a.opts.NodeName, Server: a.cfg.K8sAPIServer, CredentialsDir: a.opts.Paths.Credentials,
		ClusterPool: a.cfg.IPAM == config.IPAMClusterPool, MultiPool: a.cfg.IPAM == config.IPAMMultiPool, UserAgent: "weft-agent/" + a.opts.Version, Log: a.log,
	})
	if err != nil {
		return err
	}
	warn := func(reason, message string) { a.report(k8s.EventWarning, reason, message) }
	switch a.cfg.IPAM {
	case config.IPAMClusterPool:
		a.pool = newPoolNode(a.opts.NodeName, a.cfg.Pool, a.fam, a.client, warn, a.log)
	case config.IPAMMultiPool:
		a.pool = newPoolNode(a.opts.NodeName, config.ClusterPool{}, a.fam, k8s.Ledgers{Client: a.client}, warn, a.log)
		if a.pool.multi, err = newMultiPool(a.cfg.Pools, a.fam, a.client, a.pool.kick); err != nil {
			return err
		}
	}
	tables := k8s.Tables{
		DB: a.t.db, Nodes: a.t.nodes, Pods: a.t.pods, NodesArrived: a.t.arrived.nodes, PodsArrived: a.t.arrived.pods,
		Services: a.reflected(),
	}
	a.reflect = k8s.NewReflect(a.client, tables)
	a.publisher = k8s.NewPublisher(a.client, a.reflect)
	if !a.mem.ProvenAt.IsZero() {
		return nil
	}
	cctx, cancel := context.WithTimeout(ctx, firstCheck)
	defer cancel()
	found, err := a.client.FindCilium(cctx)
	switch {
	case err != nil:
		a.log.Info("API server does not answer yet, going on without it", "error", err)
	case found != "":
		return errors.New(found)
	default:
		close(a.cleared)
	}
	return nil
}

// newDatapath takes over what an earlier agent left in the kernel: programs
// first, so that all that follows meets the present version, then endpoints.
func (a *Agent) newDatapath(ctx context.Context) (err error) {
	v4, v6 := a.cfg.Masquerades()
	a.dp, err = datapath.Open(datapath.Options{
		Root: a.opts.Paths.BPF, IPv4: a.fam.v4, IPv6: a.fam.v6, Masquerade: v4 || v6, Log: a.log, Sizes: a.sizes(),
		Outside: a.cfg.SocketLB.NodePort,
		SocketLB: datapath.SocketLB{
			Enabled: a.cfg.SocketLB.Enabled, HostNamespaceOnly: a.cfg.SocketLB.HostNamespaceOnly, Cgroup: a.cfg.CgroupRoot,
			BindNodePorts: !a.cfg.SocketLB.BindProtection,
		},
	})
	if err != nil {
		return err
	}
	if a.links, err = link.New(a.opts.Paths.Sysctl, a.log); err != nil {
		return err
	}
	if err := a.links.EnsureForwarding(a.fam.v4, a.fam.v6); err != nil {
		return err
	}
	a.newSocketLB()
	a.forgetOutside()
	sel := link.Selection{Globs: a.cfg.Devices, NodeAddrs: a.mem.Addrs}
	if a.watcher, err = a.links.WatchDevices(sel); err != nil {
		return err
	}
	a.devices = newNodeDevices(a.t, a.dp, len(sel.Globs) > 0 || len(sel.NodeAddrs) > 0, a.log)
	devs, err := a.links.Devices(sel)
	if err != nil {
		return err
	}
	_ = a.devices.Set(devs) // shown by the component Datapath, and tried again
	// Before the overlay: what it changes is configured together with this.
	a.masq = newMasquerader(a.cfg, a.dp.Maps().NAT, reservation{a.links, a.opts.Paths.reserved()}, a.opts.Paths.MasqAgent, a.log)
	a.masq.Set(a.enabled(a.mem.Addrs), devs)
	a.bigTCP = newBigTCP(a.cfg, a.links, a.opts.Paths.bounds(), a.log)
	_ = a.bigTCP.apply(selectedIndexes(devs)) // shown by its component, and tried again
	if err := a.newOverlay(); err != nil {
		return err
	}
	if len(a.mem.Addrs) > 0 {
		_ = a.overlay.check() // shown by the component Routing, and tried again
	}
	if err := a.configure(a.mem.Addrs); err != nil {
		return err
	}
	a.endpoints, err = endpoint.New(endpoint.Params{
		Node: a.opts.NodeName,
		Settings: endpoint.Settings{
			Families: ipam.Families{V4: a.fam.v4, V6: a.fam.v6},
			MTU:      a.mtu, BigTCP: a.bigTCP.Pods, Claimed: a.claimed, NoRange: a.noRange, Remedy: a.remedy(), Pools: a.chooser(),
		},
		State:    endpoint.State{Path: a.opts.Paths.endpoints(), DB: a.t.db, Endpoints: a.t.endpoints},
		Links:    a.links,
		Datapath: purger{a.dp},
		Rows:     endpoint.MapRows{Endpoints: a.dp.Maps().Endpoints, IPCache: a.dp.Maps().IPCache},
		Observe:  a.metrics.observe,
		Log:      a.log,
	})
	if err != nil {
		return err
	}
	if err := a.endpoints.Restore(ctx); err != nil {
		return err
	}
	if len(a.mem.PodCIDRs) > 0 {
		if err := errors.Join(a.endpoints.SetNodeAddrs(a.enabled(a.mem.Addrs)), a.endpoints.SetPools(a.mem.ranges(a.fam))); err != nil {
			a.log.Warn("what was remembered of the node cannot be used", "error", err)
		}
	}
	return nil
}

// purger adds to the datapath what the endpoint manager needs of its maps.
type purger struct{ *datapath.Datapath }

// PurgeAddrs implements endpoint.Datapath.
func (p purger) PurgeAddrs(addrs ...netip.Addr) error {
	_, err := p.Maps().CT.PurgeAddrs(addrs...)
	_, natErr := p.Maps().NAT.PurgeAddrs(addrs...)
	_, lbErr := p.Maps().LBConns.PurgeAddrs(addrs...)
	return errors.Join(err, natErr, lbErr)
}

// newLoops makes derivation, reconcilers, gate and CNI server, on a database
// that holds the endpoints already.
func (a *Agent) newLoops() (err error) {
	if err := a.t.db.Start(); err != nil {
		return fmt.Errorf("state tables: %w", err)
	}
	a.derive = newDeriver(a.t, a.fam, a.cfg.AutoDirectNodeRoutes, foreignRoutes, a.log)
	a.derive.nodePorts = a.cfg.SocketLB.Addresses
	if a.pool != nil {
		a.derive.view = func(n *table.Node) *table.Node { return a.pool.View(n, a.endpoints.Ranges()) }
	}
	a.derive.SetOverlay(a.overlay.view())
	a.newServices()
	if err := a.newFrontendLoop(); err != nil {
		return err
	}
	a.ipcacheLoop, err = reconcile.New(reconcile.Config[*table.IPCache]{
		Name: "ipcache", DB: a.t.db, Table: a.t.ipcache, Log: a.log, PruneInterval: pruneEvery,
		Target:  ipcacheTarget{m: a.dp.Maps().IPCache, local: a.held},
		Latency: a.metrics.toKernel("ipcache", a.t.arrived.ipcache),
	})
	if err != nil {
		return err
	}
	a.routesLoop, err = reconcile.New(reconcile.Config[*table.Route]{
		Name: "routes", DB: a.t.db, Table: a.t.routes, Log: a.log, PruneInterval: pruneEvery,
		Target:  routeTarget{a.links},
		Latency: a.metrics.toKernel("routes", a.t.arrived.routes),
	})
	if err != nil {
		return err
	}
	a.endpointLoop, err = reconcile.New(reconcile.Config[*table.Endpoint]{
		Name: "ciliumendpoints", DB: a.t.db, Table: a.t.endpoints, Log: a.log, PruneInterval: pruneEvery,
		Target:  k8s.NewEndpointWriter(a.client, k8s.Tables{DB: a.t.db, Nodes: a.t.nodes, Pods: a.t.pods}),
		Backoff: reconcile.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second},
		Latency: a.metrics.toServer(),
	})
	if err != nil {
		return err
	}
	a.floods = a.newFloodWatch()
	a.fill = newFillWatch(func() counter { return a.dp.Maps().NewCounter() },
		func() []ipam.RangeStatus { return a.endpoints.IPAM().Ranges }, a.log)
	a.newHealth()
	a.cni, err = server.New(server.Params{
		Socket: a.opts.Paths.cniSocket(), QueueDir: a.opts.Paths.queue(), UnreachableFile: a.opts.Paths.unreachable(),
		Endpoints: a.endpoints, Log: a.log,
		Status: func() *cni.Error {
			if err := a.gate.CNIStatus(); err != nil {
				return &cni.Error{Code: cni.CodeNotAvailable, Msg: err.Error(), Details: "see `weft status` on this node"}
			}
			return nil
		},
	})
	return err
}

// serve starts what others wait for: the CNI, the local API, the probes.
func (a *Agent) serve(ctx context.Context, g *errgroup.Group) error {
	a.restoreProof(ctx)
	l, err := rpc.Listen(a.opts.Paths.socket())
	if err != nil {
		return err
	}
	reg, err := a.registry()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	api := &rpc.Server{Queries: a.queries(), Flows: a.flows, Metrics: reg, OnMonitor: a.monitored, Log: a.log}
	g.Go(func() error { return a.endpoints.Run(ctx) })
	g.Go(func() error { return a.cni.Run(ctx) })
	g.Go(func() error { return api.Serve(ctx, l) })
	listeners := []struct {
		setting string
		port    int
	}{{"agent-health-port", a.cfg.HealthPort}, {"prometheus-port", a.cfg.PrometheusPort}, {"pprof-port", a.cfg.PprofPort}}
	for _, li := range listeners {
		if li.port == 0 {
			continue
		}
		h := healthHandler(a.ready)
		switch li.setting {
		case "prometheus-port":
			h = reg
		case "pprof-port":
			h = pprofHandler()
		}
		lb, err := newLoopback(li.setting, li.port, h)
		if err != nil {
			return err
		}
		g.Go(func() error { return lb.run(ctx, a.log) })
	}
	if err := a.awaitCNI(ctx); err != nil {
		return err
	}
	a.metrics.startup.Set(time.Since(a.start).Seconds())
	_, proven := a.gate.Proven()
	a.log.Info("CNI is served", "took", time.Since(a.start).Round(time.Millisecond), "endpoints", len(a.endpoints.List()), "proven", proven)
	return nil
}

// awaitCNI returns once the CNI server answers.
func (a *Agent) awaitCNI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cniStart)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cniCall(ctx, a.opts.Paths.cniSocket(), cni.Request{Command: "STATUS"}, &cni.Response{})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cni socket %s: not served within %s: %w", a.opts.Paths.cniSocket(), cniStart, err)
		case <-tick.C:
		}
	}
}

// cniCall makes one request of the CNI server, as the plugin does.
func cniCall(ctx context.Context, socket string, req cni.Request, resp *cni.Response) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if d, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(d); err != nil {
			return err
		}
	}
	if err := cni.WriteMessage(c, req); err != nil {
		return err
	}
	return cni.ReadMessage(c, resp)
}

// background starts everything that nobody waits for.
func (a *Agent) background(ctx context.Context, g *errgroup.Group) {
	for _, f := range []func(context.Context) error{
		a.derive.Run, a.ipcacheLoop.Run, a.routesLoop.Run,
		a.reflect.Run, a.publisher.Run, a.publishEndpoints,
		a.followNode, a.followDevices, a.followMTU, a.followBigTCP, a.followWays, a.followRoutes, a.followOverlay, a.followForward, a.checkCilium, a.runGate, a.markReady,
		a.peers.Run, a.readEvents, a.scrub, a.followFloods, a.maintain, a.sendReports, a.followLedger, a.followPools, a.followNodeRoutes,
		a.followLeaks, a.masq.run, a.fill.run, a.runServices, a.socketLB.run, a.followHealthChecks,
	} {
		g.Go(func() error { return f(ctx) })
	}
}

// close lets go of the kernel's objects; what is pinned stays.
func (a *Agent) close() {
	if a.dp != nil {
		if err := a.dp.Close(); err != nil {
			a.log.Warn("datapath cannot be closed", "error", err)
		}
		a.dp = nil
	}
	if err := a.t.db.Stop(); err != nil {
		a.log.Debug("state tables cannot be stopped", "error", err)
	}
}

// mtu is asked for each new endpoint.
func (a *Agent) mtu() int {
	var devs []*table.Device
	for d := range a.t.devices.All(a.t.db.ReadTxn()) {
		devs = append(devs, d)
	}
	return podMTU(a.cfg.MTU, devs) - a.cfg.Overhead()
}

// claimed tells whether some CiliumEndpoint still holds the address.
func (a *Agent) claimed(addr netip.Addr) bool {
	_, _, ok := a.t.pods.Get(a.t.db.ReadTxn(), table.RemotePodByAddr.Query(addr))
	return ok
}

// held tells whether an endpoint of this node has the address now.
func (a *Agent) held(addr netip.Addr) bool {
	for _, ep := range a.endpoints.List() {
		if ep.IPv4 == addr || ep.IPv6 == addr {
			return true
		}
	}
	return false
}

// enabled returns the addresses whose family is on.
func (a *Agent) enabled(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, x := range addrs {
		if a.fam.has(x) {
			out = append(out, x)
		}
	}
	return out
}

// enabledRanges returns the ranges whose family is on: a cluster may give nodes
// ranges of both while Weft was told to use one.
func (a *Agent) enabledRanges(ranges []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ranges {
		if a.fam.has(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// configure puts into effect what programs read at run time.
func (a *Agent) configure(addrs []netip.Addr) error {
	c := maps.DefaultConfig()
	c.Masquerade = a.masq.settings()
	for _, x := range a.enabled(addrs) {
		if x.Is4() && !c.NodeIPv4.IsValid() {
			c.NodeIPv4 = x
		}
		if x.Is6() && !c.NodeIPv6.IsValid() {
			c.NodeIPv6 = x
		}
	}
	c.Outside = a.masq.services
	c.Overlay = a.overlay.config()
	c.BigTCP6 = a.bigTCP.Pods().IPv6 > 0
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listening > 0 {
		c.Trace = maps.TraceNew
		if a.cfg.MonitorAggregation == "none" {
			c.Trace = maps.TraceAll
		}
	}
	return a.dp.SetConfig(c)
}

// monitored is told how many monitors listen: traces cost time on every packet,
// so they are made only for somebody.
func (a *Agent) monitored(n int) {
	a.mu.Lock()
	changed := (n > 0) != (a.listening > 0)
	a.listening = n
	addrs := a.mem.Addrs
	a.mu.Unlock()
	if !changed {
		return
	}
	if err := a.configure(addrs); err != nil {
		a.log.Warn("tracing cannot be switched", "error", err)
	}
}
