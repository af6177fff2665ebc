// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/operator/kube"
)

// reporter logs what happened and writes it as Kubernetes events. What cannot be
// written in time is dropped: the log has it, and the status of the node.
type reporter struct {
	log       *slog.Logger
	client    *kube.Client
	namespace string
	queue     chan kube.Event

	mu   sync.Mutex
	said []string // findings that stand
}

// maxReports bounds how many events wait.
const maxReports = 256

func newReporter(log *slog.Logger, client *kube.Client, namespace string) *reporter {
	return &reporter{log: log, client: client, namespace: namespace, queue: make(chan kube.Event, maxReports)}
}

func (r *reporter) event(e kube.Event) {
	level := slog.LevelInfo
	if e.Warning {
		level = slog.LevelWarn
	}
	r.log.Log(context.Background(), level, "event", "reason", e.Reason, "node", e.Node, "message", e.Message)
	select {
	case r.queue <- e:
	default:
	}
}

// once reports e, unless text stands already.
func (r *reporter) once(text string, e kube.Event) {
	r.mu.Lock()
	known := slices.Contains(r.said, text)
	if !known {
		r.said = append(r.said, text)
	}
	r.mu.Unlock()
	if !known {
		r.event(e)
	}
}

// keep forgets what does not stand any more, so that it is said again when it
// comes back.
func (r *reporter) keep(texts []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = slices.DeleteFunc(r.said, func(s string) bool { return !slices.Contains(texts, s) })
}

// run writes events until ctx ends.
func (r *reporter) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-r.queue:
			r.send(ctx, e)
		}
	}
}

func (r *reporter) send(ctx context.Context, e kube.Event) {
	for delay := time.Second; delay < 20*time.Second; delay *= 4 {
		err := r.client.Emit(ctx, r.namespace, e)
		if err == nil {
			return
		}
		r.log.Debug("event cannot be written", "reason", e.Reason, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}
