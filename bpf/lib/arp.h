/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ARP of pods (RFC 826): whatever they ask for, the host's end is the next hop. */
#ifndef WEFT_ARP_H
#define WEFT_ARP_H

#include "report.h"
#include "endpoint.h"

struct arp_packet {
	__u8 eth[14];
	__u16 hw, proto;
	__u8 hw_len, proto_len;
	__u16 op;
	__u8 sha[6];
	__u8 spa[4];
	__u8 tha[6];
	__u8 tpa[4];
} __attribute__((packed));

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return !__builtin_memcmp(a, b, 6);
}

__noinline int arp_from_pod(struct __sk_buff *skb, struct report *r)
{
	const struct weft_endpoint *ep;
	struct arp_packet a;
	__u32 id, spa, tpa;

	if (!r)
		return DROP_MALFORMED;
	id = endpoint_of_device(skb->ifindex);
	ep = endpoint(id);
	if (!ep)
		return DROP_NO_ENDPOINT;
	r->endpoint = id;
	r->src_identity = ep->identity;
	if (bpf_skb_load_bytes(skb, 0, &a, sizeof(a)))
		return DROP_TRUNCATED;
	if (a.hw != bpf_htons(1) || a.proto != bpf_htons(ETH_P_IP) || a.hw_len != 6 || a.proto_len != 4)
		return DROP_MALFORMED;
	__builtin_memcpy(&spa, a.spa, 4);
	__builtin_memcpy(&tpa, a.tpa, 4);
	/* A probe (RFC 5227) has no sender address yet. */
	if (!same_mac(a.sha, ep->mac) || (spa && spa != ep->v4))
		return DROP_ARP_SPOOFED;
	if (a.op != bpf_htons(1) || !spa || tpa == ep->v4)
		return VERDICT_STACK;
	__builtin_memcpy(a.eth, ep->mac, 6);
	__builtin_memcpy(a.eth + 6, ep->host_mac, 6);
	a.op = bpf_htons(2);
	__builtin_memcpy(a.sha, ep->host_mac, 6);
	__builtin_memcpy(a.spa, &tpa, 4);
	__builtin_memcpy(a.tha, ep->mac, 6);
	__builtin_memcpy(a.tpa, &spa, 4);
	if (bpf_skb_store_bytes(skb, 0, &a, sizeof(a), 0))
		return DROP_REDIRECT_FAILED;
	skb->mark = MARK_FAST;
	r->out_ifindex = skb->ifindex;
	if (bpf_redirect(skb->ifindex, 0) != TC_ACT_REDIRECT)
		return DROP_REDIRECT_FAILED;
	return VERDICT_ANSWER;
}

#endif
