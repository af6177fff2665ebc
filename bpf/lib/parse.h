/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Headers to tuple. Included once a family. */

/*
 * A packet. For an ICMP error src and dst are those of the *connection it is
 * about*, turned so that the error flies in the direction of its reply: then one
 * rule serves both (RFC 792 and 4443: the inner packet's source is told).
 */
struct F(pkt) {
	struct packet p;
	addr_t saddr; /* of the packet itself */
	addr_t daddr;
	addr_t src; /* of the tuple; equal to the above but for ICMP errors */
	addr_t dst;
	__u32 frag_id;
	__u32 flow; /* v4: type of service; v6: first word of the header */
};

#define EXT_HEADERS_MAX 6

#if FAMILY == 6
struct ext {
	__u32 off;	 /* in: of the first header; out: of the transport header */
	__u8 next;	 /* in: type of the first header; out: transport protocol */
	__u8 frag;	 /* enum frag_part */
	__u8 frag_proto; /* as the fragment header names it */
};

/*
 * Walks extension headers up to the transport header. limit is the end of the
 * packet in the skb. Stops at a later fragment, behind which there is no header.
 * frag_id may be 0.
 */
static __always_inline int walk_headers(struct __sk_buff *skb, struct ext *x, __u32 limit, __u32 *frag_id)
{
	for (int i = 0; i <= EXT_HEADERS_MAX; i++) { /* once more, to see what comes behind the last */
		__u8 h[8];
		__u16 frag;

		switch (x->next) {
		case IPPROTO_HOPOPTS_:
		case IPPROTO_ROUTING_:
		case IPPROTO_DSTOPTS_:
		case IPPROTO_FRAGMENT_:
		case IPPROTO_AH:
			break;
		default:
			return 0;
		}
		if (x->off + sizeof(h) > limit || bpf_skb_load_bytes(skb, x->off, h, sizeof(h)))
			return DROP_TRUNCATED;
		if (x->next == IPPROTO_FRAGMENT_) {
			frag = bpf_ntohs(*(__u16 *)(h + 2));
			x->off += 8;
			x->next = x->frag_proto = h[0];
			if (frag_id)
				__builtin_memcpy(frag_id, h + 4, 4);
			if (frag & 0xfff8) {
				x->frag = FRAG_LATER;
				return 0;
			}
			if (frag & 1)
				x->frag = FRAG_FIRST;
			continue;
		}
		if (x->next == IPPROTO_ROUTING_ && h[2] == 0)
			return DROP_ROUTING_HEADER;
		x->off += x->next == IPPROTO_AH ? (h[1] + 2) * 4 : (h[1] + 1) * 8;
		x->next = h[0];
		if (x->off > limit)
			return DROP_TRUNCATED;
	}
	return DROP_EXT_HEADERS;
}
#endif

#if FAMILY == 4

/* Reads the network header: addresses, lengths, fragment. */
static __always_inline int F(parse_net)(struct __sk_buff *skb, struct F(pkt) *k)
{
	__u32 avail = skb->len - ETH_LEN;
	struct iphdr ip;
	__u16 frag;

	if (skb->len < ETH_LEN + sizeof(ip) || read_header(skb, ETH_LEN, &ip, sizeof(ip)))
		return DROP_TRUNCATED;
	k->saddr = k->src = ip.saddr;
	k->daddr = k->dst = ip.daddr;
	k->p.len = avail;
	/* BIG TCP leaves 0 here (DATAPATH rule 4); of anything but a super-packet the kernel takes no 0 either. */
	k->p.total = ip.tot_len || !skb->gso_size ? bpf_ntohs(ip.tot_len) : avail;
	k->p.proto = k->p.frag_proto = ip.protocol;
	k->p.ttl = ip.ttl;
	k->p.l4 = ETH_LEN + ip.ihl * 4;
	k->flow = ip.tos;
	if (ip.version != 4 || ip.ihl < 5 || k->p.total < ip.ihl * 4)
		return DROP_MALFORMED;
	if (k->p.total > avail)
		return DROP_TRUNCATED;
	frag = bpf_ntohs(ip.frag_off);
	k->p.df = frag & 0x4000;
	k->frag_id = ip.id;
	if (frag & 0x1fff)
		k->p.frag = FRAG_LATER;
	else if (frag & 0x2000)
		k->p.frag = FRAG_FIRST;
	/* RFC 1858: this one would overwrite the TCP flags of the first. */
	if ((frag & 0x1fff) == 1 && ip.protocol == IPPROTO_TCP)
		return DROP_FRAGMENT_OVERLAP;
	return 0;
}

#else

static __always_inline int F(parse_net)(struct __sk_buff *skb, struct F(pkt) *k)
{
	__u32 avail = skb->len - ETH_LEN, payload;
	struct ipv6hdr ip;
	struct ext x = {};
	int err;

	if (skb->len < ETH_LEN + sizeof(ip) || read_header(skb, ETH_LEN, &ip, sizeof(ip)))
		return DROP_TRUNCATED;
	__builtin_memcpy(&k->saddr, &ip.saddr, 16);
	__builtin_memcpy(&k->daddr, &ip.daddr, 16);
	k->src = k->saddr;
	k->dst = k->daddr;
	k->p.len = avail;
	payload = bpf_ntohs(ip.payload_len);
	k->p.total = payload || !(skb->gso_size || ip.nexthdr == IPPROTO_HOPOPTS_) ? payload + sizeof(ip) : avail;
	if (!payload && ip.nexthdr == IPPROTO_HOPOPTS_ && skb->gso_size)
		k->p.saved = 8; /* BIG TCP's jumbo header, gone once segmented */
	k->p.ttl = ip.hop_limit;
	k->p.df = true;
	__builtin_memcpy(&k->flow, &ip, 4);
	if (ip.version != 6)
		return DROP_MALFORMED;
	if (k->p.total > avail)
		return DROP_TRUNCATED;
	x.off = ETH_LEN + sizeof(ip);
	x.next = ip.nexthdr;
	err = walk_headers(skb, &x, ETH_LEN + k->p.total, &k->frag_id);
	k->p.l4 = x.off;
	k->p.proto = x.next;
	k->p.frag = x.frag;
	k->p.frag_proto = x.frag_proto;
	/* RFC 7112: a first fragment carries all headers. */
	if (err == DROP_TRUNCATED && k->p.frag == FRAG_FIRST)
		return DROP_FRAGMENT_OVERLAP;
	return err;
}

#endif

#if FAMILY == 4
#define ICMP_PROTO IPPROTO_ICMP
#define ECHO_REQUEST 8
#define ECHO_REPLY 0
#else
#define ICMP_PROTO IPPROTO_ICMPV6
#define ECHO_REQUEST 128
#define ECHO_REPLY 129
#endif

static __always_inline bool F(icmp_error)(__u8 type)
{
#if FAMILY == 4
	return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
#else
	return type < 128;
#endif
}

/* Ports of an ICMP message with an id; see struct weft_ct4_key. */
static __always_inline void F(icmp_ports)(__u8 type, __u16 id, __u16 *sport, __u16 *dport)
{
#if FAMILY == 4
	bool request = type == ECHO_REQUEST || type == 13, reply = type == ECHO_REPLY || type == 14;
#else
	bool request = type == ECHO_REQUEST, reply = type == ECHO_REPLY;
#endif
	*sport = request ? id : 0;
	*dport = reply ? id : 0;
}

/*
 * Finds the tuple of the packet that an ICMP error is about, and turns it. An
 * error whose inner packet cannot be read keeps p.ports false: it relates to no
 * connection. p.proto stays that of ICMP, the tuple's goes to *proto.
 */
static __always_inline void F(parse_inner)(struct __sk_buff *skb, struct F(pkt) *k, __u8 *proto)
{
	__u32 off = k->p.l4 + 8, limit = ETH_LEN + k->p.total;
	__u16 h[4] = {}, sport, dport;
	const addr_t *inner_src, *inner_dst; /* where they are: the stack has no room for copies */
#if FAMILY == 4
	struct iphdr ip;

	if (off + sizeof(ip) > limit || bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
		return;
	if (ip.version != 4 || ip.ihl < 5 || (bpf_ntohs(ip.frag_off) & 0x1fff))
		return;
	inner_src = &ip.saddr;
	inner_dst = &ip.daddr;
	off += ip.ihl * 4;
	*proto = ip.protocol;
#else
	struct ipv6hdr ip;
	struct ext x = {};

	if (off + sizeof(ip) > limit || bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
		return;
	x.off = off + sizeof(ip);
	x.next = ip.nexthdr;
	if (ip.version != 6 || walk_headers(skb, &x, limit, 0) || x.frag == FRAG_LATER)
		return;
	inner_src = (const addr_t *)&ip.saddr;
	inner_dst = (const addr_t *)&ip.daddr;
	off = x.off;
	*proto = x.next;
#endif
	/* An error goes to the source of what it is about; anything else is forged. */
	if (!F(same)(inner_src, &k->daddr))
		return;
	if (*proto == ICMP_PROTO) {
		if (off + 8 > limit || bpf_skb_load_bytes(skb, off, h, 8))
			return;
		F(icmp_ports)(*(__u8 *)h, h[2], &sport, &dport);
	} else if (has_ports(*proto)) {
		if (off + 4 > limit || bpf_skb_load_bytes(skb, off, h, 4))
			return;
		sport = h[0];
		dport = h[1];
	} else {
		sport = dport = 0;
	}
	k->p.inner_l4 = off;
	k->src = *inner_dst;
	k->dst = *inner_src;
	k->p.sport = dport;
	k->p.dport = sport;
	k->p.ports = true;
}

static __always_inline int F(parse_icmp)(struct __sk_buff *skb, struct F(pkt) *k, __u32 left)
{
	__u16 h[4];

	if (left < sizeof(h) || bpf_skb_load_bytes(skb, k->p.l4, h, sizeof(h)))
		return DROP_TRUNCATED;
	k->p.icmp_type = ((__u8 *)h)[0];
	k->p.icmp_code = ((__u8 *)h)[1];
	if (F(icmp_error)(k->p.icmp_type)) {
		k->p.error = true;
		F(parse_inner)(skb, k, &k->p.ct_proto);
		return 0;
	}
	F(icmp_ports)(k->p.icmp_type, h[2], &k->p.sport, &k->p.dport);
	k->p.ports = true;
	return 0;
}

static __always_inline void F(frag_key)(frag_key_t *key, const struct F(pkt) *k)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = k->saddr;
	key->daddr = k->daddr;
	key->id = k->frag_id;
	key->proto = k->p.frag_proto;
}

/* Later fragments take the ports that their first fragment left here. */
static __always_inline void F(frag_recall)(struct F(pkt) *k)
{
	frag_key_t key;
	struct weft_frag *f;

	F(frag_key)(&key, k);
	f = bpf_map_lookup_elem(&F(weft_frag), &key);
	if (!f || expired(f->expires, now_tick()))
		return;
	k->p.sport = f->sport;
	k->p.dport = f->dport;
	k->p.proto = k->p.ct_proto = f->proto;
	k->p.ports = true;
}

/*
 * Keeps the ports of a first fragment for the later ones. Only once its source
 * is believed: else a sender could lend his ports to fragments of another.
 */
__noinline int F(frag_remember)(const struct F(pkt) *k, __u32 hook)
{
	const struct weft_config *cfg = config();
	struct weft_frag f = {};
	frag_key_t key;

	if (!k || !cfg || k->p.frag != FRAG_FIRST || k->p.error)
		return 0;
	f.expires = now_tick() + cfg->fragment;
	f.sport = k->p.sport;
	f.dport = k->p.dport;
	f.proto = k->p.proto;
	F(frag_key)(&key, k);
	if (bpf_map_update_elem(&F(weft_frag), &key, &f, BPF_ANY))
		count(hook, NOTE_FRAG_FULL, 0);
	return 0;
}

/*
 * Reads a packet up to its tuple, into a struct that is all zero. Returns 0 or the reason why it cannot be
 * trusted; the addresses are valid unless that is DROP_TRUNCATED with p.len 0.
 */
__noinline int F(parse)(struct __sk_buff *skb, struct F(pkt) *k)
{
	__u32 left;
	int err;

	if (!k)
		return DROP_MALFORMED;
	err = F(parse_net)(skb, k);
	if (err)
		return err;
	k->p.ct_proto = k->p.proto;
	if (k->p.frag == FRAG_LATER) {
		F(frag_recall)(k);
		return 0;
	}
	left = ETH_LEN + k->p.total - k->p.l4;
	if (k->p.proto == ICMP_PROTO) {
		err = F(parse_icmp)(skb, k, left);
	} else {
		k->p.ports = true;
		if (k->p.proto == IPPROTO_TCP)
			err = parse_tcp(skb, &k->p, left);
		else if (k->p.proto == IPPROTO_UDP)
			err = parse_udp(skb, &k->p, left);
		else if (has_ports(k->p.proto))
			err = parse_ports(skb, &k->p, left);
	}
	return err;
}

#undef ICMP_PROTO
#undef ECHO_REQUEST
#undef ECHO_REPLY
