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
 * Tells whose hop it is. Conntrack's entries are given to other connections while
 * a program still holds a pointer to one, and what it then writes is not theirs.
 */
static __always_inline __u32 F(hop_check)(const addr_t *src, const addr_t *dst)
{
#if FAMILY == 4
	return (*src << 7 | *src >> 25) ^ *dst;
#else
	__u32 a = src->w[0] ^ src->w[1] ^ (src->w[2] << 11 | src->w[2] >> 21) ^ src->w[3];
	__u32 b = dst->w[0] ^ dst->w[1] ^ (dst->w[2] << 11 | dst->w[2] >> 21) ^ dst->w[3];

	return (a << 7 | a >> 25) ^ b;
#endif
}

/* Is what is remembered still so, and about this packet? */
static __always_inline bool F(hop_holds)(const struct weft_hop *hop, const struct F(pkt) *k)
{
	return !k->p.error && hop->check == F(hop_check)(&k->saddr, &k->daddr) && hop->flow == F(hop_flow)(k->flow) &&
	       hop->stamp == hop_stamp(now_tick());
}

/* Remembers where a packet goes. hop may be 0. Readers look at the stamp before and after. */
static __always_inline void F(hop_learn)(struct weft_hop *hop, const struct F(pkt) *k, __u32 ifindex, __u32 mtu,
					 __u8 family, const void *to)
{
	if (!hop || k->p.error)
		return;
	hop->stamp = 0;
	barrier();
	hop->check = F(hop_check)(&k->saddr, &k->daddr);
	hop->flow = F(hop_flow)(k->flow);
	hop->ifindex = ifindex;
	hop->mtu = mtu > 0xffff ? 0xffff : mtu;
	hop->family = family;
	__builtin_memcpy(&hop->to, to, 16);
	barrier();
	hop->stamp = hop_stamp(now_tick());
}
