// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/reconcile"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

// socketCheck is how often the programs of sockets are looked at.
const socketCheck = 30 * time.Second

// sockets is the datapath's side of sockets. datapath.Datapath is one.
type sockets interface {
	SyncSockets() error
	VerifySockets() error
}

// socketLB keeps the programs of sockets attached, and knows whether they work.
type socketLB struct {
	on, hostOnly bool
	alone        bool // kubeProxyReplacement: nobody else serves
	dp           sockets
	prove        func(context.Context) error // a connection from this pod
	m            *maps.ServiceMap
	log          *slog.Logger

	loop *reconcile.Loop[*table.Frontend] // nil where off
	udp  *udpReaper

	mu     sync.Mutex
	proven bool
	err    error
}

// newSocketLB puts the programs where they belong: on the node's cgroup, or nowhere.
func (a *Agent) newSocketLB() {
	c := a.cfg.SocketLB
	s := &socketLB{
		on: c.Enabled, hostOnly: c.HostNamespaceOnly, alone: a.cfg.KubeProxyReplacement, dp: a.dp, m: a.dp.Maps().Services, log: a.log,
		udp: newUDPReaper(a.dp.Maps().Services, a.links, a.log),
	}
	s.udp.netns = a.podNamespaces
	p := socketProof{services: s.m, cgroup: a.cfg.CgroupRoot, backend: uint32(c.Backends()) + 1, v6: !a.fam.v4}
	s.prove = p.once
	a.socketLB = s
	if err := s.dp.SyncSockets(); err != nil { // shown by the component, and tried again
		s.failed(err)
	}
	if !s.on {
		if err := s.m.Clear(); err != nil {
			a.log.Warn("maps of services cannot be emptied", "error", err)
		}
	}
}

// sizes returns what the settings say of the maps of services.
func (a *Agent) sizes() maps.Sizes {
	c, tables := a.cfg.SocketLB, 1
	if c.NodePort && c.Maglev.On() {
		tables = c.MapMax
	}
	return maps.Sizes{
		Maglev:   tables,
		Services: c.MapMax, Affinity: c.MapMax, Sockets: c.MapMax, LBConns: c.MapMax,
		Backends: c.Backends() + 2, // id 0 is none, and the last is the proof's
	}
}

// podNamespaces are where sockets of pods are, and the node's own.
func (a *Agent) podNamespaces() []string {
	out := []string{""}
	for _, ep := range a.endpoints.List() {
		if ep.Kind == table.EndpointPod {
			out = append(out, ep.Netns)
		}
	}
	return out
}

// newFrontendLoop carries the frontends into the kernel, where that is Weft's.
func (a *Agent) newFrontendLoop() (err error) {
	if !a.socketLB.on {
		return nil
	}
	a.socketLB.udp.known = a.services.known
	a.socketLB.m.Keep(a.services.known)
	a.socketLB.m.SetMaglev(a.cfg.SocketLB.Maglev.Table())
	a.socketLB.loop, err = reconcile.New(reconcile.Config[*table.Frontend]{
		Name: "frontends", DB: a.t.db, Table: a.t.frontends, Log: a.log, PruneInterval: pruneEvery,
		Target:  frontendTarget{a.socketLB.m, a.socketLB.udp.kick},
		Latency: a.metrics.toKernel("frontends", a.t.arrived.frontends),
	})
	return err
}

// run looks after programs and rows until ctx ends.
func (s *socketLB) run(ctx context.Context) error {
	if !s.on {
		return nil
	}
	done := make(chan error, 2)
	go func() { done <- s.loop.Run(ctx) }()
	go func() { done <- s.udp.run(ctx) }()
	s.watch(ctx)
	return errors.Join(<-done, <-done)
}

func (s *socketLB) watch(ctx context.Context) {
	retry := retryShort
	for {
		wait := socketCheck
		if err := s.check(ctx); err != nil && ctx.Err() == nil {
			wait, retry = retry, min(2*retry, retryLongest)
		} else {
			retry = retryShort
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// check mends what is not attached, and proves what was.
func (s *socketLB) check(ctx context.Context) error {
	err := s.dp.VerifySockets()
	if err != nil {
		s.setProven(false)
		err = s.dp.SyncSockets()
	}
	if err == nil && !s.isProven() {
		if err = s.prove(ctx); err == nil {
			s.setProven(true)
		}
	}
	if ctx.Err() == nil {
		s.failed(err)
	}
	return err
}

func (s *socketLB) isProven() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proven
}

func (s *socketLB) setProven(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proven = yes
}

// failed remembers what is wrong, nil: nothing.
func (s *socketLB) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && (s.err == nil || s.err.Error() != err.Error()) {
		s.log.Warn("sockets are not sent to backends of services", "error", err)
	}
	s.err = err
}

// Component is the line of the status.
func (s *socketLB) Component() rpc.Component {
	c := rpc.Component{Name: "SocketLB", State: rpc.StateDisabled, Message: "socketLB.enabled and kubeProxyReplacement are false; kube-proxy serves all connections"}
	s.mu.Lock()
	proven, err := s.proven, s.err
	s.mu.Unlock()
	switch {
	case !s.on && err != nil: // what was on cannot be taken away
		c.State, c.Message = rpc.StateFailing, err.Error()
		return c
	case !s.on:
		return c
	case errors.Is(err, datapath.ErrNoSockets) && s.alone:
		c.State, c.Message = rpc.StateFailing, err.Error()+"; what the node itself sends to Services has no backends: set kubeProxyReplacement=false and run kube-proxy, or take a newer kernel"
		return c
	case errors.Is(err, datapath.ErrNoSockets):
		c.State, c.Message = rpc.StateWarning, err.Error()+"; kube-proxy serves all connections"
		return c
	case err != nil:
		c.State, c.Message = rpc.StateFailing, err.Error()
		return c
	case !proven:
		c.State, c.Message = rpc.StateWarning, "attached; not proven yet"
		return c
	}
	frontends, backends := s.m.Count()
	who := "pods and the node"
	if s.hostOnly {
		who = "the node only"
	}
	c.State, c.Message = rpc.StateOK, fmt.Sprintf("%d frontends with %d backends, for sockets of %s", frontends, backends, who)
	if err := s.udp.failing(); err != nil {
		c.Details = append(c.Details, err.Error())
	}
	if st := s.loop.Status(); st.Failing > 0 || st.LastError != "" {
		c.State = rpc.StateWarning
		c.Message += fmt.Sprintf("; %d frontends cannot be written: %s", st.Failing, st.LastError)
	}
	return c
}

// writes tells whether the kernel's frontends follow the API server's. One that
// cannot be written must not take the others off the load balancers.
func (s *socketLB) writes() bool {
	if s.loop == nil {
		return false
	}
	st := s.loop.Status()
	return st.Updates > 0 && st.Failing < st.Objects
}

// frontendTarget carries the table of frontends into the kernel.
type frontendTarget struct {
	m    *maps.ServiceMap
	gone func() // called after backends may have gone
}

func (t frontendTarget) Update(_ context.Context, f, _ *table.Frontend, _ bool) error {
	defer t.gone()
	return t.m.Upsert(*f)
}

func (t frontendTarget) Delete(_ context.Context, last *table.Frontend) error {
	defer t.gone()
	return t.m.Delete(last.Key)
}

func (t frontendTarget) Prune(_ context.Context, desired []*table.Frontend) error {
	defer t.gone()
	all := make([]table.Frontend, len(desired))
	for i, f := range desired {
		all[i] = *f
	}
	return t.m.Prune(all)
}
