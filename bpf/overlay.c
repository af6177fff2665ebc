// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Programs of the tunnel device. */

/* What other nodes sent by the overlay, without its outer headers. */
SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	struct report r = {};
	struct v6addr node;
	__u32 identity;
	int code = DROP_UNKNOWN_PROTOCOL;

	if (get_tunnel(skb, &node, &identity))
		return finish_other(skb, HOOK_FROM_OVERLAY, DROP_TUNNEL_NODE, &r);
	/* The senders do not know this device's MAC, nor need they. */
	bpf_skb_change_type(skb, PACKET_HOST);
	if (!skb->vlan_present) {
		switch (skb->protocol) {
		case bpf_htons(ETH_P_IP):
			if (enable_ipv4)
				return from_overlay_any4(skb, &node, identity);
			code = DROP_FAMILY_DISABLED;
			break;
		case bpf_htons(ETH_P_IPV6):
			if (enable_ipv6)
				return from_overlay_any6(skb, &node, identity);
			code = DROP_FAMILY_DISABLED;
			break;
		}
	}
	return finish_other(skb, HOOK_FROM_OVERLAY, code, &r);
}

/* What leaves by the tunnel device: of the fast path, which has said where to, and of the stack. */
SEC("tc")
int to_overlay(struct __sk_buff *skb)
{
	struct report r = {};

	if (skb->mark == MARK_FAST)
		return finish_other(skb, HOOK_TO_OVERLAY, VERDICT_MARKED, &r);
	if (!skb->vlan_present) {
		if (enable_ipv4 && skb->protocol == bpf_htons(ETH_P_IP))
			return to_overlay_any4(skb);
		if (enable_ipv6 && skb->protocol == bpf_htons(ETH_P_IPV6))
			return to_overlay_any6(skb);
	}
	return finish_other(skb, HOOK_TO_OVERLAY, DROP_UNKNOWN_PROTOCOL, &r);
}
