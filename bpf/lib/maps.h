/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * All maps. Sizes of those with one entry here are set by the agent before load
 * (maps.Sizes). The agent pins them by name; see docs/datapath.md.
 */
#ifndef WEFT_MAPS_H
#define WEFT_MAPS_H

#include "types.h"
#include <bpf/bpf_helpers.h>
#include "reasons.h"

#define DEFINE_MAP(map_name, map_type, entries, key_type, value_type, map_flag) \
	struct {                                                               \
		__uint(type, map_type);                                        \
		__uint(max_entries, entries);                                  \
		__uint(map_flags, map_flag);                                   \
		__type(key, key_type);                                         \
		__type(value, value_type);                                     \
	} map_name SEC(".maps")

DEFINE_MAP(weft_cfg, BPF_MAP_TYPE_ARRAY, 1, __u32, struct weft_config, 0);
DEFINE_MAP(weft_ways, BPF_MAP_TYPE_ARRAY, 1, __u32, struct weft_ways, 0);
DEFINE_MAP(weft_ep, BPF_MAP_TYPE_ARRAY, MAX_ENDPOINTS, __u32, struct weft_endpoint, 0);
DEFINE_MAP(weft_dev, BPF_MAP_TYPE_HASH, 2 * MAX_ENDPOINTS, __u32, struct weft_device, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_metrics, BPF_MAP_TYPE_PERCPU_ARRAY, HOOK_MAX * CODES_PER_HOOK, __u32, struct weft_metric, 0);
DEFINE_MAP(weft_rate, BPF_MAP_TYPE_PERCPU_ARRAY, 1, __u32, struct weft_spent, 0);

DEFINE_MAP(weft_ipc4, BPF_MAP_TYPE_HASH, 1, __u32, struct weft_ipcache, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_ipc6, BPF_MAP_TYPE_HASH, 1, struct v6addr, struct weft_ipcache, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_net4, BPF_MAP_TYPE_LPM_TRIE, 1, struct weft_net4_key, struct weft_ipcache, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_net6, BPF_MAP_TYPE_LPM_TRIE, 1, struct weft_net6_key, struct weft_ipcache, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_ct4, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_ct4_key, struct weft_ct, 0);
DEFINE_MAP(weft_ct6, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_ct6_key, struct weft_ct, 0);
DEFINE_MAP(weft_ctn4, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_ct4_key, struct weft_ct, 0);
DEFINE_MAP(weft_ctn6, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_ct6_key, struct weft_ct, 0);
DEFINE_MAP(weft_frag4, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_frag4_key, struct weft_frag, 0);
DEFINE_MAP(weft_frag6, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_frag6_key, struct weft_frag, 0);

DEFINE_MAP(weft_nat4, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_nat4_key, struct weft_nat, 0);
DEFINE_MAP(weft_nat6, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_nat6_key, struct weft_nat, 0);
DEFINE_MAP(weft_natn4, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_nat4_key, struct weft_nat, 0);
DEFINE_MAP(weft_natn6, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_nat6_key, struct weft_nat, 0);
DEFINE_MAP(weft_natc4, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_nat4_key, struct weft_nat, 0);
DEFINE_MAP(weft_natc6, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_nat6_key, struct weft_nat, 0);
DEFINE_MAP(weft_natip, BPF_MAP_TYPE_ARRAY, NAT_SLOTS, __u32, struct weft_nat_address, 0);
DEFINE_MAP(weft_natdev, BPF_MAP_TYPE_HASH, 256, __u32, struct weft_nat_device, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_nomasq4, BPF_MAP_TYPE_LPM_TRIE, 1024, struct weft_net4_key, __u32, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_nomasq6, BPF_MAP_TYPE_LPM_TRIE, 1024, struct weft_net6_key, __u32, BPF_F_NO_PREALLOC);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
	__type(value, struct weft_event);
} weft_events SEC(".maps");

#endif
