// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"slices"
	"strings"
	"testing"
)

// Modules that the rules speak of, by the names that docs/ARCHITECTURE.md uses.
func modulesOf(name string) []string {
	return map[string][]string{
		"client-go": {"k8s.io/client-go"},
		"ebpf":      {"github.com/cilium/ebpf"},
		"netlink":   {"github.com/vishvananda/netlink"},
		"statedb":   {"github.com/cilium/statedb"},
		"net/http":  {"net/http"},
	}[name]
}

// rule says what a package, or one below it, must not import itself.
type rule struct {
	pkg  string
	deny []string
	// deps says that dependencies count too: the whole program must be free of it.
	deps bool
}

func rules() []rule {
	return []rule{
		{pkg: "internal/table", deny: []string{"client-go", "ebpf", "netlink"}, deps: true},
		{pkg: "internal/ipam", deny: []string{"client-go", "ebpf", "netlink", "statedb"}, deps: true},
		{pkg: "internal/forecast", deny: []string{"client-go", "ebpf", "netlink", "statedb"}, deps: true},
		{pkg: "internal/arrival", deny: []string{"client-go", "ebpf", "netlink"}, deps: true},
		{pkg: "internal/masquerade", deny: []string{"client-go", "ebpf", "netlink", "statedb"}, deps: true},
		{pkg: "internal/service", deny: []string{"client-go", "ebpf", "netlink"}, deps: true},
		{pkg: "internal/service", deny: []string{"statedb"}}, // the rows' package has it
		{pkg: "internal/reconcile", deny: []string{"client-go", "ebpf", "netlink"}, deps: true},
		{pkg: "internal/config", deny: []string{"client-go", "ebpf", "netlink"}, deps: true},
		{pkg: "internal/k8s", deny: []string{"ebpf", "netlink"}, deps: true},
		{pkg: "internal/operator", deny: []string{"ebpf", "netlink", "statedb"}, deps: true},
		{pkg: "internal/datapath", deny: []string{"client-go"}, deps: true},
		{pkg: "internal/datapath/maps", deny: []string{"client-go", "netlink"}, deps: true},
		{pkg: "internal/datapath/layout", deny: []string{"client-go", "netlink"}, deps: true},
		{pkg: "internal/datapath/selftest", deny: []string{"client-go", "netlink"}, deps: true},
		{pkg: "internal/datapath/link", deny: []string{"client-go", "ebpf"}, deps: true},
		{pkg: "internal/datapath/rtnl", deny: []string{"client-go", "ebpf"}, deps: true},
		{pkg: "internal/kubeproxy", deny: []string{"client-go", "ebpf"}, deps: true},
		{pkg: "internal/endpoint", deny: []string{"client-go"}, deps: true},
		{pkg: "internal/cni", deny: []string{"client-go"}, deps: true},
		{pkg: "internal/cni", deny: []string{"ebpf"}},
		// Small and quick to start: it is executed for each pod.
		{pkg: "internal/cni/plugin", deny: []string{"client-go", "ebpf", "netlink", "net/http"}, deps: true},
		{pkg: "cmd/weft-cni", deny: []string{"client-go", "ebpf", "netlink", "net/http"}, deps: true},
		{pkg: "internal/flow", deny: []string{"client-go"}, deps: true},
		{pkg: "internal/health", deny: []string{"ebpf"}},
		{pkg: "internal/rpc", deny: []string{"client-go"}, deps: true},
		{pkg: "api", deny: []string{"client-go", "ebpf", "netlink"}, deps: true},
	}
}

// Fault: a convenient import ties the pure middle to an edge, and it can no
// longer be tested without a kernel or an API server.
func TestImports(t *testing.T) {
	pkgs := ours(t)
	for _, r := range rules() {
		for name, p := range pkgs {
			if name != r.pkg && !strings.HasPrefix(name, r.pkg+"/") {
				continue
			}
			used := p.Imports
			if r.deps {
				used = p.Deps
			}
			for _, d := range r.deny {
				for _, m := range modulesOf(d) {
					if i := slices.IndexFunc(used, func(s string) bool { return within(s, m) }); i >= 0 {
						t.Errorf("%s must not use %s (%s), but does: %s", name, d, r.pkg, used[i])
					}
				}
			}
		}
	}
}

// within says whether an import path is a module or a package of it.
func within(path, module string) bool { return path == module || strings.HasPrefix(path, module+"/") }

// Fault: the API server is spoken to from a second place in the agent, which
// then has its own idea of what is there.
func TestOneImporterOfClientGo(t *testing.T) {
	may := []string{"internal/k8s", "internal/operator", "internal/cli/kube", "test", "install"}
	for name, p := range ours(t) {
		if slices.ContainsFunc(may, func(m string) bool { return within(name, m) }) {
			continue
		}
		for _, imp := range p.Imports {
			if within(imp, "k8s.io/client-go") {
				t.Errorf("%s imports %s; only %v may", name, imp, may)
			}
		}
	}
}

// Fault: the product depends on the lab or on its tests, or on all of Kubernetes.
func TestProductStandsAlone(t *testing.T) {
	for name, p := range ours(t) {
		if !strings.HasPrefix(name, "cmd/") {
			continue
		}
		for _, d := range p.Deps {
			if within(d, "k8s.io/kubernetes") || within(d, module+"/test") || within(d, module+"/lab") || d == "testing" {
				t.Errorf("%s depends on %s", name, d)
			}
		}
	}
}

// Fault: a heap of unrelated functions that everything imports.
func TestNoCatchAllPackages(t *testing.T) {
	for name := range ours(t) {
		for part := range strings.SplitSeq(name, "/") {
			switch part {
			case "util", "utils", "common", "helpers", "misc", "base":
				t.Errorf("%s: name the package after what it does", name)
			}
		}
	}
}
