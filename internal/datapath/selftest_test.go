// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath"
	weftmaps "github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// state is what an agent finds on a node and must leave as it was if it fails.
type state struct {
	programs map[string]ebpf.ProgramID // by device and direction
	maps     map[string]ebpf.MapID     // pinned, by name
	files    []string                  // under new/
}

func stateOf(t *testing.T, m *machine) state {
	t.Helper()
	s := state{programs: map[string]ebpf.ProgramID{}, maps: map[string]ebpf.MapID{}}
	m.in(t, func() {
		eth := link(t, "eth0")
		for name, hook := range map[string]reason.Hook{"in": reason.FromNet, "out": reason.ToNet} {
			for _, id := range running(t, eth, hook) {
				s.programs["eth0 "+name] = id
			}
		}
		for _, p := range m.pods {
			for name, parent := range map[string]uint32{"in": netlink.HANDLE_MIN_INGRESS, "out": netlink.HANDLE_MIN_EGRESS} {
				for _, id := range filtered(t, link(t, p.dev), parent) {
					s.programs[p.dev+" "+name] = id
				}
			}
		}
	})
	for _, name := range weftmaps.Names() {
		p, err := ebpf.LoadPinnedMap(filepath.Join(m.root, "maps", name), nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		s.maps[name], _ = info.ID()
		_ = p.Close()
	}
	left, err := os.ReadDir(filepath.Join(m.root, "new"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		s.files = append(s.files, f.Name())
	}
	return s
}

// wantUntouched wants a machine to be as before, and to forward.
func (c *cluster) wantUntouched(m *machine, before state) {
	c.t.Helper()
	now := stateOf(c.t, m)
	if len(before.programs) != 6 || !maps.Equal(before.programs, now.programs) {
		c.t.Errorf("programs before %v\nafter %v", before.programs, now.programs)
	}
	if !maps.Equal(before.maps, now.maps) {
		c.t.Errorf("pinned maps before %v\nafter %v", before.maps, now.maps)
	}
	if len(now.files) != 0 {
		c.t.Errorf("left over under new/: %v", now.files)
	}
}

// refused opens the datapath of a machine and wants an error that says all of want.
func refused(t *testing.T, m *machine, o datapath.Options, want ...string) {
	t.Helper()
	o.Root, o.IPv4, o.IPv6, o.Masquerade = m.root, true, true, true
	if o.Sizes == (weftmaps.Sizes{}) {
		o.Sizes = testSizes
	}
	m.in(t, func() {
		d, err := datapath.Open(o)
		if err == nil {
			_ = d.Close()
			t.Errorf("opened; want an error with %q", want)
			return
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q does not say %q", err, w)
			}
		}
	})
}

// TestFailedSelfTestSwitchesNothing guards against a release whose programs do the
// wrong thing, on this kernel or on any, reaching a single packet of a pod.
func TestFailedSelfTestSwitchesNothing(t *testing.T) {
	c := newCluster(t)
	m, far := c.nodes[0], c.nodes[1].pods[0]
	talk := newTalks(t)
	talk.start(m.pods[0].space, far.space, far.addr, 8080)
	before := stateOf(t, m)
	returns := func(h reason.Hook, action int32) datapath.Options {
		return datapath.Options{}.WithPatch(func(s *ebpf.CollectionSpec) {
			s.Programs[h.String()].Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, action), asm.Return()}
		})
	}
	for _, h := range reason.Hooks() {
		refused(t, m, returns(h, actShot), "self-test: "+h.String()+", IPv4: ", "was dropped, must be ", "what ran before goes on")
	}
	refused(t, m, returns(reason.FromPod, -1), "self-test: from_pod, IPv4: ", "was left to the stack, must be redirected")
	// to_net drops nothing, but translates.
	refused(t, m, returns(reason.ToNet, -1), "self-test: to_net, IPv4: ", "left from 198.51.100.10 port 4003, must leave from 203.0.113.1")
	refused(t, m, datapath.Options{}.WithPatch(func(s *ebpf.CollectionSpec) {
		s.Programs["to_net"].Instructions = asm.Instructions{asm.Return()} // of what is in no register
	}), "the kernel refused a program", "older than "+datapath.MinimumKernel, "to_net")
	c.wantUntouched(m, before)
	talk.end()
	c.noDrops()
}

// TestSwapTakenBack guards against a node that is left with programs of two
// releases because one hook refused the new one: here each hook in turn, and the
// pinning of new maps.
func TestSwapTakenBack(t *testing.T) {
	c := newCluster(t)
	m, far := c.nodes[0], c.nodes[1].pods[0]
	talk := newTalks(t)
	talk.start(m.pods[0].space, far.space, far.addr, 8080)
	talk.start(far.space, m.pods[0].space, m.pods[0].addr, 8081)
	talk.start(m.pods[0].space, m.pods[1].space, m.pods[1].addr, 8082)
	before := stateOf(t, m)
	code := release(t, "otherlayout")
	for at := range len(steps()) + 1 {
		n, refusal := 0, errors.New("out of luck")
		o := datapath.Options{}.WithObject(code).Untested().WithFault(func(string) error {
			if n++; n == at+1 {
				return refusal
			}
			return nil
		})
		want := []string{"out of luck"}
		if at > 0 && at < len(steps()) {
			want = append(want, "the old programs are back in place")
		}
		refused(t, m, o, want...)
		opens(t, m.pods[0].space, far.addr, 8080)
	}
	c.wantUntouched(m, before)
	talk.end()
	c.noDrops()
}

// TestSelfTestOnce guards against a restart that waits for what is known, and
// against settings that were never tested.
func TestSelfTestOnce(t *testing.T) {
	root := newRoot(t)
	tested := func(o datapath.Options) bool {
		t.Helper()
		var log strings.Builder
		o.Root, o.Sizes, o.Log = root, testSizes, slog.New(slog.NewTextHandler(&log, nil))
		d, err := datapath.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		return strings.Contains(log.String(), "passed the self-test")
	}
	previous := datapath.Options{IPv4: true}.WithObject(append(release(t, "previous"), 0))
	for i, tc := range []struct {
		o    datapath.Options
		want bool
	}{
		{datapath.Options{IPv4: true}, true},
		{datapath.Options{IPv4: true}, false},
		{datapath.Options{IPv4: true, IPv6: true}, true},
		{datapath.Options{IPv4: true, IPv6: true, Masquerade: true}, true},
		{datapath.Options{IPv4: true, IPv6: true, Masquerade: true}, false},
		{previous, true},
		{datapath.Options{IPv4: true, IPv6: true, Masquerade: true}, true},
	} {
		if got := tested(tc.o); got != tc.want {
			t.Errorf("start %d: tested %t, want %t", i+1, got, tc.want)
		}
	}
}
