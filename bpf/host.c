// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Programs of the node's devices. */

/*
 * IP in a frame that carries a priority but no VLAN (802.1p, VID 0) is as if
 * untagged: the kernel takes it so, and the source must not go unchecked.
 */
static __always_inline bool only_priority(const struct __sk_buff *skb)
{
	return skb->vlan_present && !(skb->vlan_tci & 0xfff) &&
	       (skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6));
}

/* What comes in. All but IP, and all of a family that is off, is the stack's. */
SEC("tc")
int from_net(struct __sk_buff *skb)
{
	struct report r = {};

	if (only_priority(skb) && bpf_skb_vlan_pop(skb))
		return finish_other(skb, HOOK_FROM_NET, DROP_REDIRECT_FAILED, &r);
	if (!skb->vlan_present) {
		if (enable_ipv4 && skb->protocol == bpf_htons(ETH_P_IP))
			return from_net_any4(skb);
		if (enable_ipv6 && skb->protocol == bpf_htons(ETH_P_IPV6))
			return from_net_any6(skb);
	}
	return finish_other(skb, HOOK_FROM_NET, VERDICT_STACK, &r);
}

/* What goes out. */
SEC("tc")
int to_net(struct __sk_buff *skb)
{
	struct report r = {};

	if (skb->mark == MARK_FAST)
		return finish_other(skb, HOOK_TO_NET, VERDICT_MARKED, &r);
	/* Netfilter did not, and nobody elsewhere knows the service either. What it says itself may carry the mark, too. */
	if (skb->mark == MARK_REFUSE && skb->ingress_ifindex)
		return finish_other(skb, HOOK_TO_NET, DROP_NO_BACKEND, &r);
	if (!skb->vlan_present) {
		if (enable_ipv4 && skb->protocol == bpf_htons(ETH_P_IP))
			return to_net_ip4(skb);
		if (enable_ipv6 && skb->protocol == bpf_htons(ETH_P_IPV6))
			return to_net_ip6(skb);
	}
	return finish_other(skb, HOOK_TO_NET, VERDICT_STACK, &r);
}
