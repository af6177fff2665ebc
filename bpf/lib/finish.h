/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counts a packet, leaves a record of it. Included once a family. */

__noinline int F(emit)(struct __sk_buff *skb, const struct F(pkt) *k, const struct report *r, __u32 hook,
			      __u32 code)
{
	struct weft_event *e;

	if (!k || !r)
		return 0;
	e = event(skb, hook, code, r, k->p.len);
	if (!e)
		return 0;
	F(to_event)(&e->saddr, &k->saddr);
	F(to_event)(&e->daddr, &k->daddr);
	e->family = FAMILY;
	e->proto = k->p.proto;
	e->tcp_flags = k->p.tcp_flags;
	if (k->p.proto == IPPROTO_ICMP || k->p.proto == IPPROTO_ICMPV6) {
		e->sport = (__u16)k->p.icmp_type << 8 | k->p.icmp_code;
	} else {
		e->sport = bpf_ntohs(k->p.sport);
		e->dport = bpf_ntohs(k->p.dport);
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Counts, reports and returns the action. */
static __always_inline int F(finish)(struct __sk_buff *skb, const struct F(pkt) *k, const struct report *r,
				     __u32 hook, __u32 code)
{
	count(hook, code, k->p.len);
	if (wants_event(hook, code, r->is_new))
		F(emit)(skb, k, r, hook, code);
	return r->told ? TC_ACT_REDIRECT : action(code);
}
