// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// reapEvery is how often backends that have left their frontends are asked for
// that still shut down.
const reapEvery = 2 * time.Second

// udpSockets ends UDP sockets of a network namespace. link.Links is one.
type udpSockets interface {
	DestroyUDP(netns string, match func(link.UDPSocket) bool) (int, error)
}

// udpReaper ends connected UDP sockets whose backend went away: nothing else would
// tell their owners. A backend that shuts down keeps its sockets until it is gone.
type udpReaper struct {
	m       *maps.ServiceMap
	sockets udpSockets
	netns   func() []string                  // where sockets may be
	known   func(netip.AddrPort, uint8) bool // backends that are still there; nil: those that frontends name
	wake    chan struct{}
	log     *slog.Logger
	pending []maps.Gone // run's alone

	mu  sync.Mutex
	err error
}

func newUDPReaper(m *maps.ServiceMap, s udpSockets, log *slog.Logger) *udpReaper {
	return &udpReaper{m: m, sockets: s, log: log, wake: make(chan struct{}, 1), netns: func() []string { return []string{""} }}
}

// kick says that backends may have gone.
func (r *udpReaper) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *udpReaper) run(ctx context.Context) error {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-tick.C:
			if len(r.pending) == 0 {
				continue
			}
		}
		r.round()
	}
}

// round ends the sockets of those backends that are gone for good.
func (r *udpReaper) round() {
	for _, g := range r.m.TakeGone() {
		if g.Frontend.Proto == table.ProtoUDP {
			r.pending = append(r.pending, g)
		}
	}
	if len(r.pending) == 0 {
		return
	}
	dead := map[netip.AddrPort]bool{}
	var wait []maps.Gone
	for _, g := range r.m.Unserved(r.pending) { // the others came back
		if r.known != nil && r.known(g.Backend, g.Frontend.Proto) {
			wait = append(wait, g)
		} else {
			dead[g.Backend] = true
		}
	}
	r.pending = wait
	if len(dead) > 0 {
		r.failed(r.reap(dead))
	}
}

func (r *udpReaper) reap(dead map[netip.AddrPort]bool) error {
	rows, err := r.m.Sockets()
	if err != nil {
		return err
	}
	sent := map[link.UDPSocket]bool{} // those that we sent there; who goes there by itself is left alone
	for _, s := range rows {
		if s.Proto == table.ProtoUDP && dead[s.Backend] {
			sent[link.UDPSocket{Cookie: s.Cookie, Remote: s.Backend}] = true
		}
	}
	if len(sent) == 0 {
		return nil
	}
	var errs []error
	n := 0
	for _, ns := range r.netns() {
		done, err := r.sockets.DestroyUDP(ns, func(u link.UDPSocket) bool { return sent[u] })
		n += done
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a pod that went meanwhile
			errs = append(errs, err)
		}
		if errors.Is(err, link.ErrNoDestroy) {
			break
		}
	}
	if n > 0 {
		r.log.Info("ended UDP sockets of backends that are gone", "sockets", n, "backends", len(dead))
	}
	return errors.Join(errs...)
}

func (r *udpReaper) failed(err error) {
	if err != nil {
		r.log.Warn("UDP sockets of backends that are gone cannot be ended", "error", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// failing says why the last round failed.
func (r *udpReaper) failing() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
