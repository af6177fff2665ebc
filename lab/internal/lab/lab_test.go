// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/internal/plan"
)

func routesOf(t *testing.T, change func(*plan.Options)) map[string][]string {
	t.Helper()
	o := plan.Defaults()
	change(&o)
	var nodes []plan.Host
	ranges := map[string][]netip.Prefix{}
	for k := 1; k <= 3; k++ {
		n, err := o.NewNode(fmt.Sprintf("n%d", k), "")
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
		ranges[n.Name] = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", k)), netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", k))}
	}
	got := map[string][]string{}
	for where, routes := range podRoutes(o, nodes, ranges) {
		for _, r := range routes {
			got[where] = append(got[where], r.Dst.String()+" "+r.Via.String())
		}
		slices.Sort(got[where])
	}
	return got
}

func equal(t *testing.T, got, want map[string][]string) {
	t.Helper()
	for where := range want {
		slices.Sort(want[where])
		if !slices.Equal(got[where], want[where]) {
			t.Errorf("%s: routes %q, want %q", where, got[where], want[where])
		}
	}
	if len(got) != len(want) {
		t.Errorf("routes in %d places, want %d: %v", len(got), len(want), got)
	}
}

var routerRoutes = []string{
	"10.244.1.0/24 172.18.1.11", "fd00:10:244:1::/64 fd00:18:1::11",
	"10.244.2.0/24 172.18.1.12", "fd00:10:244:2::/64 fd00:18:1::12",
	"10.244.3.0/24 172.18.2.13", "fd00:10:244:3::/64 fd00:18:2::13",
}

// Guards against pods that cannot be reached across the router, and against
// routes that a network under test should have to make itself.
func TestRoutesForWeft(t *testing.T) {
	got := routesOf(t, func(o *plan.Options) { o.CNI = plan.CNIWeft })
	equal(t, got, map[string][]string{
		router: routerRoutes,
		"n1":   {"10.244.0.0/16 172.18.1.1", "fd00:10:244::/56 fd00:18:1::1"},
		"n2":   {"10.244.0.0/16 172.18.1.1", "fd00:10:244::/56 fd00:18:1::1"},
		"n3":   {"10.244.0.0/16 172.18.2.1", "fd00:10:244::/56 fd00:18:2::1"},
	})
	equal(t, routesOf(t, func(o *plan.Options) { o.CNI, o.RoutePods = plan.CNIWeft, false }), map[string][]string{})
}

func TestRoutesForPtp(t *testing.T) {
	got := routesOf(t, func(o *plan.Options) { o.RoutePods = false })
	equal(t, got, map[string][]string{
		"n1": {"10.244.2.0/24 172.18.1.12", "fd00:10:244:2::/64 fd00:18:1::12"},
		"n2": {"10.244.1.0/24 172.18.1.11", "fd00:10:244:1::/64 fd00:18:1::11"},
	})
}

// Guards against an error that says only that time is up: it must name what
// was awaited, the last real reason, and the errors in its log.
func TestWaitNamesTheCulprit(t *testing.T) {
	log := filepath.Join(t.TempDir(), "kubelet.log")
	lines := "E1121 01:14:09.812418 first error\n" + strings.Repeat("I1121 01:14:09.812334 chatter\n", 50)
	if err := os.WriteFile(log, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	err := waitFor(t.Context(), 300*time.Millisecond, "node n1", log, func(ctx context.Context) (bool, string) {
		if ctx.Err() != nil {
			return false, "context deadline exceeded"
		}
		return false, "kubelet has not registered it"
	})
	for _, want := range []string{"node n1: not up within 300ms: kubelet has not registered it", "first error", "chatter", log} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = waitFor(ctx, time.Minute, "node n1", log, func(context.Context) (bool, string) { return false, "" })
	if err == nil || err.Error() != "interrupted while waiting for node n1" {
		t.Errorf("interrupted: %v", err)
	}
}
