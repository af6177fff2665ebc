// SPDX-License-Identifier: Apache-2.0

package helm_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
)

// rights returns what a role of the chart allows, by resource; with its own values
// if none are given.
func rights(t *testing.T, role string, args ...string) map[string][]string {
	t.Helper()
	got := map[string][]string{}
	for _, r := range object[rbacv1.ClusterRole](t, render(t, args...), role).Rules {
		for _, res := range r.Resources {
			got[res] = append(got[res], r.Verbs...)
		}
	}
	return got
}

// Fault: the agents may do more in the cluster than they have use for. A change
// of this list is a change of what a broken-into node can do.
func TestAgentsRights(t *testing.T) {
	got := rights(t, "ClusterRole/weft-agent")
	want := map[string][]string{
		"nodes":           {"get", "list", "watch", "patch"},
		"nodes/status":    {"patch"},
		"pods":            {"get", "list", "watch"},
		"ciliumnodes":     {"get", "list", "watch", "create", "update"},
		"ciliumendpoints": {"get", "list", "watch", "create", "update", "delete"},
		"events":          {"create"},
		"podcidrledgers":  {"get"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rights (-want +got):\n%s", diff)
	}
	// Only an agent that has use for them reads the cluster's Services.
	want["services"], want["endpointslices"] = []string{"list", "watch"}, []string{"list", "watch"}
	for _, set := range []string{"socketLB.enabled=true", "kubeProxyReplacement=true,k8sServiceHost=10.0.0.1"} {
		if diff := cmp.Diff(want, rights(t, "ClusterRole/weft-agent", "--set", set)); diff != "" {
			t.Errorf("rights with %s (-want +got):\n%s", set, diff)
		}
	}
}

// Fault: the operator may do more in the cluster than it has use for.
func TestOperatorsRights(t *testing.T) {
	got := rights(t, "ClusterRole/weft-operator")
	want := map[string][]string{
		"nodes":       {"get", "list", "watch"},
		"ciliumnodes": {"get", "list", "watch", "delete"},
		"events":      {"create"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rights in mode kubernetes (-want +got):\n%s", diff)
	}
}
