/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Masquerade, as far as both families share it. Decision 0007. */
#ifndef WEFT_NAT_H
#define WEFT_NAT_H

#include "endpoint.h"
#include "packet.h"
#include "report.h"

#define NAT_ATTEMPTS 32 /* ports that are tried for one flow */
#define NAT_IDLE 5	/* ticks after which a finished flow gives up its port to one that finds no other */

/* Beside codes: the packet is to get the node's address; its sender is to hold the port that it has. */
#define MASQUERADE (-1)
#define HOLD_PORT (-2)

#define NAT_SERVICE (~0U) /* no address and port: the packet was for a service */

#define NAT_SRC 0
#define NAT_DST 1

/* Whose flow it is, and what conntrack says that it looks like from outside. */
struct nat_ask {
	__u32 known; /* as weft_ct.nat */
	__u32 generation;
	__u32 endpoint; /* 0: the host's own */
	bool opens;	/* of the host: the packet may open a flow */
	bool client;	/* of a service, not of this node */
};

static __always_inline bool nat_in_range(const struct weft_config *cfg, __u16 port)
{
	__u16 p = bpf_ntohs(port);

	return p >= cfg->nat_min && p <= cfg->nat_max;
}

/* SCTP's associations name addresses and are mostly from one fixed port: masquerade leaves it as it is. */
static __always_inline bool nat_keeps_port(__u8 proto)
{
	return proto == IPPROTO_SCTP;
}

/* Can flows of the protocol be told apart, and their packets be rewritten? */
static __always_inline bool nat_can(const struct packet *p)
{
	switch (p->ct_proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return p->sport && !p->dport; /* echo and timestamp requests */
	}
	return false;
}

/* Nothing more is expected: the port may go to who finds no other. */
static __always_inline bool nat_done(__u32 flags, __u8 proto)
{
	if (proto != IPPROTO_TCP)
		return (flags & (NATF_ANSWERED | NATF_WENT_ON)) == NATF_ANSWERED;
	return flags & NATF_RST || (flags & (NATF_FIN_OWNER | NATF_FIN_PEER)) == (NATF_FIN_OWNER | NATF_FIN_PEER);
}

/* Not shorter than conntrack's for what is established; one question with one answer holds its port no longer than without. */
static __always_inline __u32 nat_ttl(const struct weft_config *cfg, __u32 flags, __u8 proto)
{
	if (proto == IPPROTO_TCP) {
		if (nat_done(flags, proto))
			return cfg->nat_hold;
		return flags & NATF_WENT_ON ? cfg->established : cfg->syn;
	}
	return flags & NATF_WENT_ON ? cfg->answered_stack : cfg->unanswered;
}

/* Brings an entry up to date with a packet of its owner, or of the other side. */
static __always_inline void nat_touch(struct weft_nat *e, const struct packet *p, const struct weft_config *cfg,
				      __u32 now, bool owner)
{
	__u32 flags = e->flags, set = 0, expires;

	if (p->error)
		return;
	if (owner && opens_tcp(p) && nat_done(flags, p->ct_proto)) { /* opens anew with the same ports */
		flags &= ~0xffffU;
		e->flags = flags;
	}
	if (!owner)
		set |= NATF_ANSWERED;
	else if ((flags & NATF_ANSWERED) && !opens_tcp(p))
		set |= NATF_WENT_ON;
	if (p->tcp_flags & TCP_RST)
		set |= NATF_RST;
	if (p->tcp_flags & TCP_FIN)
		set |= owner ? NATF_FIN_OWNER : NATF_FIN_PEER;
	/* Write only what changes: the line is shared by all CPUs. */
	if ((flags | set) != flags) {
		__sync_fetch_and_or(&e->flags, set);
		flags |= set;
	}
	expires = now + nat_ttl(cfg, flags, p->ct_proto);
	if (e->expires != expires)
		e->expires = expires;
}

static __always_inline __u32 nat_mix(__u32 h, __u32 v)
{
	v *= 0xcc9e2d51;
	v = (v << 15) | (v >> 17);
	h ^= v * 0x1b873593;
	h = (h << 13) | (h >> 19);
	return h * 5 + 0xe6546b64;
}

static __always_inline __u32 nat_end(__u32 h)
{
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	return h ^ (h >> 16);
}

/* Sums for checksums: one's complement, 32 bits, not folded. */
static __always_inline __u16 sum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* What a 16-bit word that changes adds to a sum over it. */
static __always_inline __u32 sum_word(__u16 was, __u16 is)
{
	return (__u32)(__u16)~was + is;
}

/* RFC 1624: a checksum after what it covers changed by sum. */
static __always_inline __u16 sum_apply(__u16 check, __u32 sum)
{
	return ~sum_fold((__u32)(__u16)~check + sum_fold(sum));
}

/* Replaces a 16-bit word and adds what that changes to *sum. */
static __always_inline long put_word(struct __sk_buff *skb, __u32 off, __u16 was, __u16 is, __u32 *sum)
{
	if (was == is)
		return 0;
	*sum += sum_word(was, is);
	return bpf_skb_store_bytes(skb, off, &is, sizeof(is), 0);
}

#endif
