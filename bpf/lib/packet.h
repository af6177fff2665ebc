/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a program knows about a packet, as far as both families share it. */
#ifndef WEFT_PACKET_H
#define WEFT_PACKET_H

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include "maps.h"
#include "time.h"

#define ETH_LEN 14
#define READ_DIRECT_MAX 0x3ff /* the verifier wants a limit */
#define WORD_ALIGNED __attribute__((aligned(4)))

/* linux/in.h lacks these, netinet/in.h is not for BPF. */
#define IPPROTO_HOPOPTS_ 0
#define IPPROTO_ROUTING_ 43
#define IPPROTO_FRAGMENT_ 44
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS_ 60

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum frag_part {
	FRAG_NONE = 0,
	FRAG_FIRST = 1,
	FRAG_LATER = 2,
};

struct packet {
	__u32 len;	 /* bytes from the network header on, as the skb has them */
	__u32 total;	 /* the same as the IP header says it, without padding */
	__u32 l4;	 /* offset of the transport header in the skb */
	__u16 inner_l4;	 /* of an ICMP error: offset of the transport header of what it is about */
	__u16 saved;	 /* bytes of a jumbogram header that segmentation takes off again */
	__u16 sport;	 /* network order; of ICMP see struct weft_ct4_key */
	__u16 dport;
	__u8 proto;	 /* transport protocol, behind extension headers */
	__u8 ct_proto;	 /* of the tuple: of the inner packet, where this is an ICMP error */
	__u8 frag_proto; /* protocol that the fragment header or IPv4 header names */
	__u8 tcp_flags;
	__u8 l4_len; /* of a TCP header */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 ttl;
	__u8 frag;	 /* enum frag_part */
	bool df;	 /* must not be fragmented on the way: IPv4 DF, IPv6 always */
	bool ports;	 /* the tuple is complete */
	bool error;	 /* ICMP error: the tuple is that of the packet it is about */
};

/* What a program decided, beside the code, for counters and events. */
struct report {
	__u32 src_identity;
	__u32 dst_identity;
	__u32 out_ifindex;
	__u32 mtu; /* with DROP_TOO_BIG: what would have fitted */
	__u16 endpoint;
	bool is_new;
	bool told; /* the packet became an error to its sender, and must be let out */
};

static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP ||
	       proto == IPPROTO_UDPLITE || proto == IPPROTO_DCCP;
}

/* A SYN alone: somebody opens a connection. */
static __always_inline bool opens_tcp(const struct packet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* May the packet start a connection on the fast path? docs/datapath.md, "Mid-stream". */
static __always_inline bool may_open_fast(const struct packet *p)
{
	return p->proto != IPPROTO_TCP || opens_tcp(p);
}

/* Largest packet on the wire that this skb becomes, from the network header on. */
static __always_inline __u32 wire_len(struct __sk_buff *skb, const struct packet *p)
{
	__u32 gso = skb->gso_size;

	if (!gso)
		return p->len;
	if (gso == 0xffff) /* GSO_BY_FRAGS: SCTP cut it to fit already */
		return 0;
	return p->l4 - ETH_LEN - p->saved + (p->proto == IPPROTO_TCP ? p->l4_len : 8) + gso;
}

/*
 * Reads a header into a word-aligned place, as bpf_skb_load_bytes does, but
 * straight from memory where it lies there, which is nearly always: three helpers
 * less a packet are a tenth of all that a program costs. Words, as clang would go
 * byte by byte; the verifier refuses that where a machine could not do it.
 */
static __always_inline long read_header(struct __sk_buff *skb, __u32 off, void *to, const __u32 len)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (off <= READ_DIRECT_MAX) {
		void *from = data + off;

		if (from + len <= end) {
			__builtin_memcpy(__builtin_assume_aligned(to, 4), __builtin_assume_aligned(from, 4), len);
			return 0;
		}
	}
	return bpf_skb_load_bytes(skb, off, to, len);
}

static __always_inline int parse_tcp(struct __sk_buff *skb, struct packet *p, __u32 left)
{
	__u8 h[16] WORD_ALIGNED;

	if (left < 20)
		return p->frag == FRAG_FIRST ? DROP_FRAGMENT_OVERLAP : DROP_TRUNCATED;
	if (read_header(skb, p->l4, h, sizeof(h)))
		return DROP_TRUNCATED;
	p->sport = *(__u16 *)h;
	p->dport = *(__u16 *)(h + 2);
	p->l4_len = (h[12] >> 4) * 4;
	p->tcp_flags = h[13];
	if (p->l4_len < 20)
		return DROP_MALFORMED;
	if (p->l4_len > left)
		return p->frag == FRAG_FIRST ? DROP_FRAGMENT_OVERLAP : DROP_TRUNCATED;
	return 0;
}

static __always_inline int parse_udp(struct __sk_buff *skb, struct packet *p, __u32 left)
{
	__u16 h[4] WORD_ALIGNED, len;

	if (left < sizeof(h))
		return p->frag == FRAG_FIRST ? DROP_FRAGMENT_OVERLAP : DROP_TRUNCATED;
	if (read_header(skb, p->l4, h, sizeof(h)))
		return DROP_TRUNCATED;
	p->sport = h[0];
	p->dport = h[1];
	len = bpf_ntohs(h[2]);
	/* 0 stands for "longer than 65535"; fragments carry the whole's length. */
	if (len && (len < sizeof(h) || (len > left && p->frag == FRAG_NONE)))
		return DROP_MALFORMED;
	return 0;
}
/* SCTP, DCCP, UDP-Lite: the ports come first in all of them. */
static __always_inline int parse_ports(struct __sk_buff *skb, struct packet *p, __u32 left)
{
	__u16 h[2];

	if (left < sizeof(h) || bpf_skb_load_bytes(skb, p->l4, h, sizeof(h)))
		return DROP_TRUNCATED;
	p->sport = h[0];
	p->dport = h[1];
	return 0;
}

#endif
