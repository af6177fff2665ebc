// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"
)

// loopback serves h on 127.0.0.1:port until ctx ends. Nothing of the agent listens
// on any other address but for health checks of load balancers (nodePort.enabled).
type loopback struct {
	name     string // of the setting that chooses the port
	listener net.Listener
	handler  http.Handler
}

func newLoopback(setting string, port int, h http.Handler) (*loopback, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("setting %s: %w: choose another port or stop what holds it (ss -ltnp 'sport = %d')", setting, err, port)
	}
	return &loopback{name: setting, listener: l, handler: h}, nil
}

func (l *loopback) run(ctx context.Context, log *slog.Logger) error {
	srv := &http.Server{
		Handler: l.handler, ReadHeaderTimeout: 5 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("listener of setting %s: %w", l.name, err)
	}
	return nil
}

// healthHandler answers the kubelet's probes: alive is for restarts, ready for
// the rollout of a DaemonSet.
func healthHandler(ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	return mux
}

func pprofHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
