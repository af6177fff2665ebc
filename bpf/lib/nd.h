/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Neighbour discovery (RFC 4861) and multicast listener discovery of pods. Like
 * ARP: whatever they ask for, the host's end is the next hop.
 */

#define ND_RS 133
#define ND_RA 134
#define ND_NS 135
#define ND_NA 136
#define ND_REDIRECT 137
#define MLD_QUERY 130
#define MLD_REPORT 131
#define MLD_DONE 132
#define MLD2_REPORT 143

struct nd_packet {
	__u8 type, code;
	__u16 check;
	__u32 flags;
	struct v6addr target;
	__u8 opt_type, opt_len;
	__u8 opt_mac[6];
};

static __always_inline bool is_nd(const struct pkt6 *k)
{
	return k->p.proto == IPPROTO_ICMPV6 && k->p.frag != FRAG_LATER && k->p.icmp_type >= ND_RS &&
	       k->p.icmp_type <= ND_REDIRECT;
}

static __always_inline bool is_mld(const struct pkt6 *k)
{
	return k->p.proto == IPPROTO_ICMPV6 && k->p.frag != FRAG_LATER &&
	       ((k->p.icmp_type >= MLD_QUERY && k->p.icmp_type <= MLD_DONE) || k->p.icmp_type == MLD2_REPORT);
}

/* Answers a solicitation in place: the packet becomes the advertisement. */
__noinline int answer_ns(struct __sk_buff *skb, const struct pkt6 *k, const struct weft_endpoint *ep,
				const struct v6addr *target)
{
	struct {
		__u8 dmac[6], smac[6];
		__u16 ethertype;
		struct ipv6hdr ip;
		struct nd_packet nd;
	} __attribute__((packed)) h;
	__u32 pseudo[2] = { bpf_htonl(sizeof(h.nd)), bpf_htonl(IPPROTO_ICMPV6) };
	__s64 sum;

	if (!k || !ep || !target)
		return -1;
	if (bpf_skb_change_tail(skb, sizeof(h), 0))
		return -1;
	__builtin_memset(&h, 0, sizeof(h));
	if (bpf_skb_load_bytes(skb, 6, h.dmac, 6))
		return -1;
	__builtin_memcpy(h.smac, ep->host_mac, 6);
	h.ethertype = bpf_htons(ETH_P_IPV6);
	h.ip.version = 6;
	h.ip.payload_len = bpf_htons(sizeof(h.nd));
	h.ip.nexthdr = IPPROTO_ICMPV6;
	h.ip.hop_limit = 255;
	__builtin_memcpy(&h.ip.saddr, target, 16);
	__builtin_memcpy(&h.ip.daddr, &k->saddr, 16);
	h.nd.type = ND_NA;
	h.nd.flags = bpf_htonl(0xe0000000); /* router, solicited, override */
	h.nd.target = *target;
	h.nd.opt_type = 2; /* target link-layer address */
	h.nd.opt_len = 1;
	__builtin_memcpy(h.nd.opt_mac, ep->host_mac, 6);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (void *)&h.ip.saddr, 32, sum);
	sum = bpf_csum_diff(0, 0, (void *)&h.nd, sizeof(h.nd), sum);
	h.nd.check = fold6(sum);
	if (bpf_skb_store_bytes(skb, 0, &h, sizeof(h), 0))
		return -1;
	skb->mark = MARK_FAST;
	return bpf_redirect(skb->ifindex, 0) == TC_ACT_REDIRECT ? 0 : -1;
}

static __always_inline int ns_from_pod(struct __sk_buff *skb, struct pkt6 *k, const struct weft_endpoint *ep,
				       const struct v6addr *target, struct report *r)
{
	/* Duplicate address detection asks whether anybody has it: nobody does. */
	if (unspecified6(&k->saddr) || owns6(ep, target) || same6(target, &k->saddr))
		return VERDICT_STACK;
	if (answer_ns(skb, k, ep, target))
		return DROP_REDIRECT_FAILED;
	r->out_ifindex = skb->ifindex;
	return VERDICT_ANSWER;
}

/* Judges a neighbour discovery message of a pod. */
static __always_inline int nd_from_pod(struct __sk_buff *skb, struct pkt6 *k, const struct weft_endpoint *ep,
				       struct report *r)
{
	bool nobody = unspecified6(&k->saddr);
	struct nd_packet nd;
	const __u32 fixed = __builtin_offsetof(struct nd_packet, opt_type);

	if (k->p.icmp_type == ND_RA)
		return DROP_ROUTER_ADVERTISEMENT;
	if (k->p.icmp_type == ND_REDIRECT)
		return DROP_ICMP_REDIRECT;
	/* RFC 4861 6.1 and 7.1; RFC 6980 on fragments. */
	if (k->p.ttl != 255 || k->p.icmp_code || k->p.frag != FRAG_NONE)
		return DROP_ND_INVALID;
	if (!nobody && !link_local6(&k->saddr) && !owns6(ep, &k->saddr))
		return DROP_SOURCE_SPOOFED;
	if (k->p.icmp_type == ND_RS)
		return VERDICT_STACK;
	if (ETH_LEN + k->p.total < k->p.l4 + fixed || bpf_skb_load_bytes(skb, k->p.l4, &nd, fixed))
		return DROP_TRUNCATED;
	if (multicast6(&nd.target))
		return DROP_ND_INVALID;
	if (k->p.icmp_type == ND_NS)
		return ns_from_pod(skb, k, ep, &nd.target, r);
	/* An advertisement may speak for the pod's address and its link-local one. */
	if (nobody)
		return DROP_ND_INVALID;
	if (!owns6(ep, &nd.target) && !(link_local6(&nd.target) && same6(&nd.target, &k->saddr)))
		return DROP_ND_SPOOFED;
	return VERDICT_STACK;
}
