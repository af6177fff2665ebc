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

kubernetes=
finish() {
	local rc=$?
	trap - EXIT
	if [ -n "$kubernetes" ]; then
		kill -TERM "$kubernetes" 2>/dev/null || true
		wait "$kubernetes" 2>/dev/null || true
	fi
	go run ./test/tally build/test/*.json || rc=1
	exit "$rc"
}

test/step.sh "Debian packages" make deps
trap finish EXIT
test/step.sh "weft-lab" make build
nice -n 5 build/bin/weft-lab build >build/log/kubernetes.log 2>&1 &
kubernetes=$!

make check
[ "$what" != full ] || test/step.sh "race detector" make race
[ "$what" != full ] || test/step.sh "fuzz" make fuzz

echo "==> Kubernetes"
start=$SECONDS
rc=0
wait "$kubernetes" || rc=$?
kubernetes=
tail -n 3 build/log/kubernetes.log
if [ "$rc" -ne 0 ]; then
	echo "<== Kubernetes: FAILED, see build/log/kubernetes.log" >&2
	tail -n 50 build/log/kubernetes.log >&2
	exit "$rc"
fi
echo "<== Kubernetes: ok, waited $((SECONDS - start)) s"

test/step.sh "end to end" make e2e
if [ "$what" = full ]; then
	test/step.sh "upstream conformance" make test-e2e-upstream
	test/step.sh "CNI benchmark" make bench-cni
fi
