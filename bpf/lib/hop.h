/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How packets of a connection reach the other side, remembered in its conntrack
 * entry. Included once a family. Decision 0011.
 *
 * The kernel's routing table stays the truth: what it said holds until the tick ends, and
 * until the agent says that something about ways has changed.
 */

#ifndef HOP_COMMON
#define HOP_COMMON
#define HOP_NO (-1) /* beside codes */

/* What an answer of the routing table is stamped with, as long as it holds. Never 0. */
static __always_inline __u32 hop_stamp(__u32 now)
{
	__u32 zero = 0;
	const struct weft_ways *ways = bpf_map_lookup_elem(&weft_ways, &zero);

	return (ways ? ways->generation : 0) << 17 | (now & 0xffff) << 1 | 1;
}
#endif

/* Other bits of a packet that the way may depend on: all but those of ECN, which change with every packet. */
static __always_inline __u32 F(hop_flow)(__u32 flow)
{
#if FAMILY == 4
	return flow & 0xfc;
#else
	return flow & bpf_htonl(0xffcfffff);
#endif
}

/*
 * A sum over a hop and whose it is. Another CPU may write while one reads, and
 * entries are given to other connections while a program still holds a pointer to
 * one: what does not add up is nobody's. Readers copy first and then look.
 */
static __always_inline __u32 F(hop_sum)(const struct weft_hop *h, const addr_t *src, const addr_t *dst)
{
	__u32 sum = h->stamp;

#define HOP_MIX(v) (sum = (sum << 5 | sum >> 27) ^ (v))
	HOP_MIX(h->flow);
	HOP_MIX(h->ifindex);
	HOP_MIX((__u32)h->mtu << 16 | h->family);
	HOP_MIX(h->to.w[0]);
	HOP_MIX(h->to.w[1]);
	HOP_MIX(h->to.w[2]);
	HOP_MIX(h->to.w[3]);
#if FAMILY == 4
	HOP_MIX(*src);
	HOP_MIX(*dst);
#else
	HOP_MIX(src->w[0] ^ dst->w[1]);
	HOP_MIX(src->w[1] ^ dst->w[2]);
	HOP_MIX(src->w[2] ^ dst->w[3]);
	HOP_MIX(src->w[3] ^ dst->w[0]);
#endif
#undef HOP_MIX
	return sum;
}

/* Does a copy of a hop hold, for what flies from src to dst? stamp is that of now. */
static __always_inline bool F(hop_holds)(const struct weft_hop *h, const addr_t *src, const addr_t *dst, __u32 stamp)
{
	return h->stamp == stamp && h->check == F(hop_sum)(h, src, dst);
}

/*
 * Says that the way is about to be asked for: an answer that a change has overtaken
 * must not outlive it. The stamp waits in check, as the stack has no room. hop may be 0.
 */
static __always_inline void F(hop_ask)(struct weft_hop *hop, const struct F(pkt) *k)
{
	if (!hop || k->p.error)
		return;
	hop->stamp = 0;
	hop->check = hop_stamp(now_tick());
}

/* Remembers the answer. */
static __always_inline void F(hop_learn)(struct weft_hop *hop, const struct F(pkt) *k, __u32 ifindex, __u32 mtu,
					 __u8 family, const __u32 *to)
{
	if (!hop || k->p.error)
		return;
	hop->flow = F(hop_flow)(k->flow);
	hop->ifindex = ifindex;
	hop->mtu = mtu > 0xffff ? 0xffff : mtu;
	hop->family = family;
	hop->to.w[0] = to[0];
	hop->to.w[1] = to[1];
	hop->to.w[2] = to[2];
	hop->to.w[3] = to[3];
	hop->stamp = hop->check;
	barrier(); /* read again rather than kept on the stack */
	hop->check = F(hop_sum)(hop, &k->saddr, &k->daddr);
}
