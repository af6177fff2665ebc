// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// stopAPI makes the API server stand still until the function returned is
// called, or the test ends. Nothing refuses a connection: that is how a
// partition looks.
func stopAPI(t *testing.T, l *labtest.Lab) (start func()) {
	t.Helper()
	pid := strings.TrimSpace(l.Shell(t, "cp", `for p in /proc/[0-9]*; do case $(readlink $p/exe) in */kube-apiserver) echo ${p#/proc/}; esac; done`))
	if pid == "" || strings.ContainsAny(pid, " \n") {
		t.Fatalf("API server: processes %q", pid)
	}
	running := false
	start = func() {
		if running {
			return
		}
		if _, err := l.TryShell("cp", "kill -CONT "+pid); err != nil {
			t.Errorf("API server: %v", err)
		}
		running = true
		err := labtest.Retry(time.Minute, func() error {
			_, err := l.TryKubectl("get", "--raw", "/readyz")
			return err
		})
		if err != nil {
			t.Errorf("API server does not answer again: %v", err)
		}
	}
	t.Cleanup(start)
	l.Shell(t, "cp", "kill -STOP "+pid)
	return start
}

// Guards against an agent, or a datapath, that needs the API server: while that
// stands still, pods talk, a pod's deletion is carried out, and an agent that is
// killed comes back and serves ADD and DEL from what it remembers.
func TestWithoutAPIServer(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 2)
	ld := startLoad(t, l, "weft-noapi", nodes, 200, 5*time.Minute)
	node := nodes[0].Name()
	goes := podSpec{Name: "goes", Namespace: ld.ns, Label: "goes", Node: node, Command: []string{"sleep", "3600"}}
	apply(t, l, []podSpec{goes})
	i := slices.IndexFunc(endpoints(t, l, node), func(e labtest.Endpoint) bool { return e.Namespace == ld.ns && e.Pod == "goes" })
	if i < 0 {
		t.Fatalf("node %s has no endpoint of pod goes", node)
	}
	ep := endpoints(t, l, node)[i]
	a := newAttachment(t, l, node, "noapi")
	old := agentPID(t, l, node)

	l.Kubectl(t, "delete", "pod", "goes", "-n", ld.ns, "--wait=false")
	start := stopAPI(t, l)
	l.Shell(t, node, "kill -KILL "+old)
	waitOtherPID(t, l, node, old)
	labtest.Eventually(t, 20*time.Second, "a status of the agent", func() error {
		out, err := l.TryShell(node, labtest.NodeWeftPath+" status || true")
		if err == nil && !strings.Contains(out, "Kubernetes:") {
			err = fmt.Errorf("status: %s", out)
		}
		if err == nil && strings.Contains(out, "Kubernetes: OK") {
			err = fmt.Errorf("the API server stands still, but status says: %s", out)
		}
		return err
	})
	if res := a.cni(t, l, "ADD", conf); res.exit != 0 || len(res.IPs) == 0 {
		t.Errorf("ADD without the API server: %s", res)
	}
	if res := a.cni(t, l, "DEL", conf); res.exit != 0 {
		t.Errorf("DEL without the API server: %s", res)
	}
	<-time.After(10 * time.Second) // the pods go on talking meanwhile
	start()
	if err := labtest.Retry(60*time.Second, func() error { return traces(l, node, ep) }); err != nil {
		t.Errorf("the pod that was deleted left: %v", err)
	}
	waitAgent(t, l, node)
	ld.stop(t)
	if why := ld.void(); why != "" {
		t.Skipf("the rest was fine, but this run says nothing of loss: %s", why)
	}
	ld.judge(t, "", 0)
}

// Guards against a start that trusts, or dies of, a state file that is not what
// it wrote: pods keep their addresses and talk, and new ones get others.
func TestCorruptedStateFile(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 1)
	node := nodes[0].Name()
	const ns = "weft-corrupt"
	buildTraffic(t, l, nodes)
	namespace(t, l, ns)
	sleeper := func(name string) []podSpec {
		return []podSpec{{Name: name, Namespace: ns, Label: "corrupt", Node: node, Command: []string{"sleep", "3600"}}}
	}
	apply(t, l, sleeper("old"))
	contents := map[string]string{
		"garbage":   `\000\001\002 not a state`,
		"half":      `{"version":1,"endpoints":[{"id":1,"gen`,
		"empty":     ``,
		"no-object": `42`,
	}
	if envInt(t, "WEFT_BREAKS_EVERY", 1) > 1 { // all are read by TestCorruptState, too
		delete(contents, "garbage")
		delete(contents, "no-object")
	}
	for name, content := range contents {
		t.Run(name, func(t *testing.T) {
			before := addresses(endpoints(t, l, node))
			pid := agentPID(t, l, node)
			// It stands still first, so that it does not mend the file by itself.
			l.Shell(t, node, "kill -STOP "+pid+" && printf '"+content+"' >/run/weft/endpoints.json && kill -KILL "+pid)
			reach(t, l, node, ns, "old")
			waitNewAgent(t, l, node, pid)
			reach(t, l, node, ns, "old")
			after := addresses(endpoints(t, l, node))
			for a, who := range before {
				if after[a] != who {
					t.Errorf("%s belonged to %s, and now to %q", a, who, after[a])
				}
			}
			p, err := agentPod(l, node)
			if err != nil {
				t.Fatal(err)
			}
			logs := l.Kubectl(t, "logs", "-n", "kube-system", p.Metadata.Name, "-c", "cilium-agent")
			if !strings.Contains(logs, "endpoints.json") {
				t.Error("the agent's log does not name the state file")
			}
			apply(t, l, sleeper("new-"+name))
			reach(t, l, node, ns, "new-"+name)
			for a, who := range addresses(endpoints(t, l, node)) {
				if was := before[a]; was != "" && was != who {
					t.Errorf("%s belongs to %s and was given to %s", a, was, who)
				}
			}
			if err := restartAgentPod(l, node); err != nil { // so that the next end is the first of its pod
				t.Fatal(err)
			}
		})
	}
}

func addresses(list []labtest.Endpoint) map[netip.Addr]string {
	m := map[netip.Addr]string{}
	for _, e := range list {
		for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
			if a.IsValid() && e.Kind == "pod" {
				m[a] = e.Namespace + "/" + e.Pod
			}
		}
	}
	return m
}

// Guards against half-made pods on a full disk: ADD fails, says which file it
// could not write and what to do, leaves nothing, and works once there is room.
// Pods that exist go on.
func TestFullDisk(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 1)
	node := nodes[0].Name()
	const ns = "weft-full"
	buildTraffic(t, l, nodes)
	namespace(t, l, ns)
	apply(t, l, []podSpec{{Name: "old", Namespace: ns, Label: "full", Node: node, Command: []string{"sleep", "3600"}}})
	a := newAttachment(t, l, node, "full")
	before := len(endpoints(t, l, node))

	const free = "rm -f /run/weft-fault/ballast"
	t.Cleanup(func() {
		if _, err := l.TryShell(node, free); err != nil {
			t.Error(err)
		}
	})
	// The state file lies on the node's /run, which is memory of a fixed size.
	l.Shell(t, node, "dd if=/dev/zero of=/run/weft-fault/ballast bs=64k 2>/dev/null || true; test $(df --output=avail /run | tail -1) -lt 64")
	res := a.cni(t, l, "ADD", conf)
	if res.exit == 0 {
		t.Fatalf("ADD on a full disk: %s", res)
	}
	if all := res.Msg + res.Det; !strings.Contains(all, "/run/weft/") || !strings.Contains(all, "space") {
		t.Errorf("want an error that names the file and says what to do, got %s", res)
	}
	reach(t, l, node, ns, "old")
	// Devices are deleted in the background.
	labtest.Eventually(t, 10*time.Second, "no device in the namespace of the failed ADD", func() error {
		out, err := l.TryShell(node, "ip -n weft-fault-full -o link show | grep eth0 || true")
		if err == nil && strings.TrimSpace(out) != "" {
			err = errors.New(out)
		}
		return err
	})
	if now := len(endpoints(t, l, node)); now != before {
		t.Errorf("%d endpoints before the failed ADD, %d after", before, now)
	}
	if res := a.cni(t, l, "DEL", conf); res.exit != 0 {
		t.Errorf("DEL on a full disk: %s", res)
	}
	l.Shell(t, node, free)
	if res := a.cni(t, l, "ADD", conf); res.exit != 0 || len(res.IPs) == 0 {
		t.Errorf("ADD once there is room: %s", res)
	}
	if res := a.cni(t, l, "DEL", conf); res.exit != 0 {
		t.Errorf("DEL: %s", res)
	}
	waitAgent(t, l, node)
}

// Guards against a node whose pod range cannot be: its agent must name it and
// say what would do, and must not let pods onto the node. The other nodes go on.
func TestImpossiblePodCIDR(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 2)
	enoughTime(t, 6*time.Minute)
	const name, bad = "n9", "10.244.250.8/31" // no address is left for a pod
	t.Cleanup(func() {
		if _, err := l.Try("", "node", "rm", name); err != nil {
			t.Errorf("node %s stays: %v", name, err)
		}
		if _, err := l.TryKubectl("delete", "node", name, "--ignore-not-found"); err != nil {
			t.Error(err)
		}
	})
	createNode(t, l, name, bad, "fd00:10:244:fa::/64")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	r, err := l.Do(ctx, nil, "node", "add", name)
	if err == nil && r.Code != 0 {
		err = errors.New(r.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	// A node that joins later does not have the image that was loaded before.
	if r, err = l.Do(ctx, nil, "images", "load", filepath.Join(filepath.Dir(l.Build), "image", "weft.tar")); err != nil || r.Code != 0 {
		t.Fatalf("%v: %s", err, r)
	}
	l.PushWeft(t, name)
	labtest.Eventually(t, 100*time.Second, "the agent's word on "+bad, func() error {
		out, err := l.TryShell(name, labtest.NodeWeftPath+" status 2>&1 || true")
		if err == nil && !(strings.Contains(out, bad) && strings.Contains(out, "too small")) {
			err = fmt.Errorf("status: %s", out)
		}
		return err
	})
	var n labtest.Node
	l.Get(t, &n, "node", name)
	if c, _ := n.Condition("Ready"); c.Status == "True" {
		t.Errorf("node %s is ready with pod range %s", name, bad)
	}
	for i := range nodes {
		reachNode(t, l, nodes[i].Name(), nodes[(i+1)%len(nodes)].Addr(false))
		waitAgent(t, l, nodes[i].Name())
	}
}

func createNode(t *testing.T, l *labtest.Lab, name string, cidrs ...string) {
	t.Helper()
	l.MustIn(t, fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDR: %q, podCIDRs: [\"%s\"]}\n",
		name, cidrs[0], strings.Join(cidrs, `", "`)), labtest.KubectlArgs("create", "-f", "-")...)
}

// Guards against agents that believe a Node object whatever it claims: one that
// says that another node's pods, the nodes themselves, the services or the whole
// world are its own must not draw traffic to its address.
func TestNodeThatClaimsForeignRanges(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 2)
	const name, ns = "n98", "weft-claims"
	buildTraffic(t, l, nodes)
	namespace(t, l, ns)
	for i := range nodes {
		l.PushWeft(t, nodes[i].Name())
	}
	victim := &nodes[1]
	apply(t, l, []podSpec{{Name: "victim", Namespace: ns, Label: "victim", Node: victim.Name(), Command: []string{"sleep", "3600"}}})
	var pod labtest.Pod
	l.Get(t, &pod, "pod", "victim", "-n", ns)
	addr := nodes[0].Addr(false).As4()
	addr[3] = 200 // on the first node's subnet, where nobody is
	thief := netip.AddrFrom4(addr)
	for what, cidr := range map[string]string{
		"another node's pods":   victim.PodCIDR(false).String(),
		"a part of them":        netip.PrefixFrom(victim.PodCIDR(false).Addr(), 26).String(),
		"the nodes' own subnet": netip.PrefixFrom(victim.Addr(false), 24).Masked().String(),
		"the services":          "10.96.0.0/16",
		"loopback":              "127.0.0.0/8",
		"the world":             "0.0.0.0/0",
		"half of the world":     "0.0.0.0/1",
	} {
		t.Run(strings.ReplaceAll(what, " ", "-"), func(t *testing.T) {
			t.Cleanup(func() {
				if _, err := l.TryKubectl("delete", "node", name, "--ignore-not-found"); err != nil {
					t.Error(err)
				}
			})
			createNode(t, l, name, cidr)
			l.Kubectl(t, "patch", "node", name, "--subresource=status", "--type=merge", "-p",
				fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":%q}]}}`, thief))
			// The agents have seen the node once they list it.
			for i := range nodes {
				labtest.Eventually(t, 30*time.Second, "node "+name+" in the list of "+nodes[i].Name(), func() error {
					out, err := l.TryShell(nodes[i].Name(), labtest.NodeWeftPath+" node list")
					if err == nil && !strings.Contains(out, thief.String()) {
						err = errors.New(out)
					}
					return err
				})
			}
			<-time.After(2 * time.Second) // nothing announces that no route will come
			for i := range nodes {
				n := nodes[i].Name()
				for _, dst := range []string{pod.Addr(false).String(), victim.Addr(false).String(), "172.18.0.2", "80.1.2.3"} {
					if out, err := l.TryShell(n, "ip route get "+dst); err != nil || strings.Contains(out, thief.String()) {
						t.Errorf("node %s reaches %s by the node that claims %s: %s %v", n, dst, cidr, out, err)
					}
				}
				reachNode(t, l, n, nodes[(i+1)%len(nodes)].Addr(false))
				reach(t, l, n, ns, "victim")
				if _, err := l.TryShell(n, "timeout 5 bash -c '</dev/tcp/10.96.0.1/443'"); err != nil {
					t.Errorf("node %s does not reach the API server's service: %v", n, err)
				}
			}
		})
	}
}

func reachNode(t *testing.T, l *labtest.Lab, from string, to netip.Addr) {
	t.Helper()
	if _, err := l.TryShell(from, "ping -c 1 -W 3 "+to.String()); err != nil {
		t.Errorf("node %s does not reach %s: %v", from, to, err)
	}
}
