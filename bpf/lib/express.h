/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The express lane: what nearly every packet is, a plain TCP segment or UDP
 * datagram of a fast connection both sides of which have spoken, goes its way
 * with one look into conntrack. Included once a family.
 *
 * It decides nothing by itself. What is not exactly that goes to the general path,
 * and that would do the same with what the lane takes: TestExpressAgrees.
 */

#ifndef EXPRESS_COMMON
#define EXPRESS_COMMON
#define LANE_NO (-100) /* no action of tc */
#define LANE_FLAGS (CT_STACK | CT_ANSWERED | CT_RST)

/* One side of an entry, as the packet sees it. */
struct lane_side {
	__u32 identity;
	__u32 generation;
	__u32 revision;
	__u32 endpoint;
};
#endif

#if FAMILY == 4
#define net_hdr struct iphdr
#define HDR_LEN 20
#else
#define net_hdr struct ipv6hdr
#define HDR_LEN 40
#endif

struct F(lane) {
	ct_key_t key;
	addr_t src;
	addr_t dst;
	__u32 len;  /* from the network header on */
	__u32 wire; /* the largest packet on the wire that it becomes */
	__u32 flow; /* as in struct pkt */
	__u16 sport;
	__u16 dport;
	__u8 proto;
	bool hi;
	bool fin;
};

/* Is the network header the plain one? *total is what it says of the packet's length. */
static __always_inline bool F(lane_net)(const net_hdr *ip, struct F(lane) *l, __u32 gso, __u32 *total)
{
#if FAMILY == 4
	if (*(const __u8 *)ip != 0x45 || (ip->frag_off & bpf_htons(0x3fff)) || ip->ttl <= 1)
		return false;
	*total = ip->tot_len || !gso ? bpf_ntohs(ip->tot_len) : l->len; /* see parse_net */
	l->proto = ip->protocol;
	l->flow = ip->tos;
	l->src = ip->saddr;
	l->dst = ip->daddr;
#else
	if (ip->version != 6 || ip->hop_limit <= 1)
		return false;
	*total = ip->payload_len || !gso ? bpf_ntohs(ip->payload_len) + HDR_LEN : l->len;
	l->proto = ip->nexthdr;
	l->flow = *(const __u32 *)ip;
	__builtin_memcpy(&l->src, &ip->saddr, sizeof(l->src));
	__builtin_memcpy(&l->dst, &ip->daddr, sizeof(l->dst));
#endif
	return *total <= l->len && *total >= HDR_LEN + 8;
}

/* Reads the packet; false: the general path must. */
static __always_inline bool F(lane_read)(struct __sk_buff *skb, struct F(lane) *l)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 gso = skb->gso_size, total, l4_len = 8;
	__u8 *h = data + ETH_LEN + HDR_LEN;

	if (data + ETH_LEN + HDR_LEN + 8 > end || gso == 0xffff)
		return false;
	l->len = skb->len - ETH_LEN;
	l->fin = false;
	if (!F(lane_net)(data + ETH_LEN, l, gso, &total))
		return false;
	total -= HDR_LEN;
	if (l->proto == IPPROTO_TCP) {
		if (data + ETH_LEN + HDR_LEN + 20 > end)
			return false;
		l4_len = (h[12] >> 4) * 4;
		if (l4_len < 20 || l4_len > total || (h[13] & (TCP_SYN | TCP_RST)))
			return false;
		l->fin = h[13] & TCP_FIN;
	} else if (l->proto == IPPROTO_UDP) {
		__u32 len = bpf_ntohs(*(__u16 *)(h + 4));

		if (len < 8 || len > total)
			return false;
	} else {
		return false;
	}
	l->sport = *(__u16 *)h;
	l->dport = *(__u16 *)(h + 2);
	l->wire = gso ? HDR_LEN + l4_len + gso : l->len;
	return true;
}

/* The live entry of a fast connection that is well under way; 0: the general path must see. */
static __always_inline struct weft_ct *F(lane_find)(struct F(lane) *l, __u32 now)
{
	struct weft_ct *ct;

	l->hi = F(ct_key_of)(&l->key, &l->src, &l->dst, l->sport, l->dport, l->proto);
	ct = bpf_map_lookup_elem(&F(weft_ct), &l->key);
	return ct && (ct->flags & LANE_FLAGS) == CT_ANSWERED && !expired(ct->expires, now) ? ct : 0;
}

/* As ct_touch. */
static __always_inline void F(lane_touch)(const struct F(lane) *l, struct weft_ct *ct, const struct weft_config *cfg,
					  __u32 now)
{
	__u32 flags = ct->flags, expires = now + cfg->answered, fin;

	if (l->fin) {
		fin = !!(flags & CT_OPENER_HI) == l->hi ? CT_FIN_OPENER : CT_FIN_ANSWER;
		if (!(flags & fin))
			__sync_fetch_and_or(&ct->flags, fin);
		flags |= fin;
	}
	if (l->proto == IPPROTO_TCP)
		expires = now + (CT_CLOSING(flags) ? cfg->closing : cfg->established);
	if (ct->expires != expires) /* the line is shared by all CPUs */
		ct->expires = expires;
}

static __always_inline void F(lane_sides)(const struct F(lane) *l, const struct weft_ct *ct, struct lane_side *from,
					  struct lane_side *to)
{
	bool opener = !!(ct->flags & CT_OPENER_HI) == l->hi;
	struct lane_side *src = opener ? from : to, *dst = opener ? to : from;

	src->identity = ct->src_identity;
	src->generation = ct->src_generation;
	src->revision = ct->src_revision;
	src->endpoint = ct->src_endpoint;
	dst->identity = ct->dst_identity;
	dst->generation = ct->dst_generation;
	dst->revision = ct->dst_revision;
	dst->endpoint = ct->dst_endpoint;
}

/* The row of a side that is a pod of this node and has the address, 0 if it is not so any more. */
static __always_inline const struct weft_endpoint *F(lane_row)(const struct lane_side *side, const addr_t *addr)
{
	const struct weft_endpoint *row;
	__u32 id = side->endpoint;

	row = bpf_map_lookup_elem(&weft_ep, &id);
	if (!row || !row->generation || row->generation != side->generation || row->revision != side->revision)
		return 0;
	return F(owns)(row, addr) ? row : 0;
}

/* One hop less, and the MACs of a row where there is one. Invalidates what points into the packet. */
static __always_inline bool F(lane_rewrite)(struct __sk_buff *skb, const struct weft_endpoint *row)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	net_hdr *ip = data + ETH_LEN;
	__u32 *to = data;

	if (data + ETH_LEN + HDR_LEN > end)
		return false;
	if (row) {
		const __u32 *macs = (const __u32 *)row->mac; /* host_mac follows */

		to[0] = macs[0];
		to[1] = macs[1];
		to[2] = macs[2];
	}
#if FAMILY == 4
	__u32 sum = (__u32)ip->check + bpf_htons(0x0100); /* see decrement_ttl */

	ip->check = sum + (sum >= 0xffff);
	ip->ttl--;
	return true;
#else
	__u8 left = ip->hop_limit - 1;

	return !bpf_skb_store_bytes(skb, ETH_LEN + __builtin_offsetof(struct ipv6hdr, hop_limit), &left, 1,
				    BPF_F_RECOMPUTE_CSUM);
#endif
}

static __always_inline int F(lane_end)(struct __sk_buff *skb, __u32 hook, __u32 code, __u32 len)
{
	struct report r = {};

	if (code >= DROP_MALFORMED) /* with a record */
		return finish_other(skb, hook, code, &r);
	count(hook, code, len);
	return action(code) | express_mark;
}

/* Into a local pod. */
static __always_inline int F(lane_deliver)(struct __sk_buff *skb, const struct F(lane) *l,
					   const struct weft_endpoint *row, __u32 hook)
{
	__u32 ifindex = row->ifindex;
	long rc;

	if (!F(lane_rewrite)(skb, row))
		return F(lane_end)(skb, hook, DROP_REDIRECT_FAILED, l->len);
	skb->mark = 0;
	rc = bpf_redirect_peer(ifindex, 0);
	return F(lane_end)(skb, hook, rc == TC_ACT_REDIRECT ? VERDICT_PEER : DROP_REDIRECT_FAILED, l->len);
}

/* To where the general path sent a packet of this connection before, while that holds. */
static __always_inline int F(lane_send)(struct __sk_buff *skb, const struct F(lane) *l, const struct weft_config *cfg,
					struct weft_ct *ct, __u32 identity, __u32 now)
{
	struct bpf_redir_neigh nh = {};
	struct weft_hop h = ct->hop;
	long rc;

	if (!F(hop_holds)(&h, &l->src, &l->dst, hop_stamp(now)) || h.flow != F(hop_flow)(l->flow) || l->wire > h.mtu)
		return LANE_NO;
	F(lane_touch)(l, ct, cfg, now);
	if (!F(lane_rewrite)(skb, 0))
		return F(lane_end)(skb, HOOK_FROM_POD, DROP_REDIRECT_FAILED, l->len);
	skb->mark = MARK_FAST;
	if (h.family) {
		nh.nh_family = h.family;
		__builtin_memcpy(nh.ipv6_nh, &h.to, 16);
		rc = bpf_redirect_neigh(h.ifindex, &nh, sizeof(nh), 0);
		return F(lane_end)(skb, HOOK_FROM_POD, rc == TC_ACT_REDIRECT ? VERDICT_NEIGH : DROP_REDIRECT_FAILED, l->len);
	}
	if (set_tunnel_apart(skb, cfg, &h.to, identity, F(dscp)(l->flow)))
		return F(lane_end)(skb, HOOK_FROM_POD, DROP_REDIRECT_FAILED, l->len);
	rc = bpf_redirect(h.ifindex, 0);
	return F(lane_end)(skb, HOOK_FROM_POD, rc == TC_ACT_REDIRECT ? VERDICT_TUNNEL : DROP_REDIRECT_FAILED, l->len);
}

/* What a pod sends. Returns an action, or LANE_NO and has changed nothing. */
static __noinline int F(express_from_pod)(struct __sk_buff *skb)
{
	const struct weft_config *cfg = config();
	const struct weft_endpoint *row;
	struct lane_side from, to;
	__u32 now = now_tick();
	struct F(lane) l;
	struct weft_ct *ct;

	if (!cfg || cfg->trace == TRACE_ALL || skb->pkt_type != PACKET_HOST || !F(lane_read)(skb, &l))
		return LANE_NO;
	ct = F(lane_find)(&l, now);
	if (!ct)
		return LANE_NO;
	F(lane_sides)(&l, ct, &from, &to);
	row = F(lane_row)(&from, &l.src);
	if (!row || row->ifindex != skb->ifindex)
		return LANE_NO;
	if (to.endpoint) {
		row = F(lane_row)(&to, &l.dst);
		if (!row || l.wire > row->mtu)
			return LANE_NO;
		F(lane_touch)(&l, ct, cfg, now);
		return F(lane_deliver)(skb, &l, row, HOOK_FROM_POD);
	}
	return F(lane_send)(skb, &l, cfg, ct, from.identity, now);
}

/* The outer packet of the overlay, for this node: the tunnel device's, whose program looks at what is inside. */
static __always_inline bool F(lane_outer)(const struct F(lane) *l, const struct weft_config *cfg)
{
	addr_t src = l->src; /* see who_exactly */

	if (l->proto != IPPROTO_UDP || !cfg->tunnel_port || l->dport != cfg->tunnel_port)
		return false;
	if (cfg->nat && nat_in_range(cfg, l->dport)) /* may be an answer to a masqueraded flow */
		return false;
	if (F(ours_alone)(&src))
		return false;
#if FAMILY == 4
	return is_mapped(&cfg->tunnel_local) && cfg->tunnel_local.w[3] == l->dst;
#else
	return F(same)(&cfg->tunnel_local, &l->dst);
#endif
}

/* Delivers what came from another node, if it is from there. */
static __always_inline int F(lane_arrive)(struct __sk_buff *skb, struct F(lane) *l, const struct weft_config *cfg,
					  const struct v6addr *node, __u32 hook)
{
	const struct weft_endpoint *row;
	struct lane_side from, to;
	__u32 now = now_tick();
	struct weft_ct *ct;
	struct weft_hop h;

	ct = F(lane_find)(l, now);
	if (!ct)
		return LANE_NO;
	F(lane_sides)(l, ct, &from, &to);
	if (from.endpoint || from.identity == IDENTITY_HOST || !to.endpoint)
		return LANE_NO;
	row = F(lane_row)(&to, &l->dst);
	if (!row || l->wire > row->mtu)
		return LANE_NO;
	if (node) { /* by the overlay, from the node to which answers go (DATAPATH rule 3) */
		h = ct->hop;
		if (h.family || !same_node(&h.to, node) || !F(hop_holds)(&h, &l->dst, &l->src, hop_stamp(now)))
			return LANE_NO;
	}
	F(lane_touch)(l, ct, cfg, now);
	return F(lane_deliver)(skb, l, row, hook);
}

/* What comes in from the net. Returns as express_from_pod. */
static __noinline int F(express_from_net)(struct __sk_buff *skb)
{
	const struct weft_config *cfg = config();
	struct F(lane) l;

	if (!cfg || cfg->trace == TRACE_ALL || skb->pkt_type != PACKET_HOST || !F(lane_read)(skb, &l))
		return LANE_NO;
	if (F(lane_outer)(&l, cfg))
		return F(lane_end)(skb, HOOK_FROM_NET, VERDICT_STACK, l.len);
	return F(lane_arrive)(skb, &l, cfg, 0, HOOK_FROM_NET);
}

/* What comes by the overlay, from a node. Returns as express_from_pod. */
static __noinline int F(express_from_overlay)(struct __sk_buff *skb, const struct v6addr *node)
{
	const struct weft_config *cfg = config();
	struct F(lane) l;

	if (!cfg || cfg->trace == TRACE_ALL || !F(lane_read)(skb, &l))
		return LANE_NO;
	return F(lane_arrive)(skb, &l, cfg, node, HOOK_FROM_OVERLAY);
}

#undef net_hdr
#undef HDR_LEN
