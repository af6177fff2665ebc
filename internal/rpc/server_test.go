// SPDX-License-Identifier: Apache-2.0

package rpc_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/internal/flow"
	"github.com/weft-net/weft/internal/rpc"
)

func serve(t *testing.T, s *rpc.Server) (path string, client *http.Client) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	path = filepath.Join(t.TempDir(), "weft.sock")
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s.Log = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		tr.CloseIdleConnections()
		goleak.VerifyNone(t, before)
	})
	return path, &http.Client{Transport: tr}
}

func get(t *testing.T, c *http.Client, path string) (int, string) {
	t.Helper()
	resp, err := c.Get("http://weft" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := new(strings.Builder)
	if _, err := bufio.NewReader(resp.Body).WriteTo(b); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(b.String())
}

// Guards against an API that others than root may open, and against the socket
// of a crashed agent keeping the next one from starting.
func TestSocketIsRootsAndReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "weft.sock")
	for range 2 {
		l, err := rpc.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, want 0600", fi.Mode().Perm())
		}
		if err := l.Close(); err != nil { // leaves the file, as a crash does
			t.Fatal(err)
		}
	}
}

// Guards against an error being taken for an answer.
func TestQueries(t *testing.T) {
	_, c := serve(t, &rpc.Server{Queries: map[string]rpc.Query{
		rpc.PathStatus: func(context.Context, url.Values) (any, error) { return rpc.Status{Node: "n1"}, nil },
		rpc.PathBPFCT: func(_ context.Context, q url.Values) (any, error) {
			return nil, &rpc.BadRequestError{Msg: "limit " + q.Get("limit")}
		},
		rpc.PathDevices: func(context.Context, url.Values) (any, error) { return nil, errors.New("no devices") },
	}, Flows: &flow.Broadcaster{}})
	for _, tc := range []struct {
		path string
		code int
		want string
	}{
		{rpc.PathStatus, 200, `"node":"n1"`},
		{rpc.PathBPFCT + "?limit=x", 400, "limit x"},
		{rpc.PathDevices, 500, "no devices"},
		{rpc.PathRoutes, 404, ""},
		{rpc.PathMonitor + "?type=quack", 400, `type "quack" is unknown`},
	} {
		if code, body := get(t, c, tc.path); code != tc.code || !strings.Contains(body, tc.want) {
			t.Errorf("%s: %d %q, want %d %q", tc.path, code, body, tc.code, tc.want)
		}
	}
}

// Guards against a monitor that shows what was not asked for, or that outlives
// its client or the agent.
func TestMonitor(t *testing.T) {
	flows := &flow.Broadcaster{}
	_, c := serve(t, &rpc.Server{Flows: flows})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://weft"+rpc.PathMonitor+"?type=drop", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req) // returns with the headers: the subscription stands
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	flows.Publish(flow.Event{Type: flow.TypeTrace, Hook: "from_pod"})
	flows.Publish(flow.Event{Type: flow.TypeDrop, Hook: "to_pod"})
	var e flow.Event
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Hook != "to_pod" {
		t.Errorf("got %+v, %v; want the drop", e, err)
	}
	cancel()
	for deadline := time.Now().Add(5 * time.Second); flows.Active(); {
		if time.Now().After(deadline) {
			t.Fatal("the subscription outlives its client")
		}
		flows.Publish(flow.Event{Type: flow.TypeDrop})
	}
}

// Guards against unbounded memory: one monitor too many is refused in words.
func TestMonitorsAreBounded(t *testing.T) {
	flows := &flow.Broadcaster{}
	_, c := serve(t, &rpc.Server{Flows: flows})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 17 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://weft"+rpc.PathMonitor, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		want := 200
		if i == 16 {
			want = 503
		}
		if resp.StatusCode != want {
			t.Errorf("monitor %d: %s", i+1, resp.Status)
		}
	}
}
