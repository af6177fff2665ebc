#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Kubernetes' own tests of [sig-network]: those of [Conformance], and with UPSTREAM=all
# those of Services and Networking too. Against kube-proxy in each mode and without it
# (KUBE_PROXY="iptables nftables none"), each in a lab of its own. Without it services
# are Weft's. Results land in build/upstream. Tests that do not run are listed, with why, in
# test/upstream-skip.txt; how many pass, in test/upstream-passed.txt: fewer are a
# failure even where none failed.
set -euo pipefail
cd "$(dirname "$0")/.."

lab=ups-$$
read -r -a modes <<<"${KUBE_PROXY:-iptables nftables none}"
what=${UPSTREAM:-all}
focus='\[sig-network\].*\[Conformance\]'
[ "$what" = conformance ] || focus+='|\[sig-network\] (Services|Networking)'

# skip MODE: what upstream-skip.txt leaves out where kube-proxy runs in this mode, on this kernel.
skip() {
	grep -v '^#' test/upstream-skip.txt | while read -r pattern where _; do
		case $where in
		without-sctp:) ! grep -qw SCTP /proc/net/protocols || continue ;;
		without-kube-proxy:) [ "$1" = none ] || continue ;;
		esac
		echo "${pattern//_/ }"
	done | paste -sd '|' -
}

test/step.sh "Kubernetes and its tests" build/bin/weft-lab build --with-e2e
test/stale.sh
trap 'build/bin/weft-lab --name "$lab" down' EXIT
failed=0
for mode in "${modes[@]}"; do
	out=build/upstream/$mode
	mkdir -p "$out"
	test/step.sh "lab, kube-proxy $mode" build/bin/weft-lab --name "$lab" up --replace --nodes 3 --cni weft --kube-proxy "$mode"
	services=()
	[ "$mode" != none ] || services=(--set kubeProxyReplacement=true)
	test/step.sh "install" test/install.sh "$lab" "${services[@]}"
	ok=1
	test/step.sh "upstream tests, kube-proxy $mode" build/bin/weft-lab --name "$lab" e2e \
		--focus "$focus" --skip "$(skip "$mode")" --procs 6 --junit "$out" | tee "$out/log.txt" || ok=0
	want=$(awk -v m="$mode" -v w="$what" '$1 == m && $2 == w {print $3}' test/upstream-passed.txt)
	want=${want:-0} # nobody has counted yet
	got=$(sed -n 's/^e2e: \([0-9]*\) passed.*/\1/p' "$out/log.txt" | tail -n 1)
	echo "upstream, kube-proxy $mode: ${got:-0} passed, $want are known to pass"
	if [ "$ok" -eq 0 ] || [ "${got:-0}" -lt "$want" ]; then
		failed=$((failed + 1))
		build/bin/weft-lab --name "$lab" run -- build/bin/weft status --verbose >"$out/status.txt" 2>&1 || true
		build/bin/weft-lab --name "$lab" kubectl -n kube-system logs -l k8s-app=cilium --prefix --tail=5000 >"$out/agents.log" 2>&1 || true
	fi
done
[ "$failed" -eq 0 ]
