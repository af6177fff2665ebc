// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore
/*
 * A forwarder that does nothing but forward: what no program on this path can
 * be faster than. It asks nobody, checks nothing and keeps nothing; where packets
 * go are constants.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TCX_NEXT_ -1 /* linux 6.6; the headers may be older */
#define AF_INET_ 2

const volatile __u32 net_ifindex = 0; /* the node's device */
const volatile __u32 next_hop = 0;    /* the other node, network order */
const volatile __u32 pod_ifindex = 0; /* the pod's device, host's end */

SEC("tc")
int bare_from_pod(struct __sk_buff *skb)
{
	struct bpf_redir_neigh nh = {.nh_family = AF_INET_};

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TCX_NEXT_;
	nh.ipv4_nh = next_hop;
	return bpf_redirect_neigh(net_ifindex, &nh, sizeof(nh), 0);
}

SEC("tc")
int bare_from_net(struct __sk_buff *skb)
{
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TCX_NEXT_;
	return bpf_redirect_peer(pod_ifindex, 0);
}

/* Stands where another forwarder has a third program: what remains is what running any costs. */
SEC("tc")
int bare_nothing(struct __sk_buff *skb)
{
	return TCX_NEXT_;
}

char _license[] SEC("license") = "Dual BSD/GPL";
