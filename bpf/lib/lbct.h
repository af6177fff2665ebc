/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections from outside to services, as far as both families share them. */
#ifndef WEFT_LBCT_H
#define WEFT_LBCT_H

#include "lb.h"
#include "nat.h"

/* Is nothing more expected of a connection, so that a SYN opens another one? */
static __always_inline bool lbct_over(const struct weft_lbct *c, const struct packet *p)
{
	return opens_tcp(p) && nat_done(c->flags, p->ct_proto);
}

/* When was the row last brought up to date? */
static __always_inline __u32 lbct_last(const struct weft_lbct *c, const struct weft_config *cfg, __u8 proto)
{
	return c->expires - nat_ttl(cfg, c->flags, proto);
}

/* Writes what is new, as the line is shared by all CPUs. */
static __always_inline void lbct_set(struct weft_lbct *c, const struct weft_config *cfg, __u8 proto, __u32 now, __u32 set)
{
	__u32 expires;

	if ((c->flags | set) != c->flags)
		__sync_fetch_and_or(&c->flags, set);
	expires = now + nat_ttl(cfg, c->flags | set, proto);
	if (c->expires != expires)
		c->expires = expires;
}

#endif
