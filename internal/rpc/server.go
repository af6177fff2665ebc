// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/flow"
)

// maxMonitors bounds the streams that are open at one time: each holds a buffer
// of flow.DefaultBuffer events.
const maxMonitors = 16

// Query answers one route with what is to be encoded as JSON.
type Query func(ctx context.Context, params url.Values) (any, error)

// BadRequestError is an error of a Query that is the caller's fault.
type BadRequestError struct{ Msg string }

func (e *BadRequestError) Error() string { return e.Msg }

// Server answers on the local socket.
type Server struct {
	Queries map[string]Query  // by Path constant
	Flows   *flow.Broadcaster // source of PathMonitor
	Metrics http.Handler      // PathMetrics; may be nil
	// OnMonitor is told how many monitors are open, after each change; may be nil.
	OnMonitor func(open int)
	Log       *slog.Logger
}

// Listen makes a unix socket at path that only root may open, in place of what
// an earlier agent left. The socket stays when the listener closes: it may be
// the next agent's by then.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	// Bound under another name first, so that nobody finds it with a mode that
	// the umask chose.
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// Serve answers until ctx ends; streams end then too.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("local API: %w", err)
	case <-ctx.Done():
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := srv.Shutdown(sctx); err != nil {
		_ = srv.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("local API: %w", err)
	}
	return nil
}

// Handler returns the routes, for Serve and for tests.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, q := range s.Queries {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			v, err := q(r.Context(), r.URL.Query())
			if err != nil {
				fail(w, err)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(v); err != nil {
				s.Log.Debug("an answer was cut short", "path", path, "error", err)
			}
		})
	}
	slots := make(chan struct{}, maxMonitors)
	var mu sync.Mutex
	told := func() {
		mu.Lock()
		defer mu.Unlock()
		if s.OnMonitor != nil {
			s.OnMonitor(len(slots))
		}
	}
	mux.HandleFunc("GET "+PathMonitor, func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots; told() }()
			told()
			s.monitor(w, r)
		default:
			http.Error(w, fmt.Sprintf("%d monitors are running already: end one of them", maxMonitors), http.StatusServiceUnavailable)
		}
	})
	if s.Metrics != nil {
		mux.Handle("GET "+PathMetrics, s.Metrics)
	}
	return mux
}

func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	if bad := new(BadRequestError); errors.As(err, &bad) {
		code = http.StatusBadRequest
	}
	http.Error(w, err.Error(), code)
}

// monitor streams events until the client goes away. A client that reads slowly
// loses events, and is told how many.
func (s *Server) monitor(w http.ResponseWriter, r *http.Request) {
	f := flow.Filter{Type: flow.Type(r.URL.Query().Get("type")), Pod: r.URL.Query().Get("pod")}
	if f.Type != "" && f.Type != flow.TypeDrop && f.Type != flow.TypeTrace {
		fail(w, &BadRequestError{fmt.Sprintf("monitor: type %q is unknown: use %s or %s", f.Type, flow.TypeDrop, flow.TypeTrace)})
		return
	}
	sub := s.Flows.Subscribe(f)
	defer sub.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	if err := rc.Flush(); err != nil { // the client sees at once that it listens
		return
	}
	enc := json.NewEncoder(w)
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-sub.Events():
			// A client that stopped reading must not hold its slot for ever.
			_ = rc.SetWriteDeadline(time.Now().Add(30 * time.Second))
			if err := enc.Encode(e); err != nil {
				return
			}
			if len(sub.Events()) == 0 {
				if err := rc.Flush(); err != nil {
					return
				}
			}
		}
	}
}
