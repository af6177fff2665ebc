// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/statedb"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/reconcile"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

// gating names the components without which no pod can be added. A partition, or
// an API server that is away, is not among them.
var gating = []string{"Datapath", "IPAM", "Node proof", "CNI"}

// Status is the agent's account of itself.
func (a *Agent) Status(ctx context.Context) rpc.Status {
	s := rpc.Status{
		Node: a.opts.NodeName, Version: a.opts.Version, StartedAt: a.start,
		Components: []rpc.Component{
			a.kubernetesComponent(), a.datapathComponent(ctx), a.fill.Component(), a.ipamComponent(), a.endpointsComponent(),
			a.routingComponent(), a.replacementComponent(), a.services.Component(), a.socketLB.Component(), a.nodePortComponent(), a.masq.Component(), a.bigTCP.Component(), a.floods.Component(time.Now()), a.gate.Component(), a.peers.Component(), a.cniComponent(), a.proxy.Component(ctx),
			{Name: "Hubble", State: rpc.StateDisabled, Message: "not built yet"},
			a.modulesComponent(),
		},
	}
	_, s.Ready = a.gate.Proven()
	for _, c := range s.Components {
		if c.State == rpc.StateFailing && slices.Contains(gating, c.Name) {
			s.Ready = false
		}
	}
	return s
}

func (a *Agent) kubernetesComponent() rpc.Component {
	conn := a.client.Connection()
	c := rpc.Component{Name: "Kubernetes", State: rpc.StateOK, Message: conn.Server}
	for what, why := range conn.Failing {
		c.Details = append(c.Details, what+": "+why)
	}
	slices.Sort(c.Details)
	if msg := conn.Message(); msg != "" {
		c.Message = msg
		c.State = rpc.StateWarning
		// Pods keep talking; after a minute somebody must look.
		if !conn.Since.IsZero() && time.Since(conn.Since) > time.Minute {
			c.State = rpc.StateFailing
			c.Message += "; what is programmed keeps forwarding, changes wait"
		}
	}
	return c
}

func (a *Agent) datapathComponent(ctx context.Context) rpc.Component {
	c := rpc.Component{Name: "Datapath", State: rpc.StateOK}
	devs, err := a.devices.Selected()
	var bad []string
	if err != nil {
		bad = append(bad, err.Error())
	}
	for _, p := range a.dp.Verify(ctx) {
		bad = append(bad, p.String())
	}
	if s := a.ipcacheLoop.Status(); s.Failing > 0 || s.LastError != "" {
		bad = append(bad, fmt.Sprintf("%d ipcache entries cannot be written: %s", s.Failing, s.LastError))
	}
	a.mu.Lock()
	if a.acceptErr != nil {
		bad = append(bad, a.acceptErr.Error())
	}
	a.mu.Unlock()
	switch {
	case len(bad) > 0:
		c.State, c.Message, c.Details = rpc.StateFailing, bad[0], bad
		if len(bad) > 1 {
			c.Message += fmt.Sprintf(" (and %d more)", len(bad)-1)
		}
	case len(devs) == 0:
		c.State, c.Message = rpc.StateFailing, "no device of the node is selected: set devices, or give the node an InternalIP that one of its devices has"
	default:
		c.Message = "programs on " + strings.Join(devs, ", ")
	}
	if rows, err := a.dp.Maps().Memory(); err == nil {
		var sum uint64
		for _, r := range rows {
			sum += r.Bytes
		}
		c.Details = append(c.Details, fmt.Sprintf("map memory %d KiB", sum>>10))
	}
	return c
}

func (a *Agent) ipamComponent() rpc.Component {
	c := rpc.Component{Name: "IPAM", State: rpc.StateOK}
	st := a.endpoints.IPAM()
	var parts []string
	for _, r := range st.Ranges {
		total := "many"
		if r.Total < math.MaxInt32 {
			total = strconv.FormatUint(r.Total, 10)
		}
		part := fmt.Sprintf("%d/%s of %s", r.Used, total, r.Prefix)
		parts = append(parts, part)
		c.Details = append(c.Details, fmt.Sprintf("%s used, %d quarantined%s", part, r.Quarantined, a.fill.rangeForecast(r)))
		if r.Pool != "" {
			parts[len(parts)-1] += " (pool " + r.Pool + ")"
			continue // more comes when it is asked for
		}
		if r.Used+r.Quarantined >= r.Total {
			c.State = rpc.StateFailing
			parts[len(parts)-1] += " (exhausted: delete pods on this node or add nodes)"
		} else if float64(r.Used) > fillWarns*float64(r.Total) && c.State == rpc.StateOK {
			c.State = rpc.StateWarning
			parts[len(parts)-1] += " (more than 80 % in use" + a.fill.rangeForecast(r) + ")"
		}
	}
	c.Message = strings.Join(parts, ", ")
	if st.Outside > 0 {
		c.State = rpc.StateWarning
		c.Message += fmt.Sprintf("; %d pods have addresses outside of the node's ranges: delete those pods", st.Outside)
	}
	problems, holds := a.pool.Problems()
	c.Details = slices.Concat(c.Details, problems, holds)
	if len(problems) > 0 {
		c.Message += "; " + problems[0]
		if len(problems) > 1 {
			c.Message += fmt.Sprintf(" (and %d more)", len(problems)-1)
		}
		if c.State == rpc.StateOK {
			c.State = rpc.StateWarning
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.nodeErr != nil {
		c.State, c.Message = rpc.StateFailing, a.nodeErr.Error()
		if a.gateProven() && len(st.Ranges) > 0 {
			c.State = rpc.StateWarning
		}
	}
	return c
}

func (a *Agent) gateProven() bool {
	_, ok := a.gate.Proven()
	return ok
}

func (a *Agent) endpointsComponent() rpc.Component {
	c := rpc.Component{Name: "Endpoints", State: rpc.StateOK}
	pods := 0
	for _, ep := range a.endpoints.List() {
		if ep.Kind == table.EndpointPod {
			pods++
		}
	}
	c.Message = fmt.Sprintf("%d pods", pods)
	if since := a.cni.AddFailingSince(); !since.IsZero() {
		c.State = rpc.StateWarning
		c.Message += fmt.Sprintf("; every ADD has failed since %s: see the agent's log", since.Format(time.TimeOnly))
	}
	if s := a.endpointLoop.Status(); s.Failing > 0 {
		c.State = rpc.StateWarning
		c.Message += fmt.Sprintf("; %d CiliumEndpoints are not published: %s", s.Failing, s.LastError)
	}
	return c
}

func (a *Agent) routingComponent() rpc.Component {
	c := rpc.Component{Name: "Routing", State: rpc.StateOK}
	problems := a.derive.Problems()
	if err := a.overlay.failing(); err != nil {
		problems = append([]string{err.Error()}, problems...)
	}
	if s := a.routesLoop.Status(); s.LastError != "" {
		problems = append(problems, s.LastError)
	}
	if len(problems) > 0 {
		c.State, c.Message, c.Details = rpc.StateWarning, problems[0], problems
		if len(problems) > 1 {
			c.Message += fmt.Sprintf(" (and %d more)", len(problems)-1)
		}
		return c
	}
	n := a.t.routes.NumObjects(a.t.db.ReadTxn())
	c.Message = fmt.Sprintf("native, %d routes to other nodes' pods by Weft", n)
	if !a.cfg.AutoDirectNodeRoutes {
		c.Message = "native, routes to other nodes' pods by the network"
	}
	view := a.overlay.view()
	if !view.on {
		return c
	}
	part, peers := 0, 0
	for n := range a.t.nodes.All(a.t.db.ReadTxn()) {
		if !n.Local {
			peers++
		}
		if view.reaches(n) {
			part++
		}
	}
	c.Message = fmt.Sprintf("tunnel (%s), %d of %d other nodes take part", view.announce, part, peers)
	if a.cfg.RoutingMode != config.RoutingTunnel {
		c.Message = fmt.Sprintf("native; the tunnel device stays until no node takes part in the overlay any more (%d do)", part)
	}
	return c
}

func (a *Agent) cniComponent() rpc.Component {
	c := rpc.Component{Name: "CNI", State: rpc.StateOK, Message: a.opts.Paths.conflist()}
	if _, err := os.Stat(a.opts.Paths.plugin()); err != nil {
		c.State = rpc.StateFailing
		c.Message = fmt.Sprintf("plugin: %v: delete the agent's pod on this node, its first container installs the plugin", err)
		return c
	}
	if !a.gateProven() {
		c.State, c.Message = rpc.StateWarning, "no configuration yet: it is written once the node is proven"
		return c
	}
	if _, err := os.Stat(a.opts.Paths.conflist()); err != nil {
		c.State = rpc.StateFailing
		c.Message = fmt.Sprintf("configuration: %v: restart the agent, it will be proven and written again", err)
	}
	return c
}

func (a *Agent) reconcilers() []reconcile.Status {
	all := []reconcile.Status{a.ipcacheLoop.Status(), a.routesLoop.Status(), a.endpointLoop.Status()}
	if a.socketLB.loop != nil {
		all = append(all, a.socketLB.loop.Status())
	}
	return all
}

func (a *Agent) modulesComponent() rpc.Component {
	c := rpc.Component{Name: "Modules", State: rpc.StateOK}
	failing := 0
	all := a.reconcilers()
	for _, s := range all {
		c.Details = append(c.Details, reconcilerLine(s, time.Now()))
		if s.Failing > 0 || s.LastError != "" {
			failing++
		}
	}
	c.Message = fmt.Sprintf("%d reconcilers, %d failing", len(all), failing)
	if failing > 0 {
		c.State = rpc.StateWarning
	}
	return c
}

func reconcilerLine(s reconcile.Status, now time.Time) string {
	full := "no full round yet"
	if !s.PrunedAt.IsZero() {
		full = fmt.Sprintf("last full round %s ago", now.Sub(s.PrunedAt).Round(time.Second))
	}
	line := fmt.Sprintf("%s: %d objects, %d failing, %s, %d errors and %d retries so far", s.Name, s.Objects, s.Failing, full, s.Errors, s.Retries)
	if s.LastError != "" {
		line += ": " + s.LastError
	}
	return line
}

// registry returns the handler of the metrics.
func (a *Agent) registry() (http.Handler, error) {
	err := a.metrics.registry.Register(newCollector(readings{
		endpoints:   func() int { return len(a.endpoints.List()) },
		nodes:       func() int { return a.t.nodes.NumObjects(a.t.db.ReadTxn()) },
		remotePods:  func() int { return a.t.pods.NumObjects(a.t.db.ReadTxn()) },
		ipam:        a.endpoints.IPAM,
		reconcilers: a.reconcilers,
		counters:    a.dp.Maps().Metrics.List,
		memory:      a.dp.Maps().Memory,
		fill:        a.fill.Maps,
		rangeLasts:  a.fill.RangeLasts,
		programs:    a.dp.ProgramRuns,
		charged:     func() (charged, error) { return memoryOf("/proc/self", "/sys/fs/cgroup") },
		peers:       a.peers.Results,
		proven:      a.gateProven,
		translated:  a.masq.translated,
		services:    a.services.Reading,
		connected:   func() bool { return len(a.client.Connection().Failing) == 0 },
	}))
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}), nil
}

// queries are the routes of the local API.
func (a *Agent) queries() map[string]rpc.Query {
	return map[string]rpc.Query{
		rpc.PathStatus:    func(ctx context.Context, _ url.Values) (any, error) { return a.Status(ctx), nil },
		rpc.PathEndpoints: func(context.Context, url.Values) (any, error) { return a.endpoints.List(), nil },
		rpc.PathNodes:     list(a.t.db, a.t.nodes),
		rpc.PathIPCache:   list(a.t.db, a.t.ipcache),
		rpc.PathRoutes:    list(a.t.db, a.t.routes),
		rpc.PathDevices:   list(a.t.db, a.t.devices),
		rpc.PathServices:  list(a.t.db, a.t.frontends),
		rpc.PathConfig:    func(context.Context, url.Values) (any, error) { return a.cfg, nil },
		rpc.PathIPAM:      func(context.Context, url.Values) (any, error) { return a.addresses(), nil },
		rpc.PathBPFEndpoint: func(context.Context, url.Values) (any, error) {
			rows, err := a.dp.Maps().Endpoints.List()
			if err != nil {
				return nil, err
			}
			byID := map[uint16]string{}
			for _, ep := range a.endpoints.List() {
				byID[ep.ID] = ep.HostIfName
			}
			for i := range rows {
				rows[i].IfName = byID[rows[i].ID]
			}
			return rows, nil
		},
		rpc.PathBPFIPCache: func(context.Context, url.Values) (any, error) { return a.dp.Maps().IPCache.List() },
		rpc.PathBPFCT: func(_ context.Context, q url.Values) (any, error) {
			limit := 0
			if s := q.Get("limit"); s != "" {
				n, err := strconv.Atoi(s)
				if err != nil || n < 0 {
					return nil, &rpc.BadRequestError{Msg: fmt.Sprintf("limit %q is not a number", s)}
				}
				limit = n
			}
			rows, err := a.dp.Maps().CT.List(limit)
			if rows == nil {
				rows = []maps.CTRow{}
			}
			return rows, err
		},
		rpc.PathBPFNAT:        func(context.Context, url.Values) (any, error) { return a.dp.Maps().NAT.List(0) },
		rpc.PathBPFLB:         func(context.Context, url.Values) (any, error) { return a.dp.Maps().Services.LB() },
		rpc.PathBPFLBBackends: func(context.Context, url.Values) (any, error) { return a.dp.Maps().Services.Backends() },
		rpc.PathBPFLBConns:    func(context.Context, url.Values) (any, error) { return a.dp.Maps().LBConns.List(0) },
		rpc.PathBPFLBMaglev:   func(context.Context, url.Values) (any, error) { return a.dp.Maps().Services.Maglev() },
		rpc.PathBPFLBSockets:  func(context.Context, url.Values) (any, error) { return a.dp.Maps().Services.Sockets() },
		rpc.PathBPFMaps:       func(context.Context, url.Values) (any, error) { return a.fill.Now() },
		rpc.PathBPFMetrics:    func(context.Context, url.Values) (any, error) { return a.dp.Maps().Metrics.List() },
	}
}

// list is the query that returns a table.
func list[T any](db *statedb.DB, t statedb.Table[T]) rpc.Query {
	return func(context.Context, url.Values) (any, error) {
		out := []T{}
		for row := range t.All(db.ReadTxn()) {
			out = append(out, row)
		}
		return out, nil
	}
}
