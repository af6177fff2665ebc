#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Takes away labs that test scripts left behind when they were killed. They are
# called KIND-PID: of the script that made them, which no longer lives.
set -euo pipefail
cd "$(dirname "$0")/.."

build/bin/weft-lab list | { grep -E '^(e2e|ups)-[0-9]+(-.*)?$' || true; } | while read -r lab; do
	pid=${lab#*-}
	kill -0 "${pid%%-*}" 2>/dev/null || build/bin/weft-lab --name "$lab" down
done
