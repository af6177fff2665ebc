// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/service"
	"github.com/weft-net/weft/internal/service/healthcheck"
	"github.com/weft-net/weft/internal/table"
)

// mostServiceEvents bounds the events of one round: a cluster that outgrows a map
// would otherwise fill the API server with them.
const mostServiceEvents = 3

// serviceParams are what the derivation of services needs.
type serviceParams struct {
	model     service.Config
	hostPorts bool // pods' hostPorts are served, too
	// kernel lists the rows that an earlier agent left, by which ids go on; nil: none.
	kernel func() ([]table.Frontend, error)
	warn   func(reason, message string) // writes an event
	log    *slog.Logger
}

// services turns Services, EndpointSlices and pods' hostPorts into frontends. It is the only
// writer of that table. Nothing is written before all inputs are complete: a
// frontend whose slices are not known yet would lose the backends that it has.
type services struct {
	t tables
	p serviceParams
	// done is the initialiser of the table of frontends, nil when done.
	done func(statedb.WriteTxn)

	mu       sync.Mutex
	model    *service.Model
	complete bool
	err      error // why the kernel's rows cannot be read
	told     map[service.Finding]bool
}

func newServices(t tables, p serviceParams) *services {
	txn := t.db.WriteTxn(t.frontends)
	defer txn.Commit()
	return &services{
		t: t, p: p, model: service.New(p.model), told: map[service.Finding]bool{},
		done: t.frontends.RegisterInitializer(txn, "derivation"),
	}
}

// serviceInputs are the changes of the source tables.
type serviceInputs struct {
	services statedb.ChangeIterator[*table.Service]
	slices   statedb.ChangeIterator[*table.EndpointSlice]
	nodes    statedb.ChangeIterator[*table.Node]
	hosts    hostPortInputs // none where hostPorts are somebody else's
}

func (s *services) watch() (in serviceInputs, err error) {
	txn := s.t.db.WriteTxn(s.t.services, s.t.slices, s.t.nodes)
	defer txn.Commit()
	for _, f := range []func() error{
		func() error { in.services, err = s.t.services.Changes(txn); return err },
		func() error { in.slices, err = s.t.slices.Changes(txn); return err },
		func() error { in.nodes, err = s.t.nodes.Changes(txn); return err },
	} {
		if err := f(); err != nil {
			return in, fmt.Errorf("services: %w", err)
		}
	}
	return in, nil
}

func (in serviceInputs) close() {
	in.services.Close()
	in.slices.Close()
	in.nodes.Close()
	in.hosts.close()
}

// sources are the tables that must be complete.
func (s *services) sources() []statedb.TableMeta {
	out := []statedb.TableMeta{s.t.services, s.t.slices, s.t.nodes}
	if s.p.hostPorts {
		out = append(out, s.t.hostPorts, s.t.endpoints)
	}
	return out
}

// Run derives until ctx ends.
func (s *services) Run(ctx context.Context) error {
	if err := s.restore(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	in, err := s.watch()
	if err != nil {
		return err
	}
	if s.p.hostPorts {
		if in.hosts, err = s.t.watchHostPorts(); err != nil {
			return fmt.Errorf("services: %w", err)
		}
	}
	defer in.close()
	for {
		wake, err := s.round(in)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake.services:
		case <-wake.slices:
		case <-wake.nodes:
		case <-wake.pods:
		case <-wake.endpoints:
		case <-wake.initialised:
		}
	}
}

// restore takes over the ids that the kernel has. Without them an id might get
// another backend while rows still name it, so it is tried until it goes well.
func (s *services) restore(ctx context.Context) error {
	if s.p.kernel == nil {
		return nil
	}
	for delay := retryShort; ; delay = min(2*delay, retryLongest) {
		rows, err := s.p.kernel()
		s.mu.Lock()
		if s.err = err; err == nil {
			s.model.Restore(rows)
		}
		s.mu.Unlock()
		if err == nil {
			return nil
		}
		s.p.log.Warn("frontends in the kernel cannot be read", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
	}
}

// serviceWake holds the channels that announce more work.
type serviceWake struct {
	services, slices, nodes, pods, endpoints, initialised <-chan struct{}
}

// round takes all changes in and writes what follows.
func (s *services) round(in serviceInputs) (serviceWake, error) {
	txn := s.t.db.ReadTxn()
	s.mu.Lock()
	defer s.mu.Unlock()
	wake := s.take(in, txn)
	if wake.initialised != nil {
		return wake, nil
	}
	if err := s.commit(); err != nil {
		return wake, err
	}
	if !s.complete {
		s.complete = true
		s.model.Settle()
		if err := s.commit(); err != nil {
			return wake, err
		}
		wtxn := s.t.db.WriteTxn(s.t.frontends)
		s.done(wtxn)
		wtxn.Commit()
	}
	if s.model.TakeNews() {
		s.tell()
	}
	return wake, nil
}

// take tells the model of all changes up to txn.
func (s *services) take(in serviceInputs, txn statedb.ReadTxn) (wake serviceWake) {
	arrived := s.t.arrived
	changed, w := in.services.Next(txn)
	wake.services = w
	for c, rev := range changed {
		if c.Deleted {
			s.model.DeleteService(c.Object.Namespace, c.Object.Name, arrived.services.At(rev))
		} else {
			s.model.SetService(c.Object, arrived.services.At(rev))
		}
	}
	slices, w := in.slices.Next(txn)
	wake.slices = w
	for c, rev := range slices {
		if c.Deleted {
			s.model.DeleteSlice(c.Object.Namespace, c.Object.Name, arrived.slices.At(rev))
		} else {
			s.model.SetSlice(c.Object, arrived.slices.At(rev))
		}
	}
	nodes, w := in.nodes.Next(txn)
	wake.nodes = w
	for c := range nodes {
		if c.Object.Local && !c.Deleted {
			s.model.SetZone(c.Object.Zone, time.Time{})
		}
	}
	arrived.services.Forget(s.t.services.Revision(txn))
	arrived.slices.Forget(s.t.slices.Revision(txn))
	s.takeHostPorts(in.hosts, txn, &wake)
	for _, t := range s.sources() {
		if ok, ch := t.Initialized(txn); !ok {
			wake.initialised = ch
			break
		}
	}
	return wake
}

// commit writes the rows that changed.
func (s *services) commit() error {
	for again := true; again; again = s.model.Pending() {
		changes := s.model.Commit()
		if len(changes) == 0 {
			continue
		}
		txn := s.t.db.WriteTxn(s.t.frontends)
		for _, c := range changes {
			var err error
			if c.Deleted {
				_, _, err = s.t.frontends.Delete(txn, c.Row)
			} else {
				_, _, err = s.t.frontends.Insert(txn, c.Row)
			}
			if err != nil {
				txn.Abort()
				return fmt.Errorf("frontend %s: %w", c.Row.Key, err)
			}
			s.t.arrived.frontends.Note(s.t.frontends.Revision(txn), c.Arrived)
		}
		txn.Commit()
	}
	return nil
}

// tell logs findings that are new, and writes events about those that take
// something away from a Service.
func (s *services) tell() {
	now := map[service.Finding]bool{}
	events := 0
	for _, f := range s.model.Findings() {
		now[f] = true
		if s.told[f] {
			continue
		}
		s.p.log.Warn("a service is not served as it is written", "service", f.Service, "kind", f.Kind, "problem", f.Message)
		if f.Kind != service.BadInput && events < mostServiceEvents {
			events++
			reason := "Service"
			if f.Pod {
				reason = "HostPort"
			}
			s.p.warn(reason+string(f.Kind), f.String())
		}
	}
	s.told = now
}

// serviceReading is what the metrics show.
type serviceReading struct {
	service.Stats
	Findings map[service.Kind]int
}

// Reading returns the counts; false where services are not Weft's business.
func (s *services) Reading() (r serviceReading, ok bool) {
	if s == nil {
		return r, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r = serviceReading{Stats: s.model.Stats(), Findings: map[service.Kind]int{service.BadInput: 0, service.Clash: 0, service.Overflow: 0}}
	for f := range s.told {
		r.Findings[f.Kind]++
	}
	return r, true
}

// known tells whether a backend still exists: ready, or not, or shutting down.
func (s *services) known(addr netip.AddrPort, proto uint8) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.model.Known(addr, proto)
	return ok
}

// Component is the line of the status.
func (s *services) Component() rpc.Component {
	c := rpc.Component{Name: "Services", State: rpc.StateDisabled, Message: "kube-proxy's alone"}
	if s == nil {
		return c
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n, findings := s.model.Stats(), s.model.Findings()
	c.State, c.Message = rpc.StateOK, fmt.Sprintf("%d Services, %d frontends, %d backends", n.Services, n.Frontends, n.Backends)
	for _, f := range findings {
		c.Details = append(c.Details, f.String())
	}
	switch {
	case s.err != nil:
		c.State, c.Message = rpc.StateFailing, "frontends in the kernel cannot be read: "+s.err.Error()
	case !s.complete:
		c.State, c.Message = rpc.StateWarning, "not all Services and EndpointSlices are known yet; frontends stay as they are in the kernel"
	case len(findings) > 0:
		c.State = rpc.StateWarning
		c.Message += "; " + findings[0].String()
		if more := len(findings) - 1; more > 0 {
			c.Message += fmt.Sprintf(" (and %d more)", more)
		}
	}
	return c
}

// reflected are the tables of services that are filled; nil where nobody asks.
func (a *Agent) reflected() *k8s.ServiceTables {
	if !a.cfg.SocketLB.Enabled {
		return nil
	}
	t := &k8s.ServiceTables{
		Services: a.t.services, Slices: a.t.slices, ServicesArrived: a.t.arrived.services, SlicesArrived: a.t.arrived.slices,
	}
	if a.cfg.SocketLB.NodePort {
		t.HostPorts, t.HostPortsArrived = a.t.hostPorts, a.t.arrived.hostPorts
	}
	return t
}

// runServices derives until ctx ends; at once over where services are kube-proxy's.
func (a *Agent) runServices(ctx context.Context) error {
	if a.services == nil {
		return nil
	}
	return a.services.Run(ctx)
}

// newServices makes the derivation of services, if connections to them are
// balanced here.
func (a *Agent) newServices() {
	if !a.cfg.SocketLB.Enabled {
		return
	}
	a.services = newServices(a.t, serviceParams{
		model: service.Config{
			Node: a.opts.NodeName, IPv4: a.fam.v4, IPv6: a.fam.v6,
			MaxFrontends: a.cfg.SocketLB.MapMax, MaxBackends: a.cfg.SocketLB.Backends(),
			Maglev: maglevModel(a.cfg, a.dp.Maps().Services),
		},
		hostPorts: a.cfg.SocketLB.NodePort,
		kernel:    a.dp.Maps().Services.List,
		warn:      func(reason, message string) { a.report(k8s.EventWarning, reason, message) },
		log:       a.log,
	})
	if a.cfg.SocketLB.NodePort && a.cfg.SocketLB.HealthCheck {
		a.healthChecks = healthcheck.New(a.socketLB.writes, a.log)
	}
}
