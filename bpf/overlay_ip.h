/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IP of the tunnel device, both directions. Included once a family. */

/* Why a packet is refused whose inner source is not of the node that sent it. */
static __noinline int F(refuse_tunnel)(const struct v6addr *node)
{
	const struct weft_ipcache *who;

	if (!node)
		return DROP_TUNNEL_NODE;
	if (is_mapped(node)) {
		__u32 v4 = node->w[3];

		who = bpf_map_lookup_elem(&weft_ipc4, &v4);
	} else {
		who = bpf_map_lookup_elem(&weft_ipc6, node);
	}
	return who && who->kind == KIND_NODE ? DROP_TUNNEL_SOURCE : DROP_TUNNEL_NODE;
}

/*
 * The identity of a pod is what its own node says now: our knowledge of the
 * address may be older. It cannot say that the pod is something else than a pod.
 */
static __always_inline __u32 F(identity_by_tunnel)(const struct weft_ipcache *src, __u32 said)
{
	bool pod = said >= IDENTITY_FIRST || said == IDENTITY_HEALTH || said == IDENTITY_INIT;

	return src->kind == KIND_REMOTE_POD && pod ? said : F(identity_of)(src);
}

/* By the overlay, for a local pod, no connection yet. */
static __always_inline int F(from_overlay_new)(struct __sk_buff *skb, struct F(judge) *j,
					       const struct weft_ipcache *dst, struct report *r)
{
	const struct weft_endpoint *row = endpoint(dst->endpoint);

	if (!row)
		return DROP_NO_ENDPOINT;
	r->endpoint = dst->endpoint;
	j->s.to.identity = row->identity;
	j->s.to.endpoint = dst->endpoint;
	j->s.to.generation = row->generation;
	F(note_sides)(r, j);
	if (j->k.p.error)
		return VERDICT_STACK;
	if (!j->k.p.ports)
		return DROP_FRAGMENT_UNKNOWN;
	if (!may_open_fast(&j->k.p) || skb->mark == MARK_SERVICE || F(late_answer)(&j->k))
		return VERDICT_STACK; /* to_pod makes the entry */
	r->is_new = true;
	F(ct_new)(&j->f, &j->k, &j->s, HOOK_FROM_OVERLAY, 0);
	return F(deliver_to)(skb, j, r);
}

/* By the overlay, part of a connection of a local pod. */
static __always_inline int F(from_overlay_known)(struct __sk_buff *skb, struct F(judge) *j,
						 const struct weft_config *cfg, __u32 now, struct report *r)
{
	/* For a service: to_pod tells it from a connection without one that has the same ports. */
	bool stack = (j->f.ct->flags & CT_STACK) || skb->mark == MARK_SERVICE;

	F(note_sides)(r, j);
	r->endpoint = j->s.to.endpoint;
	if (!j->k.p.error && j->s.from.endpoint)
		return DROP_TUNNEL_SOURCE;
	F(ct_touch)(&j->f, &j->k, cfg, now, HOOK_FROM_OVERLAY, false);
	return stack ? VERDICT_STACK : F(deliver_to)(skb, j, r);
}

static __always_inline int F(judge_from_overlay)(struct __sk_buff *skb, struct F(judge) *j,
						 const struct weft_config *cfg, const struct v6addr *node,
						 __u32 said, struct report *r)
{
	const struct weft_ipcache *src = F(who)(&j->k.saddr), *dst;
	__u32 now = now_tick();

	/* The node is known and the address is its own or its pods' (DATAPATH rule 3). */
	if (!src || !same_node(&src->tunnel, node))
		return F(refuse_tunnel)(node);
	r->src_identity = F(identity_by_tunnel)(src, said);
	dst = F(who_exactly)(&j->k.daddr);
	if (!dst || dst->kind != KIND_LOCAL_POD)
		return VERDICT_STACK; /* for this node, or for an address that nobody has: the stack says so */
	if (j->k.p.frag == FRAG_FIRST)
		F(frag_remember)(&j->k, HOOK_FROM_OVERLAY);
	F(ct_find)(&j->f, &j->k, now);
	if (j->f.ct) {
		F(ct_sides)(&j->f, &j->s);
		if (j->s.to.endpoint)
			return F(from_overlay_known)(skb, j, cfg, now, r);
		__builtin_memset(&j->s, 0, sizeof(j->s));
	}
	j->s.from.identity = r->src_identity;
	return F(from_overlay_new)(skb, j, dst, r);
}

static __noinline int F(from_overlay_ip)(struct __sk_buff *skb, const struct v6addr *node, __u32 said)
{
	const struct weft_config *cfg = config();
	struct F(judge) j = {};
	struct report r = {};
	int code;

	if (!node)
		return TC_ACT_SHOT;
	code = F(parse)(skb, &j.k);
	if (!code)
		code = cfg ? F(judge_from_overlay)(skb, &j, cfg, node, said, &r) : DROP_TUNNEL_NODE;
	return F(finish)(skb, &j.k, &r, HOOK_FROM_OVERLAY, code);
}

/*
 * A pod's connection that came out of the stack is the stack's, as it looks
 * after translation (DATAPATH rule 1). As in to_net, only what would take a
 * living connection's place is dropped.
 */
static __always_inline int F(track_to_overlay)(struct F(judge) *j, const struct weft_config *cfg,
					       const struct weft_ipcache *src, const struct weft_ipcache *dst,
					       const struct weft_endpoint *row, struct report *r)
{
	__u32 now = now_tick();

	if (!j->k.p.ports || j->k.p.error)
		return VERDICT_STACK;
	F(ct_find)(&j->f, &j->k, now);
	if (j->f.ct) {
		F(ct_sides)(&j->f, &j->s);
		F(note_sides)(r, j);
		if (F(ct_in_use)(&j->f, &j->k))
			return DROP_PORTS_IN_USE;
		F(ct_touch)(&j->f, &j->k, cfg, now, HOOK_TO_OVERLAY, true);
		return VERDICT_STACK;
	}
	j->s.from.identity = row->identity;
	j->s.from.endpoint = src->endpoint;
	j->s.from.generation = row->generation;
	j->s.to.identity = F(identity_of)(dst);
	F(note_sides)(r, j);
	r->is_new = true;
	F(ct_new)(&j->f, &j->k, &j->s, HOOK_TO_OVERLAY, CT_NEW_STACK);
	return VERDICT_STACK;
}

static __always_inline int F(judge_to_overlay)(struct __sk_buff *skb, struct F(judge) *j,
					       const struct weft_config *cfg, struct report *r)
{
	const struct weft_ipcache *src = F(who_exactly)(&j->k.saddr), *dst;
	const struct weft_endpoint *row;
	struct v6addr node;
	__u32 identity = IDENTITY_REMOTE_NODE; /* as the others call this node */
	int code = VERDICT_STACK;

	if (F(multicast)(&j->k.daddr))
		return VERDICT_IGNORED;
	dst = F(who)(&j->k.daddr);
	/* Nodes are not reached by the overlay but by the network: it is made of them. */
	if (!F(tunnel_known)(dst) || dst->kind != KIND_REMOTE_POD)
		return DROP_TUNNEL_ENDPOINT;
	if (!src || (src->kind != KIND_LOCAL_POD && src->kind != KIND_HOST))
		return DROP_TUNNEL_FOREIGN;
	r->src_identity = identity;
	r->dst_identity = F(identity_of)(dst);
	node = dst->tunnel; /* a call would make the verifier forget dst */
	if (src->kind == KIND_LOCAL_POD) {
		row = endpoint(src->endpoint);
		if (!row)
			return DROP_NO_ENDPOINT;
		r->endpoint = src->endpoint;
		r->src_identity = identity = row->identity;
		code = F(track_to_overlay)(j, cfg, src, dst, row, r);
	}
	if (code != VERDICT_STACK)
		return code;
	if (set_tunnel_apart(skb, cfg, &node, identity, F(dscp)(j->k.flow)))
		return DROP_REDIRECT_FAILED;
	skb->mark = MARK_FAST; /* the outer packet has it too: to_net need not look at it */
	return VERDICT_STACK;
}

static __noinline int F(to_overlay_ip)(struct __sk_buff *skb)
{
	const struct weft_config *cfg = config();
	struct F(judge) j = {};
	struct report r = {};
	int code;

	code = F(parse)(skb, &j.k);
	if (!code)
		code = cfg ? F(judge_to_overlay)(skb, &j, cfg, &r) : DROP_TUNNEL_ENDPOINT;
	return F(finish)(skb, &j.k, &r, HOOK_TO_OVERLAY, code);
}

/*
 * What a service's backend on another node answers gets its client's address back, and
 * what is for a service of this node its backend's. A stage of its own, as is the one
 * below: the stack has no room for both.
 */
static __noinline int F(service_from_overlay)(struct __sk_buff *skb, const struct v6addr *node)
{
	const struct weft_ipcache *src;
	struct F(pkt) k = {};
	__u32 nat = 0;
	int code;

	if (!node || F(parse)(skb, &k))
		return 0; /* told of later */
	src = F(who)(&k.saddr);
	if (!src || !same_node(&src->tunnel, node))
		return 0;
	code = F(nat_enter)(skb, &k, &nat);
	if (code || nat)
		return code;
	code = F(svc_enter)(skb, &k);
	return code == SVC_TO ? 0 : code;
}

static __always_inline int F(from_overlay_any)(struct __sk_buff *skb, const struct v6addr *node, __u32 identity)
{
	int action = F(express_from_overlay)(skb, node), code;
	const struct weft_config *cfg;
	struct report r = {};

	if (action != LANE_NO)
		return action;
	cfg = config();
	if (cfg && (cfg->nat & NAT_SERVICES)) {
		code = F(service_from_overlay)(skb, node);
		if (code)
			return finish_other(skb, HOOK_FROM_OVERLAY, code, &r);
	}
	return F(from_overlay_ip)(skb, node, identity);
}

/* A client's packet for a backend on another node gets this node's address. */
static __noinline int F(service_to_overlay)(struct __sk_buff *skb)
{
	struct nat_ask ask = {};
	struct F(pkt) k = {};
	int code;

	if (F(parse)(skb, &k))
		return VERDICT_STACK;
	code = F(svc_leave)(skb, &k, &ask);
	return code == MASQUERADE ? F(nat_leave)(skb, &k, &ask) : code;
}

static __always_inline int F(to_overlay_any)(struct __sk_buff *skb)
{
	const struct weft_config *cfg = config();
	struct report r = {};
	int code;

	if (cfg && (cfg->nat & NAT_SERVICES)) {
		code = F(service_to_overlay)(skb);
		if (code != VERDICT_STACK)
			return finish_other(skb, HOOK_TO_OVERLAY, code, &r);
	}
	return F(to_overlay_ip)(skb);
}
