#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# promtool.sh FILE: takes promtool out of Debian's package prometheus. Installed,
# that package would start a server on this machine; compiled, Prometheus takes
# minutes.
set -euo pipefail

out=$(realpath -m "$1")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# apt fetches as a user of its own where it may.
[ "$(id -u)" -ne 0 ] || ! id _apt >/dev/null 2>&1 || chown _apt "$dir"
cd "$dir"
fetch() { apt-get -qq -o Acquire::Retries=3 download prometheus; }
if ! fetch; then
	echo "promtool: package lists are old, updating them" >&2
	apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 update
	fetch
fi
mkdir -p "$(dirname "$out")"
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >"$out.new"
chmod 755 "$out.new"
mv "$out.new" "$out"
