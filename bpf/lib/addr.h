/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Addresses: compare, classify, look up. Included once a family. */

#if FAMILY == 4

#include <linux/ip.h>

static __always_inline bool F(same)(const addr_t *a, const addr_t *b)
{
	return *a == *b;
}

/* -1, 0 or 1; any total order does, as long as it never changes. */
static __always_inline int F(compare)(const addr_t *a, const addr_t *b)
{
	return *a < *b ? -1 : *a > *b;
}

/* Never on any wire: 0/8, 127/8, 240/4 but for the broadcast address. */
static __always_inline bool F(martian)(const addr_t *a)
{
	__u32 h = bpf_ntohl(*a);

	return h >> 24 == 0 || h >> 24 == 127 || (h >= 0xf0000000 && h != 0xffffffff);
}

static __always_inline bool F(multicast)(const addr_t *a)
{
	__u32 h = bpf_ntohl(*a);

	return h >> 28 == 14 || h == 0xffffffff;
}

/* Is it the endpoint's own address? */
static __always_inline bool F(owns)(const struct weft_endpoint *ep, const addr_t *a)
{
	return ep->v4 && ep->v4 == *a;
}

/* As events carry it: IPv4 mapped into IPv6. */
static __always_inline void F(to_event)(struct v6addr *out, const addr_t *a)
{
	out->w[0] = 0;
	out->w[1] = 0;
	out->w[2] = bpf_htonl(0xffff);
	out->w[3] = *a;
}

#else

#include <linux/ipv6.h>

static __always_inline bool F(same)(const addr_t *a, const addr_t *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline int F(compare)(const addr_t *a, const addr_t *b)
{
	for (int i = 0; i < 4; i++) {
		if (a->w[i] != b->w[i])
			return a->w[i] < b->w[i] ? -1 : 1;
	}
	return 0;
}

static __always_inline bool F(unspecified)(const addr_t *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

/* Never on any wire: ::, ::1 and IPv4-mapped addresses. */
static __always_inline bool F(martian)(const addr_t *a)
{
	if (a->w[0] | a->w[1])
		return false;
	return a->w[2] == bpf_htonl(0xffff) || (!a->w[2] && bpf_ntohl(a->w[3]) <= 1);
}

static __always_inline bool F(multicast)(const addr_t *a)
{
	return (a->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline bool F(link_local)(const addr_t *a)
{
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline bool F(owns)(const struct weft_endpoint *ep, const addr_t *a)
{
	return !F(unspecified)(&ep->v6) && F(same)(&ep->v6, a);
}

static __always_inline void F(to_event)(struct v6addr *out, const addr_t *a)
{
	*out = *a;
}

#endif

/*
 * Who has exactly this address: pods and nodes. It must lie on the stack: as a
 * key, Linux 6.1 does not take what a function that is verified by itself (not
 * static) was given a pointer to. Such a function copies what it looks up, or is
 * static, where the stack has no room for a copy: 512 bytes for all callers
 * together, each of whom takes a multiple of 32 there.
 */
static __always_inline const struct weft_ipcache *F(who_exactly)(const addr_t *a)
{
	return bpf_map_lookup_elem(&F(weft_ipc), a);
}

/* Who stands behind the address: the exact map first, it costs a fifth of the other. */
static __always_inline const struct weft_ipcache *F(who)(const addr_t *a)
{
	const struct weft_ipcache *c = F(who_exactly)(a);
	net_key_t key;

	if (c)
		return c;
	key.prefixlen = sizeof(*a) * 8;
	key.addr = *a;
	return bpf_map_lookup_elem(&F(weft_net), &key);
}

/* Addresses that only this node may use, and that therefore never come in. */
static __always_inline bool F(ours_alone)(const addr_t *a)
{
	const struct weft_ipcache *who = F(who_exactly)(a);

	return who && (who->kind == KIND_LOCAL_POD || who->kind == KIND_HOST);
}

static __always_inline __u32 F(identity_of)(const struct weft_ipcache *c)
{
	return c && c->identity ? c->identity : IDENTITY_WORLD;
}
