{{/*
Values are checked here and not in values.schema.json wherever a plain "not
allowed" would leave the reader alone: Helm checks the schema first, and its
errors name neither a reason nor the nearest key. The schema holds types and
ranges, this file holds what Weft honours.

weft.validate fails with one line for each value that Weft does not honour.
*/}}
{{- define "weft.validate" -}}
{{- $keys := .Files.Get "files/keys.yaml" | fromYaml -}}
{{- $ctx := dict "keys" $keys "problems" (list) -}}
{{- include "weft.walk" (dict "ctx" $ctx "path" "" "value" (omit .Values "global")) -}}
{{- include "weft.validate.rules" (dict "ctx" $ctx "Values" .Values) -}}
{{- include "weft.validate.alerts" (dict "ctx" $ctx "Values" .Values "Capabilities" .Capabilities) -}}
{{- if $ctx.problems -}}
{{- fail (printf "\n\nWeft does not honour these values:\n  - %s\n\nRemove them or set them as said; `helm show values` lists all that work.\n" ($ctx.problems | join "\n  - ")) -}}
{{- end -}}
{{- end -}}

{{/* Rules between values. */}}
{{- define "weft.validate.rules" -}}
{{- $ctx := .ctx -}}
{{- $v := .Values -}}
{{- $add := list -}}
{{- if not (or $v.ipv4.enabled $v.ipv6.enabled) -}}
{{- $add = append $add "ipv4.enabled, ipv6.enabled: both are false, and pods need an address of one family at least" -}}
{{- end -}}
{{- if and $v.k8sServicePort (not $v.k8sServiceHost) -}}
{{- $add = append $add "k8sServicePort: has no effect without k8sServiceHost; set both" -}}
{{- end -}}
{{- if and $v.prometheus.enabled (eq (int $v.prometheus.port) (int $v.healthPort)) -}}
{{- $add = append $add (printf "prometheus.port: %d is healthPort already; choose another" (int $v.healthPort)) -}}
{{- end -}}
{{- if and $v.pprof.enabled (has (int $v.pprof.port) (list (int $v.healthPort) (ternary (int $v.prometheus.port) 0 $v.prometheus.enabled))) -}}
{{- $add = append $add (printf "pprof.port: %d is taken by healthPort or prometheus.port; choose another" (int $v.pprof.port)) -}}
{{- end -}}
{{- $o := $v.operator -}}
{{- if and $o.prometheus.enabled (eq (int $o.prometheus.port) (int $o.healthPort)) -}}
{{- $add = append $add (printf "operator.prometheus.port: %d is operator.healthPort already; choose another" (int $o.healthPort)) -}}
{{- end -}}
{{- range $key, $port := dict "operator.healthPort" $o.healthPort "operator.prometheus.port" (ternary $o.prometheus.port 0 $o.prometheus.enabled) -}}
{{- if has (int $port) (list (int $v.healthPort) (ternary (int $v.prometheus.port) -1 $v.prometheus.enabled) (ternary (int $v.pprof.port) -1 $v.pprof.enabled)) -}}
{{- $add = append $add (printf "%s: %d is a port of the agent, which runs on the same node; choose another" $key (int $port)) -}}
{{- end -}}
{{- end -}}
{{- if eq $v.ipam.mode "cluster-pool" -}}
{{- if and $v.ipv4.enabled (not (include "weft.words" $v.ipam.operator.clusterPoolIPv4PodCIDRList | trim)) -}}
{{- $add = append $add "ipam.operator.clusterPoolIPv4PodCIDRList: is empty, and there is no default, as a range that something in your network uses would cut it off; name one that nothing in your network uses (ip route on the nodes tells some of it)" -}}
{{- end -}}
{{- if and $v.ipv6.enabled (not (include "weft.words" $v.ipam.operator.clusterPoolIPv6PodCIDRList | trim)) -}}
{{- $add = append $add "ipam.operator.clusterPoolIPv6PodCIDRList: is empty, and there is no default; name one that nothing in your network uses, of fd00::/8 for example" -}}
{{- end -}}
{{- end -}}
{{- $masq := dict "4" (and $v.bpf.masquerade $v.ipv4.enabled (ne (toString $v.enableIPv4Masquerade) "false")) "6" (and $v.bpf.masquerade $v.ipv6.enabled (ne (toString $v.enableIPv6Masquerade) "false")) -}}
{{- range $f := list "4" "6" -}}
{{- $key := printf "enableIPv%sMasquerade" $f -}}
{{- $cidr := printf "ipv%sNativeRoutingCIDR" $f -}}
{{- if and (not $v.bpf.masquerade) (eq (toString (get $v $key)) "true") -}}
{{- $add = append $add (printf "%s=true: with bpf.masquerade=false it means iptables, which Weft does not use; set bpf.masquerade=true" $key) -}}
{{- end -}}
{{- if and (get $masq $f) (eq $v.routingMode "native") (not (get $v $cidr)) (not $v.ipMasqAgent.enabled) -}}
{{- $add = append $add (printf "bpf.masquerade=true: with routingMode=native it needs %s, the range in which the network routes pods' addresses; set it, or ipMasqAgent.enabled=true, or %s=false" $cidr $key) -}}
{{- end -}}
{{- end -}}
{{- range $f := list "4" "6" -}}
{{- if and (get $v (printf "enableIPv%sBIGTCP" $f)) (not (get $v (printf "ipv%s" $f)).enabled) -}}
{{- $add = append $add (printf "enableIPv%sBIGTCP=true: has no effect without ipv%s.enabled=true; set it too" $f $f) -}}
{{- end -}}
{{- end -}}
{{- $replaces := eq (toString $v.kubeProxyReplacement) "true" -}}
{{- if and $v.socketLB.hostNamespaceOnly (not $v.socketLB.enabled) (not $replaces) -}}
{{- $add = append $add "socketLB.hostNamespaceOnly=true: has no effect without socketLB.enabled=true; set it too" -}}
{{- end -}}
{{- if and $v.nodePort.enabled (not $v.socketLB.enabled) (not $replaces) -}}
{{- $add = append $add "nodePort.enabled=true: has no effect without socketLB.enabled=true; set it too, or kubeProxyReplacement=true" -}}
{{- end -}}
{{- if and $replaces (not $v.k8sServiceHost) -}}
{{- $add = append $add "kubeProxyReplacement=true: the agents reach the API server before anybody translates the service kubernetes; set k8sServiceHost and k8sServicePort to what `kubectl cluster-info` names, as the nodes reach it" -}}
{{- end -}}
{{- if eq (toString $v.k8sServiceHost) "auto" -}}
{{- $add = append $add "k8sServiceHost=auto: Weft does not look the address up; set what `kubectl cluster-info` names" -}}
{{- end -}}
{{- range $key, $what := dict "hostPort" "host ports" "externalIPs" "external addresses of Services" -}}
{{- $on := toString (get (get $v $key | default dict) "enabled") -}}
{{- if and (eq $on "true") (not (or $replaces $v.nodePort.enabled)) -}}
{{- $add = append $add (printf "%s.enabled=true: %s come with kubeProxyReplacement=true, or with nodePort.enabled=true; set one of them" $key $what) -}}
{{- else if and (eq $on "false") $v.nodePort.enabled (not $replaces) -}}
{{- $add = append $add (printf "%s.enabled=false: nodePort.enabled=true serves %s, too; remove one of them" $key $what) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.loadBalancer.algorithm "maglev") (not (or $replaces $v.nodePort.enabled)) -}}
{{- $add = append $add "loadBalancer.algorithm=maglev: has no effect without nodePort.enabled=true; set it too" -}}
{{- end -}}
{{- if and $v.bpf.lbAlgorithmAnnotation (not (or $replaces $v.nodePort.enabled)) -}}
{{- $add = append $add "bpf.lbAlgorithmAnnotation=true: has no effect without nodePort.enabled=true; set it too" -}}
{{- end -}}
{{- if and $v.ipMasqAgent.enabled (not $v.bpf.masquerade) -}}
{{- $add = append $add "ipMasqAgent.enabled=true: has no effect without bpf.masquerade=true; set it too" -}}
{{- end -}}
{{- range $k, $_ := $v.ipMasqAgent.config -}}
{{- if not (has $k (list "nonMasqueradeCIDRs" "masqLinkLocal" "masqLinkLocalIPv6")) -}}
{{- $add = append $add (printf "ipMasqAgent.config.%s: Weft has no such key; nonMasqueradeCIDRs, masqLinkLocal and masqLinkLocalIPv6 work" $k) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $ctx "problems" (concat $ctx.problems $add) -}}
{{- end -}}

{{/*
The API server would refuse the whole release for an object that it does not
know, in words that do not name the key.
*/}}
{{- define "weft.validate.alerts" -}}
{{- $ctx := .ctx -}}
{{- $rule := .Values.prometheus.prometheusRule -}}
{{- if and $rule.enabled (not .Values.prometheus.enabled) -}}
{{- $_ := set $ctx "problems" (append $ctx.problems "prometheus.prometheusRule.enabled=true: alerts need the metrics; set prometheus.enabled=true") -}}
{{- end -}}
{{- if and $rule.enabled (not $rule.trustCRDsExist) (not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/PrometheusRule")) -}}
{{- $_ := set $ctx "problems" (append $ctx.problems "prometheus.prometheusRule.enabled=true: the cluster does not know PrometheusRule (monitoring.coreos.com/v1); install the Prometheus operator first, or without it give files/rules.yaml of this chart to Prometheus as rule_files. Where Helm sees no cluster (helm template): --api-versions monitoring.coreos.com/v1/PrometheusRule, or prometheus.prometheusRule.trustCRDsExist=true") -}}
{{- end -}}
{{- end -}}

{{/* Looks at one value and everything below it; null is Helm's way to remove a key. */}}
{{- define "weft.walk" -}}
{{- $ctx := .ctx -}}
{{- $path := .path -}}
{{- if and (kindIs "map" .value) (or (eq $path "") (and .value (not (has $path $ctx.keys.open)))) -}}
{{- range $k, $v := .value -}}
{{- include "weft.walk" (dict "ctx" $ctx "path" (ternary $k (printf "%s.%s" $path $k) (eq $path "")) "value" $v) -}}
{{- end -}}
{{- else if not (or (kindIs "invalid" .value) (has $path $ctx.keys.open)) -}}
{{- $value := toString .value -}}
{{- $only := get $ctx.keys.only $path -}}
{{- if has $path $ctx.keys.honoured -}}
{{- if and $only (not (has $value $only.values)) -}}
{{- $_ := set $ctx "problems" (append $ctx.problems (printf "%s=%s: %s" $path $value $only.why)) -}}
{{- end -}}
{{- else -}}
{{- include "weft.unknown" (dict "ctx" $ctx "path" $path "value" $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Adds the sentence for a key that is not honoured, unless its value switches off
what Weft does not have.
*/}}
{{- define "weft.unknown" -}}
{{- $ctx := .ctx -}}
{{- $entry := dict -}}
{{- $exact := false -}}
{{- /* The longest refused prefix knows best. */ -}}
{{- $parts := splitList "." .path -}}
{{- range $n, $_ := $parts -}}
{{- $prefix := slice $parts 0 (add1 $n | int) | join "." -}}
{{- with get $ctx.keys.refused $prefix -}}{{- $entry = . -}}{{- $exact = eq $prefix $.path -}}{{- end -}}
{{- end -}}
{{- if not $entry -}}
{{- $_ := set $ctx "problems" (append $ctx.problems (printf "%s: Weft has no such key. %s" .path (include "weft.nearest" .))) -}}
{{- else if and $exact (hasKey $entry "accept") (eq .value (toString $entry.accept)) -}}
{{- else if and (hasSuffix ".enabled" .path) (eq .value "false") (not $entry.always) -}}
{{- else -}}
{{- $_ := set $ctx "problems" (append $ctx.problems (printf "%s=%s: %s. Nearest key that works: %s" .path .value $entry.why $entry.near)) -}}
{{- end -}}
{{- end -}}

{{/*
Names the known key that comes nearest to .path. Where that is a refused one, it
says why it is refused and names the honoured key that stands nearest to it.
*/}}
{{- define "weft.nearest" -}}
{{- $path := trimSuffix ".enabled" .path -}}
{{- $best := "" -}}
{{- $score := -1 -}}
{{- range $key := concat .ctx.keys.honoured (keys .ctx.keys.refused | sortAlpha) -}}
{{- $s := include "weft.likeness" (dict "a" $path "b" (trimSuffix ".enabled" $key)) | int -}}
{{- if gt $s $score -}}{{- $score = $s -}}{{- $best = $key -}}{{- end -}}
{{- end -}}
{{- with get .ctx.keys.refused $best -}}
It looks like {{ $best }}, which is refused: {{ .why }}. Nearest key that works: {{ .near }}
{{- else -}}
Nearest key that works: {{ $best }}
{{- end -}}
{{- end -}}

{{/*
How alike .a and .b are, 0 to 1000: the share of pairs of neighbouring letters
that they have in common (Dice's coefficient; letter case does not count).
*/}}
{{- define "weft.likeness" -}}
{{- $a := lower .a -}}
{{- $b := lower .b -}}
{{- $hits := 0 -}}
{{- range $i := until (max 0 (sub (len $a) 1) | int) -}}
{{- if contains (substr $i (add $i 2 | int) $a) $b -}}{{- $hits = add1 $hits -}}{{- end -}}
{{- end -}}
{{- min 1000 (div (mul 2000 $hits) (max 1 (sub (add (len $a) (len $b)) 2))) -}}
{{- end -}}

{{/*
Refuses to run beside a live Cilium, or to take over its objects. lookup finds
nothing in `helm template`; there the agent's own check at its start remains.
*/}}
{{- define "weft.refuseCilium" -}}
{{- range $ds := (lookup "apps/v1" "DaemonSet" "" "").items -}}
{{- $l := $ds.metadata.labels | default dict -}}
{{- if and (or (eq $ds.metadata.name "cilium") (eq (get $l "k8s-app") "cilium")) (ne (get $l "app.kubernetes.io/part-of") "weft") -}}
{{- fail (printf "\n\nDaemonSet %s/%s is a Cilium agent that Weft did not install, and two networks cannot share a node.\nRemove it first (helm -n %s uninstall cilium), then install Weft.\n" $ds.metadata.namespace $ds.metadata.name $ds.metadata.namespace) -}}
{{- end -}}
{{- end -}}
{{- range $d := (lookup "apps/v1" "Deployment" "" "").items -}}
{{- $l := $d.metadata.labels | default dict -}}
{{- if and (or (eq $d.metadata.name "cilium-operator") (eq (get $l "name") "cilium-operator")) (ne (get $l "app.kubernetes.io/part-of") "weft") -}}
{{- fail (printf "\n\nDeployment %s/%s is a Cilium operator that Weft did not install; it would write the same CiliumNode objects.\nRemove it first (helm -n %s uninstall cilium), then install Weft.\n" $d.metadata.namespace $d.metadata.name $d.metadata.namespace) -}}
{{- end -}}
{{- end -}}
{{- range $ds := (lookup "apps/v1" "DaemonSet" "" "").items -}}
{{- $l := $ds.metadata.labels | default dict -}}
{{- if and (eq (get $l "app.kubernetes.io/part-of") "weft") (eq $ds.metadata.name "cilium") (ne $ds.metadata.namespace $.Release.Namespace) -}}
{{- fail (printf "\n\nWeft runs already, in namespace %s; one cluster has one network.\n" $ds.metadata.namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
