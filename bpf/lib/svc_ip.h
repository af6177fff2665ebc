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
#define SVC_REFUSE (-4) /* nobody answers, and the stack is to say so */

#define SVC_ATTEMPTS 4  /* backends that are tried for one connection */

/* inside is LBCT_INSIDE or 0. */
#define SVC_HOOK(inside) ((inside) ? HOOK_FROM_POD : HOOK_FROM_NET)

#define BACK_NONE 0
#define BACK_OURS 1  /* of this connection */
#define BACK_TAKEN 2 /* of another one, to another address */

/* LBCT_INSIDE, and: */
#define PUT_BACK 4   /* both rows, else only the one that leads there */
#define PUT_REMOTE 8 /* the backend is not of this node */
#endif

/* The row of a key whose scope is SVC_EXTERNAL, for who is inside or not. */
static __always_inline const struct weft_svc *F(svc_at)(svc_key_t *key, bool inside)
{
	const struct weft_svc *s = bpf_map_lookup_elem(&F(weft_svc), key);

	if (!s || !inside || (s->flags & SVC_BOTH))
		return s;
	key->scope = SVC_INTERNAL;
	return bpf_map_lookup_elem(&F(weft_svc), key);
}

/*
 * The row of a NodePort, or of a hostPort at any address, for who is inside or not, at the
 * address of this node or of another one. At another node whoever has
 * externalTrafficPolicy Local is asked there, and so are hostPorts: that node alone knows
 * whom it has. key has the address 0 and SVC_EXTERNAL.
 */
static __always_inline const struct weft_svc *F(svc_node_port)(svc_key_t *key, const struct weft_ipcache *who,
								bool inside)
{
	const struct weft_svc *s;

	if (who->flags & IPC_NO_NODE_PORT)
		return 0;
	if (who->kind == KIND_HOST)
		return F(svc_at)(key, inside);
	if (!inside || who->kind != KIND_NODE)
		return 0;
	s = bpf_map_lookup_elem(&F(weft_svc), key);
	return s && s->type != SVC_HOST_PORT && !(s->flags & SVC_LOCAL) ? F(svc_at)(key, inside) : 0;
}

/*
 * The row of the service at an address and port, for who is inside or not; 0: there is
 * none. A hostPort may name any address, and has only what is this node's. key has
 * SVC_EXTERNAL, and is not valid afterwards.
 */
static __always_inline const struct weft_svc *F(svc_for)(svc_key_t *key, bool inside)
{
	const struct weft_svc *s = F(svc_at)(key, inside);
	const struct weft_ipcache *who;

	if (s && s->type != SVC_HOST_PORT)
		return s;
	who = F(who_exactly)(&key->addr);
	if (s)
		return who && who->kind == KIND_HOST ? s : 0;
	__builtin_memset(&key->addr, 0, sizeof(key->addr));
	key->scope = SVC_EXTERNAL;
	return who ? F(svc_node_port)(key, who, inside) : 0;
}

/*
 * The row of the service that a packet is for; 0: it is for none. From outside
 * ClusterIPs are none, and NodePorts are this node's alone; loopback is not on the wire.
 * Static: see who_exactly.
 */
static __noinline const struct weft_svc *F(svc_row)(const struct F(pkt) *k, bool inside)
{
	const struct weft_svc *s;
	svc_key_t key;

	__builtin_memset(&key, 0, sizeof(key));
	key.addr = k->dst;
	key.port = k->p.dport;
	key.proto = k->p.ct_proto;
	key.scope = SVC_EXTERNAL;
	s = F(svc_for)(&key, inside);
	return s && !inside && s->type == SVC_CLUSTER_IP ? 0 : s;
}

/*
 * A number for a flow, that decides among a service's backends; -1: ask for the row
 * anew. By the flow, so that a connection whose rows were lost finds its backend again:
 * with a Maglev table on any node. There the service's address is left out: a NodePort
 * has one on each node. A table that is not there when asked again is not waited for: the
 * map was made smaller, and the agent has yet to write the row without. Static: see
 * who_exactly.
 */
static __noinline long F(svc_number)(const struct weft_svc *s, const struct F(pkt) *k, bool again)
{
	const struct weft_config *cfg = config();
	bool maglev = s->slots;
	long slot;
	__u32 h;

	if (!cfg)
		return -1; /* first of all: Linux 6.1 lets nobody add to what may be null */
	h = maglev ? s->seed : cfg->nat_seed;
	h = nat_mix(h, (__u32)k->p.sport << 16 | k->p.dport);
#if FAMILY == 4
	h = nat_mix(h, k->src);
	h = nat_mix(h, maglev ? 0 : k->dst);
#else
	for (int i = 0; i < 4; i++) {
		h = nat_mix(h, k->src.w[i]);
		h = nat_mix(h, maglev ? 0 : k->dst.w[i]);
	}
#endif
	h = nat_end(nat_mix(h, k->p.ct_proto));
	if (!maglev)
		return h;
	slot = svc_slot(s, h);
	return slot >= 0 || !again ? slot : h;
}

/*
 * Who answers a client; 0: ask for the row anew. At a further attempt id says who was not
 * to be had, and the next one of the row is; 0: it was the row that changed. Static: see who_exactly.
 */
static __noinline const struct weft_backend *F(svc_choose)(const struct weft_svc *s, const struct F(pkt) *k,
							    __u32 attempt, __u32 *id)
{
	struct weft_affinity_key client = {.service = s->service, .kind = AFFINITY_ADDR};
	long number = F(svc_number)(s, k, attempt);

	if (number < 0)
		return 0;
	if (*id)
		number += attempt;
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
static __noinline int F(svc_has_back)(const struct F(pkt) *k, const struct weft_backend *b, __u32 inside)
{
	const struct weft_lbct *c;
	lbct_key_t key;

	F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, b->port, k->p.ct_proto, LBCT_BACK | inside);
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
		F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, b->port, k->p.ct_proto, LBCT_BACK | (how & LBCT_INSIDE));
		F(svc_addr)(&key.addr, b);
		if (F(lbct_begin)(&key, &v))
			count(HOOK_FROM_NET, NOTE_SVC_FULL, 0);
	}
	v.port = b->port;
	F(svc_addr)(LBCT_ADDR(&v), b);
	F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, k->p.dport, k->p.ct_proto, LBCT_THERE | (how & LBCT_INSIDE));
	if (F(lbct_begin)(&key, &v))
		count(HOOK_FROM_NET, NOTE_SVC_FULL, 0);
	return 0;
}

/*
 * Nobody answers. At an address of this node the stack refuses, as it does for a port
 * that nobody listens at; elsewhere netfilter does. What another node may answer
 * (externalTrafficPolicy Local) is dropped, so that who sends it tries there.
 */
static __always_inline int F(svc_refuse)(const struct weft_svc *s, __u32 inside)
{
	return !inside && (s->flags & SVC_LOCAL) ? DROP_NO_BACKEND : SVC_REFUSE;
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
static __always_inline int F(svc_new)(const struct F(pkt) *k, struct F(nat_to) *to, __u32 inside)
{
	const struct weft_backend *b;
	const struct weft_svc *s;
	__u32 id = 0, how;
	int had;

	to->addr = k->saddr;
	if (!inside && F(ours_alone)(&to->addr))
		return 0; /* forged: it is dropped for that */
	if ((k->p.tcp_flags & TCP_RST) || (k->p.tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))
		return 0; /* it ends what is not there, or answers somebody who has a NodePort's number for a port */
	for (__u32 i = 0; i < SVC_ATTEMPTS; i++) {
		s = F(svc_row)(k, inside);
		if (!s)
			return 0;
		if (!inside && (s->flags & SVC_SOURCES) && !F(svc_admits)(s, k))
			return DROP_SOURCE_RANGES;
		if (!s->count)
			return F(svc_refuse)(s, inside);
		b = F(svc_choose)(s, k, i, &id);
		if (!b) {
			id = 0;
			continue;
		}
		/* What it answers could not be told apart if it had one from there already. */
		had = F(svc_has_back)(k, b, inside);
		if (had == BACK_TAKEN || (had == BACK_NONE && F(svc_direct)(k, b)))
			continue;
		how = inside | (had == BACK_OURS ? 0 : PUT_BACK);
		if (!inside && !F(svc_local)(b))
			how |= PUT_REMOTE;
		F(svc_put)(k, b, id, how);
		F(svc_addr)(&to->addr, b);
		to->port = b->port;
		count(SVC_HOOK(inside), NOTE_SVC_NEW, 0);
		return SVC_TO;
	}
	return DROP_PORTS_IN_USE;
}

/*
 * May the client go on with the service? Of TCP each new connection is asked about, of all
 * else each tick; what is no datagram keeps a backend that the service has no more.
 */
static __always_inline bool F(svc_still)(const struct F(pkt) *k, __u32 id, __u32 inside)
{
	const struct weft_svc *s;

	if (k->p.ct_proto == IPPROTO_TCP && !opens_tcp(&k->p))
		return true;
	s = F(svc_row)(k, inside);
	if (!s || (!inside && (s->flags & SVC_SOURCES) && !F(svc_admits)(s, k)))
		return false;
	return k->p.ct_proto != IPPROTO_UDP || svc_has(s, id);
}

/* What a packet of a known connection is to become. 0: it is of none. */
static __always_inline int F(svc_known)(const struct F(pkt) *k, struct F(nat_to) *to, __u32 inside)
{
	struct weft_lbct *c = F(lbct_there)(k, inside), *back;
	const struct weft_backend *b;
	__u32 id;

	if (!c)
		return 0;
	id = c->backend;
	b = backend_of(id);
	if (!b || b->generation != c->generation)
		return 0; /* it is gone: whoever goes on is told so by another one */
	if (!k->p.error && F(lbct_due)(k, c)) {
		to->addr = k->saddr;
		if ((!inside && F(ours_alone)(&to->addr)) || !F(svc_still)(k, id, inside))
			return 0;
		back = F(lbct_back)(k, c, inside);
		if (back && lbct_over(back, &k->p))
			return 0;
		if (back)
			F(lbct_touch)(k, c, back);
		else if (F(svc_has_back)(k, b, inside) == BACK_NONE)
			F(svc_put)(k, b, id, PUT_BACK | inside | (c->flags & LBCTF_REMOTE ? PUT_REMOTE : 0));
		else
			return 0; /* somebody else's by now */
	}
	to->addr = *LBCT_ADDR(c);
	to->port = c->port;
	return SVC_TO;
}

/* If a packet is for a service, it becomes one for the backend, and k with it. Returns 0, SVC_TO or why it must be dropped. */
static __always_inline int F(svc_translate)(struct __sk_buff *skb, struct F(pkt) *k, __u32 inside)
{
	struct F(nat_to) to = {};
	int code;

	if (!k->p.ports || !nat_can(&k->p))
		return 0;
	code = F(svc_known)(k, &to, inside);
	if (!code && !k->p.error)
		code = F(svc_new)(k, &to, inside);
	if (code == SVC_REFUSE) {
		count(SVC_HOOK(inside), NOTE_SVC_REFUSED, 0);
		skb->mark = MARK_REFUSE;
		return 0;
	}
	if (code != SVC_TO)
		return code;
	if (k->p.frag == FRAG_FIRST)
		F(frag_remember)(k, SVC_HOOK(inside));
	if (k->p.error ? F(nat_rewrite_error)(skb, k, &to, NAT_SRC) : F(nat_rewrite)(skb, k, &to, NAT_DST))
		return DROP_REDIRECT_FAILED;
	skb->mark = MARK_SERVICE;
	k->p.dport = to.port;
	k->dst = k->daddr = to.addr;
	return SVC_TO;
}

/* A packet from outside. */
__noinline int F(svc_enter)(struct __sk_buff *skb, struct F(pkt) *k)
{
	const struct weft_config *cfg = config();
	const struct weft_ipcache *who;
	addr_t dst;

	if (!k || !cfg || !(cfg->nat & NAT_SERVICES))
		return 0;
	dst = k->dst;
	who = F(who_exactly)(&dst);
	if (who && who->kind == KIND_LOCAL_POD)
		return 0;
	return F(svc_translate)(skb, k, 0);
}

/* A pod's packet, past its socket. */
__noinline int F(svc_inside)(struct __sk_buff *skb, struct F(pkt) *k)
{
	return k ? F(svc_translate)(skb, k, LBCT_INSIDE) : 0;
}

/* Does a packet answer for a service, or tell of what was sent to it? Then to holds its address. Static: see who_exactly. */
static __noinline bool F(svc_answer)(const struct F(pkt) *k, struct F(nat_to) *to, __u32 inside)
{
	const struct weft_config *cfg;
	__u32 now, set = NATF_ANSWERED;
	struct weft_lbct *c;
	lbct_key_t key;

	F(lbct_key)(&key, &k->dst, &k->src, k->p.dport, k->p.sport, k->p.ct_proto, LBCT_BACK | inside);
	c = F(lbct_at)(&key);
	cfg = config(); /* not before: it would lie on the stack meanwhile */
	now = now_tick();
	if (!cfg || !c || expired(c->expires, now))
		return false;
	to->addr = *LBCT_ADDR(c);
	to->port = c->port;
	if (k->p.error)
		return true;
	if (k->p.tcp_flags & TCP_FIN)
		set |= NATF_FIN_PEER;
	if (k->p.tcp_flags & TCP_RST)
		set |= NATF_RST;
	lbct_set(c, cfg, k->p.ct_proto, now, set);
	if ((c->flags & (NATF_WENT_ON | NATF_RST | LBCTF_MAIN)) == NATF_WENT_ON)
		F(lbct_grow)(k, c, inside);
	return true;
}

/* Is a packet a client's from outside for a backend on another node? ask says what it is there. Static: see who_exactly. */
static __noinline int F(svc_judge)(const struct F(pkt) *k, struct nat_ask *ask)
{
	struct weft_lbct *c;
	lbct_key_t key;

	F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, k->p.dport, k->p.ct_proto, LBCT_BACK);
	c = F(lbct_at)(&key);
	if (!c || !(c->flags & LBCTF_REMOTE) || expired(c->expires, now_tick()))
		return VERDICT_STACK;
	ask->known = c->nat;
	ask->endpoint = ask->generation = 0;
	ask->client = true;
	return MASQUERADE;
}

/* Gives an answer, or what is told of what was sent, the service's address. */
static __always_inline int F(svc_give_back)(struct __sk_buff *skb, const struct F(pkt) *k, const struct F(nat_to) *to,
					    __u32 hook)
{
	if (k->p.frag == FRAG_FIRST)
		F(frag_remember)(k, hook);
	if (!k->p.error)
		return F(nat_rewrite)(skb, k, to, NAT_SRC) ? DROP_REDIRECT_FAILED : VERDICT_STACK;
#if FAMILY == 4
	if (k->p.icmp_type == 5) /* it tells a client the way to a backend that the client does not know */
		return DROP_ICMP_REDIRECT;
#endif
	return F(nat_rewrite_error)(skb, k, to, NAT_DST) ? DROP_REDIRECT_FAILED : VERDICT_STACK;
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
	if (F(svc_answer)(k, &to, 0))
		return F(svc_give_back)(skb, k, &to, HOOK_TO_NET);
	code = F(svc_judge)(k, ask);
	if (code != MASQUERADE || !k->p.error)
		return code;
	if (!F(nat_slot)(&to, ask->known >> 16)) /* of a client, about what came from the backend */
		return VERDICT_STACK;
	to.port = ask->known;
	return F(svc_give_back)(skb, k, &to, HOOK_TO_NET);
}

/* Conntrack had forgotten that a connection is a service's. Static: see who_exactly. */
static __noinline int F(svc_remind)(const struct F(pkt) *k)
{
	struct weft_ct *ct;
	ct_key_t key;

	F(ct_key_of)(&key, &k->src, &k->dst, k->p.sport, k->p.dport, k->p.ct_proto);
	ct = bpf_map_lookup_elem(&F(weft_ctn), &key);
	if (ct)
		__sync_fetch_and_or(&ct->flags, CT_SERVICE);
	return 0;
}

/* What comes to a pod that asked a service past its socket. fresh: conntrack did not know it. */
__noinline int F(svc_arrive)(struct __sk_buff *skb, const struct F(pkt) *k, bool fresh)
{
	const struct weft_config *cfg = config();
	struct F(nat_to) to = {};

	if (!k || !cfg || !(cfg->nat & NAT_SERVICES) || !k->p.ports || !F(svc_answer)(k, &to, LBCT_INSIDE))
		return VERDICT_STACK;
	if (fresh)
		F(svc_remind)(k);
	return F(svc_give_back)(skb, k, &to, HOOK_TO_POD);
}
