// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/weft-net/weft/internal/cni"
)

const (
	// hint tells where to look when no agent answers.
	hint = "look at the agent of this node: kubectl -n kube-system get pods -l k8s-app=cilium -o wide"
	// redial is how long the plugin waits between attempts to reach an agent.
	redial = 100 * time.Millisecond
	// patience is how long an agent may be away before STATUS says that the node
	// takes no pods. Restarting it takes seconds; the runtime turns a failing
	// STATUS into a node that is not ready (DATAPATH rule 18).
	patience = 60 * time.Second
)

// downError says that no agent took the request. absent means that none
// listens; else one does, but did not answer.
type downError struct {
	absent bool
	cause  error
}

func (e *downError) Error() string { return e.cause.Error() }

func (e *downError) cni(command string) *cni.Error {
	state := "the agent did not answer"
	if e.absent {
		state = "no agent runs on this node"
	}
	return &cni.Error{Code: cni.CodeTryAgain, Msg: fmt.Sprintf("weft-cni %s: %s (%v)", command, state, e.cause), Details: hint}
}

// client asks the agent.
type client struct {
	env     Env
	dialFor time.Duration
}

// ask sends a request until an agent answers it, the time for dialling is over,
// or ctx ends. Repeating is safe: all commands are idempotent. The error is the
// agent's, or one of trying again later.
func (c *client) ask(ctx context.Context, req cni.Request) (*cni.Response, error) {
	resp, err := c.reach(ctx, req)
	if down, ok := errors.AsType[*downError](err); ok {
		return nil, down.cni(req.Command)
	}
	return resp, err
}

// reach is ask with *downError for an agent that cannot be reached.
func (c *client) reach(ctx context.Context, req cni.Request) (*cni.Response, error) {
	until := time.Now().Add(c.dialFor)
	var before error // of the last attempt that ctx did not cut short
	for {
		resp, err := c.once(ctx, req)
		var down *downError
		if err == nil && resp.Error != nil {
			return nil, resp.Error
		}
		if err == nil || !errors.As(err, &down) {
			return resp, err
		}
		if over(ctx) {
			return nil, cmp.Or(before, err)
		}
		if before = err; time.Now().After(until) {
			return nil, err
		}
		t := time.NewTimer(redial)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, err
		}
	}
}

// over reports that ctx has ended or is about to: its timer may fire a moment
// after a dial that gave up at its deadline.
func over(ctx context.Context) bool {
	d, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(d)
}

func (c *client) once(ctx context.Context, req cni.Request) (*cni.Response, error) {
	conn, err := dial(ctx, c.env.Socket)
	if err != nil {
		absent := errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
		if !absent && !errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			return nil, &cni.Error{Code: cni.CodeIO, Msg: fmt.Sprintf("agent's socket: %v", err), Details: hint}
		}
		return nil, &downError{absent: absent, cause: err}
	}
	defer conn.Close()
	if err := cni.WriteMessage(conn, req); err != nil {
		return nil, &downError{cause: err}
	}
	var resp cni.Response
	if err := cni.ReadMessage(conn, &resp); err != nil {
		return nil, &downError{cause: err} // it went away half-way: ask the next
	}
	return &resp, nil
}

// del succeeds without an agent: the DEL is queued, and carried out when there
// is one again. Where not even the queue can be written, it still succeeds if no
// agent runs: the runtime removes the namespace, and an agent that starts deletes
// endpoints whose link is gone. It fails if an agent runs but does not answer,
// as nothing would tell that one.
func del(ctx context.Context, c *client, req cni.Request) error {
	_, err := c.reach(ctx, req)
	var down *downError
	if !errors.As(err, &down) {
		return err
	}
	qerr := c.env.Queue.Put(req)
	switch {
	case qerr == nil:
		fmt.Fprintf(c.env.Stderr, "weft-cni DEL: queued in %s: %v\n", c.env.Queue.Dir, down)
		return nil
	case down.absent:
		fmt.Fprintf(c.env.Stderr, "weft-cni DEL: left to the agent's next start: %v; %v\n", down, qerr)
		return nil
	}
	e := down.cni("DEL")
	e.Msg += fmt.Sprintf("; and it cannot be queued: %v", qerr)
	return e
}

// status reports the agent's answer. While no agent answers, the node goes on
// taking pods for a while: ADD waits for the agent to come back.
func status(ctx context.Context, c *client, req cni.Request) error {
	_, err := c.reach(ctx, req)
	var down *downError
	if !errors.As(err, &down) {
		return err
	}
	e := down.cni("STATUS")
	e.Code = cni.CodeNotAvailable
	if _, err := os.Lstat(c.env.Socket); errors.Is(err, os.ErrNotExist) {
		return e // no agent was here since boot
	}
	since, err := c.unreachableSince()
	if err != nil {
		e.Msg += fmt.Sprintf("; since when is not known: %v", err)
		return e
	}
	if away := time.Since(since); away > patience {
		e.Msg += fmt.Sprintf("; for %s", away.Round(time.Second))
		return e
	}
	return nil
}

// unreachableSince returns the time of the file that marks that the agent was
// missed, and makes it if need be. An agent that starts removes it.
func (c *client) unreachableSince() (time.Time, error) {
	f, err := os.OpenFile(c.env.UnreachableFile, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return time.Time{}, err
	}
	return fi.ModTime(), nil
}
