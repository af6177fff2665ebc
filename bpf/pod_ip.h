/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IP of a pod's device, both directions. Included once a family. */

/* What is known about a packet while it is judged. */
struct F(judge) {
	struct F(pkt) k;
	struct F(flow) f;
	struct sides s;
};

/* The row of the endpoint at this device: the entry leads there, or the device does. */
static __always_inline const struct weft_endpoint *F(row_at)(struct __sk_buff *skb, const struct F(flow) *f,
							     __u32 hint, __u32 *id)
{
	const struct weft_endpoint *row;

	if (f->ct && hint) {
		row = endpoint(hint);
		if (row && row->ifindex == skb->ifindex) {
			*id = hint;
			return row;
		}
	}
	*id = endpoint_of_device(skb->ifindex);
	row = endpoint(*id);
	return row && row->ifindex == skb->ifindex ? row : 0;
}

static __always_inline void F(note_sides)(struct report *r, const struct F(judge) *j)
{
	r->src_identity = j->s.from.identity;
	r->dst_identity = j->s.to.identity;
}

/* Lets a packet of the fast path out. */
static __always_inline int F(forward)(struct __sk_buff *skb, struct F(judge) *j, struct report *r, struct weft_hop *hop)
{
	const struct weft_endpoint *to;

	if (!j->s.to.endpoint) {
		int code = hop ? F(send_by)(skb, &j->k, hop, r) : HOP_NO;

		return code == HOP_NO ? F(send)(skb, &j->k, r, hop) : code;
	}
	to = endpoint(j->s.to.endpoint);
	if (!to || !F(owns)(to, &j->k.daddr))
		return DROP_NO_ENDPOINT;
	return F(deliver)(skb, &j->k, to, r);
}

/* A pod's packet that belongs to no connection yet. */
static __always_inline int F(from_pod_new)(struct __sk_buff *skb, struct F(judge) *j, const struct weft_config *cfg,
					   __u32 now, struct report *r)
{
	const struct weft_ipcache *who = F(who)(&j->k.daddr);
	__u8 kind = who ? who->kind : KIND_UNKNOWN;
	bool tunnel = F(by_tunnel)(cfg, who); /* also of nodes: the network between may not know pods */
	bool pod = kind == KIND_LOCAL_POD || kind == KIND_REMOTE_POD || tunnel;
	const struct weft_endpoint *row;
	struct weft_hop *hop = 0;
	struct weft_ct *ct;
	bool stack;

	j->s.to.identity = F(identity_of)(who);
	j->s.to.endpoint = kind == KIND_LOCAL_POD ? who->endpoint : 0;
	F(note_sides)(r, j);
	if (!j->k.p.ports) /* later fragment, or ICMP error about nothing we know */
		return pod && !j->k.p.error ? DROP_FRAGMENT_UNKNOWN : VERDICT_STACK;
	if (j->k.p.error)
		return VERDICT_STACK;
	if (j->s.to.endpoint) {
		row = endpoint(j->s.to.endpoint);
		if (!row)
			return DROP_NO_ENDPOINT;
		j->s.to.generation = row->generation;
	}
	/* In mid-stream only the stack is right for both: see docs/datapath.md. */
	stack = !pod || skb->mark == MARK_SERVICE || skb->mark == MARK_REFUSE || !may_open_fast(&j->k.p) ||
		F(late_answer)(&j->k) || (!j->s.to.endpoint && !tunnel && !F(leaves_by_net)(skb, &j->k));
	r->is_new = true;
	F(ct_new)(&j->f, &j->k, &j->s, HOOK_FROM_POD,
		  (stack ? CT_NEW_STACK : 0) | (skb->mark == MARK_SERVICE ? CT_NEW_SERVICE : 0));
	if (stack)
		return VERDICT_STACK;
	/* The entry remembers the way for what follows. */
	ct = j->s.to.endpoint ? 0 : bpf_map_lookup_elem(&F(weft_ctn), &j->f.key);
	if (ct) {
		hop = &ct->hop;
		__asm__ __volatile__("" : "+r"(hop)); /* clang would add before it has looked, which the verifier does not take */
	}
	return F(forward)(skb, j, r, hop);
}

/* Everything but ND: the source must be the pod's own address. */
static __always_inline int F(judge_from_pod)(struct __sk_buff *skb, struct F(judge) *j, const struct weft_config *cfg,
					     struct report *r)
{
	const struct weft_endpoint *ep;
	__u32 now = now_tick(), id;
	struct weft_hop *hop;
	bool stack;

	F(ct_find)(&j->f, &j->k, now);
	if (j->f.ct)
		F(ct_sides)(&j->f, &j->s);
	ep = F(row_at)(skb, &j->f, j->s.from.endpoint, &id);
	if (!ep)
		return DROP_NO_ENDPOINT;
	r->endpoint = id;
	r->src_identity = ep->identity;
#if FAMILY == 6
	if (is_nd(&j->k))
		return nd_from_pod(skb, &j->k, ep, r);
	if (is_mld(&j->k) && (link_local6(&j->k.saddr) || unspecified6(&j->k.saddr)))
		return VERDICT_STACK;
	if (link_local6(&j->k.saddr))
		return DROP_LINK_LOCAL_SOURCE;
#else
	if (j->k.p.proto == IPPROTO_ICMP && j->k.p.frag != FRAG_LATER && j->k.p.icmp_type == 5)
		return DROP_ICMP_REDIRECT;
#endif
	if (!F(owns)(ep, &j->k.saddr))
		return DROP_SOURCE_SPOOFED;
	if (F(martian)(&j->k.daddr) || F(same)(&j->k.saddr, &j->k.daddr))
		return DROP_MARTIAN_DESTINATION;
	if (F(multicast)(&j->k.daddr) || skb->pkt_type != PACKET_HOST)
		return VERDICT_STACK;
	if (j->k.p.frag == FRAG_FIRST)
		F(frag_remember)(&j->k, HOOK_FROM_POD);
	/* The entry must be about this pod, not only contain its address. */
	if (j->f.ct && j->s.from.endpoint == id) {
		/* What asks a service past its socket is answered through to_pod. */
		bool service = skb->mark == MARK_SERVICE;

		stack = (j->f.ct->flags & CT_STACK) || service;
		hop = &j->f.ct->hop; /* of an entry that is moved, the copy has it too */
		F(note_sides)(r, j);
		if (service && !(j->f.ct->flags & CT_SERVICE))
			__sync_fetch_and_or(&j->f.ct->flags, CT_SERVICE);
		F(ct_touch)(&j->f, &j->k, cfg, now, HOOK_FROM_POD, service);
		return stack ? VERDICT_STACK : F(forward)(skb, j, r, hop);
	}
	j->s.from.identity = ep->identity;
	j->s.from.generation = ep->generation;
	j->s.from.endpoint = id;
	return F(from_pod_new)(skb, j, cfg, now, r);
}

#if FAMILY == 6
/* Sees to it that the stack forwards what it is left; see lib/jumbo.h. */
static __always_inline int from_pod_jumbo(struct __sk_buff *skb, const struct pkt6 *k, const struct weft_config *cfg,
					  struct report *r, int code)
{
	const struct weft_endpoint *row;
	bool syn = k->p.proto == IPPROTO_TCP && (k->p.tcp_flags & TCP_SYN) && (cfg->flags & CONFIG_BIG_TCP6);

	if (!k->p.saved && !syn)
		return code;
	row = endpoint(r->endpoint);
	if (!row)
		return code;
	if (code == VERDICT_STACK && jumbo_too_big(skb, k, row->mtu)) {
		r->mtu = row->mtu - JUMBO_LEN;
		return DROP_TOO_BIG;
	}
	if (syn)
		clamp_mss(skb, k, row->mtu);
	return code;
}
#endif

static __noinline int F(from_pod_ip)(struct __sk_buff *skb)
{
	const struct weft_config *cfg = config();
	struct F(judge) j = {};
	struct report r = {};
	int code;

	code = F(parse)(skb, &j.k);
	if (!code)
		code = cfg ? F(judge_from_pod)(skb, &j, cfg, &r) : VERDICT_STACK;
#if FAMILY == 6
	if (cfg)
		code = from_pod_jumbo(skb, &j.k, cfg, &r, code);
#endif
	if (code == DROP_TOO_BIG)
		r.told = F(send_too_big)(skb, &j.k, r.mtu, HOOK_FROM_POD);
	return F(finish)(skb, &j.k, &r, HOOK_FROM_POD, code);
}

/* Who sent what the node hands to a pod (DATAPATH rule 2). */
static __always_inline int F(sender)(struct __sk_buff *skb, struct F(judge) *j)
{
	const struct weft_ipcache *who;
	const struct weft_endpoint *row;

	if (!skb->ingress_ifindex) { /* made on this node */
		j->s.from.identity = IDENTITY_HOST;
		return 0;
	}
	who = F(who)(&j->k.saddr);
	j->s.from.identity = F(identity_of)(who);
	if (!who || who->kind != KIND_LOCAL_POD)
		return 0;
	row = endpoint(who->endpoint);
	if (!row)
		return 0;
	/* A device without our hook let in the address of a pod of this node. */
	if (row->ifindex != skb->ingress_ifindex)
		return DROP_SOURCE_SPOOFED;
	j->s.from.endpoint = who->endpoint;
	j->s.from.generation = row->generation;
	return 0;
}

static __always_inline int F(judge_to_pod)(struct __sk_buff *skb, struct F(judge) *j, const struct weft_config *cfg,
					   struct report *r)
{
	const struct weft_endpoint *ep;
	__u32 now = now_tick(), id;
	int err;

#if FAMILY == 6
	if (is_nd(&j->k) || is_mld(&j->k))
		return VERDICT_STACK;
#endif
	F(ct_find)(&j->f, &j->k, now);
	j->f.service = !j->f.ct || (j->f.ct->flags & CT_SERVICE);
	if (j->f.ct)
		F(ct_sides)(&j->f, &j->s);
	ep = F(row_at)(skb, &j->f, j->s.to.endpoint, &id);
	if (!ep)
		return DROP_NO_ENDPOINT;
	r->endpoint = id;
	r->dst_identity = ep->identity;
	if (!F(owns)(ep, &j->k.daddr))
		return DROP_NOT_FOR_ENDPOINT;
	if (j->f.ct && j->s.to.endpoint == id) {
		F(note_sides)(r, j);
		if (F(ct_in_use)(&j->f, &j->k))
			return DROP_PORTS_IN_USE;
		F(ct_touch)(&j->f, &j->k, cfg, now, HOOK_TO_POD, true);
		return VERDICT_STACK;
	}
	__builtin_memset(&j->s.from, 0, sizeof(j->s.from));
	err = F(sender)(skb, j);
	j->s.to.identity = ep->identity;
	j->s.to.generation = ep->generation;
	j->s.to.endpoint = id;
	F(note_sides)(r, j);
	if (err)
		return err;
	if (j->k.p.ports && !j->k.p.error) {
		r->is_new = true;
		F(ct_new)(&j->f, &j->k, &j->s, HOOK_TO_POD, CT_NEW_STACK);
	}
	return VERDICT_STACK;
}

static __noinline int F(to_pod_ip)(struct __sk_buff *skb)
{
	const struct weft_config *cfg = config();
	struct F(judge) j = {};
	struct report r = {};
	int code;

	code = F(parse)(skb, &j.k);
	if (!code)
		code = cfg ? F(judge_to_pod)(skb, &j, cfg, &r) : VERDICT_STACK;
	if (code == VERDICT_STACK && j.f.service)
		code = F(svc_arrive)(skb, &j.k, r.is_new);
	return F(finish)(skb, &j.k, &r, HOOK_TO_POD, code);
}

static __always_inline int F(from_pod_any)(struct __sk_buff *skb)
{
	int action = F(express_from_pod)(skb);
	const struct weft_config *cfg;

	if (action != LANE_NO)
		return action;
	cfg = config();
	if (cfg && (cfg->nat & NAT_SERVICES) && !F(for_pod)(skb))
		action = F(service_from_pod)(skb);
	return action == LANE_NO ? F(from_pod_ip)(skb) : action;
}
