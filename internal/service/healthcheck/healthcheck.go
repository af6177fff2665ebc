// SPDX-License-Identifier: Apache-2.0

// Package healthcheck tells load balancers which nodes have backends of a Service:
// it answers at spec.healthCheckNodePort of Services whose externalTrafficPolicy is
// Local, in the words of kube-proxy. It listens on all addresses of the node, without
// authentication, as the contract of Services asks; it says one number and takes nothing.
package healthcheck

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

// Bounds of what strangers can hold.
const (
	mostConns = 64 // of a port
	mostTime  = 5 * time.Second
	mostBytes = 4096 // of a request's header
)

// Check is what is said of one Service.
type Check struct {
	Namespace, Name string
	Port            uint16
	Endpoints       int // ready ones on this node
}

func (c Check) String() string { return c.Namespace + "/" + c.Name }

// Server listens for all Services. Its methods may be called from several goroutines.
type Server struct {
	healthy func() bool // frontends are being written
	log     *slog.Logger

	mu        sync.Mutex
	listeners map[uint16]*listener
	problems  map[uint16]string
}

// listener serves one port.
type listener struct {
	srv *http.Server

	mu    sync.Mutex
	check Check
}

// New returns a server that listens nowhere yet.
func New(healthy func() bool, log *slog.Logger) *Server {
	return &Server{healthy: healthy, log: log, listeners: map[uint16]*listener{}, problems: map[uint16]string{}}
}

// Set has the server answer for these Services and no others. A port that cannot be
// had is tried again by the next call; of two Services with one port the first by
// name has it.
func (s *Server) Set(checks []Check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	checks = slices.Clone(checks)
	slices.SortFunc(checks, func(a, b Check) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	want, problems := map[uint16]Check{}, map[uint16]string{}
	for _, c := range checks {
		if first, taken := want[c.Port]; taken {
			problems[c.Port] = fmt.Sprintf("service %s: its healthCheckNodePort %d is that of service %s, too", c, c.Port, first)
			continue
		}
		want[c.Port] = c
	}
	for port, l := range s.listeners {
		if _, stays := want[port]; !stays {
			_ = l.srv.Close()
			delete(s.listeners, port)
		}
	}
	for port, c := range want {
		if l := s.listeners[port]; l != nil {
			l.set(c)
		} else if err := s.listen(port, c); err != nil {
			problems[port] = fmt.Sprintf("service %s: healthCheckNodePort %d: %v: see who has it (ss -ltnp 'sport = %d')", c, port, err, port)
		}
	}
	for port, p := range problems {
		if s.problems[port] != p {
			s.log.Warn("load balancers cannot ask for the health of a service", "problem", p)
		}
	}
	s.problems = problems
}

func (s *Server) listen(port uint16, c Check) error {
	nl, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	l := &listener{check: c}
	l.srv = &http.Server{
		Handler:     http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.answer(w, l.get()) }),
		ReadTimeout: mostTime, WriteTimeout: mostTime, IdleTimeout: mostTime, MaxHeaderBytes: mostBytes,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		DisableGeneralOptionsHandler: true,
	}
	l.srv.SetKeepAlivesEnabled(false)
	s.listeners[port] = l
	go func() { // ends with the listener
		if err := l.srv.Serve(netutil.LimitListener(nl, mostConns)); !errors.Is(err, http.ErrServerClosed) {
			s.log.Warn("health of a service is not told any more", "service", c.String(), "error", err)
			s.drop(port, l)
		}
	}()
	return nil
}

// drop forgets a listener that failed, so that Set tries again.
func (s *Server) drop(port uint16, l *listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listeners[port] == l {
		delete(s.listeners, port)
	}
}

// Problems returns a sentence for each Service that cannot be asked about, in order.
func (s *Server) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.problems))
	for _, p := range s.problems {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// Close ends all listeners.
func (s *Server) Close() { s.Set(nil) }

func (l *listener) set(c Check) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.check = c
}

func (l *listener) get() Check {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.check
}

// answer is kube-proxy's, which load balancers know.
type answer struct {
	Service        serviceName `json:"service"`
	LocalEndpoints int         `json:"localEndpoints"`
	Healthy        bool        `json:"serviceProxyHealthy"`
}

type serviceName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func (s *Server) answer(w http.ResponseWriter, c Check) {
	a := answer{Service: serviceName{c.Namespace, c.Name}, LocalEndpoints: c.Endpoints, Healthy: s.healthy()}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(c.Endpoints))
	if c.Endpoints == 0 || !a.Healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(a) // the asker may have gone
}
