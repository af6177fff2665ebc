// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// mutation is one way to break the network, and what the connectivity test has
// to make of it.
type mutation struct {
	name  string
	nodes int // the lab must have at least these
	// stop names nodes whose agents stand still meanwhile (SIGSTOP), because a
	// running agent would mend the break before the test has seen it.
	stop   []string
	mode   mode // the break shows only there
	inject func(t *testing.T, b *breaker)
	fails  []cells // every cell of each must fail
	passes []cells // every cell of each must pass
	text   bool    // look at what a human is shown, too
}

// mode is a way in which a cluster may be set up.
type mode int

const (
	anyMode       mode = iota
	masqueraded        // what pods send outside carries their node's address
	unmasqueraded      // it carries their own
)

// Names of the nodes that breaks are made on: n1 and n2 share a subnet, n3 is
// behind the router.
const n1, n2, n3 = "n1", "n2", "n3"

// Guards against a connectivity test that passes on a network that does not
// work: it must fail for every break, say so with its exit code, and name the
// pair and the cell.
func TestConnectivityTestSeesEveryBreak(t *testing.T) {
	f := newFixture(t)
	all := mutations()
	if len(all) < 20 {
		t.Fatalf("%d breaks, 20 are promised", len(all))
	}
	f.suffer(t, all, envInt(t, "WEFT_BREAKS_EVERY", 1)) // make test takes some, make test-full all
}

// suffer breaks the network in one way after another.
func (f *fixture) suffer(t *testing.T, all []mutation, every int) {
	t.Helper()
	for i, m := range all {
		if i%every != 0 {
			continue
		}
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			enoughTime(t, 3*time.Minute)
			if len(f.nodes) < m.nodes {
				t.Skipf("needs %d nodes, the lab has %d", m.nodes, len(f.nodes))
			}
			if m.mode != anyMode && (m.mode == masqueraded) != f.masq {
				t.Skipf("does not show where masquerade is %t", f.masq)
			}
			// Cleanups run in reverse: first the break is undone, then all must pass.
			t.Cleanup(func() { f.whole(t, time.Minute) })
			b := &breaker{fixture: f}
			for _, node := range m.stop {
				b.stopAgent(t, node)
			}
			m.inject(t, b)
			if t.Failed() {
				return
			}
			rep := f.test(t)
			m.judge(t, rep)
			if m.text {
				f.checkText(t, rep)
			}
		})
		if t.Failed() && testing.Short() {
			t.FailNow()
		}
	}
}

func (m *mutation) judge(t *testing.T, rep *report) {
	t.Helper()
	if rep.run.Code == 0 {
		t.Errorf("exit code 0, though %d cells failed", rep.Failed)
	}
	if rep.Failed == 0 {
		t.Fatal("nothing failed: this break goes unnoticed")
	}
	for _, sel := range m.fails {
		failed, passed := rep.count(sel, "failed"), rep.count(sel, "passed")
		if failed == 0 || passed > 0 {
			t.Errorf("%s: %d failed and %d passed, all should fail", sel, failed, passed)
		}
	}
	for _, sel := range m.passes {
		failed, passed := rep.count(sel, "failed"), rep.count(sel, "passed")
		if passed == 0 || failed > 0 {
			t.Errorf("%s: %d failed and %d passed, all should pass", sel, failed, passed)
		}
	}
	checkNames(t, rep)
	if t.Failed() {
		t.Logf("%d passed, %d failed:\n%s", rep.Passed, rep.Failed, rep.failures())
	}
}

// checkNames looks at each failed cell: it must say who, to whom, what and why.
func checkNames(t *testing.T, rep *report) {
	t.Helper()
	for i := range rep.Cells {
		c := &rep.Cells[i]
		if c.Outcome != "failed" || c.Family == "" {
			continue
		}
		if c.From.Node+c.From.Name == "" || c.To.Node+c.To.Name == "" || c.Proto == "" || c.Size == "" || c.Error == "" {
			t.Errorf("a failed cell does not name its pair, cell and cause: %s", c)
			return
		}
	}
}

// checkText runs the test once more as a human does: each cell that failed in
// rep has a line with its path, both ends, family, protocol, size and address,
// and the last line and the exit code say that not all passed.
func (f *fixture) checkText(t *testing.T, rep *report) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	r, err := f.weft(ctx, "--reuse", "--node-timeout", "4s")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
	if last := lines[len(lines)-1]; r.Code != 1 || !regexp.MustCompile(`^connectivity: \d+/\d+ passed$`).MatchString(last) {
		t.Errorf("exit code %d, last line %q", r.Code, last)
	}
	for i := range rep.Cells {
		c := &rep.Cells[i]
		if c.Outcome != "failed" || c.Family == "" {
			continue
		}
		want := []string{c.Path + ":", c.From.Node, c.From.Name, c.To.Node, c.To.Name, c.Family + " " + c.Proto + " " + c.Size, c.Addr}
		if !slices.ContainsFunc(lines, func(line string) bool {
			return !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(line, w) })
		}) {
			t.Errorf("no line about %s", c)
			return
		}
	}
}

// breaker breaks things and puts them back at the end of a test.
type breaker struct{ *fixture }

// revert undoes something in a node at the end of the test.
func (b *breaker) revert(t *testing.T, node, script string) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := b.lab.TryShell(node, script); err != nil {
			t.Errorf("not reverted: %v", err)
		}
	})
}

// sh runs script in a node, and undo at the end. The undo is registered first,
// so that half a script is undone too; it has to work for that.
func (b *breaker) sh(t *testing.T, node, script, undo string) {
	t.Helper()
	b.revert(t, node, undo)
	b.lab.Shell(t, node, script)
}

// inPod is sh in the network namespace of a pod.
func (b *breaker) inPod(t *testing.T, p *labtest.Pod, script, undo string) {
	t.Helper()
	enter := "nsenter --net=" + b.endpoint(t, p).Netns + " sh -ec '%s'"
	b.sh(t, p.Spec.NodeName, fmt.Sprintf(enter, script), fmt.Sprintf(enter, undo))
}

// cut interrupts two hosts as `weft-lab cut` does.
func (b *breaker) cut(t *testing.T, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := b.lab.Try("", "heal"); err != nil {
			t.Errorf("not reverted: %v", err)
		}
	})
	b.lab.Must(t, append([]string{"cut"}, args...)...)
}

// nftTable makes a table of ours with one chain of rules.
func nftTable(hook string, rules ...string) string {
	cmds := []string{"add table inet weft_fault", "add chain inet weft_fault c { type filter hook " + hook + " priority -300; }"}
	for _, r := range rules {
		cmds = append(cmds, "add rule inet weft_fault c "+r)
	}
	return `nft "` + strings.Join(cmds, "; ") + `"`
}

// noTable takes it away, also if it was never made.
const noTable = `nft "add table inet weft_fault; delete table inet weft_fault"`

// nft filters what passes a hook of a node.
func (b *breaker) nft(t *testing.T, node, hook string, rules ...string) {
	t.Helper()
	b.sh(t, node, nftTable(hook, rules...), noTable)
}

// drop puts a program that drops in front of the others on a device of a node.
func (b *breaker) drop(t *testing.T, node string, args ...string) {
	t.Helper()
	b.revert(t, node, toolPath+" undrop test")
	inNode(t, b.lab, node, append([]string{"drop", "test"}, args...)...)
}

// edit changes a map row by a verb of the tool and puts the old row back.
func (b *breaker) edit(t *testing.T, node, verb, addr, change string) {
	t.Helper()
	old := strings.TrimSpace(inNode(t, b.lab, node, verb, addr, change))
	b.revert(t, node, toolPath+" put "+old)
}

// stopAgent makes a node's agent stand still until the end of the test. Kubelet
// would restart it after a minute; a run of the test is shorter.
func (b *breaker) stopAgent(t *testing.T, node string) {
	t.Helper()
	pid := strings.TrimSpace(inNode(t, b.lab, node, "agent-pid"))
	b.sh(t, node, "kill -STOP "+pid, "kill -CONT "+pid+" 2>/dev/null || true") // kubelet may have ended it
}

// restartAgent deletes the agent's pod of a node at the end of the test and
// waits for the next: a start puts the node right.
func (b *breaker) restartAgent(t *testing.T, node string) {
	t.Helper()
	t.Cleanup(func() {
		if err := restartAgentPod(b.lab, node); err != nil {
			t.Errorf("agent of %s: %v", node, err)
		}
	})
}

// agentSelector selects the agents' pods.
const agentSelector = "k8s-app=cilium"

// agentPod finds the agent's pod of a node.
func agentPod(l *labtest.Lab, node string) (*labtest.Pod, error) {
	var pods labtest.PodList
	err := l.TryGet(&pods, "pods", "-n", "kube-system", "-l", agentSelector, "--field-selector", "spec.nodeName="+node)
	if err != nil {
		return nil, err
	}
	for i := range pods.Items {
		if p := &pods.Items[i]; p.Metadata.DeletionTimestamp == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("node %s has no agent", node)
}

func restartAgentPod(l *labtest.Lab, node string) error {
	old, err := agentPod(l, node)
	if err != nil {
		return err
	}
	if _, err := l.TryKubectl("delete", "pod", "-n", "kube-system", old.Metadata.Name); err != nil {
		return err
	}
	return labtest.Retry(time.Minute, func() error {
		p, err := agentPod(l, node)
		if err == nil && (p.Metadata.UID == old.Metadata.UID || !p.Ready()) {
			err = fmt.Errorf("pod %s is not ready", p.Metadata.Name)
		}
		return err
	})
}

// device is a node's device on its subnet.
func (b *breaker) device(t *testing.T, node string) string {
	t.Helper()
	for i := range b.nodes {
		if b.nodes[i].Name() == node {
			out := b.lab.Exec(t, node, "ip", "-o", "addr", "show", "to", b.nodes[i].Addr(false).String())
			return strings.Fields(out)[1]
		}
	}
	t.Fatalf("no node %s", node)
	return ""
}

func (b *breaker) node(t *testing.T, name string) *labtest.Node {
	t.Helper()
	for i := range b.nodes {
		if b.nodes[i].Name() == name {
			return &b.nodes[i]
		}
	}
	t.Fatalf("no node %s", name)
	return nil
}

// stopProxy stops kube-proxy on a node and empties what it made. At the end it
// is killed: the lab starts it again, and then it writes everything.
func (b *breaker) stopProxy(t *testing.T, node string) {
	t.Helper()
	find := `for p in /proc/[0-9]*; do case $(readlink $p/exe) in */kube-proxy) echo ${p#/proc/}; esac; done`
	pid := strings.TrimSpace(b.lab.Shell(t, node, find))
	if !regexp.MustCompile(`^[0-9]+$`).MatchString(pid) {
		t.Skipf("node %s runs no kube-proxy (%q)", node, pid)
	}
	b.sh(t, node, "kill -STOP "+pid, "kill -KILL "+pid)
	b.lab.Shell(t, node, `
for fam in ip ip6; do
	if nft list chain $fam kube-proxy services >/dev/null 2>&1; then nft flush chain $fam kube-proxy services; fi
done
for tables in iptables ip6tables; do
	if $tables -t nat -n -L KUBE-SERVICES >/dev/null 2>&1; then $tables -t nat -F KUBE-SERVICES; fi
done`)
}

// saveRoutes returns commands that put back the routes that match.
func (b *breaker) saveRoutes(t *testing.T, node, netns, family, match string) string {
	t.Helper()
	in := ""
	if netns != "" {
		in = "nsenter --net=" + netns + " "
	}
	var cmds []string
	for line := range strings.SplitSeq(b.lab.Shell(t, node, in+"ip "+family+" route show "+match), "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "proto kernel") {
			cmds = append(cmds, in+"ip "+family+" route replace "+line)
		}
	}
	if len(cmds) == 0 {
		t.Fatalf("node %s has no route %s", node, match)
	}
	return strings.Join(cmds, "\n")
}

// labLink sets an impairment of a node's links and takes it away at the end.
func (b *breaker) labLink(t *testing.T, node string, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := b.lab.Try("", "link", node); err != nil {
			t.Errorf("not reverted: %v", err)
		}
	})
	b.lab.Must(t, append([]string{"link", node}, args...)...)
}
