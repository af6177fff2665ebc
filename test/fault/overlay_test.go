// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// helmSet upgrades the release by some values and waits until every node runs
// with them and is proven.
func helmSet(l *labtest.Lab, values string) error {
	root := filepath.Dir(filepath.Dir(l.Build))
	for _, argv := range [][]string{
		{filepath.Join(root, "build", "tools", "helm"), "upgrade", "weft", filepath.Join(root, "install", "helm", "weft"), "-n", "kube-system", "--reuse-values", "--set", values},
		{"kubectl", "-n", "kube-system", "rollout", "status", "ds/cilium", "--timeout=120s"},
		{filepath.Join(l.Build, "weft"), "status", "--wait"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 150*time.Second)
		r, err := l.Do(ctx, nil, append([]string{"run", "--"}, argv...)...)
		cancel()
		if err == nil && r.Code != 0 {
			err = errors.New(r.String())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// podsAtRouter has the router between the subnets drop, and count, what a pod
// sends to a pod or to a node, as a network does that knows nothing of pods. Only
// the API server's subnet stays as it is: no agent runs there.
const podsAtRouter = `nft -f - <<'EOF'
table inet weft-pods
delete table inet weft-pods
table inet weft-pods {
	chain through {
		type filter hook forward priority filter;
		ip saddr 10.244.0.0/16 ip daddr { 10.244.0.0/16, 172.18.1.0/24, 172.18.2.0/24 } counter drop
		ip6 saddr fd00:10:244::/56 ip6 daddr { fd00:10:244::/56, fd00:18:1::/64, fd00:18:2::/64 } counter drop
		ip saddr { 172.18.1.0/24, 172.18.2.0/24 } ip daddr 10.244.0.0/16 counter drop
		ip6 saddr { fd00:18:1::/64, fd00:18:2::/64 } ip6 daddr fd00:10:244::/56 counter drop
	}
}
EOF`

// left lists what of the overlay is on a node.
const left = `ip -o link show weft_vxlan 2>/dev/null || true
ip route show dev weft_vxlan 2>/dev/null || true
ip -6 route show dev weft_vxlan 2>/dev/null || true
ls /sys/fs/bpf/weft/links | grep weft_vxlan || true`

// TestRoutingModeRoll guards against a change of the routing mode that cuts pods
// off while some nodes have made it and others have not, against an overlay that
// needs the network between to know pods, and against what the old mode leaves
// behind.
func TestRoutingModeRoll(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 3)
	enoughTime(t, 6*time.Minute)
	t.Cleanup(func() {
		if _, err := l.TryShell("router", "nft delete table inet weft-pods 2>/dev/null || true"); err != nil {
			t.Error(err)
		}
		if err := helmSet(l, "routingMode=native"); err != nil {
			t.Errorf("back to native: %v", err)
		}
	})
	ld := startLoad(t, l, "weft-roll", nodes, 100, 5*time.Minute)
	var events strings.Builder
	roll := func(mode string) {
		t.Helper()
		fmt.Fprintf(&events, "%s to %s\n", time.Now().UTC().Format("15:04:05.000"), mode)
		if err := helmSet(l, "routingMode="+mode); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&events, "%s all in %s\n", time.Now().UTC().Format("15:04:05.000"), mode)
	}
	roll("tunnel")
	for i := range nodes {
		name := nodes[i].Name()
		labtest.Eventually(t, 40*time.Second, "all nodes take part, seen from "+name, func() error {
			out, err := l.TryShell(name, "ip route show dev weft_vxlan proto 87 | wc -l; ip -6 route show dev weft_vxlan proto 87 | wc -l")
			if want := fmt.Sprintf("%d\n%d\n", len(nodes)-1, len(nodes)-1); err == nil && out != want {
				err = fmt.Errorf("%q routes by the overlay, want %q", out, want)
			}
			return err
		})
	}
	l.Shell(t, "router", podsAtRouter)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r, err := l.Weft(ctx, "connectivity", "test")
	if err != nil || r.Code != 0 {
		t.Errorf("connectivity test in mode tunnel: %v %s", err, r)
	}
	if out := l.Shell(t, "router", "nft list table inet weft-pods | grep counter"); strings.Count(out, "packets 0 ") != 4 {
		t.Errorf("packets of pods crossed the network without the overlay:\n%s", out)
	}
	l.Shell(t, "router", "nft delete table inet weft-pods")
	roll("native")
	for i := range nodes {
		name := nodes[i].Name()
		labtest.Eventually(t, 60*time.Second, "nothing of the overlay on "+name, func() error {
			out, err := l.TryShell(name, left)
			if err == nil && strings.TrimSpace(out) != "" {
				err = errors.New(out)
			}
			return err
		})
	}
	if out := l.Kubectl(t, "get", "ciliumnodes", "-o", "jsonpath={.items[*].metadata.annotations}"); strings.Contains(out, "weft.dev/tunnel") {
		t.Errorf("a node still announces the overlay: %s", out)
	}
	ld.stop(t)
	if why := ld.void(); why != "" {
		t.Skip(why)
	}
	// A datagram that is on its way while its route moves from one device to the
	// other may be lost: two were seen of 5,000 on a busy machine.
	t.Log("\n" + events.String())
	ld.judge(t, events.String(), 5)
}
