#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# step.sh NAME COMMAND...: runs the command, says how long it took and how it
# ended, and ends likewise.
set -euo pipefail

name=$1
shift
echo "==> $name"
start=$SECONDS
rc=0
"$@" || rc=$?
if [ "$rc" -eq 0 ]; then
	echo "<== $name: ok, $((SECONDS - start)) s"
else
	echo "<== $name: FAILED with exit code $rc after $((SECONDS - start)) s" >&2
fi
exit "$rc"
