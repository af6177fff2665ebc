#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# End-to-end tests: a lab of its own, Weft in it, the tests of test/e2e and
# test/fault, and the lab taken away again. What is needed to understand a
# failure lands in build/e2e. Arguments go to go test (-run NAME, for example).
#
# How much is done: WEFT_KILL_ROUNDS, WEFT_RESTARTS, WEFT_BREAKS_EVERY, E2E_TIMEOUT.
# WEFT_LAB=NAME uses a lab that runs, with Weft in it, and leaves it running.
set -euo pipefail
cd "$(dirname "$0")/.."

out=build/e2e
mkdir -p "$out" build/test
lab=${WEFT_LAB:-}
proxy=${KUBE_PROXY:-iptables}

evidence() {
	echo "==> evidence to $out"
	local run=(build/bin/weft-lab --name "$lab" run --)
	"${run[@]}" kubectl get nodes,pods,ciliumnodes,ciliumendpoints -A -o wide >"$out/objects.txt" 2>&1 || true
	"${run[@]}" kubectl get events -A --sort-by=.lastTimestamp >"$out/events.txt" 2>&1 || true
	"${run[@]}" kubectl -n kube-system logs -l k8s-app=cilium --all-containers --prefix --tail=2000 >"$out/agents.log" 2>&1 || true
	"${run[@]}" build/bin/weft status --verbose >"$out/status.txt" 2>&1 || true
	build/bin/weft-lab --name "$lab" status >"$out/lab.txt" 2>&1 || true
	tail -n 40 "$out/status.txt" "$out/agents.log" || true
}

finish() {
	local rc=$?
	trap - EXIT
	[ "$rc" -eq 0 ] || evidence
	[ -n "${WEFT_LAB_OURS:-}" ] && build/bin/weft-lab --name "$lab" down
	exit "$rc"
}

if [ -z "$lab" ]; then
	lab=e2e-$$
	WEFT_LAB_OURS=1
	test/step.sh "Kubernetes" build/bin/weft-lab build
	test/stale.sh
	trap finish EXIT
	test/step.sh "lab $lab" build/bin/weft-lab --name "$lab" up --nodes 3 --cni weft --kube-proxy "$proxy"
	test/step.sh "install" test/install.sh "$lab"
else
	trap finish EXIT
fi

go build -o build/bin/traffic ./test/traffic
WEFT_LAB=$lab build/tools/gotestsum --format testname --hide-summary skipped --jsonfile build/test/e2e.json -- \
	-count=1 -p 1 -parallel 1 -timeout "${E2E_TIMEOUT:-40m}" ./test/e2e/... ./test/fault/... "$@"
