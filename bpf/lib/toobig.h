/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * "Fragmentation needed" and "packet too big" (RFC 792, 1191, 4443), which the
 * stack would send if the fast path went through it: to local pods alone, whose
 * veth takes unfinished checksums. Included once a family.
 */

#if FAMILY == 4
#define INNER 128 /* bytes of the packet that are sent back */
#define OUTER 28  /* IPv4 header, ICMP header */
#else
#define INNER 512
#define OUTER 48
#endif

static __always_inline __u16 F(fold)(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Composes the headers in front of the packet that is sent back. */
static __always_inline int F(too_big_headers)(struct __sk_buff *skb, const struct F(pkt) *k, const addr_t *from,
					      __u32 mtu)
{
	void *data, *end;
	__s64 sum;
#if FAMILY == 4
	struct {
		struct iphdr ip;
		__u8 type, code;
		__u16 check, unused, mtu;
	} h = {
		.ip = { .version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_ICMP, .tos = 0xc0 },
		.type = 3,
		.code = 4,
	};

	h.ip.tot_len = bpf_htons(OUTER + INNER);
	h.ip.saddr = *from;
	h.ip.daddr = k->saddr;
	h.mtu = bpf_htons(mtu);
	h.ip.check = F(fold)(bpf_csum_diff(0, 0, (void *)&h.ip, sizeof(h.ip), 0));
	sum = bpf_csum_diff(0, 0, (void *)&h.type, 8, 0);
#else
	struct {
		struct ipv6hdr ip;
		__u8 type, code;
		__u16 check;
		__u32 mtu;
	} h = {
		.ip = { .version = 6, .hop_limit = 64, .nexthdr = IPPROTO_ICMPV6 },
		.type = 2,
	};
	__u32 pseudo[2] = { bpf_htonl(8 + INNER), bpf_htonl(IPPROTO_ICMPV6) };

	h.ip.payload_len = bpf_htons(8 + INNER);
	__builtin_memcpy(&h.ip.saddr, from, 16);
	__builtin_memcpy(&h.ip.daddr, &k->saddr, 16);
	h.mtu = bpf_htonl(mtu);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (void *)&h.ip.saddr, 32, sum);
	sum = bpf_csum_diff(0, 0, (void *)&h.type, 8, sum);
#endif
	if (bpf_skb_pull_data(skb, ETH_LEN + OUTER + INNER))
		return -1;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETH_LEN + OUTER + INNER > end)
		return -1;
	h.check = F(fold)(bpf_csum_diff(0, 0, data + ETH_LEN + OUTER, INNER, sum));
	return bpf_skb_store_bytes(skb, ETH_LEN, &h, OUTER, 0);
}

/*
 * Turns the packet into an error to its sender and sends it back where it came
 * from. Never about an ICMP error or a later IPv4 fragment (RFC 1122 3.2.2).
 */
__noinline int F(send_too_big)(struct __sk_buff *skb, const struct F(pkt) *k, __u32 mtu, __u32 hook)
{
	const struct weft_config *cfg = config();
	__u8 macs[12], swapped[12];
	addr_t from;

	if (!k || !cfg)
		return 0;
#if FAMILY == 4
	from = cfg->node_v4 ? cfg->node_v4 : bpf_htonl(0xa9fe0101); /* 169.254.1.1 */
	if (k->p.frag == FRAG_LATER)
		goto suppressed;
#else
	from = cfg->node_v6;
	if (F(unspecified)(&from)) { /* fe80::1 */
		from.w[0] = bpf_htonl(0xfe800000);
		from.w[3] = bpf_htonl(1);
	}
	if (mtu < 1280)
		mtu = 1280; /* RFC 8200 knows no smaller link */
#endif
	if (k->p.error || k->p.len < INNER || !spend(BUDGET_ICMP, cfg->icmp_rate))
		goto suppressed;
	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		goto suppressed;
	__builtin_memcpy(swapped, macs + 6, 6);
	__builtin_memcpy(swapped + 6, macs, 6);
	/* Trimming ends segmentation offload too, which the next step asks for. */
	if (bpf_skb_change_tail(skb, ETH_LEN + INNER, 0) || bpf_skb_adjust_room(skb, OUTER, BPF_ADJ_ROOM_MAC, 0))
		goto suppressed;
	if (F(too_big_headers)(skb, k, &from, mtu) || bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0))
		goto suppressed;
	skb->mark = MARK_FAST;
	if (bpf_redirect(skb->ifindex, 0) != TC_ACT_REDIRECT)
		goto suppressed;
	count(hook, NOTE_ICMP_SENT, OUTER + INNER);
	return 1;
suppressed:
	count(hook, NOTE_ICMP_SUPPRESSED, 0);
	return 0;
}

#undef INNER
#undef OUTER
