{{- define "weft.labels" -}}
k8s-app: cilium
app.kubernetes.io/name: cilium-agent
app.kubernetes.io/part-of: weft
{{- end -}}

{{- define "weft.operatorLabels" -}}
name: cilium-operator
io.cilium/app: operator
app.kubernetes.io/name: cilium-operator
app.kubernetes.io/part-of: weft
{{- end -}}

{{- define "weft.operatorMetaLabels" -}}
{{ include "weft.operatorLabels" . }}
{{ include "weft.releaseLabels" . }}
{{- end -}}

{{- define "weft.metaLabels" -}}
{{ include "weft.labels" . }}
{{ include "weft.releaseLabels" . }}
{{- end -}}

{{- define "weft.releaseLabels" -}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "weft.annotations" -}}
{{- with .Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "weft.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "a b c" or a list, as the agent reads it: separated by spaces. */}}
{{- define "weft.words" -}}
{{- if kindIs "slice" . -}}{{ . | join " " }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/*
Half of the memory limit, for Go's heap: the rest is for BPF maps, which the
kernel charges to the container, and for the program itself. A limit that is not
in Mi or Gi leaves Go without one. Takes a container's resources.
*/}}
{{- define "weft.gomemlimit" -}}
{{- $limit := toString (dig "limits" "memory" "" .) -}}
{{- if regexMatch "^[0-9]+Mi$" $limit -}}
{{ div (trimSuffix "Mi" $limit | int) 2 }}MiB
{{- else if regexMatch "^[0-9]+Gi$" $limit -}}
{{ mul (trimSuffix "Gi" $limit | int) 512 }}MiB
{{- end -}}
{{- end -}}

{{/* Settings of the operator alone. */}}
{{- define "weft.operatorConfig" -}}
{{- with .Values.operator -}}
operator-health-port: {{ .healthPort | int | quote }}
operator-prometheus-port: {{ ternary (.prometheus.port | int) 0 .prometheus.enabled | quote }}
nodes-gc-interval: {{ .nodeGCInterval | quote }}
{{- end -}}
{{- end -}}

{{/* Settings of the agents, and of the pool: internal/config holds their meaning. */}}
{{- define "weft.config" -}}
enable-ipv4: {{ .Values.ipv4.enabled | quote }}
enable-ipv6: {{ .Values.ipv6.enabled | quote }}
routing-mode: {{ .Values.routingMode | quote }}
tunnel-protocol: {{ .Values.tunnelProtocol | default "vxlan" | quote }}
tunnel-port: {{ .Values.tunnelPort | int | default 8472 | quote }}
underlay-protocol: {{ .Values.underlayProtocol | quote }}
auto-direct-node-routes: {{ .Values.autoDirectNodeRoutes | quote }}
ipam: {{ .Values.ipam.mode | quote }}
ipam-multi-pool-pre-allocation: {{ .Values.ipam.multiPoolPreAllocation | quote }}
{{- with .Values.ipam.operator }}
cluster-pool-ipv4-cidr: {{ include "weft.words" .clusterPoolIPv4PodCIDRList | quote }}
cluster-pool-ipv4-mask-size: {{ .clusterPoolIPv4MaskSize | int | quote }}
cluster-pool-ipv6-cidr: {{ include "weft.words" .clusterPoolIPv6PodCIDRList | quote }}
cluster-pool-ipv6-mask-size: {{ .clusterPoolIPv6MaskSize | int | quote }}
cluster-pool-acknowledged-overlaps: {{ include "weft.words" .acknowledgedOverlaps | quote }}
cluster-pool-quarantine: {{ .quarantine | quote }}
{{- end }}
mtu: {{ .Values.MTU | int | quote }}
enable-ipv4-big-tcp: {{ .Values.enableIPv4BIGTCP | quote }}
enable-ipv6-big-tcp: {{ .Values.enableIPv6BIGTCP | quote }}
enable-endpoint-routes: {{ .Values.endpointRoutes.enabled | quote }}
kube-proxy-replacement: {{ .Values.kubeProxyReplacement | quote }}
bpf-lb-sock: {{ .Values.socketLB.enabled | quote }}
nodeport-addresses: {{ include "weft.words" .Values.nodePort.addresses | quote }}
node-port-bind-protection: {{ .Values.nodePort.bindProtection | quote }}
bpf-lb-sock-hostns-only: {{ .Values.socketLB.hostNamespaceOnly | quote }}
enable-node-port: {{ .Values.nodePort.enabled | quote }}
enable-health-check-nodeport: {{ .Values.nodePort.enableHealthCheck | quote }}
bpf-lb-algorithm: {{ .Values.loadBalancer.algorithm | quote }}
bpf-lb-algorithm-annotation: {{ .Values.bpf.lbAlgorithmAnnotation | quote }}
bpf-lb-maglev-table-size: {{ .Values.maglev.tableSize | int | quote }}
bpf-lb-maglev-hash-seed: {{ .Values.maglev.hashSeed | quote }}
bpf-lb-map-max: {{ .Values.bpf.lbMapMax | int | quote }}
devices: {{ include "weft.words" .Values.devices | quote }}
cgroup-root: {{ .Values.cgroup.hostRoot | quote }}
debug: {{ .Values.debug.enabled | quote }}
monitor-aggregation: {{ .Values.bpf.monitorAggregation | quote }}
enable-bpf-masquerade: {{ .Values.bpf.masquerade | quote }}
enable-ipv4-masquerade: {{ ternary .Values.bpf.masquerade .Values.enableIPv4Masquerade (kindIs "invalid" .Values.enableIPv4Masquerade) | quote }}
enable-ipv6-masquerade: {{ ternary .Values.bpf.masquerade .Values.enableIPv6Masquerade (kindIs "invalid" .Values.enableIPv6Masquerade) | quote }}
enable-ip-masq-agent: {{ .Values.ipMasqAgent.enabled | quote }}
masquerade-port-range: {{ .Values.bpf.masqueradePorts | quote }}
ipv4-native-routing-cidr: {{ .Values.ipv4NativeRoutingCIDR | quote }}
ipv6-native-routing-cidr: {{ .Values.ipv6NativeRoutingCIDR | quote }}
agent-health-port: {{ .Values.healthPort | int | quote }}
prometheus-port: {{ ternary (.Values.prometheus.port | int) 0 .Values.prometheus.enabled | quote }}
pprof-port: {{ ternary (.Values.pprof.port | int) 0 .Values.pprof.enabled | quote }}
{{- end -}}

{{/* "true" where Services get their backends here: at sockets; and from outside, too. */}}
{{- define "weft.socketLB" -}}
{{- if or .Values.socketLB.enabled (eq (toString .Values.kubeProxyReplacement) "true") -}}true{{- end -}}
{{- end -}}
{{- define "weft.nodePort" -}}
{{- if or .Values.nodePort.enabled (eq (toString .Values.kubeProxyReplacement) "true") -}}true{{- end -}}
{{- end -}}

{{- define "weft.apiServerEnv" -}}
{{- if .Values.k8sServiceHost }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.k8sServiceHost | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.k8sServicePort | default 6443 | toString | quote }}
{{- end }}
{{- end -}}
