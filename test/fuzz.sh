#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# fuzz.sh TIME: runs each fuzz target for that long, e.g. 20s.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:-20s}
passed=0
failed=0
while read -r target pkg; do
	echo "==> $target in $pkg, $time"
	if go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg"; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
	fi
done < <(go test -list '^Fuzz' ./... | awk '/^Fuzz/ {t[n++] = $1} /^ok/ {for (i = 0; i < n; i++) print t[i], $2; n = 0}')
echo "fuzz: $passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
