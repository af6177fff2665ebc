// SPDX-License-Identifier: Apache-2.0

package healthcheck_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/internal/service/healthcheck"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// freePort returns a port that nobody has.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// ask returns code and body; 0 where nobody listens.
func ask(t *testing.T, port uint16) (int, map[string]any, http.Header) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/anything", port))
	if err != nil {
		return 0, nil, nil
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	var body map[string]any
	if err := json.Unmarshal(b, &body); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return r.StatusCode, body, r.Header
}

// Guards against load balancers that send clients to nodes without a backend, or to
// none although there is one.
func TestHealthChecks(t *testing.T) {
	var broken atomic.Bool
	s := healthcheck.New(func() bool { return !broken.Load() }, slog.New(slog.DiscardHandler))
	defer s.Close()
	one, two := freePort(t), freePort(t)
	web := healthcheck.Check{Namespace: "a", Name: "web", Port: one, Endpoints: 2}
	s.Set([]healthcheck.Check{web, {Namespace: "a", Name: "none", Port: two}})
	code, body, h := ask(t, one)
	if code != http.StatusOK || body["localEndpoints"] != 2.0 || body["serviceProxyHealthy"] != true {
		t.Errorf("two endpoints: %d %v", code, body)
	}
	if name, _ := body["service"].(map[string]any); name["namespace"] != "a" || name["name"] != "web" {
		t.Errorf("about %v", body)
	}
	if h.Get("Content-Type") != "application/json" || h.Get("X-Load-Balancing-Endpoint-Weight") != "2" || h.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers %v", h)
	}
	if code, body, _ := ask(t, two); code != http.StatusServiceUnavailable || body["localEndpoints"] != 0.0 {
		t.Errorf("no endpoint: %d %v", code, body)
	}
	web.Endpoints = 0
	s.Set([]healthcheck.Check{web})
	if code, _, _ := ask(t, one); code != http.StatusServiceUnavailable {
		t.Errorf("the last endpoint gone: %d", code)
	}
	if code, _, _ := ask(t, two); code != 0 {
		t.Errorf("a Service that is gone answers %d", code)
	}
	web.Endpoints = 1
	s.Set([]healthcheck.Check{web})
	broken.Store(true)
	if code, body, _ := ask(t, one); code != http.StatusServiceUnavailable || body["serviceProxyHealthy"] != false {
		t.Errorf("frontends are not written: %d %v", code, body)
	}
}

// Guards against one port that is taken keeping others from being served, and against
// nobody being told.
func TestPortsThatAreTaken(t *testing.T) {
	s := healthcheck.New(func() bool { return true }, slog.New(slog.DiscardHandler))
	defer s.Close()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	taken, free := uint16(l.Addr().(*net.TCPAddr).Port), freePort(t)
	checks := []healthcheck.Check{
		{Namespace: "b", Name: "second", Port: free, Endpoints: 9},
		{Namespace: "a", Name: "first", Port: free, Endpoints: 1},
		{Namespace: "a", Name: "taken", Port: taken, Endpoints: 1},
	}
	s.Set(checks)
	if code, body, _ := ask(t, free); code != http.StatusOK || body["localEndpoints"] != 1.0 {
		t.Errorf("the port that two want: %d %v", code, body)
	}
	p := strings.Join(s.Problems(), "\n")
	for _, want := range []string{"service b/second", "a/first", "service a/taken", fmt.Sprint(taken), "ss -ltnp"} {
		if !strings.Contains(p, want) {
			t.Errorf("problems lack %q: %s", want, p)
		}
	}
	_ = l.Close()
	s.Set(checks[1:])
	if code, _, _ := ask(t, taken); code != http.StatusOK || len(s.Problems()) > 0 {
		t.Errorf("once the port is free: %d, %v", code, s.Problems())
	}
}
