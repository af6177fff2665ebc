#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# ci.sh test: what CI runs. ci.sh full: everything there is. Kubernetes compiles
# in the background while the checks run.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-test}
mkdir -p build/log build/test
rm -f build/test/*.json

# A step that fails does not keep the others from running: one run tells all.
failed=()
step() {
	test/step.sh "$@" || failed+=("$1")
}

kubernetes=
finish() {
	local rc=$?
	trap - EXIT
	if [ -n "$kubernetes" ]; then
		kill -TERM "$kubernetes" 2>/dev/null || true
		wait "$kubernetes" 2>/dev/null || true
	fi
	if [ ${#failed[@]} -gt 0 ]; then
		rc=1
		printf 'step failed: %s\n' "${failed[@]}"
	fi
	shopt -s nullglob
	go run ./test/tally build/test/*.json || rc=1
	exit "$rc"
}
trap finish EXIT

if [ "$what" = full ]; then
	export WEFT_ALL_STEPS=1 WEFT_RESTARTS=50 WEFT_KILL_ROUNDS=50 WEFT_FLOOD_SYNS=1000000 E2E_TIMEOUT=150m
else
	export WEFT_BREAKS_EVERY=8 WEFT_KILL_ROUNDS=2
fi
test/step.sh "Debian packages" make deps
test/step.sh "build" make build
nice -n 5 build/bin/weft-lab build --with-e2e >build/log/kubernetes.log 2>&1 &
kubernetes=$!

step "lint" make lint
step "generated" make generated
step "unit" make unit
if [ "$what" = full ]; then
	step "race detector" make race
	step "fuzz" make fuzz
	step "kernels" make test-kernels
fi

echo "==> Kubernetes"
start=$SECONDS
rc=0
wait "$kubernetes" || rc=$?
kubernetes=
if [ "$rc" -ne 0 ]; then
	tail -n 50 build/log/kubernetes.log >&2
	echo "<== Kubernetes: FAILED, see build/log/kubernetes.log" >&2
	exit "$rc"
fi
tail -n 3 build/log/kubernetes.log
echo "<== Kubernetes: ok, waited $((SECONDS - start)) s"

step "end to end" make e2e
if [ "$what" != full ]; then
	step "upstream conformance" env KUBE_PROXY=none UPSTREAM=conformance make test-e2e-upstream
else
	step "lab" env WEFT_LAB_E2E=1 go -C lab test -count=1 -timeout 30m .
	step "upstream conformance" make test-e2e-upstream
	step "CNI benchmark" make bench-cni
	step "IPAM benchmark" make bench-ipam
	step "datapath benchmark" make bench-datapath
	step "services benchmark" make bench-services
fi
