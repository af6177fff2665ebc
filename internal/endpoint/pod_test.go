// SPDX-License-Identifier: Apache-2.0

package endpoint_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/datapath/link/nstest"
)

// ipIn runs ip inside a namespace.
func ipIn(t *testing.T, ns, command string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + ns, "ip"}, strings.Fields(command)...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", command, err, out)
	}
	return string(out)
}

// shape is what an agent could change in a pod.
func shape(t *testing.T, ns string) string {
	t.Helper()
	var out []string
	for _, c := range []string{"-4 route", "-6 route show default", "-br addr show dev eth0", "neigh show dev eth0 nud permanent"} {
		out = append(out, ipIn(t, ns, c))
	}
	return strings.Join(out, "\n")
}

// A pod with a second network has a default route of its own; a restart of the
// agent must not take it away.
func TestRestartLeavesPodsRoutes(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		ns := nstest.Netns(t)
		w.add(m, "a", ns)
		for _, c := range []string{
			"link add net1 type veth peer name net2", "addr add 172.30.0.2/24 dev net1", "addr add fd30::2/64 dev net1 nodad",
			"link set net2 up", "link set net1 up",
			"route replace default via 172.30.0.1 dev net1", "-6 route replace default via fd30::1 dev net1",
		} {
			ipIn(t, ns, c)
		}
		before := shape(t, ns)
		m = w.manager()
		if after := shape(t, ns); after != before {
			t.Errorf("before:\n%s\nafter a restart of the agent:\n%s", before, after)
		}
		w.del(m, "a")
		w.reap(m)
	})
}

// An ADD that was killed once the state file had the endpoint leaves a pod
// without addresses; the next agent must finish it.
func TestRestartFinishesAdd(t *testing.T) {
	for name, undo := range map[string][]string{
		"down":    {"link set eth0 down"},
		"no IPv4": {"-4 addr flush dev eth0"},
		"nothing": {"addr flush dev eth0", "link set eth0 down"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				m := w.manager()
				a := w.add(m, "a", nstest.Netns(t))
				for _, c := range undo {
					ipIn(t, a.Netns, c)
				}
				m = w.manager()
				if err := m.Check(t.Context(), "c-a", "eth0", nil); err != nil {
					t.Error(err)
				}
				reach(t, a)
				w.del(m, "a")
				w.reap(m)
			})
		})
	}
}

// A path like /proc/PID/ns/net leads to another pod once the PID is used again.
// That pod must not get the first one's addresses.
func TestRestartSparesOtherNamespace(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		a := w.add(m, "a", nstest.Netns(t))
		b := w.add(m, "b", nstest.Netns(t))
		before := shape(t, b.Netns)
		s, err := os.ReadFile(w.path())
		if err != nil {
			t.Fatal(err)
		}
		moved := strings.Replace(string(s), a.Netns, b.Netns, 1)
		if moved == string(s) {
			t.Fatalf("the test does not know the format: %s", s)
		}
		if err := os.WriteFile(w.path(), []byte(moved), 0o600); err != nil {
			t.Fatal(err)
		}
		m = w.manager()
		if after := shape(t, b.Netns); after != before {
			t.Errorf("before:\n%s\nafter a restart of the agent:\n%s", before, after)
		}
		contains(t, text(w.logged()), "leads to another namespace", b.Netns)
		reach(t, a) // its own namespace is as it was
		reach(t, b)
		w.del(m, "a")
		w.del(m, "b")
		w.reap(m)
	})
}
