/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Conntrack. Included once a family. docs/datapath.md, "Connections", is the
 * specification of this file.
 *
 * weft_ct* holds connections whose opener went on after an answer, and answered
 * datagrams of the stack; weft_ctn* all younger ones: floods and scans fill only the latter (DATAPATH rule 7).
 */

struct F(flow) {
	ct_key_t key;
	struct weft_ct *ct; /* 0: none */
	bool hi;	    /* the packet's sender is the second pair of the key */
	bool opener;	    /* the packet's sender opened the connection */
	bool main;	    /* the entry is in weft_ct */
	bool service;	    /* see CT_SERVICE: it may be so */
};

/* Makes the key of a tuple; true: its source is the second pair. */
static __always_inline bool F(ct_key_of)(ct_key_t *key, const addr_t *src, const addr_t *dst, __u16 sport, __u16 dport,
					 __u8 proto)
{
	int c = F(compare)(src, dst);
	bool hi = c > 0 || (c == 0 && sport > dport);

	__builtin_memset(key, 0, sizeof(*key));
	key->addr[0] = hi ? *dst : *src;
	key->addr[1] = hi ? *src : *dst;
	key->port[0] = hi ? dport : sport;
	key->port[1] = hi ? sport : dport;
	key->proto = proto;
	return hi;
}

static __always_inline void F(ct_key)(struct F(flow) *f, const struct F(pkt) *k)
{
	f->hi = F(ct_key_of)(&f->key, &k->src, &k->dst, k->p.sport, k->p.dport, k->p.ct_proto);
}

/*
 * Does the entry no longer speak for this packet? It expired, an endpoint was
 * replaced, or a SYN opens anew what is closing or was only guessed at.
 */
static __always_inline bool F(ct_stale)(const struct weft_ct *ct, const struct F(pkt) *k, __u32 now)
{
	if (expired(ct->expires, now))
		return true;
	if (endpoint_gone(ct->src_endpoint, ct->src_generation) || endpoint_gone(ct->dst_endpoint, ct->dst_generation))
		return true;
	return !k->p.error && opens_tcp(&k->p) && (CT_CLOSING(ct->flags) || (ct->flags & CT_GUESSED));
}

static __always_inline void F(ct_found)(struct F(flow) *f, struct weft_ct *ct, bool main)
{
	f->ct = ct;
	f->main = main;
	f->opener = !!(ct->flags & CT_OPENER_HI) == f->hi;
}

/* Looks among the answered connections. A stale entry is removed. */
static __always_inline void F(ct_find_main)(struct F(flow) *f, const struct F(pkt) *k, __u32 now)
{
	struct weft_ct *ct;

	f->ct = 0;
	F(ct_key)(f, k);
	ct = bpf_map_lookup_elem(&F(weft_ct), &f->key);
	if (!ct)
		return;
	if (F(ct_stale)(ct, k, now))
		bpf_map_delete_elem(&F(weft_ct), &f->key);
	else
		F(ct_found)(f, ct, true);
}

/* Looks among the others; after ct_find_main found nothing. */
static __always_inline void F(ct_find_new)(struct F(flow) *f, const struct F(pkt) *k, __u32 now)
{
	struct weft_ct *ct = bpf_map_lookup_elem(&F(weft_ctn), &f->key);

	if (!ct)
		return;
	if (F(ct_stale)(ct, k, now))
		bpf_map_delete_elem(&F(weft_ctn), &f->key);
	else
		F(ct_found)(f, ct, false);
}

static __always_inline void F(ct_find)(struct F(flow) *f, const struct F(pkt) *k, __u32 now)
{
	F(ct_find_main)(f, k, now);
	if (!f->ct)
		F(ct_find_new)(f, k, now);
}

static __always_inline __u32 F(ct_ttl)(const struct weft_config *cfg, __u32 flags, __u8 proto, bool main)
{
	if (proto == IPPROTO_TCP) {
		if (CT_CLOSING(flags))
			return cfg->closing;
		return main ? cfg->established : cfg->syn;
	}
	if (!(flags & CT_ANSWERED))
		return cfg->unanswered;
	return flags & CT_STACK ? cfg->answered_stack : cfg->answered;
}

/* Moves a connection to the main table. Static: see who_exactly. */
static __noinline int F(ct_promote)(const ct_key_t *key, struct weft_ct *ct, __u32 hook)
{
	const struct weft_config *cfg = config();

	if (!cfg)
		return 0;
	ct->expires = now_tick() + F(ct_ttl)(cfg, ct->flags, key->proto, true);
	if (bpf_map_update_elem(&F(weft_ct), key, ct, BPF_ANY))
		count(hook, NOTE_CT_FULL, 0);
	else
		bpf_map_delete_elem(&F(weft_ctn), key);
	return 0;
}

/*
 * Does a SYN that came out of the stack open, after translation, what the fast
 * path already carries with the same addresses and ports? The older one is alive
 * and answered, and netfilter, which never saw it, could not know.
 */
static __always_inline bool F(ct_in_use)(const struct F(flow) *f, const struct F(pkt) *k)
{
	return !k->p.error && opens_tcp(&k->p) && (f->ct->flags & (CT_ANSWERED | CT_STACK)) == CT_ANSWERED;
}

/*
 * Does the connection belong into the main table after this packet? Its opener
 * went on after an answer. Answered datagrams of the stack at once: if they were
 * translated, the next answer is lost without the entry.
 */
static __always_inline bool F(ct_grown)(const struct F(flow) *f, const struct F(pkt) *k, __u32 flags)
{
	if (!(flags & CT_ANSWERED) || (flags & CT_RST))
		return false;
	if (f->key.proto != IPPROTO_TCP && (flags & CT_STACK))
		return true;
	return f->opener && !opens_tcp(&k->p);
}

/*
 * Brings an entry up to date with a packet that it admits. stack: the packet
 * came out of the stack, so the connection is the stack's from here on. f->ct is
 * not valid afterwards.
 */
static __always_inline void F(ct_touch)(struct F(flow) *f, const struct F(pkt) *k, const struct weft_config *cfg,
					__u32 now, __u32 hook, bool stack)
{
	struct weft_ct *ct = f->ct;
	__u32 flags = ct->flags, set = 0, expires;

	if (k->p.error) /* says nothing about how the connection itself is doing */
		return;
	if (!f->opener)
		set |= CT_ANSWERED;
	if (k->p.tcp_flags & TCP_RST)
		set |= CT_RST;
	if (k->p.tcp_flags & TCP_FIN)
		set |= f->opener ? CT_FIN_OPENER : CT_FIN_ANSWER;
	if (stack) {
		set |= CT_STACK;
		if (!(flags & CT_STACK))
			count(hook, NOTE_CT_TO_STACK, 0);
	}
	/* Write only what changes: the line is shared by all CPUs. */
	if ((flags | set) != flags) {
		__sync_fetch_and_or(&ct->flags, set);
		flags |= set;
	}
	expires = now + F(ct_ttl)(cfg, flags, f->key.proto, f->main);
	if (ct->expires != expires)
		ct->expires = expires;
	if (!f->main && F(ct_grown)(f, k, flags))
		F(ct_promote)(&f->key, ct, hook);
}

/* How ct_new is to make an entry. */
#ifndef CT_NEW_STACK
#define CT_NEW_STACK 1 /* on the stack path */
#define CT_NEW_HI 2    /* the sender is the second pair of the key */
#define CT_NEW_SERVICE 4
#endif

/*
 * Makes an entry for a packet that has none. TCP in mid-stream is taken in with
 * a guess at who opened, which a SYN-ACK tells. Static: see who_exactly.
 */
static __noinline int F(ct_insert)(const ct_key_t *key, const struct F(pkt) *k, const struct sides *s, __u32 hook, __u32 how)
{
	const struct weft_config *cfg = config();
	struct weft_ct v;
	bool answer, hi;

	if (!cfg)
		return 0;
	answer = key->proto == IPPROTO_TCP && (k->p.tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
	hi = !!(how & CT_NEW_HI) != answer;
	__builtin_memset(&v, 0, sizeof(v));
	v.src_identity = answer ? s->to.identity : s->from.identity;
	v.dst_identity = answer ? s->from.identity : s->to.identity;
	v.src_endpoint = answer ? s->to.endpoint : s->from.endpoint;
	v.dst_endpoint = answer ? s->from.endpoint : s->to.endpoint;
	v.src_generation = answer ? s->to.generation : s->from.generation;
	v.dst_generation = answer ? s->from.generation : s->to.generation;
	v.flags = (how & CT_NEW_STACK ? CT_STACK : 0) | (how & CT_NEW_SERVICE ? CT_SERVICE : 0) | (hi ? CT_OPENER_HI : 0) | (answer ? CT_ANSWERED : 0);
	if (key->proto == IPPROTO_TCP && !opens_tcp(&k->p)) {
		if (!answer)
			v.flags |= CT_GUESSED;
		count(hook, NOTE_CT_PICKED_UP, 0);
	}
	if (k->p.tcp_flags & TCP_RST)
		v.flags |= CT_RST;
	if (k->p.tcp_flags & TCP_FIN)
		v.flags |= answer ? CT_FIN_ANSWER : CT_FIN_OPENER;
	v.expires = now_tick() + F(ct_ttl)(cfg, v.flags, key->proto, false);
	count(hook, bpf_map_update_elem(&F(weft_ctn), key, &v, BPF_ANY) ? NOTE_CT_FULL : NOTE_CT_NEW, 0);
	return 0;
}

static __always_inline void F(ct_new)(const struct F(flow) *f, const struct F(pkt) *k, const struct sides *s,
				      __u32 hook, __u32 how)
{
	F(ct_insert)(&f->key, k, s, hook, how | (f->hi ? CT_NEW_HI : 0));
}

/* The sides of an entry as seen from a packet. */
static __always_inline void F(ct_sides)(const struct F(flow) *f, struct sides *s)
{
	const struct weft_ct *ct = f->ct;
	struct side *src = f->opener ? &s->from : &s->to;
	struct side *dst = f->opener ? &s->to : &s->from;

	src->identity = ct->src_identity;
	src->generation = ct->src_generation;
	src->endpoint = ct->src_endpoint;
	dst->identity = ct->dst_identity;
	dst->generation = ct->dst_generation;
	dst->endpoint = ct->dst_endpoint;
}
