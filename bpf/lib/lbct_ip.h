/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections to services, packet by packet: their two rows. Included once a family. */

#if FAMILY == 4
#define LBCT_ADDR(c) (&(c)->addr.w[0])
#else
#define LBCT_ADDR(c) (&(c)->addr)
#endif

/* addr is the side that is not the client's: the service or the backend. */
static __always_inline void F(lbct_key)(lbct_key_t *key, const addr_t *client, const addr_t *addr, __u16 client_port,
					__u16 port, __u8 proto, __u8 way)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->client = *client;
	key->addr = *addr;
	key->client_port = client_port;
	key->port = port;
	key->proto = proto;
	key->way = way;
}

static __always_inline struct weft_lbct *F(lbct_young)(const lbct_key_t *key)
{
	if (key->way & LBCT_INSIDE)
		return bpf_map_lookup_elem(&F(weft_lbctp), key);
	return bpf_map_lookup_elem(&F(weft_lbctn), key);
}

/*
 * The young ones first: a row that another CPU moves is written to the main table
 * before it is deleted there. The other way round it could be missed in both, and
 * what a backend answers would leave as the backend's.
 */
static __always_inline struct weft_lbct *F(lbct_at)(const lbct_key_t *key)
{
	struct weft_lbct *c = F(lbct_young)(key);

	return c ?: bpf_map_lookup_elem(&F(weft_lbct), key);
}

/* Makes a row anew, young. An older one among the others would be found once this is evicted. */
static __always_inline long F(lbct_begin)(const lbct_key_t *key, const struct weft_lbct *v)
{
	bpf_map_delete_elem(&F(weft_lbct), key);
	if (key->way & LBCT_INSIDE)
		return bpf_map_update_elem(&F(weft_lbctp), key, v, BPF_ANY);
	return bpf_map_update_elem(&F(weft_lbctn), key, v, BPF_ANY);
}

/* Does a packet answer for a service: who asked from outside, or, LBCT_INSIDE, a pod past its socket? Static: see who_exactly. */
static __noinline bool F(lbct_answers)(const struct F(pkt) *k, __u32 inside)
{
	const struct weft_config *cfg = config();
	const struct weft_lbct *c;
	lbct_key_t key;

	if (!cfg || !(cfg->nat & NAT_SERVICES) || !k->p.ports)
		return false;
	F(lbct_key)(&key, &k->dst, &k->src, k->p.dport, k->p.sport, k->p.ct_proto, LBCT_BACK | inside);
	c = F(lbct_at)(&key);
	return c && !expired(c->expires, now_tick());
}

/* Notes what a client is to the backend, in the row of a packet on its way there. */
static __noinline int F(lbct_note)(const struct F(pkt) *k, __u32 nat)
{
	struct weft_lbct *c;
	lbct_key_t key;

	F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, k->p.dport, k->p.ct_proto, LBCT_BACK);
	c = F(lbct_at)(&key);
	if (c)
		c->nat = nat;
	return 0;
}

/* Moves a row to the main table. Static: see who_exactly. */
static __noinline int F(lbct_promote)(const lbct_key_t *key)
{
	struct weft_lbct *c = F(lbct_young)(key);

	if (!c)
		return 0;
	c->flags |= LBCTF_MAIN;
	if (bpf_map_update_elem(&F(weft_lbct), key, c, BPF_ANY))
		return 0;
	if (key->way & LBCT_INSIDE)
		bpf_map_delete_elem(&F(weft_lbctp), key);
	else
		bpf_map_delete_elem(&F(weft_lbctn), key);
	return 0;
}

/*
 * Moves both rows of a connection to the main table, with an answer to a client that
 * went on: who only pretends to have heard one gets a reset. Static: see who_exactly.
 */
static __noinline int F(lbct_grow)(const struct F(pkt) *k, const struct weft_lbct *back, __u32 inside)
{
	addr_t service = *LBCT_ADDR(back);
	__u16 port = back->port;
	lbct_key_t key;

	F(lbct_key)(&key, &k->dst, &k->src, k->p.dport, k->p.sport, k->p.ct_proto, LBCT_BACK | inside);
	F(lbct_promote)(&key);
	key.addr = service;
	key.port = port;
	key.way = LBCT_THERE | inside;
	F(lbct_promote)(&key);
	return 0;
}

/* The row of a packet for a service; 0: none that holds. Static: see who_exactly. */
static __noinline struct weft_lbct *F(lbct_there)(const struct F(pkt) *k, __u32 inside)
{
	struct weft_lbct *c;
	lbct_key_t key;

	F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, k->p.dport, k->p.ct_proto, LBCT_THERE | inside);
	c = F(lbct_at)(&key);
	return c && !expired(c->expires, now_tick()) && !lbct_over(c, &k->p) ? c : 0;
}

/* The row that leads back from where another leads; 0: it is lost, or another connection's. Static: see who_exactly. */
static __noinline struct weft_lbct *F(lbct_back)(const struct F(pkt) *k, const struct weft_lbct *there, __u32 inside)
{
	struct weft_lbct *c;
	lbct_key_t key;

	F(lbct_key)(&key, &k->src, LBCT_ADDR(there), k->p.sport, there->port, k->p.ct_proto, LBCT_BACK | inside);
	c = F(lbct_at)(&key);
	return c && F(same)(LBCT_ADDR(c), &k->dst) && c->port == k->p.dport ? c : 0;
}

/* Is a packet due to be looked at closely: it begins or ends a connection, or is the first of a tick? */
static __always_inline bool F(lbct_due)(const struct F(pkt) *k, const struct weft_lbct *there)
{
	const struct weft_config *cfg = config();

	if (!cfg || (k->p.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)))
		return true;
	/* Until it goes on after an answer, each packet may be the one with which it does. */
	return (there->flags & (NATF_WENT_ON | NATF_FIN_OWNER)) != NATF_WENT_ON ||
	       lbct_last(there, cfg, k->p.ct_proto) != now_tick();
}

/* Brings both rows up to date with a packet of the client. Static: see who_exactly. */
static __noinline int F(lbct_touch)(const struct F(pkt) *k, struct weft_lbct *there, struct weft_lbct *back)
{
	const struct weft_config *cfg = config();
	__u32 now = now_tick(), set;

	if (!cfg)
		return 0;
	set = back->flags & (NATF_ANSWERED | NATF_FIN_PEER | NATF_RST);
	if (k->p.tcp_flags & TCP_FIN)
		set |= NATF_FIN_OWNER;
	if (k->p.tcp_flags & TCP_RST)
		set |= NATF_RST;
	if ((set & NATF_ANSWERED) && !opens_tcp(&k->p))
		set |= NATF_WENT_ON;
	lbct_set(back, cfg, k->p.ct_proto, now, set);
	lbct_set(there, cfg, k->p.ct_proto, now, set);
	return 0;
}
