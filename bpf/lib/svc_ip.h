/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services, for what comes from outside: a packet for a service gets a backend's
 * address where it comes in, and what the backend answers the service's where it goes
 * out. In between it is the stack's. Included once a family. docs/datapath.md,
 * "Services", is the specification of this file.
 */

#ifndef SVC_TO
/* Beside codes; -1 and -2 are MASQUERADE and HOLD_PORT. */
#define SVC_TO (-3)     /* there is a backend */
#define SVC_ANSWER (-4) /* it answers for a service */

#define SVC_ATTEMPTS 4  /* backends that are tried for one connection */

#define BACK_NONE 0
#define BACK_OURS 1  /* of this connection */
#define BACK_TAKEN 2 /* of another one, to another address */

#define PUT_BACK 1   /* both rows, else only the one that leads there */
#define PUT_REMOTE 2 /* the backend is not of this node */
#endif

/* The row of the service that a packet from outside is for; 0: it is for none. Static: see who_exactly. */
static __noinline const struct weft_svc *F(svc_row)(const struct F(pkt) *k)
{
	const struct weft_ipcache *who;
	const struct weft_svc *s;
	svc_key_t key;

	__builtin_memset(&key, 0, sizeof(key));
	key.addr = k->dst;
	key.port = k->p.dport;
	key.proto = k->p.ct_proto;
	key.scope = SVC_EXTERNAL;
	s = bpf_map_lookup_elem(&F(weft_svc), &key);
	if (s)
		return s->type == SVC_CLUSTER_IP ? 0 : s;
	who = F(who_exactly)(&key.addr);
	if (!who || who->kind != KIND_HOST)
		return 0;
	__builtin_memset(&key.addr, 0, sizeof(key.addr)); /* NodePort */
	return bpf_map_lookup_elem(&F(weft_svc), &key);
}

/* Who answers a client from outside; 0: ask for the row anew. Static: see who_exactly. */
static __noinline const struct weft_backend *F(svc_choose)(const struct weft_svc *s, const struct F(pkt) *k,
							    __u32 attempt, __u32 *id)
{
	const struct weft_config *cfg = config();
	struct weft_affinity_key client = {.service = s->service, .kind = AFFINITY_ADDR};
	/* By the flow: a connection whose rows were lost finds its backend again. */
	__u32 number = F(nat_hash)(k, cfg ? cfg->nat_seed : 0) + attempt;

	if (!s->affinity)
		return svc_pick(s, number, id);
	F(to_event)(&client.client, &k->src);
	return svc_sticky(s, &client, s->affinity, number, id);
}

static __always_inline void F(svc_addr)(addr_t *addr, const struct weft_backend *b)
{
#if FAMILY == 4
	*addr = b->addr.w[3];
#else
	*addr = b->addr;
#endif
}

/* Is a backend on this node: a pod, or the node itself? */
static __noinline bool F(svc_local)(const struct weft_backend *b)
{
	addr_t addr;

	F(svc_addr)(&addr, b);
	return F(ours_alone)(&addr);
}

/* Has the client a connection with the backend, from the same port? Static: see who_exactly. */
static __noinline int F(svc_has_back)(const struct F(pkt) *k, const struct weft_backend *b)
{
	const struct weft_lbct *c;
	lbct_key_t key;

	F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, b->port, k->p.ct_proto, LBCT_BACK);
	F(svc_addr)(&key.addr, b);
	c = F(lbct_at)(&key);
	if (!c || expired(c->expires, now_tick()) || c->generation != b->generation || lbct_over(c, &k->p))
		return BACK_NONE;
	if (F(same)(LBCT_ADDR(c), &k->dst) && c->port == k->p.dport)
		return BACK_OURS;
	return BACK_TAKEN;
}

/* Has the client a connection with the backend without any service, from the same port? Static: see who_exactly. */
static __noinline bool F(svc_direct)(const struct F(pkt) *k, const struct weft_backend *b)
{
	const struct weft_ct *ct;
	ct_key_t key;
	addr_t addr;

	if (!opens_tcp(&k->p))
		return false;
	F(svc_addr)(&addr, b);
	F(ct_key_of)(&key, &k->src, &addr, k->p.sport, b->port, k->p.ct_proto);
	ct = bpf_map_lookup_elem(&F(weft_ct), &key);
	return ct && !expired(ct->expires, now_tick()) && !CT_CLOSING(ct->flags);
}

/* Writes the rows of a connection, as many as how says. Static: see who_exactly. */
static __noinline int F(svc_put)(const struct F(pkt) *k, const struct weft_backend *b, __u32 id, __u32 how)
{
	const struct weft_config *cfg = config();
	struct weft_lbct v = {};
	lbct_key_t key;

	if (!cfg)
		return 0;
	v.flags = how & PUT_REMOTE ? LBCTF_REMOTE : 0;
	v.backend = id;
	v.generation = b->generation;
	v.expires = now_tick() + nat_ttl(cfg, 0, k->p.ct_proto);
	if (how & PUT_BACK) {
		v.port = k->p.dport;
		*LBCT_ADDR(&v) = k->dst;
		F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, b->port, k->p.ct_proto, LBCT_BACK);
		F(svc_addr)(&key.addr, b);
		bpf_map_delete_elem(&F(weft_lbct), &key); /* an older one there would be found first */
		if (bpf_map_update_elem(&F(weft_lbctn), &key, &v, BPF_ANY))
			count(HOOK_FROM_NET, NOTE_SVC_FULL, 0);
	}
	v.port = b->port;
	F(svc_addr)(LBCT_ADDR(&v), b);
	F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, k->p.dport, k->p.ct_proto, LBCT_THERE);
	bpf_map_delete_elem(&F(weft_lbct), &key);
	if (bpf_map_update_elem(&F(weft_lbctn), &key, &v, BPF_ANY))
		count(HOOK_FROM_NET, NOTE_SVC_FULL, 0);
	return 0;
}

/*
 * Nobody answers. At an address of this node the stack refuses, as it does for a port
 * that nobody listens at; what it would send on is dropped, and so is what another
 * node may answer (externalTrafficPolicy Local). Static: see who_exactly.
 */
static __noinline int F(svc_refuse)(const struct F(pkt) *k, const struct weft_svc *s)
{
	addr_t dst = k->dst;

	return !(s->flags & SVC_LOCAL) && F(ours_alone)(&dst) ? 0 : DROP_NO_BACKEND;
}

/* Is a service that is not for everybody for this client? Static: see who_exactly. */
static __noinline bool F(svc_admits)(const struct weft_svc *s, const struct F(pkt) *k)
{
	src_key_t key;

	key.prefixlen = 32 + 8 * sizeof(key.addr);
	key.service = s->service;
	key.addr = k->src;
	return bpf_map_lookup_elem(&F(weft_src), &key);
}

/* A packet for an address that it has no row for. */
static __always_inline int F(svc_new)(const struct F(pkt) *k, struct F(nat_to) *to)
{
	const struct weft_backend *b;
	const struct weft_svc *s;
	__u32 id = 0, how;
	int had;

	to->addr = k->saddr;
	if (F(ours_alone)(&to->addr))
		return 0; /* forged: it is dropped for that */
	if (k->p.tcp_flags & TCP_RST)
		return 0; /* it ends what is not there */
	for (__u32 i = 0; i < SVC_ATTEMPTS; i++) {
		s = F(svc_row)(k);
		if (!s)
			return 0;
		if ((s->flags & SVC_SOURCES) && !F(svc_admits)(s, k))
			return DROP_SOURCE_RANGES;
		if (!s->count)
			return F(svc_refuse)(k, s);
		b = F(svc_choose)(s, k, i, &id);
		if (!b)
			continue;
		/* What it answers could not be told apart if it had one from there already. */
		had = F(svc_has_back)(k, b);
		if (had == BACK_TAKEN || (had == BACK_NONE && F(svc_direct)(k, b)))
			continue;
		how = had == BACK_OURS ? 0 : PUT_BACK;
		if (!F(svc_local)(b))
			how |= PUT_REMOTE;
		F(svc_put)(k, b, id, how);
		F(svc_addr)(&to->addr, b);
		to->port = b->port;
		count(HOOK_FROM_NET, NOTE_SVC_NEW, 0);
		return SVC_TO;
	}
	return DROP_PORTS_IN_USE;
}

/* May the client go on with the service? Of TCP each new connection is asked about, of datagrams each tick. */
static __always_inline bool F(svc_still)(const struct F(pkt) *k, __u32 id)
{
	const struct weft_svc *s;

	if (k->p.ct_proto == IPPROTO_TCP && !opens_tcp(&k->p))
		return true;
	s = F(svc_row)(k);
	if (!s || ((s->flags & SVC_SOURCES) && !F(svc_admits)(s, k)))
		return false;
	return k->p.ct_proto == IPPROTO_TCP || svc_has(s, id);
}

/* What a packet of a known connection is to become. 0: it is of none. */
static __always_inline int F(svc_known)(const struct F(pkt) *k, struct F(nat_to) *to)
{
	struct weft_lbct *c = F(lbct_there)(k), *back;
	const struct weft_backend *b;
	__u32 id;

	if (!c)
		return 0;
	id = c->backend;
	b = backend_of(id);
	if (!b || b->generation != c->generation)
		return 0; /* it is gone: whoever goes on is told so by another one */
	if (!k->p.error && F(lbct_due)(k, c)) {
		if (!F(svc_still)(k, id))
			return 0;
		back = F(lbct_back)(k, c);
		if (back && lbct_over(back, &k->p))
			return 0;
		if (back)
			F(lbct_touch)(k, c, back);
		else if (F(svc_has_back)(k, b) == BACK_NONE)
			F(svc_put)(k, b, id, PUT_BACK | (c->flags & LBCTF_REMOTE ? PUT_REMOTE : 0));
		else
			return 0; /* somebody else's by now */
	}
	to->addr = *LBCT_ADDR(c);
	to->port = c->port;
	return SVC_TO;
}

/*
 * A packet from outside: if it is for a service, it becomes one for the backend, and
 * k with it. Returns 0, SVC_TO or why it must be dropped.
 */
__noinline int F(svc_enter)(struct __sk_buff *skb, struct F(pkt) *k)
{
	const struct weft_config *cfg = config();
	const struct weft_ipcache *who;
	struct F(nat_to) to = {};
	int code;

	if (!k || !cfg || !(cfg->nat & NAT_SERVICES) || !k->p.ports || !nat_can(&k->p))
		return 0;
	if (nat_keeps_port(k->p.ct_proto)) /* a service may have another one than its backends */
		return 0;
	to.addr = k->dst;
	who = F(who_exactly)(&to.addr);
	if (who && who->kind == KIND_LOCAL_POD)
		return 0;
	code = F(svc_known)(k, &to);
	if (!code && !k->p.error)
		code = F(svc_new)(k, &to);
	if (code != SVC_TO)
		return code;
	if (k->p.frag == FRAG_FIRST)
		F(frag_remember)(k, HOOK_FROM_NET);
	if (k->p.error ? F(nat_rewrite_error)(skb, k, &to, NAT_SRC) : F(nat_rewrite)(skb, k, &to, NAT_DST))
		return DROP_REDIRECT_FAILED;
	k->p.dport = to.port;
	k->dst = k->daddr = to.addr;
	return SVC_TO;
}

/*
 * What becomes of a packet that leaves: SVC_ANSWER, to holds the service's address;
 * MASQUERADE, a client's for a backend on another node, ask says what it is there.
 * Else a code. Static: see who_exactly.
 */
static __noinline int F(svc_judge)(const struct F(pkt) *k, struct F(nat_to) *to, struct nat_ask *ask)
{
	const struct weft_config *cfg = config();
	__u32 now = now_tick(), set = NATF_ANSWERED;
	struct weft_lbct *c;
	lbct_key_t key;

	if (!cfg)
		return VERDICT_STACK;
	F(lbct_key)(&key, &k->dst, &k->src, k->p.dport, k->p.sport, k->p.ct_proto, LBCT_BACK);
	c = F(lbct_at)(&key);
	if (c && !expired(c->expires, now)) {
		to->addr = *LBCT_ADDR(c);
		to->port = c->port;
		if (k->p.error)
			return SVC_ANSWER;
		if (k->p.tcp_flags & TCP_FIN)
			set |= NATF_FIN_PEER;
		if (k->p.tcp_flags & TCP_RST)
			set |= NATF_RST;
		lbct_set(c, cfg, k->p.ct_proto, now, set);
		if ((c->flags & (NATF_WENT_ON | NATF_RST | LBCTF_MAIN)) == NATF_WENT_ON)
			F(lbct_grow)(k, c);
		return SVC_ANSWER;
	}
	F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, k->p.dport, k->p.ct_proto, LBCT_BACK);
	c = F(lbct_at)(&key);
	if (!c || !(c->flags & LBCTF_REMOTE) || expired(c->expires, now))
		return VERDICT_STACK;
	ask->known = c->nat;
	ask->endpoint = ask->generation = 0;
	ask->client = true;
	return MASQUERADE;
}

/* Does a packet answer for a service? Then it is not the opener of a flow to masquerade. Static: see who_exactly. */
static __noinline bool F(svc_answers)(const struct F(pkt) *k)
{
	const struct weft_config *cfg = config();
	const struct weft_lbct *c;
	lbct_key_t key;

	if (!cfg || !(cfg->nat & NAT_SERVICES) || !k->p.ports)
		return false;
	F(lbct_key)(&key, &k->dst, &k->src, k->p.dport, k->p.sport, k->p.ct_proto, LBCT_BACK);
	c = F(lbct_at)(&key);
	return c && !expired(c->expires, now_tick());
}

/*
 * What leaves the node, as far as services have to do with it: what a backend
 * answers, or somebody says about what the client sent, becomes the service's.
 * MASQUERADE: the caller is to give the packet what ask says.
 */
__noinline int F(svc_leave)(struct __sk_buff *skb, const struct F(pkt) *k, struct nat_ask *ask)
{
	const struct weft_config *cfg = config();
	struct F(nat_to) to = {};
	int code;

	if (!k || !ask || !cfg || !(cfg->nat & NAT_SERVICES) || !k->p.ports)
		return VERDICT_STACK;
	code = F(svc_judge)(k, &to, ask);
	if (code == MASQUERADE && k->p.error) { /* of a client, about what came from the backend */
		if (!F(nat_slot)(&to, ask->known >> 16))
			return VERDICT_STACK;
		to.port = ask->known;
		code = SVC_ANSWER;
	}
	if (code != SVC_ANSWER)
		return code;
	if (k->p.frag == FRAG_FIRST)
		F(frag_remember)(k, HOOK_TO_NET);
	if (!k->p.error)
		return F(nat_rewrite)(skb, k, &to, NAT_SRC) ? DROP_REDIRECT_FAILED : VERDICT_STACK;
#if FAMILY == 4
	if (k->p.icmp_type == 5) /* it tells a client the way to a backend that the client does not know */
		return DROP_ICMP_REDIRECT;
#endif
	return F(nat_rewrite_error)(skb, k, &to, NAT_DST) ? DROP_REDIRECT_FAILED : VERDICT_STACK;
}

