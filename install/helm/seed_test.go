// SPDX-License-Identifier: Apache-2.0

package helm_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// The base values of the seed: each key is honoured, or refused with a sentence.
func TestSeedBaseValues(t *testing.T) {
	_, errOut, err := template(t, "--values", "testdata/seed-base-values.yaml")
	if err == nil {
		t.Fatal("values that Weft does not honour were accepted")
	}
	var refused []string
	for line := range strings.Lines(errOut) {
		if l, ok := strings.CutPrefix(line, "  - "); ok {
			key, _, _ := strings.Cut(l, "=")
			refused = append(refused, key)
			if len(strings.Fields(l)) < 6 {
				t.Errorf("not a sentence: %s", l)
			}
		}
	}
	slices.Sort(refused)
	want := []string{"bandwidthManager.enabled", "bpf.masquerade", "l2announcements.enabled", "loadBalancer.mode"}
	if diff := cmp.Diff(want, refused); diff != "" {
		t.Errorf("refused keys (-want +got):\n%s", diff)
	}

	// With those switched off or removed, the rest installs and means what it says.
	args := []string{
		"--values", "testdata/seed-base-values.yaml", "--set",
		"loadBalancer.mode=null,l2announcements.enabled=false,bandwidthManager.enabled=false,bpf.masquerade=false",
	}
	out := render(t, args...)
	data := object[corev1.ConfigMap](t, out, "ConfigMap/cilium-config").Data
	if data["cgroup-root"] != "/sys/fs/cgroup" || data["routing-mode"] != "native" || data["ipam"] != "kubernetes" || data["kube-proxy-replacement"] != "true" || data["bpf-lb-algorithm"] != "maglev" {
		t.Errorf("settings %v", data)
	}
	pod, operator := agentPod(t, out).Spec, object[appsv1.Deployment](t, out, "Deployment/cilium-operator").Spec.Template.Spec
	all := slices.Concat(pod.InitContainers, pod.Containers, operator.Containers)
	if len(all) != 3 {
		t.Errorf("%d containers, want agent, its init and operator", len(all))
	}
	for _, c := range all {
		env := map[string]string{}
		for _, e := range c.Env {
			env[e.Name] = e.Value
		}
		if env["KUBERNETES_SERVICE_HOST"] != "localhost" || env["KUBERNETES_SERVICE_PORT"] != "7445" {
			t.Errorf("container %s: API server %s:%s", c.Name, env["KUBERNETES_SERVICE_HOST"], env["KUBERNETES_SERVICE_PORT"])
		}
	}
}

// Fault: ip-masq-agent's settings do not reach the agent, or restart it.
func TestIPMasqAgent(t *testing.T) {
	args := []string{"--set", "bpf.masquerade=true,ipMasqAgent.enabled=true,ipMasqAgent.config.masqLinkLocal=true,ipMasqAgent.config.nonMasqueradeCIDRs={10.0.0.0/8}"}
	out := render(t, args...)
	if got := object[corev1.ConfigMap](t, out, "ConfigMap/ip-masq-agent").Data["config"]; got != `{"masqLinkLocal":true,"nonMasqueradeCIDRs":["10.0.0.0/8"]}` {
		t.Errorf("config %s", got)
	}
	pod := agentPod(t, out)
	if !slices.ContainsFunc(pod.Spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/etc/config" && m.ReadOnly }) {
		t.Error("the file is not mounted at /etc/config")
	}
	other := agentPod(t, render(t, "--set", "bpf.masquerade=true,ipMasqAgent.enabled=true,ipMasqAgent.config.nonMasqueradeCIDRs={10.1.0.0/16}"))
	if diff := cmp.Diff(pod, other); diff != "" {
		t.Errorf("a change of ip-masq-agent's settings restarts the agents:\n%s", diff)
	}
}
