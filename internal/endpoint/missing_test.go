// SPDX-License-Identifier: Apache-2.0

package endpoint_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

// A state file that somebody deleted must not take the network from the pods
// that run, nor their addresses to others.
func TestMissingState(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		if strings.Contains(w.logged(), "missing") {
			t.Errorf("a new node is told that it lost its state")
		}
		a := w.add(m, "a", nstest.Netns(t))
		b := w.add(m, "b", nstest.Netns(t))
		if err := os.Remove(w.path()); err != nil {
			t.Fatal(err)
		}
		m = w.manager()
		contains(t, text(w.logged()), "state file is missing", w.path(), "rebuilt")
		w.reap(m)
		list := m.List()
		if len(list) != 2 {
			t.Fatalf("list %+v", list)
		}
		for i, want := range []table.Endpoint{a, b} {
			got := list[i]
			got.Netns, got.PodUID, got.CreatedAt = want.Netns, want.PodUID, want.CreatedAt // the kernel does not know them
			if got != want {
				t.Errorf("rebuilt %+v, want %+v", got, want)
			}
			reach(t, want)
		}
		// What was released just before is not known, so nothing is given for a while.
		var hold *ipam.HoldError
		if _, err := m.Add(t.Context(), request("c", nstest.Netns(t))); !errors.As(err, &hold) {
			t.Errorf("an address is given though it may be one just released: %v", err)
		}
		w.clock = w.clock.Add(ipam.Rest)
		if c := w.add(m, "c", nstest.Netns(t)); c.IPv4 == a.IPv4 || c.IPv4 == b.IPv4 {
			t.Errorf("the address of a running pod was given again: %+v", c)
		}
		if _, err := os.Stat(w.path()); err != nil {
			t.Errorf("no new state file: %v", err)
		}
		if err := m.GC(t.Context(), nil); err != nil {
			t.Error(err)
		}
		w.reap(m)
		if used(m) != 0 {
			t.Errorf("%d addresses in use", used(m))
		}
	})
}
