// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// uninstallLab brings up a lab of its own, without any network, and takes it
// away at the end: nothing must have touched its nodes before.
func uninstallLab(t *testing.T) *labtest.Lab {
	t.Helper()
	other := labtest.Open(t)
	l := other.Named(other.Name + "-u")
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if r, err := l.Do(ctx, nil, "down"); err != nil || r.Code != 0 {
			t.Errorf("lab %s stays: %v %s", l.Name, err, r)
		}
	})
	// Without DNS no pod comes and goes by itself, and kube-proxy's rules do not
	// change but for what the test does.
	r, err := l.Do(ctx, nil, "up", "--replace", "--nodes", "2", "--cni", "weft", "--dns=false")
	if err == nil && r.Code != 0 {
		err = errors.New(r.String())
	}
	if err != nil {
		t.Fatalf("lab %s: %v", l.Name, err)
	}
	return l
}

// install runs the repository's own script for it, with more arguments for helm.
func install(t *testing.T, l *labtest.Lab, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(filepath.Dir(l.Build)), "test", "install.sh"), append([]string{l.Name}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
}

// Guards against leftovers: uninstalling leaves a node exactly as it was before
// the installation.
func TestUninstallLeavesNothing(t *testing.T) {
	l := uninstallLab(t)
	nodes := l.Nodes(t, 2)
	before := map[string]snapshot{}
	for i := range nodes {
		before[nodes[i].Name()] = takeSnapshot(t, l, nodes[i].Name())
	}
	objects := clusterObjects(t, l)

	install(t, l, "--set", "enableIPv4BIGTCP=true,enableIPv6BIGTCP=true") // it changes the node's devices
	const ns = "weft-uninstall"
	// It goes with the lab: pods that are left cannot end without a network.
	l.Kubectl(t, "create", "namespace", ns)
	labtest.Eventually(t, 20*time.Second, "service account", func() error {
		_, err := l.TryKubectl("get", "serviceaccount", "default", "-n", ns)
		return err
	})
	buildTraffic(t, l, nodes)
	var pods []podSpec
	for i := range nodes {
		n := nodes[i].Name()
		for _, name := range []string{"gone-", "left-"} {
			pods = append(pods, podSpec{Name: name + n, Namespace: ns, Label: "uninstall", Node: n, Command: []string{"sleep", "3600"}})
		}
	}
	apply(t, l, pods)
	kernel := map[string][]string{}
	for i := range nodes {
		n := nodes[i].Name()
		reach(t, l, n, ns, "left-"+n)
		l.Kubectl(t, "delete", "pod", "gone-"+n, "-n", ns, "--timeout=40s")
		kernel[n] = kernelObjects(t, l, n)
	}

	out := l.MustWeft(t, "uninstall", "--yes")
	for i := range nodes {
		n := nodes[i].Name()
		if !strings.Contains(out, n) {
			t.Errorf("uninstall does not say what it did on %s: %s", n, out)
		}
		err := labtest.Retry(20*time.Second, func() error {
			if d := before[n].diff(takeSnapshot(t, l, n)); len(d) > 0 {
				return errors.New(strings.Join(d, "\n"))
			}
			return nil
		})
		if err != nil {
			t.Errorf("node %s is not as it was before the installation:\n%v", n, err)
		}
		for _, obj := range kernel[n] {
			if out, err := l.TryShell(n, "bpftool "+obj+" 2>/dev/null || true"); err != nil || strings.TrimSpace(out) != "" {
				t.Errorf("node %s: still in the kernel: %s: %s %v", n, obj, out, err)
			}
		}
	}
	for _, name := range clusterObjects(t, l) {
		if !contains(objects, name) && !strings.Contains(name, ns) {
			t.Errorf("object left in the cluster: %s", name)
		}
	}
}

func contains(list []string, s string) bool {
	return slices.Contains(list, s)
}

// kernelObjects are the BPF objects that a node's pins and hooks lead to, as
// arguments of bpftool that show them. BPF knows no namespaces, so it is their
// numbers that must not exist any more.
func kernelObjects(t *testing.T, l *labtest.Lab, node string) []string {
	t.Helper()
	pushTool(t, l, node)
	out := l.Shell(t, node, `
for f in /sys/fs/bpf/weft/maps/*; do bpftool map show pinned "$f" | sed -nE 's/^([0-9]+):.*/map show id \1/p'; done
for f in /sys/fs/bpf/weft/links/*; do bpftool link show pinned "$f" | sed -nE 's/^([0-9]+):.*/link show id \1/p'; done
`+toolPath+` hooks | sed -nE 's/.* ([0-9]+)$/prog show id \1/p' | sort -u
bpftool net show | sed -nE 's/.* (prog_)?id ([0-9]+).*/prog show id \2/p' | sort -u`)
	list := strings.Split(strings.TrimSpace(out), "\n")
	if len(list) < 15 || !strings.Contains(out, "prog show") || !strings.Contains(out, "link show") {
		t.Fatalf("node %s: only %d maps, links and programs: %v", node, len(list), list)
	}
	return list
}

// clusterObjects names everything that an installation could leave in the API.
func clusterObjects(t *testing.T, l *labtest.Lab) []string {
	t.Helper()
	var names []string
	for _, kind := range []string{
		"customresourcedefinitions", "clusterroles", "clusterrolebindings", "validatingadmissionpolicies", "validatingadmissionpolicybindings",
		"validatingwebhookconfigurations", "mutatingwebhookconfigurations", "priorityclasses", "namespaces",
		"roles", "rolebindings", "configmaps", "secrets", "serviceaccounts", "services", "daemonsets", "deployments",
	} {
		out := l.Kubectl(t, "get", kind, "--all-namespaces", "-o", `jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{"\n"}{end}`)
		for line := range strings.FieldsSeq(out) {
			names = append(names, fmt.Sprintf("%s %s", kind, line))
		}
	}
	if len(names) < 20 {
		t.Fatalf("only %d objects in the cluster: %v", len(names), names)
	}
	return names
}
