// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Connection is the account of the calls to the API server.
type Connection struct {
	Server   string
	Synced   bool              // every reflector has had the whole of its objects once
	Failing  map[string]string // what fails now, with its error
	Since    time.Time         // since when something fails without a break
	LastGood time.Time         // of any call
}

// connection keeps a Connection up to date.
type connection struct {
	mu      sync.Mutex
	cur     Connection
	waiting map[string]bool // reflectors that have not listed yet
}

func newConnection(server string) *connection {
	return &connection{cur: Connection{Server: server, Failing: map[string]string{}}, waiting: map[string]bool{}}
}

func (c *connection) state() Connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.cur
	s.Failing = maps.Clone(s.Failing)
	s.Synced = len(c.waiting) == 0
	return s
}

// note records the outcome of one call for what.
func (c *connection) note(what string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// A refusal by name is an answer: the server is there.
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		c.cur.LastGood = time.Now()
		delete(c.cur.Failing, what)
		if len(c.cur.Failing) == 0 {
			c.cur.Since = time.Time{}
		}
		return
	}
	if c.cur.Since.IsZero() {
		c.cur.Since = time.Now()
	}
	c.cur.Failing[what] = explain(err)
}

// noteList is note for the list or watch of a reflector, to which "not found"
// means that the resource itself is missing.
func (c *connection) noteList(what string, err error) {
	if apierrors.IsNotFound(err) {
		err = fmt.Errorf("the cluster has no %s: apply the chart's custom resource definitions", what)
	}
	c.note(what, err)
}

func (c *connection) expect(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting[what] = true
}

func (c *connection) listed(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, what)
}

// Message says in one line what is wrong, or "" if nothing is.
func (s Connection) Message() string {
	if len(s.Failing) == 0 {
		if !s.Synced {
			return "waiting for the first answer of " + s.Server
		}
		return ""
	}
	what := slices.Min(slices.Collect(maps.Keys(s.Failing)))
	msg := fmt.Sprintf("%s: %s: %s (since %s)", s.Server, what, s.Failing[what], time.Since(s.Since).Round(time.Second))
	if n := len(s.Failing) - 1; n > 0 {
		msg += fmt.Sprintf(" and %d more", n)
	}
	return msg
}

// explain adds to an error of the API server what to do about it.
func explain(err error) string {
	switch {
	case apierrors.IsUnauthorized(err):
		return err.Error() + ": the service account's token is not accepted: restart the agent's pod"
	case apierrors.IsForbidden(err):
		return err.Error() + ": apply the chart's ClusterRole and ClusterRoleBinding again"
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer within %s: is the address right, and does a firewall drop it?", requestTimeout)
	}
	return err.Error()
}
