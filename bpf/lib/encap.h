/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Tunnel metadata: what the tunnel device puts into outer headers, and what it read from them. */
#ifndef WEFT_ENCAP_H
#define WEFT_ENCAP_H

#include "packet.h"

#define TUNNEL_TTL 64

static __always_inline bool is_mapped(const struct v6addr *a)
{
	return !(a->w[0] | a->w[1]) && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline bool same_node(const struct v6addr *a, const struct v6addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

/*
 * Has the tunnel device send the packet to a node. The outer source is the
 * address by which the others know this node: they drop anything else. The
 * checksum of the outer UDP header stays 0: the inner ones cover what matters
 * (RFC 6935). DF: an outer packet that is cut up would arrive as two or not at all.
 */
static __always_inline long set_tunnel(struct __sk_buff *skb, const struct weft_config *cfg,
				       const struct v6addr *node, __u32 identity, __u8 tos)
{
	__u64 flags = BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT;
	struct bpf_tunnel_key key = {};
	bool v4 = is_mapped(node);

	key.tunnel_id = identity & 0xffffff;
	key.tunnel_ttl = TUNNEL_TTL;
	key.tunnel_tos = tos;
	if (v4 != is_mapped(&cfg->tunnel_local))
		return -1;
	if (v4) {
		key.remote_ipv4 = bpf_ntohl(node->w[3]);
		key.local_ipv4 = bpf_ntohl(cfg->tunnel_local.w[3]);
	} else {
		flags |= BPF_F_TUNINFO_IPV6;
		__builtin_memcpy(key.remote_ipv6, node, 16);
		__builtin_memcpy(key.local_ipv6, &cfg->tunnel_local, 16);
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
}

/* The same, for a caller whose stack has no room for the key. */
static __noinline long set_tunnel_apart(struct __sk_buff *skb, const struct weft_config *cfg, const struct v6addr *node,
					__u32 identity, __u8 tos)
{
	return set_tunnel(skb, cfg, node, identity, tos);
}

/* Reads which node sent the packet and what it says of the sender. */
static __always_inline long get_tunnel(struct __sk_buff *skb, struct v6addr *node, __u32 *identity)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		node->w[0] = node->w[1] = 0;
		node->w[2] = bpf_htonl(0xffff);
		node->w[3] = bpf_htonl(key.remote_ipv4);
	} else {
		if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
			return -1;
		__builtin_memcpy(node, key.remote_ipv6, 16);
	}
	*identity = key.tunnel_id;
	return 0;
}

#endif
