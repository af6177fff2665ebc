/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IP of the node's devices, both directions. Included once a family. */

/* What is not for a pod of ours, or cannot be read, is the stack's. */
static __always_inline int F(not_for_pods)(const struct F(pkt) *k)
{
	return F(ours_alone)(&k->saddr) ? DROP_SOURCE_SPOOFED : VERDICT_STACK;
}

static __always_inline int F(deliver_to)(struct __sk_buff *skb, struct F(judge) *j, struct report *r)
{
	const struct weft_endpoint *to = endpoint(j->s.to.endpoint);
	int code;

	if (!to || !F(owns)(to, &j->k.daddr))
		return DROP_NO_ENDPOINT;
	code = F(deliver)(skb, &j->k, to, r);
	/*
	 * Too big for the pod: the stack tells the sender, before FORWARD. An error
	 * of ours would get a wrong checksum on a device that does not compute
	 * them, where the packet had arrived without one.
	 */
	return code == DROP_TOO_BIG ? VERDICT_STACK : code;
}

/* From the net, for a local pod, no connection yet. */
static __always_inline int F(from_net_new)(struct __sk_buff *skb, struct F(judge) *j, const struct weft_config *cfg,
					   __u32 now, const struct weft_ipcache *dst, __u32 nat,
					   struct report *r)
{
	const struct weft_ipcache *who = F(who)(&j->k.saddr);
	__u8 kind = who ? who->kind : KIND_UNKNOWN;
	const struct weft_endpoint *row;

	if (kind == KIND_LOCAL_POD || kind == KIND_HOST)
		return DROP_SOURCE_SPOOFED;
	if (kind == KIND_REMOTE_POD && (cfg->tunnel_flags & TUNNEL_STRICT) && F(by_tunnel)(cfg, who))
		return DROP_TUNNEL_BYPASSED;
	row = endpoint(dst->endpoint);
	if (!row)
		return DROP_NO_ENDPOINT;
	r->endpoint = dst->endpoint;
	__builtin_memset(&j->s.from, 0, sizeof(j->s.from));
	j->s.from.identity = F(identity_of)(who);
	j->s.to.identity = row->identity;
	j->s.to.endpoint = dst->endpoint;
	j->s.to.generation = row->generation;
	F(note_sides)(r, j);
	if (nat && nat != NAT_SERVICE && !j->k.p.error && j->k.p.ports)
		F(nat_restore)(&j->k, &j->s, nat);
	if (kind != KIND_REMOTE_POD || j->k.p.error || nat == NAT_SERVICE)
		return VERDICT_STACK;
	if (!j->k.p.ports)
		return DROP_FRAGMENT_UNKNOWN;
	if (j->k.p.frag == FRAG_FIRST)
		F(frag_remember)(&j->k, HOOK_FROM_NET);
	if (!may_open_fast(&j->k.p) || F(late_answer)(&j->k))
		return VERDICT_STACK; /* to_pod makes the entry */
	r->is_new = true;
	F(ct_new)(&j->f, &j->k, &j->s, HOOK_FROM_NET, 0);
	return F(deliver_to)(skb, j, r);
}

/* From the net, part of a connection that this node knows. */
static __always_inline int F(from_net_known)(struct __sk_buff *skb, struct F(judge) *j, const struct weft_config *cfg,
					     __u32 now, __u32 nat, struct report *r)
{
	/* A connection without the service that has the same ports: to_pod tells them apart. */
	bool stack = (j->f.ct->flags & CT_STACK) || nat == NAT_SERVICE;

	F(note_sides)(r, j);
	r->endpoint = j->s.to.endpoint;
	/* The sender of an ICMP error is not the sender of the connection. */
	if (j->k.p.error ? F(ours_alone)(&j->k.saddr) : j->s.from.endpoint || j->s.from.identity == IDENTITY_HOST)
		return DROP_SOURCE_SPOOFED;
	if (j->k.p.frag == FRAG_FIRST)
		F(frag_remember)(&j->k, HOOK_FROM_NET);
	F(ct_touch)(&j->f, &j->k, cfg, now, HOOK_FROM_NET, false);
	return stack ? VERDICT_STACK : F(deliver_to)(skb, j, r);
}

/* A flow of the host that has another port outside lives on, as its answers come. */
static __always_inline void F(nat_answered)(struct F(judge) *j, const struct weft_config *cfg, __u32 now)
{
	F(ct_find_new)(&j->f, &j->k, now);
	if (j->f.ct)
		F(ct_touch)(&j->f, &j->k, cfg, now, HOOK_FROM_NET, false);
}

static __always_inline int F(judge_from_net)(struct __sk_buff *skb, struct F(judge) *j, const struct weft_config *cfg,
					     __u32 nat, struct report *r)
{
	const struct weft_ipcache *dst;
	__u32 now = now_tick();

	F(ct_find_main)(&j->f, &j->k, now);
	if (!j->f.ct) {
		dst = F(who_exactly)(&j->k.daddr);
		if (!dst || dst->kind != KIND_LOCAL_POD) {
			if (nat && nat != NAT_SERVICE)
				F(nat_answered)(j, cfg, now);
			return F(not_for_pods)(&j->k);
		}
		F(ct_find_new)(&j->f, &j->k, now);
		if (!j->f.ct)
			return F(from_net_new)(skb, j, cfg, now, dst, nat, r);
	}
	F(ct_sides)(&j->f, &j->s);
	if (!j->s.to.endpoint) /* an entry of pod traffic that left; nobody answers from here */
		return F(not_for_pods)(&j->k);
	return F(from_net_known)(skb, j, cfg, now, nat, r);
}

/* What cannot be read: dropped only if a pod of ours would get it. */
static __always_inline int F(unreadable_from_net)(const struct F(pkt) *k, int reason)
{
	const struct weft_ipcache *dst;

	if (!k->p.len) /* there are not even addresses */
		return VERDICT_STACK;
	dst = F(who_exactly)(&k->daddr);
	return dst && dst->kind == KIND_LOCAL_POD ? reason : F(not_for_pods)(k);
}

static __noinline int F(from_net_ip)(struct __sk_buff *skb)
{
	const struct weft_config *cfg = config();
	struct F(judge) j = {};
	struct report r = {};
	__u32 nat = 0;
	int code;

	code = F(parse)(skb, &j.k);
	if (code)
		code = F(unreadable_from_net)(&j.k, code);
	else if (skb->pkt_type != PACKET_HOST || !cfg)
		code = F(not_for_pods)(&j.k);
	else if (cfg->nat)
		code = F(nat_enter)(skb, &j.k, &nat);
	if (!code && !nat && cfg->nat) {
		code = F(svc_enter)(skb, &j.k);
		if (code == SVC_TO) {
			code = 0;
			nat = NAT_SERVICE;
		}
	}
	if (!code)
		code = F(judge_from_net)(skb, &j, cfg, nat, &r);
	return F(finish)(skb, &j.k, &r, HOOK_FROM_NET, code);
}

/*
 * What leaves the node without our mark came out of the stack. If it is a
 * pod's, the connection, as it looks after translation, is the stack's
 * (DATAPATH rule 1). The stack has decided: dropped is only what would take a
 * living connection's place, and what must be masqueraded and cannot be.
 * MASQUERADE is no verdict yet.
 */
static __always_inline int F(pod_to_net)(const struct F(pkt) *k, const struct weft_config *cfg,
					 const struct weft_ipcache *src, struct nat_ask *ask, struct report *r)
{
	const struct weft_endpoint *row;
	__u32 now = now_tick();
	struct F(flow) f = {};
	struct sides s = {};
	bool untranslated;

	r->endpoint = src->endpoint;
	F(ct_find)(&f, k, now);
	if (f.ct) {
		F(ct_sides)(&f, &s);
		r->src_identity = s.from.identity;
		r->dst_identity = s.to.identity;
		if (F(ct_in_use)(&f, k))
			return DROP_PORTS_IN_USE;
		/* An answer to who came in by himself, or what was answered as it is. */
		untranslated = !f.opener || (f.ct->flags & CT_ANSWERED);
		ask->known = f.opener ? f.ct->nat : 0;
		F(ct_touch)(&f, k, cfg, now, HOOK_TO_NET, true);
	} else {
		row = endpoint(src->endpoint);
		if (!row)
			return VERDICT_STACK;
		s.from.identity = row->identity;
		s.from.endpoint = src->endpoint;
		s.from.generation = row->generation;
		s.to.identity = F(identity_of)(F(who)(&k->daddr));
		r->src_identity = s.from.identity;
		r->dst_identity = s.to.identity;
		r->is_new = true;
		F(ct_new)(&f, k, &s, HOOK_TO_NET, CT_NEW_STACK);
		untranslated = (k->p.tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
	}
	ask->endpoint = s.from.endpoint;
	ask->generation = s.from.generation;
	return F(nat_pod)(k, cfg, ask, untranslated) ? MASQUERADE : VERDICT_STACK;
}

/*
 * What the node itself sends from a port that pods' flows get too: it holds the
 * port, so that no pod gets it towards this destination. Where one had it
 * already, the host's flow gets another one outside (DATAPATH rule 8).
 */
static __always_inline int F(host_to_net)(const struct F(pkt) *k, const struct weft_config *cfg, struct nat_ask *ask)
{
	__u32 now = now_tick();
	struct F(flow) f = {};

	if (!F(nat_shared)(k, cfg))
		return VERDICT_STACK;
	F(ct_find)(&f, k, now);
	if (f.ct && f.ct->nat && f.opener) {
		ask->known = f.ct->nat;
		F(ct_touch)(&f, k, cfg, now, HOOK_TO_NET, true);
		return MASQUERADE;
	}
	ask->opens = k->p.ct_proto != IPPROTO_TCP || opens_tcp(&k->p);
	return HOLD_PORT;
}

/* Conntrack remembers which port a flow of the host has outside. Static: see who_exactly. */
static __noinline int F(host_ct)(const struct F(pkt) *k)
{
	struct F(flow) f = {};
	struct sides s = {};

	F(ct_key)(&f, k);
	s.from.identity = IDENTITY_HOST;
	s.to.identity = F(identity_of)(F(who)(&k->dst));
	F(ct_new)(&f, k, &s, HOOK_TO_NET, CT_NEW_STACK);
	return 0;
}

/*
 * A function of its own: its variables must not lie on the stack while a port is looked for.
 * Static: see who_exactly.
 */
static __noinline int F(judge_to_net)(const struct F(pkt) *k, struct nat_ask *ask, struct report *r)
{
	const struct weft_config *cfg = config();
	const struct weft_ipcache *src;

	if (!cfg)
		return VERDICT_STACK;
	src = F(who_exactly)(&k->saddr);
	if (!src)
		return VERDICT_STACK;
	if (src->kind == KIND_HOST)
		return F(host_to_net)(k, cfg, ask);
	if (src->kind != KIND_LOCAL_POD)
		return VERDICT_STACK;
	if (F(nat_bars)(k, cfg))
		return DROP_FRAGMENT_UNKNOWN;
	return k->p.ports ? F(pod_to_net)(k, cfg, src, ask, r) : VERDICT_STACK;
}

static __noinline int F(to_net_ip)(struct __sk_buff *skb)
{
	struct nat_ask ask = {};
	struct report r = {};
	int code = VERDICT_STACK;
	struct F(pkt) k = {};

	if (!F(parse)(skb, &k))
		code = k.p.error ? F(nat_leave_error)(skb, &k) : F(judge_to_net)(&k, &ask, &r);
	if (code == HOLD_PORT) {
		code = F(nat_hold)(&k, &ask);
		if (code == MASQUERADE)
			F(host_ct)(&k);
	}
	if (code == MASQUERADE && F(lbct_answers)(&k, 0))
		code = VERDICT_STACK; /* conntrack has forgotten who opened */
	if (code == VERDICT_STACK)
		code = F(svc_leave)(skb, &k, &ask);
	if (code == MASQUERADE)
		code = F(nat_leave)(skb, &k, &ask);
	if (code == VERDICT_STACK && k.p.len)
		code = F(to_node)(skb, &k, &r);
	return F(finish)(skb, &k, &r, HOOK_TO_NET, code);
}

static __always_inline int F(from_net_any)(struct __sk_buff *skb)
{
	int action = F(express_from_net)(skb);

	return action == LANE_NO ? F(from_net_ip)(skb) : action;
}
