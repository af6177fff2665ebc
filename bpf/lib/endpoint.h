/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef WEFT_ENDPOINT_H
#define WEFT_ENDPOINT_H

#include "maps.h"

/* The row of an endpoint, 0 if there is none. */
static __always_inline const struct weft_endpoint *endpoint(__u32 id)
{
	const struct weft_endpoint *row = bpf_map_lookup_elem(&weft_ep, &id);

	return row && row->generation ? row : 0;
}

/* Has an endpoint that was remembered ended, or its id been given to another? */
static __always_inline bool endpoint_gone(__u32 id, __u32 generation)
{
	const struct weft_endpoint *row;

	if (!id)
		return false;
	row = endpoint(id);
	return !row || row->generation != generation;
}

/*
 * The id of the endpoint whose host's end is this device, 0 if there is none.
 * The device, not the packet, says who sends: addresses can be forged.
 */
static __always_inline __u32 endpoint_of_device(__u32 ifindex)
{
	const struct weft_device *d = bpf_map_lookup_elem(&weft_dev, &ifindex);

	return d ? d->endpoint : 0; /* 0 also for devices of the node */
}

/* Does the device carry from_net, so that replies will be seen before the stack sees them? */
static __always_inline bool is_net_device(__u32 ifindex)
{
	const struct weft_device *d = bpf_map_lookup_elem(&weft_dev, &ifindex);

	return d && d->kind == DEVICE_NET;
}

/* One side of a connection, as far as this node knows it. */
struct side {
	__u32 identity;
	__u32 generation;
	__u32 endpoint; /* 0: not local */
};

struct sides {
	struct side from; /* who sent the packet at hand */
	struct side to;
};

#endif
