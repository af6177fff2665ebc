// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/cni/server"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// endpoints notes what it is asked and answers what it is told.
type endpoints struct {
	mu    sync.Mutex
	calls []string
	err   error
	gate  chan struct{} // closed: go on
	told  chan string
}

func (e *endpoints) call(ctx context.Context, format string, args ...any) error {
	s := fmt.Sprintf(format, args...)
	e.mu.Lock()
	e.calls = append(e.calls, s)
	err, gate := e.err, e.gate
	e.mu.Unlock()
	select {
	case e.told <- s:
	default:
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (e *endpoints) answer(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = err
}

func (e *endpoints) list() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.calls)
}

func (e *endpoints) Add(ctx context.Context, r endpoint.AddRequest) (table.Endpoint, error) {
	err := e.call(ctx, "add %s %s %s/%s %s", r.ContainerID, r.IfName, r.Namespace, r.Pod, r.Netns)
	return table.Endpoint{
		HostIfName: "lxc1", HostMAC: "02:00:00:00:00:01", MAC: "02:00:00:00:00:02", MTU: 1400,
		IPv4: netip.MustParseAddr("10.9.0.2"), IPv6: netip.MustParseAddr("fd09::2"),
	}, err
}

func (e *endpoints) Delete(ctx context.Context, id, ifname string) error {
	return e.call(ctx, "delete %s %s", id, ifname)
}

func (e *endpoints) Check(ctx context.Context, id, ifname string, ips []netip.Addr) error {
	return e.call(ctx, "check %s %s %v", id, ifname, ips)
}

func (e *endpoints) GC(ctx context.Context, valid []endpoint.Attachment) error {
	return e.call(ctx, "gc %v", valid)
}

type agent struct {
	*endpoints
	p    server.Params
	s    *server.Server
	stop func()
}

func params(t *testing.T, e *endpoints) server.Params {
	dir := t.TempDir()
	return server.Params{
		Socket: filepath.Join(dir, "cni.sock"), QueueDir: filepath.Join(dir, "deletes"), UnreachableFile: filepath.Join(dir, "cni-unreachable"),
		Endpoints: e, Log: slog.New(slog.DiscardHandler),
	}
}

// serve starts a server and waits until it answers.
func serve(t *testing.T, e *endpoints, change func(*server.Params)) *agent {
	t.Helper()
	if e.told == nil {
		e.told = make(chan string, 100)
	}
	a := &agent{endpoints: e, p: params(t, e)}
	if change != nil {
		change(&a.p)
	}
	var err error
	if a.s, err = server.New(a.p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.s.Run(ctx) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Error("does not end with its context")
		}
	})
	t.Cleanup(a.stop)
	deadline := time.Now().Add(5 * time.Second)
	for {
		c, err := net.Dial("unix", a.p.Socket)
		if err == nil {
			c.Close()
			return a
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func (a *agent) ask(t *testing.T, r cni.Request) *cni.Response {
	t.Helper()
	c, err := net.Dial("unix", a.p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := cni.WriteMessage(c, r); err != nil {
		t.Fatal(err)
	}
	var resp cni.Response
	if err := cni.ReadMessage(c, &resp); err != nil {
		t.Fatal(err)
	}
	return &resp
}

func add() cni.Request {
	return cni.Request{Command: "ADD", ContainerID: "c", Netns: "/run/netns/x", IfName: "eth0", Args: "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p"}
}

// Each command must reach the manager with what it was given.
func TestCommands(t *testing.T) {
	a := serve(t, &endpoints{}, nil)
	resp := a.ask(t, add())
	if resp.Error != nil || resp.Result == nil || fmt.Sprint(resp.Result.IPs, resp.Result.Gateways) != "[10.9.0.2 fd09::2] [169.254.1.1 fe80::1]" || resp.Result.MTU != 1400 {
		t.Errorf("ADD: %+v %+v", resp.Error, resp.Result)
	}
	for _, r := range []cni.Request{
		{Command: "DEL", ContainerID: "c", IfName: "eth0"},
		{Command: "CHECK", ContainerID: "c", IfName: "eth0", PrevIPs: []netip.Addr{netip.MustParseAddr("10.9.0.2")}},
		{Command: "GC", Valid: []cni.Attachment{{ContainerID: "c", IfName: "eth0"}}},
		{Command: "STATUS"},
	} {
		if resp := a.ask(t, r); resp.Error != nil {
			t.Errorf("%s: %v", r.Command, resp.Error)
		}
	}
	want := []string{"add c eth0 ns/p /run/netns/x", "delete c eth0", "check c eth0 [10.9.0.2]", "gc [{c eth0}]"}
	if got := a.list(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The code decides what the runtime does next, the text what the operator does.
func TestErrorCodes(t *testing.T) {
	a := serve(t, &endpoints{}, nil)
	for _, c := range []struct {
		err  error
		code uint
	}{
		{fmt.Errorf("node n1 has %w", endpoint.ErrNoPodCIDR), 11},
		{fmt.Errorf("node n1: %w", &ipam.ExhaustedError{}), 11},
		{&ipam.HoldError{Wait: time.Second}, 11},
		{context.DeadlineExceeded, 11},
		{&link.NetnsError{Path: "/x", Err: os.ErrNotExist}, 8},
		{&endpoint.StateError{Path: "/x", Err: os.ErrPermission}, 5},
		{fmt.Errorf("x: %w", endpoint.ErrUnknown), 3},
		{errors.New("anything else"), 999},
	} {
		a.answer(c.err)
		if resp := a.ask(t, add()); resp.Error == nil || resp.Error.Code != c.code || resp.Error.Msg != c.err.Error() {
			t.Errorf("%v: got %+v, want code %d", c.err, resp.Error, c.code)
		}
	}
	a.answer(nil)
	for name, r := range map[string]cni.Request{
		"no pod in args":  {Command: "ADD", ContainerID: "c", Netns: "x", IfName: "eth0"},
		"unknown command": {Command: "EXPLODE"},
		"DEL of nothing":  {Command: "DEL"},
	} {
		if resp := a.ask(t, r); resp.Error == nil || resp.Error.Code != 4 {
			t.Errorf("%s: got %+v", name, resp.Error)
		}
	}
}

// Rule 18 needs to know since when ADDs fail for the node's sake.
func TestAddFailingSince(t *testing.T) {
	a := serve(t, &endpoints{}, nil)
	a.answer(&link.NetnsError{Path: "/x", Err: os.ErrNotExist})
	a.ask(t, add())
	if !a.s.AddFailingSince().IsZero() {
		t.Error("one pod's trouble is taken for the node's")
	}
	a.answer(errors.New("broken"))
	a.ask(t, add())
	since := a.s.AddFailingSince()
	a.ask(t, add())
	if since.IsZero() || a.s.AddFailingSince() != since {
		t.Errorf("since %v, then %v", since, a.s.AddFailingSince())
	}
	a.answer(nil)
	a.ask(t, add())
	if !a.s.AddFailingSince().IsZero() {
		t.Error("a success is not seen")
	}
}

func TestStatus(t *testing.T) {
	a := serve(t, &endpoints{}, func(p *server.Params) {
		p.Status = func() *cni.Error { return &cni.Error{Code: 50, Msg: "not proven yet"} }
	})
	if resp := a.ask(t, cni.Request{Command: "STATUS"}); resp.Error == nil || resp.Error.Code != 50 || resp.Error.Msg != "not proven yet" {
		t.Errorf("got %+v", resp.Error)
	}
}

// Only root may tell the agent what to attach; and a second agent takes over
// the socket without a moment without one.
func TestSocket(t *testing.T) {
	a := serve(t, &endpoints{}, nil)
	fi, err := os.Stat(a.p.Socket)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	b := serve(t, &endpoints{}, func(p *server.Params) { p.Socket, p.QueueDir = a.p.Socket, a.p.QueueDir })
	for deadline := time.Now().Add(5 * time.Second); len(b.list()) == 0; {
		if resp := b.ask(t, add()); resp.Error != nil || time.Now().After(deadline) {
			t.Fatalf("the new agent gets no requests: %v", resp.Error)
		}
	}
	a.stop()
	if resp := b.ask(t, add()); resp.Error != nil {
		t.Error(resp.Error)
	}
	b.stop()
	if _, err := os.Stat(a.p.Socket); err != nil {
		t.Errorf("the socket's file tells the plugin that an agent was here: %v", err)
	}
}

// What is not a request must be answered or dropped, and not stop the rest.
func TestMalformedRequests(t *testing.T) {
	a := serve(t, &endpoints{}, nil)
	for _, b := range [][]byte{nil, {0}, {0, 0, 0, 1, 'x'}, {0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 9, '{'}} {
		c, err := net.Dial("unix", a.p.Socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var resp cni.Response
		if err := cni.ReadMessage(c, &resp); err != nil || resp.Error == nil || resp.Error.Code != 6 {
			t.Errorf("%v: got %+v, %v", b, resp.Error, err)
		}
		c.Close()
	}
	if resp := a.ask(t, add()); resp.Error != nil {
		t.Error(resp.Error)
	}
}

// A request that is at work when the agent is told to end must be finished:
// half an ADD would be worse.
func TestEndWaitsForRequests(t *testing.T) {
	gate := make(chan struct{})
	a := serve(t, &endpoints{gate: gate}, nil)
	answered := make(chan *cni.Response, 1)
	go func() { answered <- a.ask(t, add()) }()
	<-a.told
	ended := make(chan struct{})
	go func() { a.stop(); close(ended) }()
	select {
	case <-ended:
		t.Error("ended before the request")
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	if resp := <-answered; resp.Error != nil {
		t.Error(resp.Error)
	}
	<-ended
}

// A hung operation must not hold the runtime for ever.
func TestTimeout(t *testing.T) {
	a := serve(t, &endpoints{gate: make(chan struct{})}, func(p *server.Params) { p.Timeout = 50 * time.Millisecond })
	if resp := a.ask(t, add()); resp.Error == nil || resp.Error.Code != 11 {
		t.Errorf("got %+v", resp.Error)
	}
}

func queue(t *testing.T, dir, container string) {
	t.Helper()
	if err := (cni.Queue{Dir: dir}).Put(cni.Request{Command: "DEL", ContainerID: container, IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
}

func (a *agent) told1(t *testing.T) string {
	t.Helper()
	select {
	case s := <-a.endpoints.told:
		return s
	case <-time.After(5 * time.Second):
		t.Fatal("nothing was asked")
		return ""
	}
}

func (a *agent) awaitEmptyQueue(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		left, err := cni.Queue{Dir: a.p.QueueDir}.List()
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left in the queue: %+v", left)
		}
	}
}

// DELs that were queued while no agent ran must be carried out before the first
// ADD, those queued while it runs at once, and a spoilt file must not be in the way.
func TestQueuedDeletes(t *testing.T) {
	e := &endpoints{told: make(chan string, 100)}
	a := serve(t, e, func(p *server.Params) {
		queue(t, p.QueueDir, "before")
		if err := os.WriteFile(filepath.Join(p.QueueDir, "spoilt.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.UnreachableFile, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if got := a.list(); len(got) != 1 || got[0] != "delete before eth0" {
		t.Errorf("asked before it serves: %q", got)
	}
	if _, err := os.Stat(a.p.UnreachableFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark of an unreachable agent stays: %v", err)
	}
	a.told1(t)
	queue(t, a.p.QueueDir, "meanwhile")
	if got := a.told1(t); got != "delete meanwhile eth0" {
		t.Errorf("got %q", got)
	}
	a.awaitEmptyQueue(t)
}

// A DEL that fails stays queued; the next start carries it out.
func TestQueuedDeleteFails(t *testing.T) {
	e := &endpoints{told: make(chan string, 100), err: errors.New("broken")}
	a := serve(t, e, func(p *server.Params) { queue(t, p.QueueDir, "c") })
	a.told1(t)
	a.stop()
	if !(cni.Queue{Dir: a.p.QueueDir}).Has(cni.Attachment{ContainerID: "c", IfName: "eth0"}) {
		t.Fatal("a DEL that failed is forgotten")
	}
	b := serve(t, &endpoints{}, func(p *server.Params) { p.QueueDir = a.p.QueueDir })
	if got := b.list(); len(got) != 1 || got[0] != "delete c eth0" {
		t.Errorf("got %q", got)
	}
	b.awaitEmptyQueue(t)
}

// An ADD of an attachment whose old DEL is queued: the DEL comes first, and
// never after, however often the queue is read meanwhile.
func TestAddAfterQueuedDelete(t *testing.T) {
	a := serve(t, &endpoints{}, nil)
	for range 20 {
		queue(t, a.p.QueueDir, "c")
		if resp := a.ask(t, add()); resp.Error != nil {
			t.Fatal(resp.Error)
		}
	}
	a.awaitEmptyQueue(t)
	a.stop()
	calls := a.list()
	if last := calls[len(calls)-1]; !strings.HasPrefix(last, "add") {
		t.Errorf("a queued DEL came after the ADD: %q", calls)
	}
}
