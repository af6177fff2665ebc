// SPDX-License-Identifier: Apache-2.0

package helm_test

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/config"
)

// helm runs the pinned helm and returns what it printed.
func helm(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	bin, err := filepath.Abs("../../build/tools/helm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Skip("needs build/tools/helm: run make tools")
	}
	cmd := exec.Command(bin, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

func template(t *testing.T, args ...string) (string, string, error) {
	t.Helper()
	return helm(t, append([]string{"template", "weft", "weft", "--namespace", "kube-system"}, args...)...)
}

func render(t *testing.T, args ...string) string {
	t.Helper()
	out, errOut, err := template(t, args...)
	if err != nil {
		t.Fatalf("helm template %s: %v\n%s", strings.Join(args, " "), err, errOut)
	}
	return out
}

// objects splits a rendered chart by kind/name.
func objects(t *testing.T, rendered string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for doc := range strings.SplitSeq(rendered, "\n---") {
		var o struct {
			Kind     string            `json:"kind"`
			Metadata metav1.ObjectMeta `json:"metadata"`
		}
		raw := []byte(strings.TrimPrefix(doc, "---"))
		if err := yaml.Unmarshal(raw, &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o.Kind != "" {
			out[o.Kind+"/"+o.Metadata.Name] = raw
		}
	}
	return out
}

func object[T any](t *testing.T, rendered, name string) *T {
	t.Helper()
	raw, ok := objects(t, rendered)[name]
	if !ok {
		t.Fatalf("the chart renders no %s", name)
	}
	var o T
	// Strict: a misspelt field would be dropped by the API server without a word.
	if err := yaml.UnmarshalStrict(raw, &o); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return &o
}

func settings(t *testing.T, args ...string) map[string]string {
	t.Helper()
	return object[corev1.ConfigMap](t, render(t, args...), "ConfigMap/cilium-config").Data
}

// Fault: chart and agent disagree about the name or the form of a setting, and
// the agent refuses to start in the cluster.
func TestSettingsAreWhatTheAgentReads(t *testing.T) {
	for _, args := range [][]string{
		nil,
		{"--set", "ipv6.enabled=true,MTU=9000,pprof.enabled=true,debug.enabled=true,bpf.monitorAggregation=none,prometheus.enabled=false"},
		{"--set", "devices={eth0,bond*}"},
		{"--set", "bpf.masquerade=true,ipv4NativeRoutingCIDR=10.0.0.0/8,bpf.masqueradePorts=50000-60000"},
		{"--set", "bpf.masquerade=true,ipMasqAgent.enabled=true,ipv6.enabled=true"},
		{"--set", "socketLB.enabled=true,socketLB.hostNamespaceOnly=true,bpf.lbMapMax=1024"},
		{"--set", "socketLB.enabled=true,nodePort.enabled=true,loadBalancer.algorithm=maglev,maglev.tableSize=131071,maglev.hashSeed=AAAAAAAAAAAAAAAA"},
	} {
		data := settings(t, args...)
		if _, err := config.Parse(data); err != nil {
			t.Errorf("helm template %v: the agent says: %v", args, err)
		}
		if _, err := config.ParseOperator(data); err != nil {
			t.Errorf("helm template %v: the operator says: %v", args, err)
		}
	}
	cfg, err := config.Parse(settings(t, "--set", "devices={eth0,bond*}"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"eth0", "bond*"}, cfg.Devices); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
}

// Fault: a key is accepted and then ignored. Each honoured key, changed, must
// change what is rendered.
func TestEachHonouredKeyHasAnEffect(t *testing.T) {
	other := map[string]string{
		"MTU":                         "1400",
		"affinity":                    `{"nodeAffinity":{}}`,
		"annotations":                 `{"a":"b"}`,
		"autoDirectNodeRoutes":        "false",
		"bpf.monitorAggregation":      `"none"`,
		"bpf.lbAlgorithmAnnotation":   "true",
		"bpf.lbMapMax":                "1024",
		"bpf.masquerade":              "true",
		"bpf.masqueradePorts":         `"50000-60000"`,
		"cgroup.autoMount.enabled":    "false",
		"cgroup.hostRoot":             `"/sys/fs/cgroup"`,
		"cni.binPath":                 `"/usr/lib/cni"`,
		"cni.confPath":                `"/etc/other"`,
		"debug.enabled":               "true",
		"devices":                     `"eth1"`,
		"enableIPv4Masquerade":        "false",
		"enableIPv6Masquerade":        "false",
		"healthPort":                  "9880",
		"image.digest":                `"sha256:` + strings.Repeat("a", 64) + `"`,
		"image.pullPolicy":            `"Always"`,
		"image.repository":            `"example.org/weft"`,
		"image.tag":                   `"v9"`,
		"imagePullSecrets":            `[{"name":"s"}]`,
		"ipam.mode":                   `"cluster-pool"`,
		"ipMasqAgent.config":          `{"masqLinkLocal":true}`,
		"ipMasqAgent.enabled":         "true",
		"ipam.multiPoolPreAllocation": `"blue=4"`,
		"ipv4.enabled":                "false",
		"ipv4NativeRoutingCIDR":       `"10.0.0.0/8"`,
		"ipv6NativeRoutingCIDR":       `"fd00::/8"`,
		"ipv6.enabled":                "true",
		"k8sServiceHost":              `"10.0.0.1"`,
		"k8sServicePort":              "6444",
		"loadBalancer.algorithm":      `"maglev"`,
		"maglev.hashSeed":             `"AAAAAAAAAAAAAAAA"`,
		"maglev.tableSize":            "4093",
		"nodeSelector":                `{"a":"b"}`,
		"operator.affinity":           `{"podAntiAffinity":null}`,
		"operator.healthPort":         "9235",
		"operator.nodeGCInterval":     `"1m"`,
		"operator.nodeSelector":       `{"a":"b"}`,
		"operator.priorityClassName":  `"other"`,
		"operator.prometheus.enabled": "false",
		"operator.prometheus.port":    "9964",
		"operator.replicas":           "2",
		"operator.resources":          `{"limits":{"memory":"1Gi"}}`,
		"operator.tolerations":        `[{"key":"a"}]`,
		"podAnnotations":              `{"a":"b"}`,
		"podLabels":                   `{"a":"b"}`,
		"pprof.enabled":               "true",
		"pprof.port":                  "6061",
		"priorityClassName":           `"other"`,
		"prometheus.enabled":          "false",
		"prometheus.port":             "9970",

		"prometheus.prometheusRule.annotations": `{"a":"b"}`,
		"prometheus.prometheusRule.enabled":     "true",
		"prometheus.prometheusRule.labels":      `{"release":"stack"}`,

		"enableIPv4BIGTCP":              "true",
		"enableIPv6BIGTCP":              "true",
		"resources":                     `{"limits":{"memory":"1Gi"}}`,
		"rollOutCiliumPods":             "false",
		"routingMode":                   `"tunnel"`,
		"socketLB.enabled":              "true",
		"nodePort.enabled":              "true",
		"nodePort.addresses":            `["10.0.0.0/8"]`,
		"nodePort.bindProtection":       "false",
		"nodePort.enableHealthCheck":    "false",
		"kubeProxyReplacement":          "true",
		"socketLB.hostNamespaceOnly":    "true",
		"terminationGracePeriodSeconds": "9",
		"tolerations":                   `[{"key":"a"}]`,
		"tunnelPort":                    "4789",
		"underlayProtocol":              `"ipv6"`,
		"updateStrategy":                `{"type":"OnDelete"}`,

		"ipam.operator.acknowledgedOverlaps":       `["10.0.0.0/8"]`,
		"ipam.operator.clusterPoolIPv4MaskSize":    "25",
		"ipam.operator.clusterPoolIPv4PodCIDRList": `["10.10.0.0/16"]`,
		"ipam.operator.clusterPoolIPv6MaskSize":    "112",
		"ipam.operator.clusterPoolIPv6PodCIDRList": `["fd00:10::/104"]`,
		"ipam.operator.quarantine":                 `"1h"`,
	}
	// What a key needs beside it to have an effect.
	beside := map[string][]string{
		"ipam.mode":            {"--set-json", `ipam.operator.clusterPoolIPv4PodCIDRList=["10.10.0.0/16"]`},
		"bpf.masquerade":       {"--set", "ipv4NativeRoutingCIDR=10.0.0.0/8"},
		"enableIPv6BIGTCP":     {"--set", "ipv6.enabled=true"},
		"enableIPv4Masquerade": {"--set", "bpf.masquerade=true,ipv4NativeRoutingCIDR=10.0.0.0/8"},
		"enableIPv6Masquerade": {"--set", "bpf.masquerade=true,ipv4NativeRoutingCIDR=10.0.0.0/8"},
		"ipMasqAgent.config":   {"--set", "bpf.masquerade=true,ipMasqAgent.enabled=true"},
		"ipMasqAgent.enabled":  {"--set", "bpf.masquerade=true,ipv4NativeRoutingCIDR=10.0.0.0/8"},
		"ipv4.enabled":         {"--set-json", "ipv6.enabled=true"},
		"k8sServicePort":       {"--set-json", `k8sServiceHost="10.0.0.1"`},
		"pprof.port":           {"--set-json", "pprof.enabled=true"},

		"socketLB.hostNamespaceOnly": {"--set", "socketLB.enabled=true"},
		"nodePort.enabled":           {"--set", "socketLB.enabled=true"},
		"bpf.lbAlgorithmAnnotation":  {"--set", "socketLB.enabled=true,nodePort.enabled=true"},
		"loadBalancer.algorithm":     {"--set", "socketLB.enabled=true,nodePort.enabled=true"},
		"kubeProxyReplacement":       {"--set", "k8sServiceHost=10.0.0.1"},

		"prometheus.prometheusRule.annotations": {"--set", "prometheus.prometheusRule.enabled=true,prometheus.prometheusRule.trustCRDsExist=true"},
		"prometheus.prometheusRule.enabled":     {"--set", "prometheus.prometheusRule.trustCRDsExist=true"},
		"prometheus.prometheusRule.labels":      {"--set", "prometheus.prometheusRule.enabled=true,prometheus.prometheusRule.trustCRDsExist=true"},
	}
	keys := readKeys(t)
	for _, key := range keys.Honoured {
		t.Run(key, func(t *testing.T) {
			named := slices.DeleteFunc(slices.Clone(keys.Only[key].Values), func(v string) bool { return v == "" })
			if len(named) == 1 {
				t.Skip("has one value only, which TestRefusals covers")
			}
			if key == "prometheus.prometheusRule.trustCRDsExist" {
				t.Skip("decides whether another key is refused, which TestRefusals covers")
			}
			value, ok := other[key]
			if !ok {
				t.Fatal("this test knows no second value for it: add one to the table")
			}
			base := render(t, beside[key]...)
			if base == render(t, append([]string{"--set-json", key + "=" + value}, beside[key]...)...) {
				t.Errorf("%s=%s changes nothing", key, value)
			}
		})
	}
}

// keysFile is files/keys.yaml.
type keysFile struct {
	Honoured []string `json:"honoured"`
	Open     []string `json:"open"`
	Only     map[string]struct {
		Values []string `json:"values"`
		Why    string   `json:"why"`
	} `json:"only"`
	Refused map[string]struct {
		Why    string `json:"why"`
		Near   string `json:"near"`
		Accept string `json:"accept"`
		Always bool   `json:"always"`
	} `json:"refused"`
}

func readKeys(t *testing.T) *keysFile {
	t.Helper()
	var k keysFile
	readYAML(t, "weft/files/keys.yaml", &k)
	return &k
}

func readYAML(t *testing.T, name string, out any) {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(raw, out); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// Fault: a key is in values.yaml but not checked, or checked but not there.
func TestKeysValuesAndSchemaAgree(t *testing.T) {
	keys := readKeys(t)
	var values, schema map[string]any
	readYAML(t, "weft/values.yaml", &values)
	readYAML(t, "weft/values.schema.json", &schema)

	if diff := cmp.Diff(keys.Honoured, leaves(values, "", keys.Open)); diff != "" {
		t.Errorf("files/keys.yaml against values.yaml (-want +got):\n%s", diff)
	}
	got := schemaLeaves(schema, schema, "")
	got = slices.DeleteFunc(got, func(s string) bool { return s == "global" })
	if diff := cmp.Diff(keys.Honoured, got); diff != "" {
		t.Errorf("files/keys.yaml against values.schema.json (-want +got):\n%s", diff)
	}
	for key, r := range keys.Refused {
		if !slices.Contains(keys.Honoured, r.Near) {
			t.Errorf("refused key %s names %q, which is not honoured", key, r.Near)
		}
		if slices.Contains(keys.Honoured, key) {
			t.Errorf("%s is honoured and refused", key)
		}
		if r.Why == "" || strings.HasSuffix(r.Why, ".") {
			t.Errorf("refused key %s: %q is not a sentence without its full stop", key, r.Why)
		}
	}
}

// leaves returns the dotted paths of all values, sorted.
func leaves(v map[string]any, prefix string, open []string) []string {
	var out []string
	for k, x := range v {
		p := strings.TrimPrefix(prefix+"."+k, ".")
		if m, ok := x.(map[string]any); ok && !slices.Contains(open, p) {
			out = append(out, leaves(m, p, open)...)
		} else {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// schemaLeaves returns the dotted paths of all properties, sorted.
func schemaLeaves(root, s map[string]any, prefix string) []string {
	if ref, ok := s["$ref"].(string); ok {
		s = root["definitions"].(map[string]any)[strings.TrimPrefix(ref, "#/definitions/")].(map[string]any)
	}
	props, ok := s["properties"].(map[string]any)
	if !ok {
		return []string{prefix}
	}
	var out []string
	for k, x := range props {
		out = append(out, schemaLeaves(root, x.(map[string]any), strings.TrimPrefix(prefix+"."+k, "."))...)
	}
	slices.Sort(out)
	return out
}

func agentPod(t *testing.T, rendered string) *corev1.PodTemplateSpec {
	t.Helper()
	return &object[appsv1.DaemonSet](t, rendered, "DaemonSet/cilium").Spec.Template
}

// Fault: a name that the seeds' runbooks type is gone, or the pods would not run
// on every node, or run with more than they need.
func TestDaemonSet(t *testing.T) {
	out := render(t)
	ds := object[appsv1.DaemonSet](t, out, "DaemonSet/cilium")
	pod := ds.Spec.Template
	for k, v := range map[string]string{"k8s-app": "cilium", "app.kubernetes.io/name": "cilium-agent", "app.kubernetes.io/part-of": "weft"} {
		if ds.Labels[k] != v || pod.Labels[k] != v {
			t.Errorf("label %s is %q on the DaemonSet and %q on its pods, want %q", k, ds.Labels[k], pod.Labels[k], v)
		}
	}
	if len(pod.Spec.Containers) != 1 || pod.Spec.Containers[0].Name != "cilium-agent" {
		t.Fatalf("containers %v, want cilium-agent alone", pod.Spec.Containers)
	}
	c := pod.Spec.Containers[0]
	sc := c.SecurityContext
	if sc.Privileged != nil || !*sc.ReadOnlyRootFilesystem || !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("agent's security context: %+v", sc)
	}
	if want := []corev1.Capability{"NET_ADMIN", "NET_RAW", "SYS_ADMIN"}; !slices.Equal(sc.Capabilities.Add, want) {
		t.Errorf("capabilities %v, want %v: fewer do not suffice, more are not needed", sc.Capabilities.Add, want)
	}
	if c.Resources.Limits.Memory().IsZero() {
		t.Error("no memory limit")
	}
	for _, e := range c.Env {
		if e.Name == "GOMEMLIMIT" && e.Value != "256MiB" {
			t.Errorf("GOMEMLIMIT %s, want half of the limit of 512Mi", e.Value)
		}
	}
	for name, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if p == nil || p.HTTPGet == nil || p.HTTPGet.Host != "127.0.0.1" || p.HTTPGet.Port.IntValue() != 9879 {
			t.Errorf("%s probe %+v, want HTTP to 127.0.0.1:9879", name, p)
		}
	}
	if !pod.Spec.HostNetwork || pod.Spec.HostPID || pod.Spec.PriorityClassName != "system-node-critical" {
		t.Errorf("hostNetwork %v, hostPID %v, priority %s", pod.Spec.HostNetwork, pod.Spec.HostPID, pod.Spec.PriorityClassName)
	}
	if len(pod.Spec.Tolerations) != 1 || pod.Spec.Tolerations[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
		t.Errorf("tolerations %v: the agent must run on tainted nodes, to untaint them", pod.Spec.Tolerations)
	}
	wantMount(t, pod.Spec.InitContainers[0], "/sys/fs/bpf", corev1.MountPropagationBidirectional)
	wantMount(t, pod.Spec.InitContainers[0], "/run/netns", corev1.MountPropagationBidirectional)
	wantMount(t, c, "/sys/fs/bpf", corev1.MountPropagationHostToContainer)
	wantMount(t, c, "/run/netns", corev1.MountPropagationHostToContainer)
}

// Fault: the operator cannot run where it is needed first, on nodes that are not
// ready; or it runs with rights over the node that it has no use for.
func TestOperatorDeployment(t *testing.T) {
	d := object[appsv1.Deployment](t, render(t), "Deployment/cilium-operator")
	pod := d.Spec.Template
	for k, v := range map[string]string{"name": "cilium-operator", "io.cilium/app": "operator", "app.kubernetes.io/part-of": "weft"} {
		if d.Labels[k] != v || pod.Labels[k] != v {
			t.Errorf("label %s is %q on the Deployment and %q on its pods, want %q", k, d.Labels[k], pod.Labels[k], v)
		}
	}
	if !pod.Spec.HostNetwork || pod.Spec.PriorityClassName != "system-cluster-critical" || pod.Spec.ServiceAccountName != "cilium-operator" {
		t.Errorf("hostNetwork %v, priority %s, account %s", pod.Spec.HostNetwork, pod.Spec.PriorityClassName, pod.Spec.ServiceAccountName)
	}
	if len(pod.Spec.Tolerations) != 1 || pod.Spec.Tolerations[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
		t.Errorf("tolerations %v: nodes become ready by what it does", pod.Spec.Tolerations)
	}
	c := pod.Spec.Containers[0]
	sc := c.SecurityContext
	if sc.Privileged != nil || !*sc.ReadOnlyRootFilesystem || *sc.AllowPrivilegeEscalation || len(sc.Capabilities.Add) > 0 ||
		!slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) || !*pod.Spec.SecurityContext.RunAsNonRoot {
		t.Errorf("security context: %+v", sc)
	}
	if c.Resources.Limits.Memory().IsZero() {
		t.Error("no memory limit")
	}
	for name, p := range map[string]*corev1.Probe{"liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if p == nil || p.HTTPGet == nil || p.HTTPGet.Host != "127.0.0.1" || p.HTTPGet.Port.IntValue() != 9234 {
			t.Errorf("%s probe %+v, want HTTP to 127.0.0.1:9234", name, p)
		}
	}
	for _, v := range pod.Spec.Volumes {
		if v.ConfigMap == nil {
			t.Errorf("volume %s: the operator needs nothing of the node", v.Name)
		}
	}
}

// Fault: a change of the pool restarts the operator, and while it starts nobody
// gets a range; or a change of what it reads at its start does not restart it.
func TestPoolIsReadWhileRunning(t *testing.T) {
	sum := func(set string) string {
		return object[appsv1.Deployment](t, render(t, "--set", set), "Deployment/cilium-operator").Spec.Template.Annotations["weft.dev/config-checksum"]
	}
	a := sum("MTU=0")
	if b := sum("ipam.operator.clusterPoolIPv4PodCIDRList=10.10.0.0/16"); a != b {
		t.Error("a change of the pool restarts the operator")
	}
	if b := sum("operator.prometheus.port=9964"); a == b {
		t.Error("a change of a port does not restart the operator")
	}
}

func wantMount(t *testing.T, c corev1.Container, path string, prop corev1.MountPropagationMode) {
	t.Helper()
	for _, m := range c.VolumeMounts {
		if m.MountPath == path {
			if m.MountPropagation == nil || *m.MountPropagation != prop {
				t.Errorf("container %s: %s is not mounted %s", c.Name, path, prop)
			}
			return
		}
	}
	t.Errorf("container %s does not mount %s", c.Name, path)
}

// Fault: settings change and the agents go on with the old ones.
func TestSettingsRollTheAgents(t *testing.T) {
	sum := func(args ...string) string {
		return agentPod(t, render(t, args...)).Annotations["weft.dev/config-checksum"]
	}
	a, b := sum(), sum("--set", "MTU=1400")
	if a == "" || a == b {
		t.Errorf("checksum %q before and %q after a change", a, b)
	}
	if c := sum("--set", "rollOutCiliumPods=false"); c != "" {
		t.Errorf("rollOutCiliumPods=false leaves checksum %q", c)
	}
}

// Fault: an object that the chart makes is not marked as Weft's, so that the
// next install takes it for a live Cilium's, or uninstall leaves it.
func TestEverythingIsMarked(t *testing.T) {
	objs := objects(t, render(t, "--set", "annotations.team=net"))
	if len(objs) < 7 {
		t.Fatalf("only %v", slices.Sorted(maps.Keys(objs)))
	}
	for name, raw := range objs {
		var o struct {
			Metadata metav1.ObjectMeta `json:"metadata"`
		}
		if err := yaml.Unmarshal(raw, &o); err != nil {
			t.Fatal(err)
		}
		if o.Metadata.Labels["app.kubernetes.io/part-of"] != "weft" {
			t.Errorf("%s is not labelled as part of weft", name)
		}
		if o.Metadata.Annotations["team"] != "net" {
			t.Errorf("%s lacks the annotations of values.annotations", name)
		}
	}
}
