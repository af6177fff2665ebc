/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Masquerade: what a flow's opener looks like from outside, and the way back.
 * Included once a family. docs/datapath.md, "Masquerade", is the specification
 * of this file.
 */

#if FAMILY == 4
#define OWNER(e) (&(e)->addr.w[0])
#else
#define OWNER(e) (&(e)->addr)
#endif

/* How a port is looked for. */
#ifndef NAT_HOW
#define NAT_HOW
#define HOW_SEEK 1    /* find a translation that is there before a port that is free */
#define HOW_TAKE 2    /* also from a flow that is over */
#define HOW_GUESSED 4 /* of the host, in mid-stream */

#define TRY_OURS 0
#define TRY_TAKEN 1
#define TRY_IDLE 2 /* taken by a flow that is over */
#define TRY_FREE 3
#define TRY_GROWN 4 /* ours, and it belongs into the main table */
#define TRY_HAS(rc) ((rc) == TRY_OURS || (rc) == TRY_GROWN)
#endif

/* Does what goes there leave with the node's address? */
static __always_inline bool F(nat_wanted)(const addr_t *dst)
{
	const struct weft_ipcache *who;
	net_key_t key;

	key.prefixlen = sizeof(*dst) * 8;
	key.addr = *dst;
	who = F(who)(&key.addr);
	/* Pods reach pods and nodes as themselves, in the network or by the overlay. */
	if (who && who->kind != KIND_UNKNOWN)
		return false;
	if (F(multicast)(dst) || F(martian)(dst))
		return false;
	return !bpf_map_lookup_elem(&F(weft_nomasq), &key);
}

static __always_inline bool F(nat_ours)(const struct weft_nat *e, const struct F(pkt) *k, const struct F(nat_to) *to)
{
	return e->port == k->p.sport && e->endpoint == to->endpoint && e->generation == to->generation &&
	       F(same)(OWNER(e), &k->src);
}

/* The entry of a young flow: of a pod or the host, or of a client of a service. */
static __always_inline struct weft_nat *F(nat_young)(const nat_key_t *key, const struct weft_config *cfg)
{
	struct weft_nat *e = bpf_map_lookup_elem(&F(weft_natn), key);

	return e || !(cfg->nat & NAT_SERVICES) ? e : bpf_map_lookup_elem(&F(weft_natc), key);
}

static __always_inline void F(nat_forget_young)(const nat_key_t *key, const struct weft_config *cfg)
{
	bpf_map_delete_elem(&F(weft_natn), key);
	if (cfg->nat & NAT_SERVICES)
		bpf_map_delete_elem(&F(weft_natc), key);
}

/* Moves an entry to the main table. */
__noinline int F(nat_promote)(const nat_key_t *key)
{
	const struct weft_config *cfg = config();
	struct weft_nat *e, v;
	nat_key_t own;

	if (!key || !cfg)
		return 0;
	own = *key; /* as who_exactly */
	e = F(nat_young)(&own, cfg);
	if (!e)
		return 0;
	v = *e;
	if (!bpf_map_update_elem(&F(weft_nat), &own, &v, BPF_ANY))
		F(nat_forget_young)(&own, cfg);
	return 0;
}

/*
 * Tries to have one address and port of the node for a flow. TRY_HAS tells
 * whether the flow has it now, also when it had it before.
 */
__noinline int F(nat_try)(const nat_key_t *key, const struct F(pkt) *k, const struct F(nat_to) *to, __u32 how)
{
	const struct weft_config *cfg = config();
	__u32 now = now_tick();
	bool main = true, grown;
	struct weft_nat *e, v;
	nat_key_t own;

	if (!key || !k || !to || !cfg)
		return TRY_TAKEN;
	own = *key; /* as who_exactly */
	e = bpf_map_lookup_elem(&F(weft_nat), &own);
	if (!e) {
		main = false;
		e = F(nat_young)(&own, cfg);
	}
	if (e) {
		if (F(nat_ours)(e, k, to)) {
			nat_touch(e, &k->p, cfg, now, true);
			grown = (e->flags & (NATF_WENT_ON | NATF_GUESSED)) == NATF_WENT_ON;
			return grown && !main ? TRY_GROWN : TRY_OURS;
		}
		if (!expired(e->expires, now) && !endpoint_gone(e->endpoint, e->generation)) {
			__u32 last = e->expires - nat_ttl(cfg, e->flags, key->proto);

			if (!nat_done(e->flags, key->proto) || now - last < NAT_IDLE)
				return TRY_TAKEN;
			if (!(how & HOW_TAKE))
				return TRY_IDLE;
		}
		if (how & HOW_SEEK)
			return TRY_FREE;
		bpf_map_delete_elem(&F(weft_nat), &own);
		F(nat_forget_young)(&own, cfg);
	} else if (how & HOW_SEEK) {
		return TRY_FREE;
	}
	__builtin_memset(&v, 0, sizeof(v));
	v.flags = to->slot << NATF_SLOT_SHIFT | (how & HOW_GUESSED ? NATF_GUESSED : 0);
	v.generation = to->generation;
	v.endpoint = to->endpoint;
	v.port = k->p.sport;
	*OWNER(&v) = k->src;
	v.expires = now + nat_ttl(cfg, v.flags, key->proto);
	/*
	 * Two CPUs may want one port: the kernel lets one of them. Clients, whom anybody can
	 * forge, have a table of their own: nearly always other peers are theirs.
	 */
	if ((cfg->nat & NAT_SERVICES) && !to->endpoint && !F(same)(&k->src, &to->addr))
		return bpf_map_update_elem(&F(weft_natc), &own, &v, BPF_NOEXIST) ? TRY_TAKEN : TRY_OURS;
	return bpf_map_update_elem(&F(weft_natn), &own, &v, BPF_NOEXIST) ? TRY_TAKEN : TRY_OURS;
}

static __always_inline void F(nat_key)(nat_key_t *key, const struct F(pkt) *k, const struct F(nat_to) *to)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->peer = k->dst;
	key->addr = to->addr;
	key->peer_port = k->p.dport;
	key->port = to->port;
	key->proto = k->p.ct_proto;
}

static __noinline __u32 F(nat_hash)(const struct F(pkt) *k, __u32 seed)
{
	__u32 h = nat_mix(seed, (__u32)k->p.sport << 16 | k->p.dport);
#if FAMILY == 4
	h = nat_mix(h, k->src);
	h = nat_mix(h, k->dst);
#else
	for (int i = 0; i < 4; i++) {
		h = nat_mix(h, k->src.w[i]);
		h = nat_mix(h, k->dst.w[i]);
	}
#endif
	return nat_end(nat_mix(h, k->p.ct_proto));
}

/*
 * Finds a port for the flow of key. The order in which ports are tried depends
 * on the flow alone, so that a translation that was forgotten is found again.
 * Sets key->port and returns TRY_OURS, or something else where there is none.
 */
__noinline int F(nat_find)(nat_key_t *key, const struct F(pkt) *k, const struct F(nat_to) *to, __u32 how)
{
	const struct weft_config *cfg = config();
	__u32 h, step, n, min;
	__u16 idle = 0;
	int rc;

	if (!key || !k || !to || !cfg || cfg->nat_max < cfg->nat_min)
		return TRY_TAKEN;
	min = cfg->nat_min;
	n = cfg->nat_max - min + 1;
	h = F(nat_hash)(k, cfg->nat_seed);
	step = n <= NAT_ATTEMPTS ? 1 : h >> 16 | 1;
	for (__u32 i = 0; i < NAT_ATTEMPTS; i++, h += step) {
		key->port = bpf_htons(min + h % n);
		rc = F(nat_try)(key, k, to, how);
		if (TRY_HAS(rc))
			return TRY_OURS;
		if (rc == TRY_IDLE && !idle)
			idle = key->port;
	}
	if (!idle || how & HOW_SEEK)
		return TRY_TAKEN;
	key->port = idle;
	return F(nat_try)(key, k, to, how | HOW_TAKE);
}

/* The node's address in a slot. */
static __always_inline bool F(nat_slot)(struct F(nat_to) *to, __u32 slot)
{
	const struct weft_nat_address *ip = bpf_map_lookup_elem(&weft_natip, &slot);

	if (!slot || !ip)
		return false;
	to->slot = slot;
	to->addr = ip->F(v);
#if FAMILY == 4
	return to->addr;
#else
	return !F(unspecified)(&to->addr);
#endif
}

/* Lets conntrack know what the opener of a flow looks like from outside, or a client of a service to the backend. */
__noinline int F(nat_note)(const struct F(pkt) *k, __u32 nat, bool client)
{
	struct F(flow) f;
	struct weft_ct *ct;

	if (!k)
		return 0;
	if (client)
		return F(lbct_note)(k, nat);
	F(ct_key)(&f, k);
	ct = bpf_map_lookup_elem(&F(weft_ct), &f.key);
	if (!ct)
		ct = bpf_map_lookup_elem(&F(weft_ctn), &f.key);
	if (ct)
		ct->nat = nat;
	return 0;
}

/* Gives a flow that has none a port of the node's address. Returns what TRY_HAS reads. */
static __always_inline int F(nat_choose)(nat_key_t *key, const struct F(pkt) *k, const struct F(nat_to) *to)
{
	F(nat_key)(key, k, to);
	if (nat_keeps_port(k->p.ct_proto)) {
		key->port = k->p.sport;
		return F(nat_try)(key, k, to, HOW_TAKE);
	}
	/* In mid-stream there was a translation, perhaps not at the first port. */
	if (k->p.ct_proto == IPPROTO_TCP && !opens_tcp(&k->p) && F(nat_find)(key, k, to, HOW_SEEK) == TRY_OURS)
		return TRY_OURS;
	return F(nat_find)(key, k, to, 0);
}

/* Does a flow still have what conntrack says that it has? Takes it again if it is free. */
static __always_inline bool F(nat_keep)(nat_key_t *key, const struct F(pkt) *k, struct F(nat_to) *to, __u32 known)
{
	int rc;

	if (!known || !F(nat_slot)(to, known >> 16))
		return false;
	to->port = known;
	F(nat_key)(key, k, to);
	rc = F(nat_try)(key, k, to, HOW_TAKE);
	if (rc == TRY_GROWN)
		F(nat_promote)(key);
	return TRY_HAS(rc);
}

/* A packet of a flow that a pod opened, or that the host did. */
__noinline int F(nat_leave)(struct __sk_buff *skb, const struct F(pkt) *k, const struct nat_ask *ask)
{
	const struct weft_nat_device *dev;
	struct F(nat_to) to = {};
	__u32 ifindex;
	nat_key_t key;

	if (!k || !ask)
		return VERDICT_STACK;
	to.endpoint = ask->endpoint;
	to.generation = ask->generation;
	if (!F(nat_keep)(&key, k, &to, ask->known)) {
		if (!nat_can(&k->p))
			return DROP_NAT_UNSUPPORTED;
		ifindex = skb->ifindex;
		dev = bpf_map_lookup_elem(&weft_natdev, &ifindex);
		if (!dev || !F(nat_slot)(&to, dev->F(v)))
			return DROP_NAT_NO_ADDRESS;
		if (!TRY_HAS(F(nat_choose)(&key, k, &to)))
			return DROP_NAT_EXHAUSTED;
		to.port = key.port;
		count(HOOK_TO_NET, NOTE_NAT_NEW, 0);
		F(nat_note)(k, to.slot << 16 | to.port, ask->client);
	}
	if (k->p.frag == FRAG_FIRST)
		F(frag_remember)(k, HOOK_TO_NET);
	return F(nat_rewrite)(skb, k, &to, NAT_SRC) ? DROP_REDIRECT_FAILED : VERDICT_STACK;
}

/*
 * An ICMP error of a pod, or of this node, about a packet that was for a
 * masqueraded pod: outside knows neither the pod nor its port.
 */
__noinline int F(nat_leave_error)(struct __sk_buff *skb, const struct F(pkt) *k)
{
	const struct weft_config *cfg = config();
	struct F(nat_to) to = {};
	const struct weft_ipcache *src;
	struct F(flow) f = {};
	__u32 known;
	addr_t from;

	if (!k || !cfg || !(cfg->nat & NAT_FAMILY))
		return VERDICT_STACK;
	from = k->p.ports ? k->src : k->saddr;
	src = F(who_exactly)(&from);
	if (!src || src->kind != KIND_LOCAL_POD)
		return VERDICT_STACK;
	if (k->p.ports) {
		F(ct_find)(&f, k, now_tick());
		known = f.ct ? f.ct->nat : 0;
		if (f.ct && (!known || !f.opener))
			return VERDICT_STACK; /* of a flow that is not masqueraded */
		if (f.ct && F(nat_slot)(&to, known >> 16)) {
			to.port = known;
			return F(nat_rewrite_error)(skb, k, &to, NAT_DST) ? DROP_REDIRECT_FAILED : VERDICT_STACK;
		}
	}
	/* About nothing that outside knows: the pod's address must not get there. */
	return F(nat_wanted)(&k->daddr) ? DROP_NAT_UNSUPPORTED : VERDICT_STACK;
}

/*
 * What came for an address of the node: if it answers a masqueraded flow, it
 * becomes what the flow's owner expects, and k with it; *nat is what it was
 * before, as struct weft_ct has it. Returns 0 or why it must be dropped. What is
 * not found here is the host's.
 */
__noinline int F(nat_enter)(struct __sk_buff *skb, struct F(pkt) *k, __u32 *nat)
{
	const struct weft_config *cfg = config();
	__u32 now = now_tick(), slot;
	struct F(nat_to) to = {};
	struct weft_nat *e;
	nat_key_t key;

	if (!k || !nat || !cfg || !(cfg->nat & (NAT_FAMILY | NAT_SERVICES)) || !k->p.ports)
		return 0;
	if (!nat_keeps_port(k->p.ct_proto) && !nat_in_range(cfg, k->p.dport))
		return 0;
	__builtin_memset(&key, 0, sizeof(key));
	key.peer = k->src;
	key.addr = k->dst;
	key.peer_port = k->p.sport;
	key.port = k->p.dport;
	key.proto = k->p.ct_proto;
	e = bpf_map_lookup_elem(&F(weft_nat), &key);
	if (!e)
		e = F(nat_young)(&key, cfg);
	if (!e) /* another CPU may have moved it meanwhile */
		e = bpf_map_lookup_elem(&F(weft_nat), &key);
	if (!e || expired(e->expires, now) || endpoint_gone(e->endpoint, e->generation))
		return 0;
	to.addr = *OWNER(e);
	to.port = e->port;
	to.endpoint = e->endpoint;
	slot = e->flags >> NATF_SLOT_SHIFT;
	nat_touch(e, &k->p, cfg, now, false);
	if (!to.endpoint && to.port == key.port && F(same)(&to.addr, &key.addr))
		return 0; /* the host's, who only holds the port */
	if (k->p.frag == FRAG_FIRST)
		F(frag_remember)(k, HOOK_FROM_NET);
	if (k->p.error ? F(nat_rewrite_error)(skb, k, &to, NAT_SRC) : F(nat_rewrite)(skb, k, &to, NAT_DST))
		return DROP_REDIRECT_FAILED;
	if (!to.endpoint)
		skb->mark = MARK_SERVICE; /* for a client outside */
	*nat = slot << 16 | key.port;
	k->p.dport = to.port;
	k->dst = k->daddr = to.addr;
	return 0;
}

/*
 * Makes the conntrack entry of a masqueraded flow anew, from its answer: without
 * it the answer would count as a question, and what the pod says next would
 * leave with the pod's own address.
 */
__noinline int F(nat_restore)(const struct F(pkt) *k, const struct sides *s, __u32 nat)
{
	const struct weft_config *cfg = config();
	struct weft_ct v = {};
	struct F(flow) f;

	if (!k || !s || !cfg)
		return 0;
	F(ct_key)(&f, k);
	v.flags = CT_STACK | CT_ANSWERED | (f.hi ? 0 : CT_OPENER_HI);
	if (cfg->nat & NAT_SERVICES)
		v.flags |= CT_SERVICE; /* it may be: to_pod looks */
	if (k->p.ct_proto == IPPROTO_TCP && !(k->p.tcp_flags & TCP_SYN))
		v.flags |= CT_GUESSED;
	v.src_identity = s->to.identity;
	v.dst_identity = s->from.identity;
	v.src_endpoint = s->to.endpoint;
	v.src_generation = s->to.generation;
	v.nat = nat;
	v.expires = now_tick() + F(ct_ttl)(cfg, v.flags, f.key.proto, false);
	count(HOOK_FROM_NET, bpf_map_update_elem(&F(weft_ctn), &f.key, &v, BPF_ANY) ? NOTE_CT_FULL : NOTE_CT_NEW, 0);
	return 0;
}

/* Does a packet of a local pod leave with the node's address? It goes on as it began, also when settings changed. */
static __always_inline bool F(nat_pod)(const struct F(pkt) *k, const struct weft_config *cfg,
				       const struct nat_ask *ask, bool untranslated)
{
	if (!(cfg->nat & NAT_FAMILY))
		return false;
	return ask->known || (!untranslated && F(nat_wanted)(&k->dst));
}

/*
 * Has the host hold the port that it sends from. Where that is a pod's already,
 * conntrack learns of the flow, and it is to get another port outside. With a reset
 * it takes none: it sends one, too, for each answer to a flow that a flood pushed out.
 */
__noinline int F(nat_hold)(const struct F(pkt) *k, const struct nat_ask *ask)
{
	__u32 how = HOW_TAKE;
	struct F(nat_to) to = {};
	nat_key_t key;
	int rc;

	if (!k || !ask)
		return VERDICT_STACK;
	if (!ask->opens)
		how = k->p.tcp_flags & TCP_RST ? HOW_SEEK : HOW_TAKE | HOW_GUESSED;
	to.addr = k->saddr;
	to.port = k->p.sport;
	F(nat_key)(&key, k, &to);
	rc = F(nat_try)(&key, k, &to, how);
	if (rc == TRY_GROWN)
		F(nat_promote)(&key);
	return TRY_HAS(rc) || !ask->opens ? VERDICT_STACK : MASQUERADE;
}

/* Is it the node's own, from a port that pods' flows get too, to where they could go? */
static __always_inline bool F(nat_shared)(const struct F(pkt) *k, const struct weft_config *cfg)
{
	if (!cfg->nat || !k->p.ports || !nat_can(&k->p))
		return false;
	if (!nat_keeps_port(k->p.ct_proto) && !nat_in_range(cfg, k->p.sport))
		return false;
	if (cfg->nat & NAT_SERVICES) /* clients of services go to pods and nodes, too */
		return !F(multicast)(&k->dst) && !F(martian)(&k->dst);
	return (cfg->nat & NAT_FAMILY) && F(nat_wanted)(&k->dst);
}

/* A later fragment of a pod whose first one was not seen: it must not leave as it is. */
static __always_inline bool F(nat_bars)(const struct F(pkt) *k, const struct weft_config *cfg)
{
	return !k->p.ports && (cfg->nat & NAT_FAMILY) && F(nat_wanted)(&k->daddr);
}

#undef NAT_ICMP
