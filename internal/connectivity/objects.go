// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"fmt"
	"maps"
	"net/netip"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Namespace holds everything that a test makes.
const Namespace = "weft-connectivity"

// Labels of what a test makes.
const (
	labelPartOf = "app.kubernetes.io/part-of"
	labelRun    = "weft.dev/connectivity-run"
	labelRole   = "weft.dev/connectivity-role"
	partOf      = "weft-connectivity"
	// annotationNode says which node's Service it is.
	annotationNode = "weft.dev/connectivity-node"
)

// Roles of the probes, also the names of their DaemonSets.
const (
	roleA    = "probe-a"
	roleB    = "probe-b"
	roleHost = "probe-host"
)

const container = "probe"

// DefaultPort is where the servers echo, in pods and on nodes.
const DefaultPort = 4747

// Environment of `weft connectivity serve`.
const (
	EnvAddrs = "WEFT_CONNECTIVITY_ADDRS" // addresses to listen on, separated by commas
	EnvToken = "WEFT_CONNECTIVITY_TOKEN"
	EnvPort  = "WEFT_CONNECTIVITY_PORT"
)

func (r *runner) meta(name string, extra map[string]string) metav1.ObjectMeta {
	labels := map[string]string{labelPartOf: partOf, labelRun: r.id}
	maps.Copy(labels, extra)
	return metav1.ObjectMeta{Name: name, Labels: labels}
}

// namespace admits pods of the host's network, which the baseline of pod
// security does not.
func (r *runner) namespace() *corev1.Namespace {
	return &corev1.Namespace{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: r.meta(Namespace, map[string]string{
			"pod-security.kubernetes.io/enforce": "privileged",
			"pod-security.kubernetes.io/warn":    "privileged",
			"pod-security.kubernetes.io/audit":   "privileged",
		}),
	}
}

// daemonSet runs one probe a node. Host probes listen on the node's addresses,
// and answer only those who know the run's token.
func (r *runner) daemonSet(role string, host bool) *appsv1.DaemonSet {
	labels := map[string]string{labelPartOf: partOf, labelRun: r.id, labelRole: role}
	return &appsv1.DaemonSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: r.meta(role, map[string]string{labelRole: role}),
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       r.podSpec(host),
			},
		},
	}
}

func (r *runner) podSpec(host bool) corev1.PodSpec {
	yes, no, grace, root := true, false, int64(1), int64(0)
	addrs := "status.podIPs"
	if host {
		addrs = "status.hostIPs"
	}
	spec := corev1.PodSpec{
		HostNetwork:                   host,
		AutomountServiceAccountToken:  &no,
		EnableServiceLinks:            &no,
		TerminationGracePeriodSeconds: &grace,
		Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Containers: []corev1.Container{{
			Name:            container,
			Image:           r.opts.Image,
			ImagePullPolicy: corev1.PullIfNotPresent, // the agent runs from it: it is there
			Command:         []string{"/usr/bin/weft", "connectivity", "serve"},
			Env: []corev1.EnvVar{
				{Name: EnvAddrs, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: addrs}}},
				{Name: EnvToken, Value: r.token.String()},
				{Name: EnvPort, Value: strconv.Itoa(int(r.opts.Port))},
			},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
			},
			SecurityContext: &corev1.SecurityContext{
				RunAsUser:                &root,
				AllowPrivilegeEscalation: &no,
				ReadOnlyRootFilesystem:   &yes,
				// For echo requests where the node's ping_group_range forbids them.
				Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_RAW"}},
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		}},
	}
	if len(r.opts.Nodes) > 0 {
		spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: r.opts.Nodes[:1]}},
			}}},
		}}
		for _, n := range r.opts.Nodes[1:] { // a field takes one value a term; terms are alternatives
			sel := spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
			sel.NodeSelectorTerms = append(sel.NodeSelectorTerms, corev1.NodeSelectorTerm{
				MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{n}}},
			})
		}
	}
	return spec
}

// service is a ClusterIP in each family that the cluster has, without a
// selector: its endpoint is one pod, given by slice.
func (r *runner) service(i int) *corev1.Service {
	dual := corev1.IPFamilyPolicyPreferDualStack
	ports := make([]corev1.ServicePort, 0, 2)
	for name, proto := range map[string]corev1.Protocol{"tcp": corev1.ProtocolTCP, "udp": corev1.ProtocolUDP} {
		ports = append(ports, corev1.ServicePort{Name: name, Protocol: proto, Port: int32(r.opts.Port), TargetPort: intstr.FromInt32(int32(r.opts.Port))})
	}
	meta := r.meta(hairpinName(i), nil)
	meta.Annotations = map[string]string{annotationNode: r.topo.Nodes[i].Name}
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: meta,
		Spec:       corev1.ServiceSpec{IPFamilyPolicy: &dual, Ports: ports},
	}
}

func hairpinName(i int) string { return fmt.Sprintf("hairpin-%d", i) }

// slice names the pod as the service's one endpoint in the address's family.
func (r *runner) slice(service string, pod Pod, node string, addr netip.Addr) *discoveryv1.EndpointSlice {
	kind, suffix := discoveryv1.AddressTypeIPv4, "-4"
	if addr.Is6() {
		kind, suffix = discoveryv1.AddressTypeIPv6, "-6"
	}
	ready := true
	port := int32(r.opts.Port)
	tcp, udp, tcpName, udpName := corev1.ProtocolTCP, corev1.ProtocolUDP, "tcp", "udp"
	return &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: r.meta(service+suffix, map[string]string{
			discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: partOf,
		}),
		AddressType: kind,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{addr.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			NodeName:   &node,
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: Namespace, Name: pod.Name},
		}},
		Ports: []discoveryv1.EndpointPort{{Name: &tcpName, Protocol: &tcp, Port: &port}, {Name: &udpName, Protocol: &udp, Port: &port}},
	}
}
