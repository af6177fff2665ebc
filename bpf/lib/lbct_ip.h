/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections from outside to services: their two rows. Included once a family. */

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

static __always_inline struct weft_lbct *F(lbct_at)(const lbct_key_t *key)
{
	struct weft_lbct *c = bpf_map_lookup_elem(&F(weft_lbct), key);

	return c ?: bpf_map_lookup_elem(&F(weft_lbctn), key);
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
	struct weft_lbct *c = bpf_map_lookup_elem(&F(weft_lbctn), key);

	if (c && !bpf_map_update_elem(&F(weft_lbct), key, c, BPF_ANY))
		bpf_map_delete_elem(&F(weft_lbctn), key);
	return 0;
}

/* The row of a packet for a service; 0: none that holds. Static: see who_exactly. */
static __noinline struct weft_lbct *F(lbct_there)(const struct F(pkt) *k)
{
	struct weft_lbct *c;
	lbct_key_t key;

	F(lbct_key)(&key, &k->src, &k->dst, k->p.sport, k->p.dport, k->p.ct_proto, LBCT_THERE);
	c = F(lbct_at)(&key);
	return c && !expired(c->expires, now_tick()) && !lbct_over(c, &k->p) ? c : 0;
}

/*
 * Brings both rows up to date with a packet of the client: once a tick is enough but
 * while a connection begins and ends. False: the row that leads back is lost. Static: see
 * who_exactly.
 */
static __noinline bool F(lbct_touch)(const struct F(pkt) *k, struct weft_lbct *there)
{
	const struct weft_config *cfg = config();
	__u32 now = now_tick(), set = 0;
	struct weft_lbct *back;
	lbct_key_t key;
	bool grown;

	if (!cfg)
		return true;
	if (k->p.tcp_flags & TCP_FIN)
		set |= NATF_FIN_OWNER;
	if (k->p.tcp_flags & TCP_RST)
		set |= NATF_RST;
	/* Until it goes on after an answer, each packet may be the one with which it does. */
	if (!set && (there->flags & (NATF_WENT_ON | NATF_FIN_OWNER)) == NATF_WENT_ON && lbct_last(there, cfg, k->p.ct_proto) == now)
		return true;
	F(lbct_key)(&key, &k->src, LBCT_ADDR(there), k->p.sport, there->port, k->p.ct_proto, LBCT_BACK);
	back = F(lbct_at)(&key);
	if (!back)
		return false;
	set |= back->flags & (NATF_ANSWERED | NATF_FIN_PEER | NATF_RST);
	if ((set & NATF_ANSWERED) && !opens_tcp(&k->p))
		set |= NATF_WENT_ON;
	grown = (set & NATF_WENT_ON) && !(there->flags & NATF_WENT_ON);
	lbct_set(back, cfg, k->p.ct_proto, now, set);
	lbct_set(there, cfg, k->p.ct_proto, now, set);
	if (!grown)
		return true;
	F(lbct_promote)(&key);
	key.addr = k->dst;
	key.port = k->p.dport;
	key.way = LBCT_THERE;
	F(lbct_promote)(&key);
	return true;
}
