#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# install.sh LAB [helm arguments...]: loads the image into a lab's nodes,
# installs or upgrades Weft with its chart and waits until every node is proven.
set -euo pipefail
cd "$(dirname "$0")/.."

lab=$1
shift
in_lab=(build/bin/weft-lab --name "$lab" run --)
chart=install/helm/weft
# The API server as the lab's kubeconfig names it: nothing has to translate a
# service address before the network is there.
server=$("${in_lab[@]}" kubectl config view --minify -o 'jsonpath={.clusters[0].cluster.server}')
hostport=${server#https://}

build/bin/weft-lab --name "$lab" images load build/image/weft.tar
# Helm installs definitions with the first release only and never changes them;
# what is new or Weft's may follow the chart.
for crd in "$chart"/crds/*.yaml; do
	name=$(basename "$crd" .yaml) # group_plural
	name=${name#*_}.${name%%_*}
	owner=$("${in_lab[@]}" kubectl get crd "$name" --ignore-not-found -o 'jsonpath={.metadata.name} {.metadata.labels.app\.kubernetes\.io/part-of}')
	[[ $owner && ${owner#* } != weft ]] || "${in_lab[@]}" kubectl apply --server-side --force-conflicts -f "$crd"
done
was=$("${in_lab[@]}" kubectl -n kube-system get ds cilium --ignore-not-found -o 'jsonpath={.metadata.generation}')
"${in_lab[@]}" build/tools/helm upgrade --install weft "$chart" --namespace kube-system \
	--set "ipv6.enabled=true,k8sServiceHost=${hostport%:*},k8sServicePort=${hostport##*:}" "$@"
# The tag stays the same while the image behind it is new.
[ -z "$was" ] || "${in_lab[@]}" kubectl -n kube-system rollout restart ds/cilium deploy/cilium-operator
"${in_lab[@]}" kubectl -n kube-system rollout status ds/cilium --timeout=180s
"${in_lab[@]}" kubectl -n kube-system rollout status deploy/cilium-operator --timeout=120s
"${in_lab[@]}" build/bin/weft status --wait
