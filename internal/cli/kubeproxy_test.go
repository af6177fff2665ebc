// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/kubeproxy"
)

// fakeProxy is what a node has of kube-proxy.
type fakeProxy struct {
	sign  string // that it runs
	left  []kubeproxy.Object
	stuck map[string]bool // names of what cannot be removed
}

func (p *fakeProxy) Running(context.Context) (kubeproxy.Life, bool) {
	return kubeproxy.Life{Sign: p.sign}, p.sign != ""
}

func (p *fakeProxy) Find(context.Context) ([]kubeproxy.Object, error) { return p.left, nil }

func (p *fakeProxy) Remove(_ context.Context, told func(kubeproxy.Object)) error {
	var errs []error
	p.left = slices.DeleteFunc(slices.Clone(p.left), func(o kubeproxy.Object) bool {
		if p.stuck[o.Name] {
			errs = append(errs, fmt.Errorf("%s: busy", o))
			return false
		}
		told(o)
		return true
	})
	return errors.Join(errs...)
}

func leftovers() *fakeProxy {
	return &fakeProxy{left: []kubeproxy.Object{
		{Kind: kubeproxy.KindChain, Where: "iptables-nft nat", Name: "KUBE-SERVICES"},
		{Kind: kubeproxy.KindTable, Where: "nftables", Name: "ip kube-proxy"},
	}}
}

// proxyCluster is a cluster with what each of its nodes has of kube-proxy.
func proxyCluster(t *testing.T, proxies ...*fakeProxy) *fakeCluster {
	t.Helper()
	var nodes []*fakeNode
	for _, p := range proxies {
		n := newNode(t, nil)
		n.proxy = p
		nodes = append(nodes, n)
	}
	f := newCluster(nodes...)
	f.objects["/api/v1/pods"] = `{"items":[]}`
	return f
}

// TestKubeProxyCleanupListsFirst guards against a removal that nobody asked for,
// and against a list that leaves something out.
func TestKubeProxyCleanupListsFirst(t *testing.T) {
	for _, args := range [][]string{{"--dry-run"}, {}} {
		a, b := leftovers(), &fakeProxy{}
		r := laptop(t, proxyCluster(t, a, b), append([]string{"kube-proxy", "cleanup"}, args...)...)
		want := ExitOK
		if len(args) == 0 {
			want = ExitUsage
		}
		if r.code != want || len(a.left) != 2 {
			t.Errorf("%v: exit code %d, %d objects stay: %s", args, r.code, len(a.left), r.err)
		}
		for _, w := range []string{"KUBE-SERVICES", "iptables-nft nat", "ip kube-proxy", "n1: would remove 1 chain, 1 table", "n2: would remove nothing"} {
			if !strings.Contains(r.out, w) {
				t.Errorf("%v: output lacks %q:\n%s", args, w, r.out)
			}
		}
	}
}

// TestKubeProxyCleanup guards against a node on which kube-proxy runs, or will
// again, that is cleaned for nothing, and against one failure that stops the rest.
func TestKubeProxyCleanup(t *testing.T) {
	clean, answers, restarting, stuck := leftovers(), leftovers(), leftovers(), leftovers()
	answers.sign = "it answers on 127.0.0.1:10249"
	stuck.stuck = map[string]bool{"KUBE-SERVICES": true}
	f := proxyCluster(t, clean, answers, restarting, stuck)
	f.objects["/api/v1/pods?labelSelector=k8s-app%3Dkube-proxy"] = `{"items":[
		{"metadata":{"name":"kube-proxy-a","namespace":"kube-system"},"spec":{"nodeName":"n3"},"status":{"phase":"Running"}},
		{"metadata":{"name":"kube-proxy-old","namespace":"kube-system"},"spec":{"nodeName":"n1"},"status":{"phase":"Failed"}}]}`
	r := laptop(t, f, "kube-proxy", "cleanup", "--yes")
	if r.code != ExitFailing {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	for _, w := range []string{"n1: removed 1 chain, 1 table", "n4: removed 1 table"} {
		if !strings.Contains(r.out, w) {
			t.Errorf("output lacks %q:\n%s", w, r.out)
		}
	}
	for _, w := range []string{"n2: nothing was removed: kube-proxy runs (it answers on 127.0.0.1:10249)", "n3: nothing was removed: kube-proxy runs (pod kube-system/kube-proxy-a)", "n4: chain KUBE-SERVICES (iptables-nft nat): busy"} {
		if !strings.Contains(r.err, w) {
			t.Errorf("errors lack %q:\n%s", w, r.err)
		}
	}
	if len(clean.left) != 0 || len(answers.left) != 2 || len(restarting.left) != 2 || len(stuck.left) != 1 {
		t.Errorf("left: %v, %v, %v, %v", clean.left, answers.left, restarting.left, stuck.left)
	}
	answers.sign, stuck.stuck = "", nil
	f.objects["/api/v1/pods?labelSelector=k8s-app%3Dkube-proxy"] = `{"items":[]}`
	if r := laptop(t, f, "kube-proxy", "cleanup", "--yes"); r.code != ExitOK || !strings.Contains(r.out, "n1: removed nothing") || !strings.Contains(r.out, "n3: removed 1 chain, 1 table") {
		t.Errorf("again: exit code %d, %s%s", r.code, r.out, r.err)
	}
}

// TestKubeProxyCleanupOnNode guards against a program in the agent's container
// that does otherwise than from a laptop, and against output that others cannot
// read.
func TestKubeProxyCleanupOnNode(t *testing.T) {
	n := newNode(t, nil)
	n.proxy = leftovers()
	n.proxy.sign = "process 42"
	if r := n.run(t, "kube-proxy", "cleanup", "--yes"); r.code != ExitFailing || !strings.Contains(r.err, "process 42") || len(n.proxy.left) != 2 {
		t.Errorf("while it runs: exit code %d, %q", r.code, r.err)
	}
	n.proxy.sign = ""
	if r := n.run(t, "kube-proxy", "cleanup"); r.code != ExitUsage || !strings.Contains(r.out, "KUBE-SERVICES") || len(n.proxy.left) != 2 {
		t.Errorf("without --yes: exit code %d, %s%s", r.code, r.out, r.err)
	}
	r := n.run(t, "kube-proxy", "cleanup", "--yes", "-o", "json")
	var c cleanup
	if err := json.Unmarshal([]byte(r.out), &c); err != nil || r.code != ExitOK || len(c.Removed) != 2 || len(n.proxy.left) != 0 {
		t.Errorf("exit code %d, %v: %s%s", r.code, err, r.out, r.err)
	}
	if r := n.run(t, "kube-proxy", "cleanup", "--yes", "--dry-run"); r.code != ExitUsage {
		t.Errorf("both flags: exit code %d", r.code)
	}
}
