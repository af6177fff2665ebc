// SPDX-License-Identifier: Apache-2.0

// Package server is the agent's end of the CNI: it listens on a socket that
// only root may open, turns requests into calls of the endpoint manager, and
// carries out the DELs that were queued while no agent was there.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/table"
)

const (
	defaultTimeout = 25 * time.Second // below the plugin's, so that our error reaches the runtime
	// readTimeout is for a request to arrive, which is one write of the plugin.
	readTimeout = 5 * time.Second
	// maxConns bounds the connections at work. More wait in the listen queue.
	maxConns = 256
)

// Endpoints is what the server needs of endpoint.Manager.
type Endpoints interface {
	Add(ctx context.Context, req endpoint.AddRequest) (table.Endpoint, error)
	Delete(ctx context.Context, containerID, ifname string) error
	Check(ctx context.Context, containerID, ifname string, ips []netip.Addr) error
	GC(ctx context.Context, valid []endpoint.Attachment) error
}

// Params of a Server. Empty paths are those of package cni.
type Params struct {
	Socket          string
	QueueDir        string
	UnreachableFile string
	Endpoints       Endpoints
	// Status answers STATUS: nil if pods can be attached (DATAPATH rule 18).
	// It may be nil itself. It must not block.
	Status  func() *cni.Error
	Timeout time.Duration // of one request; 0 is 25 s
	Log     *slog.Logger
}

// Server serves the plugin.
type Server struct {
	p     Params
	queue cni.Queue
	log   *slog.Logger

	queueMu      sync.Mutex // held while a queued DEL is carried out
	mu           sync.Mutex
	failingSince time.Time
}

// New returns a Server; Run serves.
func New(p Params) (*Server, error) {
	if p.Endpoints == nil {
		return nil, errors.New("cni server: Endpoints is required")
	}
	if p.Socket == "" {
		p.Socket = cni.SocketPath
	}
	if p.QueueDir == "" {
		p.QueueDir = cni.QueueDir
	}
	if p.UnreachableFile == "" {
		p.UnreachableFile = cni.UnreachableFile
	}
	if p.Timeout == 0 {
		p.Timeout = defaultTimeout
	}
	if p.Log == nil {
		p.Log = slog.Default()
	}
	if p.Status == nil {
		p.Status = func() *cni.Error { return nil }
	}
	return &Server{p: p, queue: cni.Queue{Dir: p.QueueDir}, log: p.Log}, nil
}

// AddFailingSince returns since when every ADD failed for a reason of the node,
// zero if the last one did not.
func (s *Server) AddFailingSince() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failingSince
}

// Run carries out queued DELs, then serves until ctx ends, and carries out DELs
// that are queued meanwhile. It returns when all requests are answered. The
// socket's file stays: it tells the plugin that an agent was here since boot.
func (s *Server) Run(ctx context.Context) error {
	watcher, err := s.watchQueue()
	if err != nil {
		return err
	}
	defer func() { _ = watcher.close() }()
	s.drainQueue(ctx)
	l, err := s.listen()
	if err != nil {
		return err
	}
	if err := os.Remove(s.p.UnreachableFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("mark of an unreachable agent stays", "file", s.p.UnreachableFile, "error", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.serveQueue(ctx, watcher) })
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	slots := make(chan struct{}, maxConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close() // the plugin asks again
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("cni socket %s: %w", s.p.Socket, err)
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, conn)
		})
	}
}

// listen binds under another name, sets the mode, and renames: the socket is
// never there with a wider mode, nor not there while an agent follows another.
func (s *Server) listen() (*net.UnixListener, error) {
	dir := filepath.Dir(s.p.Socket)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cni socket: %w", err)
	}
	tmp := s.p.Socket + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cni socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cni socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, s.p.Socket)); err != nil {
		return nil, errors.Join(fmt.Errorf("cni socket: %w", err), l.Close())
	}
	return l, nil
}

// serve answers one connection. A request that has arrived is carried out even
// if ctx ends or the plugin goes away: half an ADD would be worse.
func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(readTimeout)); err != nil {
		s.log.Warn("cni connection", "error", err)
		return
	}
	var req cni.Request
	if err := cni.ReadMessage(conn, &req); err != nil {
		s.reply(conn, &cni.Response{Error: &cni.Error{
			Code: cni.CodeDecode, Msg: "request is not understood: " + err.Error(),
			Details: "are weft-cni and the agent of one version?",
		}})
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.p.Timeout)
	defer cancel()
	start := time.Now()
	resp := s.handle(ctx, req)
	if resp.Error != nil {
		s.log.Warn("cni request failed", "command", req.Command, "container", req.ContainerID, "args", req.Args,
			"code", resp.Error.Code, "error", resp.Error.Msg, "took", time.Since(start))
	}
	s.reply(conn, resp)
}

func (s *Server) reply(conn net.Conn, resp *cni.Response) {
	err := conn.SetDeadline(time.Now().Add(readTimeout))
	if err == nil {
		err = cni.WriteMessage(conn, resp)
	}
	if err != nil {
		s.log.Warn("cni reply was not taken; the runtime will ask again", "error", err)
	}
}
