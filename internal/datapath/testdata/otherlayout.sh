#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes otherlayout.o.gz: today's programs over maps of another layout, as some
# release before or after might have them. Members are added in front, moved, and
# made wider; but not those of weft_cfg, which the agent writes when it starts. It
# needs to be made anew only when upgrades from it fail for a reason that is none:
# a map that it lacks, a changed meaning of a member.
set -euo pipefail
cd "$(dirname "$0")"

src=$(mktemp -d)
trap 'rm -rf "$src"' EXIT
cp -r ../../../bpf/. "$src"
perl -0pi -e '
	s/(struct weft_ct \{\n)/$1\t__u32 added;\n/                                                   or die "weft_ct";
	s/\t__u16 src_endpoint; \/\* 0: not local \*\/\n\t__u16 dst_endpoint;\n/\t__u32 dst_endpoint;\n\t__u32 src_endpoint;\n/ or die "endpoints";
	s/(struct weft_ct4_key \{\n)(\t__u32 addr\[2\];\n)(\t__u16 port\[2\];\n)/$1$3$2/              or die "weft_ct4_key";
	s/(struct weft_ct6_key \{\n)(\tstruct v6addr addr\[2\];\n)(\t__u16 port\[2\];\n)/$1$3$2/     or die "weft_ct6_key";
	s/(struct weft_nat \{\n)/$1\t__u32 added[3];\n/                                               or die "weft_nat";
	s/(struct weft_nat4_key \{\n)/$1\t__u64 zone;\n/                                              or die "weft_nat4_key";
	s/(struct weft_ipcache \{\n)/$1\t__u32 added;\n/                                              or die "weft_ipcache";
	s/(struct weft_endpoint \{\n)/$1\t__u64 added;\n/                                             or die "weft_endpoint";
' "$src/lib/types.h"
clang-19 -target bpfel -std=gnu11 -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter \
	-I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu -c "$src/datapath.c" -o "$src/datapath.o"
llvm-strip-19 -g "$src/datapath.o"
gzip -9nc "$src/datapath.o" >otherlayout.o.gz
