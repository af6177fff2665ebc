// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/table"
)

// Guards against an address that stays lost because no DEL came, and, worse,
// against one that is taken from a pod that lives.
func TestLeaks(t *testing.T) {
	pod := func(name string, generation uint32) table.Endpoint {
		return table.Endpoint{Kind: table.EndpointPod, ContainerID: name, Namespace: "default", Pod: name, Generation: generation}
	}
	eps := []table.Endpoint{
		pod("leaked", 1), pod("alive", 2), pod("restarting", 3), pod("unknown", 4), pod("unreadable", 5),
		{Kind: table.EndpointHealth, ContainerID: "health", Generation: 6},
	}
	now := time.Unix(1e9, 0)
	var removed []string
	var asked int
	l := &leaks{
		list: func() []table.Endpoint { return slices.Clone(eps) },
		gone: func(ep *table.Endpoint) (bool, error) {
			if ep.Pod == "unreadable" {
				return true, errors.New("no memory")
			}
			return ep.Pod != "alive", nil
		},
		noPod: func(_ context.Context, _, name, _ string) (bool, error) {
			asked++
			if name == "unknown" {
				return true, errors.New("API server is away")
			}
			return name != "restarting", nil
		},
		remove: func(_ context.Context, containerID, _ string) error {
			removed = append(removed, containerID)
			eps = slices.DeleteFunc(eps, func(ep table.Endpoint) bool { return ep.ContainerID == containerID })
			return nil
		},
		now: func() time.Time { return now }, log: slog.New(slog.DiscardHandler),
	}
	l.look(t.Context())
	now = now.Add(leakAge - time.Second)
	l.look(t.Context())
	if asked != 0 || len(removed) != 0 {
		t.Errorf("asked %d times and removed %v before %s", asked, removed, leakAge)
	}
	now = now.Add(time.Second)
	l.look(t.Context())
	l.look(t.Context())
	if !slices.Equal(removed, []string{"leaked"}) {
		t.Errorf("removed %v, want leaked alone", removed)
	}
	// A new attachment under an old name begins anew.
	eps = append(eps, pod("leaked", 7))
	l.look(t.Context())
	if len(removed) != 1 {
		t.Errorf("removed %v: the new attachment was without a namespace for a moment", removed)
	}
}

// Guards against every pod of the node being taken for leaked because the agent
// does not see the node's namespaces.
func TestNetnsGone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cni-1")
	if err := os.WriteFile(file, nil, 0o600); err != nil { // left by an unmount
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"": false, "/proc/self/ns/net": false, file: true, filepath.Join(dir, "cni-2"): true, filepath.Join(dir, "none", "cni-3"): false,
	} {
		if got, _ := netnsGone(path); got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
}
