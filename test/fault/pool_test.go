// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// poolLab is a lab of its own, whose controller manager gives nodes no ranges.
type poolLab struct {
	*labtest.Lab
	t *testing.T
}

// quarantine of the lab's pool: long enough for agents to look at the ledger.
const poolQuarantine = 20 * time.Second

// newPoolLab brings the lab up with two nodes and Weft in it. The pool has room
// for two.
func newPoolLab(t *testing.T) *poolLab {
	t.Helper()
	l := &poolLab{Lab: labtest.Open(t).Named(fmt.Sprintf("pool-%d", os.Getpid())), t: t}
	t.Cleanup(func() {
		if _, err := l.Try("", "down"); err != nil {
			t.Errorf("lab %s: %v", l.Name, err)
		}
	})
	l.within(2*time.Minute, "up", "--nodes", "2", "--subnets", "1", "--cni", "weft", "--node-cidrs=false")
	l.install("10.244.0.0/23", "fd00:10:244::/63")
	l.whole()
	return l
}

// within runs weft-lab with more time than Must gives.
func (l *poolLab) within(limit time.Duration, args ...string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r, err := l.Do(ctx, nil, args...)
	if err == nil && r.Code != 0 {
		err = errors.New(r.String())
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// install installs Weft, or changes its pool.
func (l *poolLab) install(v4, v6 string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "../install.sh", l.Name, "--set",
		"ipam.mode=cluster-pool,ipam.operator.clusterPoolIPv4PodCIDRList={"+v4+"},ipam.operator.clusterPoolIPv6PodCIDRList={"+v6+
			"},ipam.operator.clusterPoolIPv6MaskSize=64,ipam.operator.quarantine="+poolQuarantine.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("install: %v\n%s", err, out)
	}
}

// poolNode is what the test reads of a CiliumNode.
type poolNode struct {
	Spec struct {
		IPAM struct {
			PodCIDRs []string `json:"podCIDRs"`
		} `json:"ipam"`
	} `json:"spec"`
	Status struct {
		IPAM struct {
			Operator struct {
				Error string `json:"error"`
			} `json:"operator-status"`
		} `json:"ipam"`
	} `json:"status"`
	Metadata labtest.Meta `json:"metadata"`
}

// ranges waits until a node has a range of each family, and returns them.
func (l *poolLab) ranges(node string) []string {
	l.t.Helper()
	var n poolNode
	labtest.Eventually(l.t, 90*time.Second, "ranges of "+node, func() error {
		if err := l.TryGet(&n, "ciliumnode", node); err != nil {
			return err
		}
		if len(n.Spec.IPAM.PodCIDRs) != 2 {
			return fmt.Errorf("it has %v: %s", n.Spec.IPAM.PodCIDRs, n.Status.IPAM.Operator.Error)
		}
		return nil
	})
	return n.Spec.IPAM.PodCIDRs
}

// whole waits until every agent is well, and has the connectivity test pass.
// Hosts beyond the nodes' subnet reach pods by way of the router, which here
// nobody tells the ranges but this function.
func (l *poolLab) whole() {
	l.t.Helper()
	for _, n := range l.Nodes(l.t, 1) {
		for _, s := range l.ranges(n.Name()) {
			r := netip.MustParsePrefix(s)
			l.Exec(l.t, "router", "ip", "route", "replace", s, "via", n.Addr(r.Addr().Is6()).String())
		}
	}
	labtest.Eventually(l.t, 2*time.Minute, "agents", func() error {
		_, err := l.Try("", "run", "--", l.Build+"/weft", "status")
		return err
	})
	l.within(90*time.Second, labtest.KubectlArgs("-n", "kube-system", "rollout", "status", "deploy/coredns", "--timeout=80s")...)
	f := &fixture{lab: l.Lab, nodes: l.Nodes(l.t, 1)}
	rep, err := f.run()
	if err != nil {
		l.t.Fatal(err)
	}
	if rep.Failed != 0 || rep.Passed == 0 {
		l.t.Fatalf("connectivity test: %d passed, %d failed\n%s", rep.Passed, rep.Failed, rep.failures())
	}
	l.t.Logf("connectivity test: %d passed", rep.Passed)
}

// join adds a node with Weft's image.
func (l *poolLab) join(node string) {
	l.t.Helper()
	l.within(time.Minute, "node", "add", node, "--subnet", "a")
	l.within(time.Minute, "images", "load", l.Build+"/../image/weft.tar")
}

// Guards against ipam cluster-pool that works on paper: pods that do not talk, a
// node that joins a full pool and is not told so or is not helped by a larger
// one, ranges that an agent or a hand that edits could take, an agent that
// cannot restart without API server, and a pool that climbs instead of using
// again what was given back.
func TestClusterPool(t *testing.T) {
	enoughTime(t, 6*time.Minute)
	l := newPoolLab(t)

	// Full: said on the node, in the CLI and as an event; the others go on.
	l.join("n3")
	labtest.Eventually(t, 90*time.Second, "n3 is refused", func() error {
		r, err := l.Weft(t.Context(), "ipam", "show")
		if err == nil && (r.Code == 0 || !strings.Contains(r.Stdout, "node n3: pool default: no IPv4 range for node n3: 10.244.0.0/23 in blocks of /24 make 2")) {
			err = errors.New(r.String())
		}
		return err
	})
	labtest.Eventually(t, 90*time.Second, "n3 says why it takes no pods", func() error {
		out, err := l.TryKubectl("get", "events", "-A", "--field-selector", "involvedObject.name=n3")
		if err == nil && !strings.Contains(out, "no IPv4 range for node n3") {
			err = errors.New(out)
		}
		return err
	})

	l.testRights()

	// Larger, live: nodes keep what they have.
	before := [][]string{l.ranges("n1"), l.ranges("n2")}
	l.install("10.244.0.0/23,10.245.0.0/24", "fd00:10:244::/62")
	if got := l.ranges("n3"); got[0] != "10.245.0.0/24" {
		t.Errorf("n3 has %v", got)
	}
	if after := [][]string{l.ranges("n1"), l.ranges("n2")}; !slices.EqualFunc(before, after, slices.Equal) {
		t.Errorf("ranges were %v and are %v", before, after)
	}
	l.testWithoutAPI()
	l.whole()
	l.testEdit()

	// Given back, at rest, and used again.
	gone := l.ranges("n3")
	l.within(time.Minute, "node", "rm", "n3")
	labtest.Eventually(t, 2*time.Minute, "the range of n3 is free again", func() error {
		out, err := l.TryKubectl("get", "podcidrledger", "default", "-o", "jsonpath={.spec.rested}{.spec.quarantine}")
		if err == nil && (!strings.HasPrefix(out, "[") || strings.Contains(out, `"cidr":`) || !strings.Contains(out, gone[0])) {
			err = errors.New(out)
		}
		return err
	})
	l.join("n4")
	if got := l.ranges("n4"); !slices.Equal(got, gone) {
		t.Errorf("n4 has %v, want %v that n3 gave back", got, gone)
	}
	l.whole()
}

// testRights: an agent that is broken into cannot take another node's range.
func (l *poolLab) testRights() {
	l.t.Helper()
	as := []string{
		"--as=system:serviceaccount:kube-system:cilium", "--as-user-extra=authentication.kubernetes.io/node-name=n1", "--dry-run=server",
		"replace", "-f", "-",
	}
	if out := l.Kubectl(l.t, "get", "validatingadmissionpolicies", "-o", "jsonpath={.items[*].status}"); strings.Contains(out, "arning") {
		l.t.Errorf("the API server does not like an admission policy: %s", out)
	}
	cn := l.Kubectl(l.t, "get", "ciliumnode", "n1", "-o", "yaml")
	if _, err := l.Try(cn, labtest.KubectlArgs(as...)...); err != nil {
		l.t.Errorf("the agent may not write its CiliumNode: %v", err)
	}
	for _, edit := range [][2]string{{"- 10.244.", "- 10.99."}, {"    podCIDRs:", "    pools: {allocated: [{pool: default, cidrs: [10.99.0.0/24]}]}\n    podCIDRs:"}} {
		_, err := l.Try(strings.Replace(cn, edit[0], edit[1], 1), labtest.KubectlArgs(as...)...)
		if err == nil || !strings.Contains(err.Error(), "the operator writes it (ipam.mode=cluster-pool)") {
			l.t.Errorf("the agent may change its ranges (%s): %v", edit[1], err)
		}
	}
}

// testEdit: what an administrator writes by mistake is put right, and nobody
// routes to it meanwhile.
func (l *poolLab) testEdit() {
	l.t.Helper()
	want := l.ranges("n1")
	l.Kubectl(l.t, "patch", "ciliumnode", "n1", "--type=merge", "-p", `{"spec":{"ipam":{"podCIDRs":["10.96.0.0/12","`+l.ranges("n2")[0]+`"]}}}`)
	labtest.Eventually(l.t, 90*time.Second, "the edit is taken back", func() error {
		if got := l.ranges("n1"); !slices.Equal(got, want) {
			return fmt.Errorf("n1 shows %v, want %v", got, want)
		}
		return nil
	})
	for _, n := range l.Nodes(l.t, 2) {
		labtest.Eventually(l.t, 20*time.Second, "no route to what was edited in on "+n.Name(), func() error {
			if out := l.Shell(l.t, n.Name(), "ip route show 10.96.0.0/12"); out != "" {
				return errors.New(out)
			}
			return nil
		})
	}
}

// testWithoutAPI restarts an agent while the API server is away: it serves with
// what the ledger gave it, and its pods talk.
func (l *poolLab) testWithoutAPI() {
	l.t.Helper()
	for _, n := range []string{"n1", "n2"} {
		waitAgent(l.t, l.Lab, n)
	}
	var eps []labtest.Endpoint
	for _, ep := range endpoints(l.t, l.Lab, "n2") {
		if ep.Kind == "health" {
			eps = append(eps, ep)
		}
	}
	if len(eps) != 1 {
		l.t.Fatalf("n2 has %d health endpoints", len(eps))
	}
	old := agentPID(l.t, l.Lab, "n1")
	l.Must(l.t, "cut", "cp", "all")
	healed := false
	defer func() {
		if !healed {
			_, _ = l.Try("", "heal")
		}
	}()
	l.Shell(l.t, "n1", "kill -KILL "+old)
	waitOtherPID(l.t, l.Lab, "n1", old)
	labtest.Eventually(l.t, 30*time.Second, "the agent of n1 is ready without API server", func() error {
		_, err := l.TryShell("n1", "curl -sf --max-time 2 http://127.0.0.1:9879/readyz")
		return err
	})
	for _, ip := range []netip.Addr{eps[0].IPv4, eps[0].IPv6} {
		if _, err := l.TryShell("n1", "ping -c 2 -i 0.2 -W 2 "+ip.String()); err != nil {
			l.t.Errorf("n1 does not reach n2's pods: %v", err)
		}
	}
	out := l.Exec(l.t, "n1", labtest.NodeWeftPath, "ipam", "show")
	if !strings.Contains(out, "10.244.") {
		l.t.Errorf("n1 has no range without API server:\n%s", out)
	}
	l.Must(l.t, "heal")
	healed = true
}
