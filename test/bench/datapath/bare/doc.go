// SPDX-License-Identifier: Apache-2.0

// Package bare holds a compiled forwarder that does nothing but forward, which
// the datapath is compared with. All files but this one and bare.c are made by
//
//	go generate ./test/bench/datapath/bare
//
// which needs what package internal/datapath/object needs.
package bare

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bare -output-stem bare Bare bare.c -- -std=gnu11 -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
