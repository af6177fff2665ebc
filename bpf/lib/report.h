/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters and events, as far as both families share them. */
#ifndef WEFT_REPORT_H
#define WEFT_REPORT_H

#include "packet.h"

static __always_inline void count(__u32 hook, __u32 code, __u32 bytes)
{
	__u32 key = hook * CODES_PER_HOOK + code;
	struct weft_metric *m = bpf_map_lookup_elem(&weft_metrics, &key);

	if (!m)
		return;
	m->packets += 1;
	m->bytes += bytes;
}

static __always_inline const struct weft_config *config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&weft_cfg, &zero);
}

/* Is there to be a record of this packet? Counts the ones that are suppressed. */
static __always_inline bool wants_event(__u32 hook, __u32 code, bool is_new)
{
	const struct weft_config *cfg = config();
	bool drop = code >= DROP_MALFORMED;

	if (!cfg)
		return false;
	if (!drop && cfg->trace != TRACE_ALL && !(cfg->trace == TRACE_NEW && is_new))
		return false;
	if (spend(drop ? BUDGET_DROPS : BUDGET_TRACES, cfg->event_rate))
		return true;
	count(hook, NOTE_EVENT_LOST, 0);
	return false;
}

/* Reserves a record and fills in what does not depend on the family. */
static __always_inline struct weft_event *event(struct __sk_buff *skb, __u32 hook, __u32 code,
						const struct report *r, __u32 len)
{
	struct weft_event *e = bpf_ringbuf_reserve(&weft_events, sizeof(*e), 0);

	if (!e) {
		count(hook, NOTE_EVENT_LOST, 0);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->version = EVENT_VERSION;
	e->type = code >= DROP_MALFORMED ? EVENT_DROP : EVENT_TRACE;
	e->hook = hook;
	e->code = code;
	e->length = len;
	e->time = bpf_ktime_get_ns();
	e->ifindex = skb->ifindex;
	e->out_ifindex = r->out_ifindex;
	e->src_identity = r->src_identity;
	e->dst_identity = r->dst_identity;
	e->endpoint = r->endpoint;
	return e;
}

/* What the kernel is to do with a packet that was judged. */
static __always_inline int action(__u32 code)
{
	switch (code) {
	case VERDICT_PEER:
	case VERDICT_NEIGH:
	case VERDICT_ANSWER:
	case VERDICT_TUNNEL:
		return TC_ACT_REDIRECT;
	case VERDICT_STACK:
	case VERDICT_MARKED:
		return TCX_NEXT; /* never OK: others on the hook have their say (DATAPATH rule 5) */
	}
	return TC_ACT_SHOT;
}

/* Counts, reports and returns the action for what is not IP, or could not be read. */
static __always_inline int finish_other(struct __sk_buff *skb, __u32 hook, __u32 code, const struct report *r)
{
	__u32 len = skb->len > ETH_LEN ? skb->len - ETH_LEN : 0;
	struct weft_event *e;

	count(hook, code, len);
	if (wants_event(hook, code, false)) {
		e = event(skb, hook, code, r, len);
		if (e)
			bpf_ringbuf_submit(e, 0);
	}
	return action(code);
}

#endif
