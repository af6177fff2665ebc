// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Programs of a pod's device, host's end. */

/* What a pod sends. */
SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct report r = {};
	int code = DROP_UNKNOWN_PROTOCOL;

	if (!skb->vlan_present) {
		switch (skb->protocol) {
		case bpf_htons(ETH_P_IP):
			if (enable_ipv4)
				return from_pod_any4(skb);
			code = DROP_FAMILY_DISABLED;
			break;
		case bpf_htons(ETH_P_IPV6):
			if (enable_ipv6)
				return from_pod_any6(skb);
			code = DROP_FAMILY_DISABLED;
			break;
		case bpf_htons(ETH_P_ARP):
			code = enable_ipv4 ? arp_from_pod(skb, &r) : DROP_FAMILY_DISABLED;
			break;
		}
	}
	return finish_other(skb, HOOK_FROM_POD, code, &r);
}

/* What the node's stack sends to a pod, and our own answers, which carry the mark. */
SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct report r = {};
	int code = DROP_UNKNOWN_PROTOCOL;

	if (skb->mark == MARK_FAST)
		return finish_other(skb, HOOK_TO_POD, VERDICT_MARKED, &r);
	if (!skb->vlan_present) {
		switch (skb->protocol) {
		case bpf_htons(ETH_P_IP):
			if (enable_ipv4)
				return to_pod_ip4(skb);
			code = DROP_FAMILY_DISABLED;
			break;
		case bpf_htons(ETH_P_IPV6):
			if (enable_ipv6)
				return to_pod_ip6(skb);
			code = DROP_FAMILY_DISABLED;
			break;
		case bpf_htons(ETH_P_ARP):
			code = VERDICT_STACK;
			break;
		}
	}
	return finish_other(skb, HOOK_TO_POD, code, &r);
}
