// SPDX-License-Identifier: Apache-2.0

// Package object holds the compiled BPF programs and the Go types of what they
// share with the agent. All files but this one come from bpf/ by
//
//	go generate ./internal/datapath/object
//
// which needs clang 19, llvm-strip 19, libbpf-dev and linux-libc-dev.
// They are committed: neither a build nor a node needs a compiler.
package object

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package object -output-stem datapath -type weft_config -type weft_endpoint -type weft_device -type weft_ipcache -type weft_net4_key -type weft_net6_key -type weft_ct4_key -type weft_ct6_key -type weft_ct -type weft_frag4_key -type weft_frag6_key -type weft_frag -type weft_nat4_key -type weft_nat6_key -type weft_nat -type weft_nat_address -type weft_nat_device -type weft_metric -type weft_spent -type weft_event -type weft_svc4_key -type weft_svc6_key -type weft_svc -type weft_svcset_key -type weft_svc_chunk -type weft_backend -type weft_affinity_key -type weft_chosen -type weft_sk_key -type weft_wanted -type weft_lbct4_key -type weft_lbct6_key -type weft_lbct -type weft_src4_key -type weft_src6_key -type weft_maglev_key -type weft_maglev_chunk Datapath ../../../bpf/datapath.c -- -std=gnu11 -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

// Bytes returns the object as it was compiled.
func Bytes() []byte { return _DatapathBytes }
