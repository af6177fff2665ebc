/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services: what clients connect to, and who answers. Layouts and maps, and the
 * choice of a backend. docs/decisions/0010 says why they look like this; all of it
 * is an ABI as types.h is.
 */
#ifndef WEFT_LB_H
#define WEFT_LB_H

#include "maps.h"
#include "time.h"

/* A row takes so many backends itself; more are in an immutable set, so many a chunk. */
#define SVC_INLINE 12
#define SVC_CHUNK 16

/* Slots of a Maglev table in one entry of its map: with what the kernel adds, 2 KiB. */
#define MAGLEV_CHUNK 984

/* Equal to table.Scope*. */
#define SVC_EXTERNAL 0
#define SVC_INTERNAL 1

/* Equal to table.Frontend*. */
#define SVC_BOTH (1U << 0) /* answers both scopes alike: there is no row for SVC_INTERNAL */
#define SVC_LOCAL (1U << 1) /* of backends of this node alone */
#define SVC_SOURCES (1U << 2) /* from outside only for some */
#define SVC_MAGLEV (1U << 3) /* from outside by a Maglev table, if there is more than one backend; for those who list it */

struct weft_svc4_key {
	__u32 addr; /* 0: a NodePort, any address of a node; or a hostPort, of this node */
	__u16 port; /* network order */
	__u8 proto;
	__u8 scope; /* SVC_EXTERNAL or SVC_INTERNAL */
};

struct weft_svc6_key {
	struct v6addr addr;
	__u16 port;
	__u8 proto;
	__u8 scope;
};

/*
 * A frontend with all its backends, by ascending id: one update of the map changes
 * them together (DATAPATH rule 14). count 0: connections are refused.
 */
struct weft_svc {
	__u32 flags;
	__u32 service;
	__u32 count;
	__u32 affinity; /* ticks; 0: each connection is for itself */
	__u32 set;	/* of weft_svcset; 0: the backends are here */
	__u8 type;	/* SVC_CLUSTER_IP and others, for those who list it */
	__u8 spare[3];
	__u32 backends[SVC_INLINE];
	__u64 table; /* of weft_maglev, for what comes from outside */
	__u32 slots; /* that it has; 0: there is none */
	__u32 seed;  /* of the hashes of flows that lead to them, the same on all nodes */
};

/* As maps.frontendTypes has it. */
#define SVC_CLUSTER_IP 1
#define SVC_HOST_PORT 5 /* of a pod of this node: on this node's addresses alone */

/* Who may use a service from outside, where not everybody may. */
struct weft_src4_key {
	__u32 prefixlen; /* 32 of the service, and those of the address */
	__u32 service;
	__u32 addr;
};

struct weft_src6_key {
	__u32 prefixlen;
	__u32 service;
	struct v6addr addr;
};

/* A set is written once, before a row names it, and deleted after none does. */
struct weft_svcset_key {
	__u32 set;
	__u32 chunk;
};

struct weft_svc_chunk {
	__u32 backends[SVC_CHUNK];
};

/*
 * A Maglev table is written before a row names it and deleted after none does. Its
 * number is a digest of what it is made of, so that one number never means two tables.
 */
struct weft_maglev_key {
	__u64 table;
	__u32 chunk;
	__u32 spare;
};

struct weft_maglev_chunk {
	__u16 slots[MAGLEV_CHUNK]; /* which of the row's backends */
	__u32 sum;		   /* for the agent: whether this is what was written */
	__u32 spare;
};

/* weft_be[id]; proto 0: there is none. The generation differs each time an id is used again. */
struct weft_backend {
	struct v6addr addr; /* IPv4 mapped into IPv6 */
	__u16 port;	    /* network order */
	__u8 proto;
	__u8 flags; /* BACKEND_* */
	__u32 generation;
};

#define BACKEND_TERMINATING (1U << 0)
#define BACKEND_LOCAL (1U << 1)

/* Who got which backend. */
struct weft_affinity_key {
	__u32 service;
	__u8 kind; /* AFFINITY_* */
	__u8 pad[3];
	struct v6addr client;
};

#define AFFINITY_NETNS 1  /* cookie of a network namespace: a pod, or the node */
#define AFFINITY_SOCKET 2 /* cookie of a socket that sends datagrams without connecting */
#define AFFINITY_ADDR 3	  /* of the packet layer */

struct weft_chosen {
	__u32 backend;
	__u32 generation; /* of the backend's id */
	__u32 used;	  /* tick */
};

/* What a socket was told to talk to, by what it talks to. */
struct weft_sk_key {
	__u64 cookie;
	struct v6addr addr; /* the backend's */
	__u16 port;
	__u8 pad[6];
};

struct weft_wanted {
	struct v6addr addr; /* the service's */
	__u16 port;
	__u8 proto;
	__u8 spare;
};

/*
 * A connection that came to a service packet by packet: two rows.
 * LBCT_THERE says what the service's address becomes, LBCT_BACK what the backend's
 * does. weft_lbctn* holds those that did not go on after an answer, as weft_ctn* does.
 */
#define LBCT_THERE 0
#define LBCT_BACK 1
#define LBCT_INSIDE 2 /* beside them: of a pod, past its socket; young ones are in weft_lbctp* */

struct weft_lbct4_key {
	__u32 client;
	__u32 addr; /* the service's (LBCT_THERE) or the backend's (LBCT_BACK) */
	__u16 client_port;
	__u16 port;
	__u8 proto;
	__u8 way; /* LBCT_* */
	__u8 pad[2];
};

struct weft_lbct6_key {
	struct v6addr client;
	struct v6addr addr;
	__u16 client_port;
	__u16 port;
	__u8 proto;
	__u8 way;
	__u8 pad[2];
};

/* Beside NATF_*. */
#define LBCTF_REMOTE (1U << 8) /* the backend is not on this node, and must answer through it */
#define LBCTF_MAIN (1U << 9)   /* the row was moved to the main table */

struct weft_lbct {
	__u32 expires; /* tick */
	__u32 flags;   /* NATF_*, the client being the owner; LBCTF_* */
	__u32 backend;
	__u32 generation; /* of the backend's id */
	__u32 nat;	  /* of LBCT_BACK: what the client is to the backend, as weft_ct.nat */
	__u16 port;	  /* what the address and port of the key become */
	__u16 spare;
	struct v6addr addr; /* IPv4 in the first word */
};

DEFINE_MAP(weft_lbct4, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_lbct4_key, struct weft_lbct, 0);
DEFINE_MAP(weft_lbct6, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_lbct6_key, struct weft_lbct, 0);
DEFINE_MAP(weft_lbctn4, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_lbct4_key, struct weft_lbct, 0);
DEFINE_MAP(weft_lbctn6, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_lbct6_key, struct weft_lbct, 0);
DEFINE_MAP(weft_lbctp4, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_lbct4_key, struct weft_lbct, 0);
DEFINE_MAP(weft_lbctp6, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_lbct6_key, struct weft_lbct, 0);
DEFINE_MAP(weft_svc4, BPF_MAP_TYPE_HASH, 1, struct weft_svc4_key, struct weft_svc, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_svc6, BPF_MAP_TYPE_HASH, 1, struct weft_svc6_key, struct weft_svc, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_svcset, BPF_MAP_TYPE_HASH, 1, struct weft_svcset_key, struct weft_svc_chunk, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_maglev, BPF_MAP_TYPE_HASH, 1, struct weft_maglev_key, struct weft_maglev_chunk, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_src4, BPF_MAP_TYPE_LPM_TRIE, 1, struct weft_src4_key, __u32, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_src6, BPF_MAP_TYPE_LPM_TRIE, 1, struct weft_src6_key, __u32, BPF_F_NO_PREALLOC);
DEFINE_MAP(weft_be, BPF_MAP_TYPE_ARRAY, 1, __u32, struct weft_backend, 0);
DEFINE_MAP(weft_affinity, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_affinity_key, struct weft_chosen, 0);
DEFINE_MAP(weft_sk, BPF_MAP_TYPE_LRU_HASH, 1, struct weft_sk_key, struct weft_wanted, 0);

/*
 * A datagram of a socket that is not connected goes where the last one went, as
 * conntrack would have it: more than one of QUIC's packets make a connection.
 */
#define SVC_DATAGRAM_TICKS 112 /* two minutes */

/* The i-th backend of a row; 0: the set is gone, so that the row is an old one. */
static __always_inline __u32 svc_backend(const struct weft_svc *s, __u32 i)
{
	struct weft_svcset_key key;
	const struct weft_svc_chunk *c;
	__u64 at;

	if (!s->set) {
		at = i & 15;
		asm volatile("" : "+r"(at)); /* else only its lower half is compared, and the verifier wants all */
		return at < SVC_INLINE ? s->backends[at] : 0;
	}
	key.set = s->set;
	key.chunk = i / SVC_CHUNK;
	c = bpf_map_lookup_elem(&weft_svcset, &key);
	return c ? c->backends[i % SVC_CHUNK] : 0;
}

struct svc_search {
	__u32 set;
	__u32 id;
	__u32 low; /* the first that may be it */
	__u32 high; /* the first that cannot be it */
	__u32 found;
};

/* One step: looks at the backend in the middle. */
static long svc_halve(__u32 step, struct svc_search *f)
{
	__u32 mid = (f->low + f->high) / 2, at;
	struct weft_svcset_key key = {.set = f->set, .chunk = mid / SVC_CHUNK};
	const struct weft_svc_chunk *c;

	if (f->low >= f->high)
		return 1;
	c = bpf_map_lookup_elem(&weft_svcset, &key);
	if (!c)
		return 1;
	at = c->backends[mid % SVC_CHUNK];
	if (at == f->id) {
		f->found = 1;
		return 1;
	}
	if (at < f->id)
		f->low = mid + 1;
	else
		f->high = mid;
	return 0;
}

/* Is a backend one of the row's? A set is searched by halves; as a loop of the program
 * itself the verifier would follow each way through it. */
static __always_inline bool svc_has(const struct weft_svc *s, __u32 id)
{
	struct svc_search f = {.set = s->set, .id = id, .high = s->count};

	if (s->set) {
		bpf_loop(17, svc_halve, &f, 0); /* 2^16 backends */
		return f.found;
	}
	for (__u32 i = 0; i < SVC_INLINE; i++) {
		if (s->backends[i] == id)
			return i < s->count;
	}
	return false;
}

static __always_inline const struct weft_backend *backend_of(__u32 id)
{
	const struct weft_backend *b = id ? bpf_map_lookup_elem(&weft_be, &id) : 0;

	return b && b->proto ? b : 0;
}

/*
 * Who answers a client that has had nobody yet, by a number that is different for
 * each; 0: the row has changed meanwhile, ask anew.
 */
static __always_inline const struct weft_backend *svc_pick(const struct weft_svc *s, __u32 number, __u32 *id)
{
	__u32 n = s->count;

	if (!n)
		return 0;
	*id = svc_backend(s, number % n);
	return backend_of(*id);
}

static __always_inline const struct weft_backend *svc_random(const struct weft_svc *s, __u32 *id)
{
	return svc_pick(s, bpf_get_prandom_u32(), id);
}

/*
 * Which of a row's backends a flow gets by the row's Maglev table; -1: the row has
 * changed meanwhile, ask anew. It is the same on all nodes for one hash.
 */
static __always_inline long svc_slot(const struct weft_svc *s, __u32 hash)
{
	__u32 n = s->slots, at;
	struct weft_maglev_key key = {.table = s->table};
	const struct weft_maglev_chunk *c;
	__u64 in;

	if (!n)
		return -1;
	at = hash % n;
	key.chunk = at / MAGLEV_CHUNK;
	c = bpf_map_lookup_elem(&weft_maglev, &key);
	in = at % MAGLEV_CHUNK;
	asm volatile("" : "+r"(in)); /* the verifier knows no remainder: it wants to see a comparison */
	return c && in < MAGLEV_CHUNK ? c->slots[in] : -1;
}

/*
 * Who answers a client that is to get the same backend for as long as the service
 * has it and the client asks again within so many ticks; number as svc_pick's.
 */
static __always_inline const struct weft_backend *svc_sticky(const struct weft_svc *s, const struct weft_affinity_key *client,
							      __u32 ticks, __u32 number, __u32 *id)
{
	struct weft_chosen *had = bpf_map_lookup_elem(&weft_affinity, client);
	struct weft_chosen fresh;
	const struct weft_backend *b;
	__u32 now = now_tick();

	if (had && now - had->used <= ticks && svc_has(s, had->backend)) {
		*id = had->backend;
		b = backend_of(*id);
		if (b && b->generation == had->generation) {
			if (had->used != now) /* the line is shared by all CPUs */
				had->used = now;
			return b;
		}
	}
	b = svc_pick(s, number, id);
	if (!b)
		return 0;
	fresh.backend = *id;
	fresh.generation = b->generation;
	fresh.used = now;
	bpf_map_update_elem(&weft_affinity, client, &fresh, BPF_ANY); /* without it the next is a new client */
	return b;
}

#endif
