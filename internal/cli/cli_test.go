// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/internal/cli/kube"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

// golden compares with a file under testdata, or rewrites it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// answers is what the agent of one node says; last tells the nodes apart.
func answers(last byte) map[string]any {
	v4 := netip.AddrFrom4([4]byte{10, 0, last, 5})
	return map[string]any{
		rpc.PathStatus: rpc.Status{
			Node: fmt.Sprintf("n%d", last), Version: "1.0", StartedAt: time.Unix(1000, 0).UTC(), Ready: true,
			Components: []rpc.Component{
				{Name: "Kubernetes", State: rpc.StateOK, Message: "1.36.3"},
				{Name: "Datapath", State: rpc.StateOK, Details: []string{"16 maps"}},
				{Name: "IPAM", State: rpc.StateOK, Message: "3 of 254"},
			},
		},
		rpc.PathEndpoints: []table.Endpoint{{
			ID: 7, Kind: table.EndpointPod, Namespace: "default", Pod: fmt.Sprintf("web-%d", last), HostIfName: "lxc1",
			IPv4: v4, Identity: table.IdentityInit, State: table.EndpointReady,
		}},
		rpc.PathNodes: []table.Node{
			{Name: "n1", Local: last == 1, Addrs: []netip.Addr{addr("192.0.2.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}, HealthIPs: []netip.Addr{addr("10.0.1.1")}, Ready: true},
		},
		rpc.PathServices: []table.Frontend{
			{
				Key: table.FrontendKey{Addr: netip.MustParseAddrPort("10.96.0.10:53"), Proto: table.ProtoUDP}, Namespace: "kube-system", Service: "kube-dns",
				PortName: "dns", Type: table.FrontendClusterIP, ServiceID: 3, Flags: table.FrontendBoth, Backends: []table.BackendRef{
					{ID: 4, Addr: netip.MustParseAddrPort("10.0.1.7:53"), Proto: table.ProtoUDP, Node: "n1"},
					{ID: 9, Addr: netip.MustParseAddrPort("10.0.2.8:53"), Proto: table.ProtoUDP, Node: "n2"},
				},
			},
			{
				Key:       table.FrontendKey{Addr: netip.MustParseAddrPort("[::]:30080"), Proto: table.ProtoTCP, Scope: table.ScopeInternal},
				Namespace: "default", Service: "web", Type: table.FrontendNodePort, ServiceID: 5, Backends: []table.BackendRef{},
			},
		},
		rpc.PathBPFEndpoint: []maps.EndpointRow{{ID: 7, IfIndex: 9, MAC: "02:00:00:00:00:01", HostMAC: "02:00:00:00:00:02", IPv4: v4, MTU: 1500, Generation: 1, Identity: table.IdentityInit}},
		rpc.PathBPFIPCache:  []maps.IPCacheRow{{Prefix: netip.PrefixFrom(v4, 32), Identity: table.IdentityInit, Kind: table.KindLocalPod, EndpointID: 7}},
		rpc.PathBPFCT: []maps.CTRow{{
			Proto: 6, Src: v4, Dst: addr("10.0.9.9"), SrcPort: 40000, DstPort: 80, Path: "fast", Answered: true, Expires: 90 * time.Second,
			SrcIdentity: table.IdentityInit, DstIdentity: table.IdentityInit,
		}},
		rpc.PathBPFLB: []maps.LBRow{
			{Frontend: "10.96.0.10:53/UDP", ServiceID: 3, Backend: "0.0.0.0:0", Flags: []string{"ClusterIP", "non-routable"}},
			{Frontend: "10.96.0.10:53/UDP", Slot: 1, ServiceID: 3, Backend: "10.0.1.7:53/UDP", BackendID: 4},
		},
		rpc.PathBPFLBBackends: []maps.BackendRow{{ID: 4, Addr: "10.0.1.7:53/UDP", State: "active"}},
		rpc.PathBPFLBSockets: []maps.SocketRow{{
			Cookie: 77, Proto: table.ProtoUDP, Backend: netip.MustParseAddrPort("10.0.1.7:53"), Service: netip.MustParseAddrPort("10.96.0.10:53"),
		}},
		rpc.PathBPFLBConns: []maps.LBConnRow{{
			Proto: "TCP", Client: netip.MustParseAddrPort("192.0.2.9:50000"), Service: netip.MustParseAddrPort("10.9.0.1:30080"),
			Backend: netip.MustParseAddrPort("10.0.9.9:8080"), Port: 49153, State: "established", Expires: time.Hour,
		}},
		rpc.PathBPFLBMaglev: []maps.MaglevRow{{Frontend: "203.0.113.10:80/TCP", ServiceID: 6, Table: "0badcafe", Backend: "10.0.1.7:8080/TCP", Has: 8191, Slots: 16381}},
		rpc.PathBPFMaps: []maps.MapRow{
			{Name: "weft_cfg", Type: "Array", Capacity: 1, Bytes: 4096},
			{Name: "weft_ipc4", Type: "Hash", Capacity: 131072, Bytes: 1 << 20, Entries: new(104858), Pressure: new(0.8), WhenFull: maps.Refuses, FullIn: new(90 * time.Minute)},
		},
		rpc.PathBPFMetrics: []maps.MetricRow{{Hook: "from_pod", Class: "drop", Reason: "source-address", Packets: 3, Bytes: 180}},
	}
}

func failingNode(t *testing.T, last byte) *fakeNode {
	t.Helper()
	a := answers(last)
	st, _ := a[rpc.PathStatus].(rpc.Status)
	st.Components[2] = rpc.Component{Name: "IPAM", State: rpc.StateFailing, Message: "pool 10.0.2.0/24 is exhausted"}
	a[rpc.PathStatus] = st
	return newNode(t, a)
}

// TestListsGolden guards against columns that move or vanish, alone and merged.
func TestListsGolden(t *testing.T) {
	n1, n2 := newNode(t, answers(1)), newNode(t, answers(2))
	c := newCluster(n1, n2)
	var b strings.Builder
	for _, line := range []string{
		"endpoint list", "endpoint get 7", "endpoint list -o yaml", "node list", "service list", "service list -o json", "bpf endpoint list", "bpf ipcache list",
		"bpf ct list", "bpf ct list global", "bpf metrics list", "bpf map list", "bpf lb list", "bpf lb list --backends", "bpf lb list --revnat", "bpf lb list --connections", "bpf lb maglev list", "status", "version",
	} {
		args := strings.Fields(line)
		for where, r := range map[string]result{"node": n1.run(t, args...)} {
			fmt.Fprintf(&b, "== %s: %s (exit %d)\n%s%s\n", where, line, r.code, r.out, r.err)
		}
		r := laptop(t, c, args...)
		fmt.Fprintf(&b, "== laptop: %s (exit %d)\n%s%s\n", line, r.code, r.out, r.err)
	}
	golden(t, "lists.txt", stable(b.String()))
}

// stable takes out what differs from machine to machine.
func stable(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "weft test (") {
			lines[i] = "weft test (GO)"
		}
	}
	return strings.Join(lines, "\n")
}

// TestSilentNodeIsNamed guards against a merged answer that looks complete
// while a node is missing, and against one node hiding the answers of others.
func TestSilentNodeIsNamed(t *testing.T) {
	c := newCluster(newNode(t, answers(1)), nil, newNode(t, answers(3)), newNode(t, answers(4)))
	c.hang["cilium-3"] = true
	c.nodes["cilium-4"].socket += ".gone"
	r := laptop(t, c, "endpoint", "list", "--node-timeout", "300ms")
	if r.code != ExitUsage {
		t.Errorf("exit code %d, want %d", r.code, ExitUsage)
	}
	if !strings.Contains(r.out, "web-1") || strings.Contains(r.out, "web-3") {
		t.Errorf("want n1's endpoint alone, got:\n%s", r.out)
	}
	for _, want := range []string{"n2: agent's container is waiting: CrashLoopBackOff", "n3: no answer within 300ms", "n4: no agent answers", "3 of 4 nodes"} {
		if !strings.Contains(r.err, want) {
			t.Errorf("want %q in:\n%s", want, r.err)
		}
	}
}

// TestStatusExitCodes guards against a script that takes a failing or silent
// network for a sound one.
func TestStatusExitCodes(t *testing.T) {
	sound := newNode(t, answers(1))
	for _, tc := range []struct {
		name string
		r    result
		code int
		want []string
	}{
		{"sound node", sound.run(t, "status"), ExitOK, []string{"Datapath: OK\n", "Hubble: Disabled"}},
		{"sound cluster", laptop(t, newCluster(sound), "status"), ExitOK, []string{"Agents: OK\n", "IPAM: OK\n"}},
		{"failing node", failingNode(t, 2).run(t, "status"), ExitFailing, []string{"IPAM: pool 10.0.2.0/24 is exhausted\n", "Datapath: OK\n"}},
		{"failing cluster", laptop(t, newCluster(sound, failingNode(t, 2)), "status"), ExitFailing, []string{"IPAM: n2: pool 10.0.2.0/24 is exhausted\n", "Datapath: OK\n"}},
		{"silent cluster", laptop(t, newCluster(sound, nil), "status"), ExitUsage, []string{"Agents: 1 of 2 ready", "Agent: n2: agent's container is waiting"}},
		{"no such node", laptop(t, newCluster(sound), "status", "--node", "n9"), ExitUsage, nil},
		{"usage", laptop(t, newCluster(sound), "status", "--nonsense"), ExitUsage, nil},
		{"usage", laptop(t, newCluster(sound), "status", "-o", "xml"), ExitUsage, nil},
		{"usage", laptop(t, newCluster(sound), "bpf", "ct", "list", "local"), ExitUsage, nil},
		{"usage", laptop(t, newCluster(sound), "bpf"), ExitUsage, nil},
	} {
		if tc.r.code != tc.code {
			t.Errorf("%s: exit code %d, want %d: %s", tc.name, tc.r.code, tc.code, tc.r.err)
		}
		for _, w := range tc.want {
			if !strings.Contains(tc.r.out, w) {
				t.Errorf("%s: want %q in:\n%s", tc.name, w, tc.r.out)
			}
		}
		if tc.code == ExitUsage && tc.want == nil && tc.r.err == "" {
			t.Errorf("%s: nothing said", tc.name)
		}
	}
}

// TestStatusWait guards against a wait that ends before all is well, and one
// that never ends.
func TestStatusWait(t *testing.T) {
	r := laptop(t, newCluster(newNode(t, answers(1)), nil), "status", "--wait", "--wait-duration", "100ms")
	if r.code == ExitOK || !strings.Contains(r.err, "gave up") {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	a := answers(2)
	st, _ := a[rpc.PathStatus].(rpc.Status)
	st.Ready = false
	a[rpc.PathStatus] = st
	if r := laptop(t, newCluster(newNode(t, a)), "status", "--wait", "--wait-duration", "100ms"); !strings.Contains(r.err, "gave up") {
		t.Errorf("did not wait for a node that takes no pods: %s", r.err)
	}
	if r := laptop(t, newCluster(newNode(t, answers(1))), "status", "--wait"); r.code != ExitOK {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
}

// TestForeignCilium guards against running commands in a live Cilium's pods.
func TestForeignCilium(t *testing.T) {
	c := newCluster(newNode(t, answers(1)))
	c.objects["/apis/apps/v1/namespaces/kube-system/daemonsets/cilium"] = `{"metadata":{"name":"cilium","labels":{"k8s-app":"cilium"}}}`
	for _, verb := range []string{"status", "uninstall --yes", "connectivity test", "sysdump -f -"} {
		r := laptop(t, c, strings.Fields(verb)...)
		if r.code != ExitUsage || !strings.Contains(r.err, "not Weft's") {
			t.Errorf("%s: exit code %d: %s", verb, r.code, r.err)
		}
	}
	if len(c.did) != 0 {
		t.Errorf("touched another's cluster: %v", c.did)
	}
}

// TestWithoutAgent guards against verbs that need a living agent for what lies
// on the node, and against silence where nothing lies there.
func TestWithoutAgent(t *testing.T) {
	n := &fakeNode{socket: filepath.Join(t.TempDir(), "weft.sock")}
	p := n.paths()
	if err := os.MkdirAll(filepath.Join(p.pins, "maps"), 0o755); err != nil {
		t.Fatal(err)
	}
	state := []table.Endpoint{{ID: 3, Kind: table.EndpointPod, Namespace: "default", Pod: "left"}}
	b, err := json.Marshal(map[string]any{"version": 1, "endpoints": state})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.endpoints, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := n.run(t, "endpoint", "list"); r.code != ExitOK || !strings.Contains(r.out, "default/left") {
		t.Errorf("endpoint list: exit code %d:\n%s%s", r.code, r.out, r.err)
	}
	if r := n.run(t, "node", "list"); r.code != ExitUsage || !strings.Contains(r.err, "no agent answers") {
		t.Errorf("node list: exit code %d: %s", r.code, r.err)
	}
	if r := n.run(t, "status"); r.code != ExitUsage || !strings.Contains(r.out, "Agent: no agent answers") {
		t.Errorf("status: exit code %d: %s", r.code, r.out)
	}
	if r := n.run(t, "bpf", "ct", "list"); r.code != ExitUsage || !strings.Contains(r.err, "not pinned") {
		t.Errorf("bpf ct list: exit code %d: %s", r.code, r.err)
	}
}

// TestCalledCilium guards against runbooks that stop working in the image,
// where the same program is called cilium.
func TestCalledCilium(t *testing.T) {
	n := newNode(t, answers(1))
	for _, line := range []string{"status", "bpf ct list global", "endpoint list"} {
		var got [2]string
		for i, name := range []string{"weft", "cilium"} {
			var out strings.Builder
			a := newApp(Streams{In: strings.NewReader(""), Out: &out, Err: &out}, "test")
			a.paths = n.paths()
			if code := a.run(t.Context(), name, strings.Fields(line)); code != ExitOK {
				t.Errorf("%s %s: exit code %d: %s", name, line, code, out.String())
			}
			got[i] = out.String()
		}
		if got[0] != got[1] {
			t.Errorf("%s differs:\n%s\n%s", line, got[0], got[1])
		}
	}
}

// TestUninstall guards against deleting before being told to, agents that put
// back what is taken off, nodes that are not clean when all else is gone, and
// an uninstall that cannot be taken up again.
func TestUninstall(t *testing.T) {
	const sets = "/apis/apps/v1/namespaces/kube-system/daemonsets"
	fresh := func(broken string) *fakeCluster {
		c := newCluster(newNode(t, answers(1)), newNode(t, answers(2)))
		c.objects["/api/v1/namespaces/kube-system/configmaps"] = `{"items":[{"metadata":{"name":"cilium-config"}}]}`
		c.objects["/api/v1/namespaces/kube-system/secrets?labelSelector=owner%3Dhelm%2Cname%3Dweft"] = `{"items":[{"metadata":{"name":"sh.helm.release.v1.weft.v1"}}]}`
		c.execs = func(r kube.ExecRequest) error {
			if r.Pod == broken {
				fmt.Fprintln(r.Stderr, "map weft_ct4: device busy")
				return &kube.ExitError{Code: 1}
			}
			return nil
		}
		return c
	}
	for _, args := range [][]string{{"uninstall"}, {"uninstall", "--dry-run"}, {"uninstall", "--dry-run", "--yes"}} {
		c := fresh("")
		r := laptop(t, c, args...)
		if len(c.did) != 0 || !strings.Contains(r.out, "delete configmap cilium-config") {
			t.Errorf("%v: did %v, said:\n%s", args, c.did, r.out)
		}
	}

	const sweep = " /usr/bin/weft sweep-node"
	rest := []string{
		"DELETE " + sets + "/weft-uninstall",
		"DELETE /api/v1/namespaces/kube-system/configmaps/cilium-config",
		"DELETE /api/v1/namespaces/kube-system/secrets/sh.helm.release.v1.weft.v1",
	}
	c := fresh("clean-2")
	if r := laptop(t, c, "uninstall", "--yes"); r.code == ExitOK || !strings.Contains(r.err, "n2: command ended with exit code 1: map weft_ct4: device busy") {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	want := []string{
		"POST " + sets, "DELETE " + sets + "/cilium", "exec clean-1 /usr/bin/weft-agent uninstall-node",
		"exec clean-1" + sweep, "exec clean-2 /usr/bin/weft-agent uninstall-node",
	}
	slices.Sort(want[2:])
	slices.Sort(c.did[2:]) // the nodes are cleaned in parallel
	if d := cmp.Diff(want, c.did); d != "" {
		t.Errorf("with n2 broken (-want +got):\n%s", d)
	}

	// Again, with n2 mended: the agents are gone, the helpers are there.
	c.did = nil
	c.execs = fresh("").execs
	if r := laptop(t, c, "uninstall", "--yes"); r.code != ExitOK {
		t.Fatalf("exit code %d: %s", r.code, r.err)
	}
	want = append([]string{
		"exec clean-1" + sweep, "exec clean-1 /usr/bin/weft-agent uninstall-node", "exec clean-2" + sweep, "exec clean-2 /usr/bin/weft-agent uninstall-node",
	}, rest...)
	slices.Sort(want[:4])
	slices.Sort(c.did[:4])
	if d := cmp.Diff(want, c.did); d != "" {
		t.Errorf("again (-want +got):\n%s", d)
	}
	c.objects["/api/v1/namespaces/kube-system/configmaps"] = `{"items":[]}`
	if r := laptop(t, c, "uninstall", "--yes"); r.code != ExitUsage || !strings.Contains(r.err, "nothing of Weft") {
		t.Errorf("a third time: exit code %d: %s", r.code, r.err)
	}
}

// TestCleaner guards against a helper that is an agent, or lacks what it needs
// to clean.
func TestCleaner(t *testing.T) {
	c := newCluster(newNode(t, answers(1)))
	c.execs = func(kube.ExecRequest) error { return nil }
	c.objects["/apis/apps/v1/namespaces/kube-system/daemonsets/cilium"] = `{"metadata":{"name":"cilium","labels":{"app.kubernetes.io/part-of":"weft"}},
		"spec":{"template":{"metadata":{"labels":{"k8s-app":"cilium"}},"spec":{"hostNetwork":true,"serviceAccountName":"cilium","tolerations":[{"operator":"Exists"}],"initContainers":[{"name":"node-init"}],
		"containers":[{"name":"cilium-agent","image":"weft:test","command":["weft-agent"],"livenessProbe":{"exec":{}},
		"volumeMounts":[{"name":"netns","mountPath":"/run/netns","mountPropagation":"HostToContainer"},{"name":"config","mountPath":"/c","readOnly":true}]}],
		"volumes":[{"name":"netns"},{"name":"config"}]}}},"status":{"desiredNumberScheduled":1}}`
	if r := laptop(t, c, "uninstall", "--yes"); r.code != ExitOK || len(c.created) != 1 {
		t.Fatalf("exit code %d, %d created: %s", r.code, len(c.created), r.err)
	}
	ds, ok := c.created[0].(*appsv1.DaemonSet)
	if !ok {
		t.Fatalf("created a %T", c.created[0])
	}
	pod := ds.Spec.Template.Spec
	ctr := pod.Containers[0]
	switch {
	case ds.Spec.Template.Labels["k8s-app"] != "":
		t.Error("its pods would be taken for agents")
	case len(pod.InitContainers) != 0 || ctr.LivenessProbe != nil || strings.Join(ctr.Command, " ") != "/usr/bin/weft hold":
		t.Errorf("it runs more than it should: %+v", ctr)
	case !pod.HostNetwork || len(pod.Tolerations) != 1 || ctr.Image != "weft:test":
		t.Error("it does not run where the agent ran")
	case *ctr.VolumeMounts[0].MountPropagation != corev1.MountPropagationBidirectional || !ctr.VolumeMounts[1].ReadOnly:
		t.Errorf("mounts: %+v", ctr.VolumeMounts)
	case *pod.AutomountServiceAccountToken:
		t.Error("it has a token that it does not need")
	}
}

// TestAgentError guards against an agent's refusal shown as an empty list.
func TestAgentError(t *testing.T) {
	a := answers(1)
	a[rpc.PathBPFCT] = errors.New("map weft_ct4: permission denied")
	n := newNode(t, a)
	for where, r := range map[string]result{"node": n.run(t, "bpf", "ct", "list"), "laptop": laptop(t, newCluster(n), "bpf", "ct", "list")} {
		if r.code != ExitUsage || !strings.Contains(r.err, "map weft_ct4: permission denied") {
			t.Errorf("%s: exit code %d: %s", where, r.code, r.err)
		}
	}
}

// TestNoFrontendsIsExplained guards against an empty list that leaves the reader
// to guess whether Services are Weft's at all.
func TestNoFrontendsIsExplained(t *testing.T) {
	n := newNode(t, map[string]any{rpc.PathServices: []table.Frontend{}})
	if r := n.run(t, "service", "list"); r.code != ExitOK || !strings.Contains(r.err, "socketLB.enabled=true") {
		t.Errorf("exit code %d, said %q", r.code, r.err)
	}
	if r := n.run(t, "service", "list", "-o", "json"); r.code != ExitOK || r.err != "" || strings.TrimSpace(r.out) != "[]" {
		t.Errorf("as JSON: exit code %d, %q, said %q", r.code, r.out, r.err)
	}
}
