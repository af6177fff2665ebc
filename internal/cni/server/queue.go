// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/weft-net/weft/internal/cni"
)

// queueRetry is when a queued DEL that failed is tried again, and a second line
// of defence against a lost notification.
const queueRetry = 15 * time.Second

// queueWatch tells of new files in the queue. Without a watch (a node out of
// inotify instances) its channels are nil, and the regular look finds them.
type queueWatch struct {
	events <-chan fsnotify.Event
	errs   <-chan error
	close  func() error
}

// watchQueue makes the directory and watches it, before the first look into it.
func (s *Server) watchQueue() (queueWatch, error) {
	if err := os.MkdirAll(s.p.QueueDir, 0o700); err != nil {
		return queueWatch{}, fmt.Errorf("queue %s: %w", s.p.QueueDir, err)
	}
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(s.p.QueueDir); err == nil {
			return queueWatch{w.Events, w.Errors, w.Close}, nil
		}
		err = errors.Join(err, w.Close())
	}
	s.log.Warn("queue of DELs is not watched, only looked at regularly: raise fs.inotify.max_user_instances on this node",
		"dir", s.p.QueueDir, "every", queueRetry, "error", err)
	return queueWatch{close: func() error { return nil }}, nil
}

// serveQueue carries out DELs as they are queued until ctx ends.
func (s *Server) serveQueue(ctx context.Context, w queueWatch) {
	tick := time.NewTicker(queueRetry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-w.events:
			if !ev.Has(fsnotify.Create) { // a rename into place is a Create too
				continue
			}
		case err := <-w.errs:
			s.log.Warn("watching the queue of DELs", "dir", s.p.QueueDir, "error", err)
		case <-tick.C:
		}
		s.drainQueue(ctx)
	}
}

// drainQueue carries out what is queued. What fails stays for later.
func (s *Server) drainQueue(ctx context.Context) {
	entries, err := s.queue.List()
	if err != nil {
		s.log.Error("queue of DELs cannot be read", "error", err)
		return
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return
		}
		if err := s.queued(ctx, e); err != nil {
			s.log.Error("queued DEL failed, trying again later", "file", e.Path, "container", e.Request.ContainerID, "error", err)
		}
	}
}

// queued carries out one entry, unless an ADD of its attachment did so since
// the queue was read.
func (s *Server) queued(ctx context.Context, e cni.Queued) error {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	if _, err := os.Stat(e.Path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if e.Err != nil {
		s.log.Error("queued DEL makes no sense, dropping it", "file", e.Path, "error", e.Err)
	} else if err := s.delete(ctx, e.Request); err != nil {
		return err
	}
	if err := os.Remove(e.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("is done, but its file stays: %w", err)
	}
	return nil
}

func (s *Server) delete(ctx context.Context, req cni.Request) error {
	ctx, cancel := context.WithTimeout(ctx, s.p.Timeout)
	defer cancel()
	s.log.Info("carrying out a DEL that was queued while no agent answered", "container", req.ContainerID, "args", req.Args)
	return s.p.Endpoints.Delete(ctx, req.ContainerID, req.IfName)
}

// settle carries out a queued DEL of an attachment that is being added.
func (s *Server) settle(ctx context.Context, a cni.Attachment) error {
	if !s.queue.Has(a) {
		return nil
	}
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	if !s.queue.Has(a) {
		return nil // done meanwhile: the file goes last
	}
	if err := s.p.Endpoints.Delete(ctx, a.ContainerID, a.IfName); err != nil {
		return err
	}
	return s.queue.Remove(a)
}
