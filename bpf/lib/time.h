/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef WEFT_TIME_H
#define WEFT_TIME_H

#include "maps.h"

/*
 * Time in conntrack is counted in ticks of 2^30 ns (1.07 s): a shift, where
 * seconds would cost a 64-bit division on every packet.
 */
#define TICK_SHIFT 30

static __always_inline __u32 now_tick(void)
{
	return (__u32)(bpf_ktime_get_coarse_ns() >> TICK_SHIFT);
}

/* The clock wraps after 146 years; compare by difference all the same. */
static __always_inline bool expired(__u32 expires, __u32 now)
{
	return (__s32)(expires - now) < 0;
}

enum budget {
	BUDGET_DROPS,
	BUDGET_TRACES,
	BUDGET_ICMP,
};

/* Takes one out of this CPU's budget of the current tick; false: nothing left. */
static __always_inline bool spend(enum budget what, __u32 limit)
{
	__u32 zero = 0, now = now_tick();
	struct weft_spent *s = bpf_map_lookup_elem(&weft_rate, &zero);
	__u32 *used;

	if (!s)
		return false;
	if (s->tick != now) {
		s->tick = now;
		s->drops = 0;
		s->traces = 0;
		s->icmp = 0;
	}
	used = what == BUDGET_DROPS ? &s->drops : what == BUDGET_TRACES ? &s->traces : &s->icmp;
	if (*used >= limit)
		return false;
	*used += 1;
	return true;
}

#endif
