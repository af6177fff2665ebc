#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# deps.sh [PACKAGE...]: installs the Debian packages that build and tests need,
# and those that are named, if they are missing.
set -euo pipefail

packages=(
	# BPF objects
	clang-19 llvm-19 libbpf-dev linux-libc-dev
	# networks of tests and lab
	iproute2 iptables nftables conntrack ethtool iputils-ping tcpdump bpftool
	# linters and the race detector
	shellcheck gcc libc6-dev
	git make curl ca-certificates
	"$@"
)

missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
if [ ${#missing[@]} -eq 0 ]; then
	echo "deps: all ${#packages[@]} packages are installed"
	exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "deps: missing ${missing[*]}: run as root, or: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 1
fi

export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120)
echo "deps: installing ${missing[*]}"
"${apt[@]}" update
for attempt in 1 2 3; do
	if "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null; then
		exit 0
	fi
	echo "deps: attempt $attempt of 3 failed" >&2
	"${apt[@]}" update || true
done
echo "deps: cannot install ${missing[*]}: see apt-get's words above" >&2
exit 1
