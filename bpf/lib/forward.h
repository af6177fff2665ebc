/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The fast path's ways out. Included once a family. */

/*
 * One hop less to go. The caller has checked that it is not the last one. v4:
 * RFC 1624 on the checksum, which leaves a CHECKSUM_COMPLETE sum as it was.
 */
static __always_inline long F(decrement_ttl)(struct __sk_buff *skb, const struct F(pkt) *k)
{
#if FAMILY == 4
	struct {
		__u8 ttl;
		__u8 proto;
		__u16 check;
	} h WORD_ALIGNED;
	const __u32 off = ETH_LEN + __builtin_offsetof(struct iphdr, ttl);
	__u32 sum;

	if (read_header(skb, off, &h, sizeof(h)))
		return -1;
	h.ttl--;
	sum = (__u32)h.check + bpf_htons(0x0100);
	h.check = sum + (sum >= 0xffff);
	return bpf_skb_store_bytes(skb, off, &h, sizeof(h), 0);
#else
	__u8 ttl = k->p.ttl - 1;

	return bpf_skb_store_bytes(skb, ETH_LEN + __builtin_offsetof(struct ipv6hdr, hop_limit), &ttl, 1,
				   BPF_F_RECOMPUTE_CSUM);
#endif
}

/* What a packet larger than mtu gets. v4 without DF is the stack's to cut up. */
static __always_inline int F(too_big)(const struct F(pkt) *k, __u32 mtu, struct report *r)
{
	if (!k->p.df)
		return VERDICT_STACK;
	r->mtu = mtu;
	return DROP_TOO_BIG; /* the caller tells the sender */
}

/* Puts a packet straight into a local pod. */
static __always_inline int F(deliver)(struct __sk_buff *skb, const struct F(pkt) *k, const struct weft_endpoint *to,
				      struct report *r)
{
	__u8 macs[12];

	if (k->p.ttl <= 1)
		return VERDICT_STACK; /* which tells the sender */
	if (wire_len(skb, &k->p) > to->mtu)
		return F(too_big)(k, to->mtu, r);
	__builtin_memcpy(macs, to->mac, 6);
	__builtin_memcpy(macs + 6, to->host_mac, 6);
	if (F(decrement_ttl)(skb, k) || bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return DROP_REDIRECT_FAILED;
	skb->mark = 0; /* the pod's own rules may look at marks */
	r->out_ifindex = to->ifindex;
	if (bpf_redirect_peer(to->ifindex, 0) != TC_ACT_REDIRECT)
		return DROP_REDIRECT_FAILED;
	return VERDICT_PEER;
}

/* Asks the routing table about a packet that came in at this device. len 0: never mind the MTU. */
static __always_inline long F(route)(struct __sk_buff *skb, const struct F(pkt) *k, struct bpf_fib_lookup *fib,
				     __u32 len)
{
	fib->ifindex = skb->ifindex;
	fib->l4_protocol = k->p.proto;
	fib->sport = k->p.sport;
	fib->dport = k->p.dport;
	fib->tot_len = len > 0xffff ? 0xffff : len;
#if FAMILY == 4
	fib->family = 2; /* AF_INET */
	fib->tos = k->flow;
	fib->ipv4_src = k->saddr;
	fib->ipv4_dst = k->daddr;
#else
	fib->family = 10; /* AF_INET6 */
	fib->flowinfo = k->flow & bpf_htonl(0x0fffffff);
	__builtin_memcpy(fib->ipv6_src, &k->saddr, 16);
	__builtin_memcpy(fib->ipv6_dst, &k->daddr, 16);
#endif
	return bpf_fib_lookup(skb, fib, sizeof(*fib), fib_flags);
}

/*
 * Would a packet leave through a device whose ingress is ours too? Only then can
 * its connection be fast: elsewhere the stack would see the replies alone.
 */
__noinline int F(leaves_by_net)(struct __sk_buff *skb, const struct F(pkt) *k)
{
	struct bpf_fib_lookup fib = {};
	long rc;

	if (!k)
		return 0;
	rc = F(route)(skb, k, &fib, 0);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH && rc != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return 0;
	return is_net_device(fib.ifindex);
}

/* Does it have an address in the overlay, whether it is sent to by it or not? */
static __always_inline bool F(tunnel_known)(const struct weft_ipcache *who)
{
	return who && (who->tunnel.w[2] | who->tunnel.w[3]);
}

/* Is it reached by the overlay? Both arguments may be 0. */
static __always_inline bool F(by_tunnel)(const struct weft_config *cfg, const struct weft_ipcache *who)
{
	return cfg && cfg->tunnel_ifindex && who && (who->flags & IPC_TUNNEL);
}

/* Type of service of a packet, as the outer header is to carry it; the kernel adds ECN (RFC 6040). */
static __always_inline __u8 F(dscp)(__u32 flow)
{
#if FAMILY == 4
	return flow & 0xfc;
#else
	return (bpf_ntohl(flow) >> 20) & 0xfc;
#endif
}

/* Sends a packet to the node that holds its destination. What comes out of the stack has lost its hop there. */
static __always_inline int F(encapsulate)(struct __sk_buff *skb, const struct F(pkt) *k,
					  const struct weft_config *cfg, const struct weft_ipcache *who,
					  struct report *r, bool hop)
{
	if (wire_len(skb, &k->p) > cfg->tunnel_mtu) {
		/* The stack would send it to a node without the overlay, and not cut it up. */
		if (who->kind != KIND_NODE)
			return F(too_big)(k, cfg->tunnel_mtu, r);
		r->mtu = cfg->tunnel_mtu;
		return DROP_TOO_BIG;
	}
	if (hop && F(decrement_ttl)(skb, k))
		return DROP_REDIRECT_FAILED;
	if (set_tunnel(skb, cfg, &who->tunnel, r->src_identity, F(dscp)(k->flow)))
		return DROP_REDIRECT_FAILED;
	skb->mark = MARK_FAST;
	r->out_ifindex = cfg->tunnel_ifindex;
	if (bpf_redirect(cfg->tunnel_ifindex, 0) != TC_ACT_REDIRECT)
		return DROP_REDIRECT_FAILED;
	return VERDICT_TUNNEL;
}

/*
 * A pod's packet that the stack sends to another node, translated or in
 * mid-stream: by the overlay too, as the answer comes by it, and as the network
 * between need not know pods' addresses. What does not fit keeps the stack's way.
 */
__noinline int F(to_node)(struct __sk_buff *skb, const struct F(pkt) *k, struct report *r)
{
	const struct weft_config *cfg = config();
	const struct weft_ipcache *src, *dst;
	const struct weft_endpoint *row;
	addr_t addr;

	if (!k || !r || !cfg || !cfg->tunnel_ifindex || wire_len(skb, &k->p) > cfg->tunnel_mtu)
		return VERDICT_STACK;
	addr = k->daddr;
	dst = F(who_exactly)(&addr);
	if (!F(by_tunnel)(cfg, dst) || dst->kind != KIND_NODE)
		return VERDICT_STACK;
	addr = k->saddr;
	src = F(who_exactly)(&addr);
	if (!src || src->kind != KIND_LOCAL_POD)
		return VERDICT_STACK;
	row = endpoint(src->endpoint);
	if (!row)
		return VERDICT_STACK;
	r->src_identity = row->identity;
	return F(encapsulate)(skb, k, cfg, dst, r, false);
}

/* A function of its own, so that its variable may lie where another's lay. */
static __always_inline int F(to_neighbour)(const struct bpf_fib_lookup *fib)
{
	struct bpf_redir_neigh nh = {};

	nh.nh_family = fib->family;
	__builtin_memcpy(nh.ipv6_nh, fib->ipv6_dst, 16);
	return bpf_redirect_neigh(fib->ifindex, &nh, sizeof(nh), 0) == TC_ACT_REDIRECT ? VERDICT_NEIGH : DROP_REDIRECT_FAILED;
}

/*
 * Sends a packet to its next hop. The routing table decides (interface, gateway,
 * MTU); bpf_redirect_neigh resolves the neighbour and keeps its entry alive,
 * which MACs written by us would not. hop is where to remember it, 0: nowhere.
 */
__noinline int F(send)(struct __sk_buff *skb, const struct F(pkt) *k, struct report *r, struct weft_hop *hop)
{
	const struct weft_config *cfg = config();
	struct bpf_fib_lookup fib = {};
	const struct weft_ipcache *who = 0;
	long rc;

	if (!k || !r || !cfg)
		return DROP_REDIRECT_FAILED;
	if (k->p.ttl <= 1)
		return VERDICT_STACK;
	F(hop_ask)(hop, k);
	if (cfg->tunnel_ifindex) {
		addr_t to = k->daddr; /* see who_exactly */

		who = F(who)(&to);
		if (F(by_tunnel)(cfg, who)) {
			F(hop_learn)(hop, k, cfg->tunnel_ifindex, cfg->tunnel_mtu, 0, who->tunnel.w);
			return F(encapsulate)(skb, k, cfg, who, r, true);
		}
	}
	rc = F(route)(skb, k, &fib, wire_len(skb, &k->p) ?: 1); /* of 0 it tells the device's MTU, not the route's */
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return F(too_big)(k, fib.mtu_result, r);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return VERDICT_STACK; /* no route: the stack says so to the sender */
	/* While nodes change the routing mode, the route may be ahead of the ipcache, or behind it. */
	if (cfg->tunnel_ifindex && fib.ifindex == cfg->tunnel_ifindex)
		return F(tunnel_known)(who) ? F(encapsulate)(skb, k, cfg, who, r, true) : VERDICT_STACK;
	if (rc == BPF_FIB_LKUP_RET_SUCCESS) /* else the MTU is not in it */
		F(hop_learn)(hop, k, fib.ifindex, fib.mtu_result, fib.family, fib.ipv6_dst);
	if (F(decrement_ttl)(skb, k))
		return DROP_REDIRECT_FAILED;
	skb->mark = MARK_FAST;
	r->out_ifindex = fib.ifindex;
	return F(to_neighbour)(&fib);
}

/*
 * Sends a packet to where one of its connection went before. HOP_NO: that is not
 * known, or does not hold for this one. Static: the kernel must know that hop is
 * part of a map.
 */
static __noinline int F(send_by)(struct __sk_buff *skb, const struct F(pkt) *k, const struct weft_hop *hop,
				 struct report *r)
{
	const struct weft_config *cfg = config();
	struct bpf_redir_neigh nh = {};
	struct weft_hop h = *hop;
	long rc;

	if (!cfg || k->p.ttl <= 1 || k->p.error || !F(hop_holds)(&h, &k->saddr, &k->daddr, hop_stamp(now_tick())))
		return HOP_NO;
	if (h.flow != F(hop_flow)(k->flow) || wire_len(skb, &k->p) > h.mtu)
		return HOP_NO;
	if (F(decrement_ttl)(skb, k))
		return DROP_REDIRECT_FAILED;
	skb->mark = MARK_FAST;
	r->out_ifindex = h.ifindex;
	if (!h.family) {
		if (set_tunnel(skb, cfg, &h.to, r->src_identity, F(dscp)(k->flow)))
			return DROP_REDIRECT_FAILED;
		return bpf_redirect(h.ifindex, 0) == TC_ACT_REDIRECT ? VERDICT_TUNNEL : DROP_REDIRECT_FAILED;
	}
	nh.nh_family = h.family;
	__builtin_memcpy(nh.ipv6_nh, &h.to, 16);
	rc = bpf_redirect_neigh(h.ifindex, &nh, sizeof(nh), 0);
	return rc == TC_ACT_REDIRECT ? VERDICT_NEIGH : DROP_REDIRECT_FAILED;
}
