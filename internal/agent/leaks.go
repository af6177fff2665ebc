// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/table"
)

const (
	leakEvery = time.Minute
	// leakAge is how long an endpoint must have been without a namespace before
	// it counts as leaked: the runtime removes the namespace of a pod first and
	// sends its DEL in the same second, but may be held up.
	leakAge = 50 * time.Second
)

// leaks finds endpoints whose DEL never came: a runtime that lost its state, or
// that was killed between removing a namespace and calling the plugin. The
// runtime's own GC finds them only if it still runs and speaks CNI 1.1.
type leaks struct {
	list   func() []table.Endpoint
	gone   func(*table.Endpoint) (bool, error) // the namespace is gone
	noPod  func(ctx context.Context, namespace, name, uid string) (bool, error)
	remove func(ctx context.Context, containerID, ifname string) error
	now    func() time.Time
	log    *slog.Logger

	since map[uint32]time.Time // generation of an endpoint → without a namespace since
}

// look releases what is leaked for certain: without a namespace in two looks that
// lie leakAge apart, and without a pod at the API server. What cannot be told
// stays: an address that is lost is better than one that two have.
func (l *leaks) look(ctx context.Context) {
	since := map[uint32]time.Time{}
	for _, ep := range l.list() {
		if ep.Kind != table.EndpointPod {
			continue
		}
		gone, err := l.gone(&ep)
		if err != nil || !gone {
			continue
		}
		first, known := l.since[ep.Generation]
		if !known {
			first = l.now()
		}
		since[ep.Generation] = first
		if l.now().Sub(first) < leakAge {
			continue
		}
		noPod, err := l.noPod(ctx, ep.Namespace, ep.Pod, ep.PodUID)
		if err != nil || !noPod {
			continue
		}
		if err := l.remove(ctx, ep.ContainerID, ep.IfName); err != nil {
			l.log.Error("endpoint without namespace and pod cannot be deleted", "endpoint", ep.ID, "name", ep.Name(), "error", err)
			continue
		}
		delete(since, ep.Generation)
		l.log.Warn("endpoint had neither namespace nor pod any more, and no DEL came for it: it is deleted, and its addresses are free after a rest",
			"endpoint", ep.ID, "name", ep.Name(), "container", ep.ContainerID, "ipv4", ep.IPv4, "ipv6", ep.IPv6)
	}
	l.since = since
}

// followLeaks looks for leaked endpoints until ctx ends, the first time when the
// API server has told what there is.
func (a *Agent) followLeaks(ctx context.Context) error {
	if ok, ch := a.t.pods.Initialized(a.t.db.ReadTxn()); !ok {
		select {
		case <-ctx.Done():
			return nil
		case <-ch:
		}
	}
	l := &leaks{
		list: a.endpoints.List, gone: a.namespaceGone, noPod: a.client.PodGone, remove: a.endpoints.Delete, now: time.Now, log: a.log,
	}
	tick := time.NewTicker(leakEvery)
	defer tick.Stop()
	for {
		l.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// namespaceGone tells whether an endpoint's pod has lost its namespace: the pair
// of devices went with it, or nothing is mounted any more where the runtime had
// made it.
func (a *Agent) namespaceGone(ep *table.Endpoint) (bool, error) {
	index, err := a.links.ByName(ep.HostIfName)
	if err != nil {
		return false, err
	}
	if index != ep.HostIfIndex {
		return true, nil
	}
	return netnsGone(ep.Netns)
}

// netnsGone tells whether no namespace is at path. Where not even the folder is
// there, this process does not see the node's, and nothing is known.
func netnsGone(path string) (bool, error) {
	if path == "" {
		return false, nil
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return false, err
	}
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	return err == nil && st.Type != unix.NSFS_MAGIC && st.Type != unix.PROC_SUPER_MAGIC, err
}
