/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a pod sends to a service without its socket being translated: sockets that no
 * program sees, virtual machines and user-space stacks in pods, pods where the socket
 * layer is the node's alone. Included once a family. Decision 0014.
 */

/*
 * What a pod is to itself, where a service that it asks leads back to it: as its own
 * address it would not take the packet. Never on a wire (RFC 3927, RFC 6666).
 */
#if FAMILY == 4
#define SELF_ADDR bpf_htonl(0xa9fe2a01) /* 169.254.42.1 */
#else
#define SELF_ADDR ((addr_t){.w = {bpf_htonl(0x01000000), 0, 0, bpf_htonl(0x5ef7)}}) /* 100::5ef7 */
#endif

/* Is a packet for a pod, so that no service has to do with it? Reads the header alone: this is asked often. */
static __noinline bool F(for_pod)(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct weft_ipcache *who;
	addr_t dst;
#if FAMILY == 4
	struct iphdr *ip = data + ETH_LEN;
#else
	struct ipv6hdr *ip = data + ETH_LEN;
#endif

	if ((void *)(ip + 1) > end)
		return false;
	__builtin_memcpy(&dst, &ip->daddr, sizeof(dst));
	who = F(who_exactly)(&dst);
	return who && (who->kind == KIND_LOCAL_POD || who->kind == KIND_REMOTE_POD);
}

/*
 * Is a packet of a connection as it is, which began without a service, or an answer to who
 * has the number of a NodePort for a port? Static: see who_exactly.
 */
static __noinline bool F(established)(const struct F(pkt) *k)
{
	const struct weft_ct *ct;
	ct_key_t key;
	bool hi;

	hi = F(ct_key_of)(&key, &k->src, &k->dst, k->p.sport, k->p.dport, k->p.ct_proto);
	ct = bpf_map_lookup_elem(&F(weft_ct), &key);
	if (!ct) {
		ct = bpf_map_lookup_elem(&F(weft_ctn), &key);
		if (ct && !!(ct->flags & CT_OPENER_HI) == hi)
			return false;
	}
	return ct && !expired(ct->expires, now_tick()) && !(opens_tcp(&k->p) && CT_CLOSING(ct->flags));
}

/*
 * Does what conntrack does not know, and would let open a fast connection, answer a pod
 * past its socket? It must come by to_pod. TCP's answers never open anything.
 */
static __always_inline bool F(late_answer)(const struct F(pkt) *k)
{
	return k->p.ct_proto != IPPROTO_TCP && F(lbct_answers)(k, LBCT_INSIDE);
}

/* Puts into the pod that sent it what it sent to itself. */
static __noinline int F(svc_self)(struct __sk_buff *skb, const struct F(pkt) *k, struct report *r, __u32 id)
{
	const struct weft_endpoint *row = endpoint(id);

	return row ? F(deliver)(skb, k, row, r) : DROP_NO_ENDPOINT;
}

/* The pod itself is the backend: it sees SELF_ADDR ask. */
static __noinline int F(svc_ask_self)(struct __sk_buff *skb, const struct F(pkt) *k)
{
	struct F(nat_to) to = {.addr = SELF_ADDR, .port = k->p.sport};

	return F(nat_rewrite)(skb, k, &to, NAT_SRC) ? DROP_REDIRECT_FAILED : SVC_TO;
}

/* It answers itself: the service answers. */
static __noinline int F(svc_answer_self)(struct __sk_buff *skb, struct F(pkt) *k)
{
	struct F(nat_to) to = {};

	k->dst = k->saddr; /* as the rows have it */
	if (!k->p.ports || k->p.error || !F(svc_answer)(k, &to, LBCT_INSIDE))
		return DROP_MARTIAN_DESTINATION;
	if (F(svc_give_back)(skb, k, &to, HOOK_FROM_POD) != VERDICT_STACK)
		return DROP_REDIRECT_FAILED;
	to.addr = k->saddr;
	to.port = k->p.dport;
	return F(nat_rewrite)(skb, k, &to, NAT_DST) ? DROP_REDIRECT_FAILED : SVC_TO;
}

/* Returns an action, or LANE_NO: the packet goes on, translated or not, as any other. */
static __noinline int F(service_from_pod)(struct __sk_buff *skb)
{
	const addr_t self = SELF_ADDR;
	__u32 id = endpoint_of_device(skb->ifindex);
	const struct weft_endpoint *row = endpoint(id);
	struct report r = {};
	struct F(pkt) k = {};
	bool asked;
	int code;

	if (!row || F(parse)(skb, &k) || !F(owns)(row, &k.saddr))
		return LANE_NO; /* told of later */
	r.endpoint = id;
	r.src_identity = row->identity;
	asked = F(same)(&k.daddr, &self);
	if (asked) {
		code = F(svc_answer_self)(skb, &k);
	} else {
		if (k.p.ports && F(established)(&k))
			return LANE_NO;
		code = F(svc_inside)(skb, &k);
		if (!code || (code == SVC_TO && (k.p.error || !F(same)(&k.saddr, &k.daddr))))
			return LANE_NO;
		if (code == SVC_TO)
			code = F(svc_ask_self)(skb, &k);
	}
	if (code == SVC_TO)
		code = F(svc_self)(skb, &k, &r, id);
	return F(finish)(skb, &k, &r, HOOK_FROM_POD, code);
}
