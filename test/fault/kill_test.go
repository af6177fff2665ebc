// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// envInt reads a number that bounds how long a test takes.
func envInt(t testing.TB, name string, standard int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return standard
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number above 0", name, s)
	}
	return n
}

// Guards against a datapath that needs its agent: SIGKILL of every agent and
// its new start, again and again, must not cost pods a packet or a connection.
func TestKilledAgentsLoseNothing(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 2)
	rounds := envInt(t, "WEFT_KILL_ROUNDS", 5)
	const attempts = 3
	for attempt := 1; ; attempt++ {
		why := ""
		t.Run(fmt.Sprintf("attempt-%d", attempt), func(t *testing.T) {
			ld := startLoad(t, l, "weft-kill", nodes, 1000, 2*time.Minute*time.Duration(1+rounds))
			events := killRounds(t, l, nodes, rounds)
			ld.stop(t)
			if why = ld.void(); why != "" {
				t.Logf("void: %s", why)
				return
			}
			ld.judge(t, events, 0)
		})
		switch {
		case why == "" || t.Failed():
			return
		case attempt == attempts:
			t.Fatalf("%d runs and none that counts; the last: %s", attempts, why)
		}
	}
}

// Guards against a load that does not see loss, with which the test above would
// pass on any network: for a moment pods' packets between two nodes are dropped.
func TestLoadSeesLoss(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 2)
	b := &breaker{&fixture{lab: l, nodes: nodes}}
	ld := startLoad(t, l, "weft-loss", nodes[:2], 1000, 2*time.Minute)
	from, to := nodes[0].Name(), nodes[1].Name()
	net := nodes[1].PodCIDR(false).Addr().As4()
	t.Cleanup(func() { _, _ = l.TryShell(from, toolPath+" undrop test") })
	inNode(t, l, from, "drop", "test", b.device(t, from), "egress", "0x0800",
		fmt.Sprintf("30=%d", net[0]), fmt.Sprintf("31=%d", net[1]), fmt.Sprintf("32=%d", net[2]))
	l.Shell(t, from, toolPath+" undrop test")
	ld.stop(t)
	if why := ld.void(); why != "" {
		t.Skipf("this run says nothing: %s", why)
	}
	for _, s := range ld.streams {
		if hit := !s.host && !s.v6 && s.from == from && s.to == to; hit != (s.report.Lost > 0) {
			t.Errorf("%s: %d datagrams lost", s, s.report.Lost)
		}
	}
}

// killRounds ends all agents at once and waits until all serve again, so many
// times, and then ends those that follow while they start, each at a random moment.
// Kubelet starts a container at once only the first time that it ends; deleting
// the pod gives the next one a fresh count, and is itself an end by SIGTERM and a
// new start. It returns when what happened.
func killRounds(t *testing.T, l *labtest.Lab, nodes []labtest.Node, rounds int) string {
	t.Helper()
	var events strings.Builder
	note := func(format string, args ...any) {
		fmt.Fprintf(&events, "%s %s\n", time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...))
	}
	for round := range rounds {
		for i := range nodes {
			node := nodes[i].Name()
			old := agentPID(t, l, node)
			note("round %d: SIGKILL to the agent of %s", round, node)
			l.Shell(t, node, "kill -KILL "+old)
			labtest.Eventually(t, 10*time.Second, "end of the agent of "+node, func() error {
				if now, err := tryAgentPID(l, node); err == nil && now == old {
					return fmt.Errorf("process %s is there", old)
				}
				return nil
			})
		}
		for i := range nodes {
			waitAgent(t, l, nodes[i].Name())
			note("round %d: agent of %s serves", round, nodes[i].Name())
		}
		for i := range nodes {
			node := nodes[i].Name()
			note("round %d: pod of the agent of %s deleted", round, node)
			note("round %d: %s", round, killStarting(t, l, node))
			waitAgent(t, l, node)
			if err := restartAgentPod(l, node); err != nil {
				t.Fatalf("agent of %s: %v", node, err)
			}
		}
	}
	note("end")
	return events.String()
}

// longestStart is about how long an agent takes from its first instruction until
// it serves pods.
const longestStart = 400 * time.Millisecond

// killStarting replaces the agent of a node and kills the new one while it
// starts, at a random moment. It says when that was.
func killStarting(t *testing.T, l *labtest.Lab, node string) string {
	t.Helper()
	old, err := agentPod(l, node)
	if err != nil {
		t.Fatal(err)
	}
	pid, after := agentPID(t, l, node), rand.N(longestStart)
	l.Kubectl(t, "delete", "pod", "-n", "kube-system", old.Metadata.Name, "--wait=false")
	killed := inNode(t, l, node, "kill-next", pid, after.String())
	waitOtherPID(t, l, node, strings.TrimSpace(killed))
	return fmt.Sprintf("agent of %s killed %s after its start", node, after)
}

func agentPID(t *testing.T, l *labtest.Lab, node string) string {
	t.Helper()
	pushTool(t, l, node)
	var pid string
	labtest.Eventually(t, time.Minute, "agent on "+node, func() (err error) {
		pid, err = tryAgentPID(l, node)
		return err
	})
	return pid
}

func tryAgentPID(l *labtest.Lab, node string) (string, error) {
	out, err := l.TryShell(node, toolPath+" agent-pid")
	return strings.TrimSpace(out), err
}

// waitOtherPID waits for an agent that is another process than old.
func waitOtherPID(t *testing.T, l *labtest.Lab, node, old string) {
	t.Helper()
	labtest.Eventually(t, time.Minute, "another agent on "+node, func() error {
		now, err := tryAgentPID(l, node)
		if err == nil && now == old {
			err = errors.New("the old one still runs")
		}
		return err
	})
}

// waitNewAgent waits for an agent that is another process than old, and serves.
func waitNewAgent(t *testing.T, l *labtest.Lab, node, old string) {
	t.Helper()
	waitOtherPID(t, l, node, old)
	waitAgent(t, l, node)
}

// waitAgent waits until the agent of a node says that all of it works.
func waitAgent(t *testing.T, l *labtest.Lab, node string) {
	t.Helper()
	l.PushWeft(t, node)
	labtest.Eventually(t, time.Minute, "agent on "+node+" serves", func() error {
		p, err := agentPod(l, node)
		if err == nil && !p.Ready() {
			err = fmt.Errorf("pod %s is not ready", p.Metadata.Name)
		}
		if err == nil {
			_, err = l.TryShell(node, labtest.NodeWeftPath+" status")
		}
		return err
	})
}

// stopAgents makes the agents of all nodes die by SIGKILL and stay away until
// the end of the test: they stand still when kubelet asks them to end, and the
// DaemonSet wants them nowhere. The function returned lets them come back.
func stopAgents(t *testing.T, l *labtest.Lab, nodes []labtest.Node) (start func()) {
	t.Helper()
	const away = `{"spec":{"template":{"spec":{"nodeSelector":{"weft.dev/fault-away":"true"}}}}}`
	const back = `{"spec":{"template":{"spec":{"nodeSelector":{"weft.dev/fault-away":null}}}}}`
	started := false
	start = func() {
		if started {
			return
		}
		started = true
		if _, err := l.TryKubectl("patch", "daemonset", "cilium", "-n", "kube-system", "-p", back); err != nil {
			t.Errorf("agents stay away: %v", err)
			return
		}
		for i := range nodes {
			err := labtest.Retry(90*time.Second, func() error {
				p, err := agentPod(l, nodes[i].Name())
				if err == nil && !p.Ready() {
					err = fmt.Errorf("pod %s is not ready", p.Metadata.Name)
				}
				return err
			})
			if err != nil {
				t.Errorf("agent of %s does not come back: %v", nodes[i].Name(), err)
			}
		}
	}
	t.Cleanup(start)
	for i := range nodes {
		l.Shell(t, nodes[i].Name(), "kill -STOP "+agentPID(t, l, nodes[i].Name()))
	}
	l.Kubectl(t, "patch", "daemonset", "cilium", "-n", "kube-system", "-p", away)
	l.Kubectl(t, "wait", "--for=delete", "pod", "-l", agentSelector, "-n", "kube-system", "--timeout=50s")
	for i := range nodes {
		if pid, err := tryAgentPID(l, nodes[i].Name()); err == nil {
			t.Fatalf("agent of %s still runs as %s", nodes[i].Name(), pid)
		}
	}
	return start
}

// traces is what a node holds of a pod, wherever.
func traces(l *labtest.Lab, node string, ep labtest.Endpoint) error {
	var found []string
	look := func(where, script string) {
		if out, err := l.TryShell(node, script); err != nil {
			found = append(found, err.Error())
		} else if out = strings.TrimSpace(out); out != "" {
			found = append(found, where+": "+out)
		}
	}
	look("link", "ip -o link show | grep -F "+ep.HostIfName+" || true")
	look("pinned link", "ls /sys/fs/bpf/weft/links | grep -F "+ep.HostIfName+" || true")
	if ep.IPv4.IsValid() {
		look("route", "ip route show "+ep.IPv4.String())
		look("neighbour", "ip neigh show "+ep.IPv4.String())
	}
	if ep.IPv6.IsValid() {
		look("route", "ip -6 route show "+ep.IPv6.String())
		look("neighbour", "ip -6 neigh show "+ep.IPv6.String())
	}
	weft := labtest.NodeWeftPath + " "
	for _, list := range []string{"endpoint list", "bpf endpoint list", "bpf ipcache list", "bpf ct list"} {
		for _, a := range []string{ep.IPv4.String(), ep.IPv6.String()} {
			// -w: 10.0.0.1 is not 10.0.0.10; addresses end at a quote or a slash
			look(list, weft+list+" -o json | grep -o '\""+a+"[\"/][^,]*' || true")
		}
	}
	look("state file", "grep -F "+ep.ContainerID+" /run/weft/endpoints.json || true")
	if len(found) > 0 {
		return errors.New(strings.Join(found, "\n"))
	}
	return nil
}

// Guards against leaks: a pod that is deleted while no agent runs leaves
// nothing behind once one runs again. And against a datapath that opens
// connections only while one does.
func TestPodsDeletedWithoutAgentAreCleanedUp(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 1)
	const ns = "weft-orphans"
	buildTraffic(t, l, nodes)
	namespace(t, l, ns)
	var pods []podSpec
	for i := range nodes {
		for _, name := range []string{"gone-", "stays-"} {
			n := nodes[i].Name()
			pods = append(pods, podSpec{Name: name + n, Namespace: ns, Label: "orphan", Node: n, Command: []string{"/traffic/traffic", "recv", "--port", strconv.Itoa(trafficPort)}})
		}
	}
	apply(t, l, pods)
	eps := map[string]labtest.Endpoint{}
	for i := range nodes {
		for _, e := range endpoints(t, l, nodes[i].Name()) {
			if e.Namespace == ns && strings.HasPrefix(e.Pod, "gone-") {
				eps[nodes[i].Name()] = e
			}
		}
		if _, ok := eps[nodes[i].Name()]; !ok {
			t.Fatalf("no endpoint of pod gone-%s", nodes[i].Name())
		}
	}

	for node, ep := range eps {
		err := traces(l, node, ep)
		for _, what := range []string{"link:", "route:", "neighbour:", "\nendpoint list:", "bpf endpoint list:", "bpf ipcache list:", "state file:"} {
			if err == nil || !strings.Contains("\n"+err.Error(), what) {
				t.Fatalf("node %s: no trace %q of a pod that lives: %v", node, what, err)
			}
		}
	}

	start := stopAgents(t, l, nodes)
	newFlows(t, l, ns, nodes)
	for i := range nodes {
		// DEL must not need the agent: kubelet would keep the pod forever.
		l.Kubectl(t, "delete", "pod", "gone-"+nodes[i].Name(), "-n", ns, "--timeout=40s")
	}
	start()
	for node, ep := range eps {
		if err := labtest.Retry(40*time.Second, func() error { return traces(l, node, ep) }); err != nil {
			t.Errorf("node %s keeps traces of pod %s: %v", node, ep.Pod, err)
		}
	}
	for i := range nodes {
		name := "gone-" + nodes[i].Name()
		if out, err := l.TryKubectl("get", "ciliumendpoint", name, "-n", ns, "--ignore-not-found", "-o", "name"); err != nil || out != "" {
			t.Errorf("CiliumEndpoint %s/%s stays: %s %v", ns, name, out, err)
		}
		reach(t, l, nodes[i].Name(), ns, "stays-"+nodes[i].Name())
	}
}

// newFlows opens connections from each node's pod stays-NODE to the next one's, in
// every family.
func newFlows(t *testing.T, l *labtest.Lab, ns string, nodes []labtest.Node) {
	t.Helper()
	for i := range nodes {
		from, to := "stays-"+nodes[i].Name(), "stays-"+nodes[(i+1)%len(nodes)].Name()
		var p labtest.Pod
		l.Get(t, &p, "pod", to, "-n", ns)
		for _, a := range p.Status.PodIPs {
			out := l.Kubectl(t, "exec", "-n", ns, from, "--", "/traffic/traffic", "send", "--to", a.IP.String(),
				"--port", strconv.Itoa(trafficPort), "--rate", "100", "--duration", "1s")
			var r trafficReport
			if err := readReport(out, &r); err != nil {
				t.Fatalf("%s to %s: %v: %s", from, to, err, out)
			}
			if r.Sent == 0 || r.Lost > 0 || r.TCPBytes == 0 || r.TCPResets > 0 {
				t.Errorf("%s to %s (%s), opened without an agent: %+v", from, to, a.IP, r)
			}
		}
	}
}

// reach pings a pod from its node, in every family that it has.
func reach(t *testing.T, l *labtest.Lab, node, ns, pod string) {
	t.Helper()
	var p labtest.Pod
	l.Get(t, &p, "pod", pod, "-n", ns)
	if len(p.Status.PodIPs) == 0 {
		t.Errorf("pod %s has no address", pod)
	}
	for _, a := range p.Status.PodIPs {
		if _, err := l.TryShell(node, "ping -c 1 -W 3 "+a.IP.String()); err != nil {
			t.Errorf("pod %s is not reached: %v", pod, err)
		}
	}
}

func endpoints(t *testing.T, l *labtest.Lab, node string) []labtest.Endpoint {
	t.Helper()
	var list []labtest.Endpoint
	text := l.NodeWeft(t, node, "endpoint", "list", "-o", "json")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatalf("endpoint list on %s: %v: %s", node, err, text)
	}
	return list
}

// Guards against pods that wait forever: one that is made while no agent runs
// starts once there is one, and until then its event says why it does not.
func TestPodsAddedWithoutAgentStartLater(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 1)
	const ns = "weft-early"
	buildTraffic(t, l, nodes)
	namespace(t, l, ns)
	start := stopAgents(t, l, nodes)
	node := nodes[0].Name()
	pod := podSpec{Name: "early", Namespace: ns, Label: "early", Node: node, Command: []string{"sleep", "3600"}}
	l.MustIn(t, manifest(t, []podSpec{pod}), labtest.KubectlArgs("apply", "-f", "-")...)
	labtest.Eventually(t, 60*time.Second, "an event that says why the pod does not start", func() error {
		out, err := l.TryKubectl("get", "events", "-n", ns, "-o", "jsonpath={.items[*].message}")
		if err == nil && !(strings.Contains(out, "agent") && strings.Contains(out, "weft")) {
			err = fmt.Errorf("events: %s", out)
		}
		return err
	})
	start()
	l.Kubectl(t, "wait", "--for=condition=Ready", "pod", "early", "-n", ns, "--timeout=55s")
	reach(t, l, node, ns, "early")
	if !slices.ContainsFunc(endpoints(t, l, node), func(e labtest.Endpoint) bool { return e.Pod == "early" }) {
		t.Error("the endpoint list does not have the pod")
	}
}
