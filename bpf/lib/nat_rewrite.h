/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Changes addresses, ports and checksums. Included once a family. */

/* What an address and a port become. */
struct F(nat_to) {
	addr_t addr;
	__u32 slot;	  /* of weft_natip, where addr is the node's */
	__u32 generation; /* of the owner */
	__u16 endpoint;	  /* the owner; 0: the host */
	__u16 port;	  /* 0: none yet */
};

#if FAMILY == 4
#define ADDR_AT(ip, dir) ((ip) + 12 + 4 * (dir))
#define NAT_ICMP IPPROTO_ICMP
#else
#define ADDR_AT(ip, dir) ((ip) + 8 + 16 * (dir))
#define NAT_ICMP IPPROTO_ICMPV6
#endif

static __always_inline __u32 F(addr_sum)(const addr_t *was, const addr_t *is)
{
	return bpf_csum_diff((__be32 *)was, sizeof(*was), (__be32 *)is, sizeof(*is), 0);
}

/*
 * A change of the pseudo header for a transport checksum. Where the device gave
 * a sum over all of the packet (CHECKSUM_COMPLETE), IPv4's stays right by the
 * kernel's adjustment; in IPv6 address and checksum cancel out, and the
 * adjustment would spoil it. bpf_csum_update fails unless there is such a sum.
 */
static __always_inline __u64 F(pseudo)(struct __sk_buff *skb)
{
#if FAMILY == 6
	if (bpf_csum_update(skb, 0) >= 0)
		return 0;
#endif
	return BPF_F_PSEUDO_HDR;
}

/* The network header: address, and the checksum over it. */
static __always_inline long F(nat_address)(struct __sk_buff *skb, const addr_t *was, const addr_t *is, __u32 dir)
{
#if FAMILY == 4
	if (bpf_l3_csum_replace(skb, ETH_LEN + __builtin_offsetof(struct iphdr, check), *was, *is, 4))
		return -1;
#endif
	return bpf_skb_store_bytes(skb, ADDR_AT(ETH_LEN, dir), is, sizeof(*is), 0);
}

/* Where checksum and port of a transport header are; 0: none. */
struct F(places) {
	__u32 check;
	__u32 port;
	__u64 flags;
};

static __always_inline void F(nat_places)(struct F(places) *at, __u8 proto, __u32 l4, __u32 dir)
{
	at->check = at->port = 0;
	at->flags = 0;
	switch (proto) {
	case IPPROTO_TCP:
		at->check = l4 + 16;
		at->port = l4 + 2 * dir;
		break;
	case IPPROTO_UDP:
		at->check = l4 + 6;
		at->port = l4 + 2 * dir;
		at->flags = BPF_F_MARK_MANGLED_0; /* 0 stays 0: there is none */
		break;
	case IPPROTO_SCTP: /* its checksum is of another kind */
		at->port = l4 + 2 * dir;
		break;
	case NAT_ICMP:
		at->check = l4 + 2;
		at->port = l4 + 4; /* the id */
		break;
	}
}

/*
 * Another port for SCTP. A checksum that a device is yet to compute is not there, and
 * what is written in its place does no harm; 0 says that there is none (RFC 9653).
 */
__noinline int F(nat_sctp_port)(struct __sk_buff *skb, const struct F(pkt) *k, __u32 next, __u32 dir)
{
	__u32 l4, follow, sum;
	__u16 port = next, diff;

	if (!k)
		return -1;
	diff = (dir == NAT_SRC ? k->p.sport : k->p.dport) ^ port;
	if (!diff)
		return 0;
	if (k->p.frag != FRAG_NONE)
		return -1; /* nobody knows how many bytes follow */
	l4 = k->p.l4;
	follow = ETH_LEN + k->p.total - l4 - 2 * dir - sizeof(port);
	if (bpf_skb_store_bytes(skb, l4 + 2 * dir, &port, sizeof(port), 0) ||
	    bpf_skb_load_bytes(skb, l4 + 8, &sum, sizeof(sum)))
		return -1;
	if (!sum)
		return 0;
	sum ^= crc_change(diff, follow);
	return bpf_skb_store_bytes(skb, l4 + 8, &sum, sizeof(sum), 0);
}

/*
 * Gives a packet another source (dir NAT_SRC) or destination. Later fragments
 * have an address alone. Returns 0 or an error of the kernel.
 */
__noinline int F(nat_rewrite)(struct __sk_buff *skb, const struct F(pkt) *k, const struct F(nat_to) *to, __u32 dir)
{
	struct F(places) at;
	const addr_t *was;
	__u16 old, port;

	if (!k || !to)
		return -1;
	was = dir == NAT_SRC ? &k->saddr : &k->daddr;
	old = dir == NAT_SRC ? k->p.sport : k->p.dport;
	port = to->port;
	F(nat_places)(&at, k->p.frag == FRAG_LATER ? 0 : k->p.proto, k->p.l4, dir);
	if (at.check) {
		if ((FAMILY == 6 || k->p.proto != IPPROTO_ICMP) &&
		    bpf_l4_csum_replace(skb, at.check, 0, F(addr_sum)(was, &to->addr), F(pseudo)(skb) | at.flags))
			return -1;
		if (old != port && (bpf_l4_csum_replace(skb, at.check, old, port, at.flags | sizeof(port)) ||
				    bpf_skb_store_bytes(skb, at.port, &port, sizeof(port), 0)))
			return -1;
	} else if (at.port && F(nat_sctp_port)(skb, k, port, dir)) {
		return -1;
	}
	return F(nat_address)(skb, was, &to->addr, dir);
}

/* The transport checksum of the quoted packet, if so much of it is quoted. */
static __always_inline long F(nat_inner_check)(struct __sk_buff *skb, const struct F(pkt) *k, __u32 off, __u32 change,
					       __u32 *sum)
{
	__u16 was, is;

	if (!off || off + 2 > ETH_LEN + k->p.total || bpf_skb_load_bytes(skb, off, &was, sizeof(was)))
		return 0;
	if (k->p.ct_proto == IPPROTO_UDP && !was)
		return 0;
	is = sum_apply(was, change);
	if (k->p.ct_proto == IPPROTO_UDP && !is)
		is = 0xffff;
	return put_word(skb, off, was, is, sum);
}

/*
 * An ICMP error about a masqueraded packet. The quoted packet gets its address
 * and port on side dir; the error itself another address on the opposite side,
 * unless that is somebody else's: a router's, or the node's own.
 */
__noinline int F(nat_rewrite_error)(struct __sk_buff *skb, const struct F(pkt) *k, const struct F(nat_to) *to, __u32 dir)
{
	__u32 inner, off, change, sum, outer;
	struct F(places) at;
	const addr_t *was, *told;
	__u16 old;

	if (!k || !to)
		return -1;
	inner = k->p.l4 + 8;
	outer = dir == NAT_SRC ? NAT_DST : NAT_SRC;
	/* The tuple is turned: the quoted source is k->dst. */
	was = dir == NAT_SRC ? &k->dst : &k->src;
	told = outer == NAT_SRC ? &k->saddr : &k->daddr;
	old = dir == NAT_SRC ? k->p.dport : k->p.sport;
	change = F(addr_sum)(was, &to->addr);
	sum = sum_fold(change);
	if (bpf_skb_store_bytes(skb, ADDR_AT(inner, dir), &to->addr, sizeof(to->addr), 0))
		return -1;
#if FAMILY == 4
	{
		__u16 check;

		off = inner + __builtin_offsetof(struct iphdr, check);
		if (bpf_skb_load_bytes(skb, off, &check, sizeof(check)) ||
		    put_word(skb, off, check, sum_apply(check, change), &sum))
			return -1;
	}
#endif
	F(nat_places)(&at, k->p.ct_proto, k->p.inner_l4, dir);
	if (k->p.ct_proto == IPPROTO_ICMP)
		change = 0; /* no pseudo header */
	if (at.port) {
		change = sum_fold(change) + sum_word(old, to->port);
		if (put_word(skb, at.port, old, to->port, &sum) ||
		    F(nat_inner_check)(skb, k, at.check, change, &sum))
			return -1;
	}
	off = k->p.l4 + 2;
	if (bpf_l4_csum_replace(skb, off, 0, sum_fold(sum), 0))
		return -1;
	if (!F(same)(told, was))
		return 0;
#if FAMILY == 6
	if (bpf_l4_csum_replace(skb, off, 0, F(addr_sum)(was, &to->addr), F(pseudo)(skb)))
		return -1;
#endif
	return F(nat_address)(skb, was, &to->addr, outer);
}

#undef ADDR_AT
