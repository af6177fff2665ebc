// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Programs of the node's cgroup: a socket that connects or sends to a service is
 * sent to one of its backends, and told afterwards that it talks to the service.
 * Packets carry the backend's address from the first one on: nothing is left to
 * translate, and what filters or routes them sees pod to pod.
 */
#include "lib/encap.h"
#include "lib/lb.h"

/* Fixed at load: the namespace in which the agent runs is the node's. */
const volatile __u64 host_netns_cookie = 0;
const volatile bool sock_host_only = false;
const volatile bool sock_bind_protection = true;

#define ECONNREFUSED 111
#define EADDRINUSE 98

#define SOCK_PASS 1
#define SOCK_DENY 0

struct sock_peer {
	__u8 proto;
	bool host; /* the socket is the node's own */
	bool connects;
};

/* Is the socket one of those that are translated? */
static __always_inline bool sock_ours(struct bpf_sock_addr *ctx, struct sock_peer *p, bool connects)
{
	__u32 proto = ctx->protocol;

	p->proto = proto;
	p->connects = connects;
	p->host = bpf_get_netns_cookie(ctx) == host_netns_cookie;
	if (sock_host_only && !p->host)
		return false;
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

/*
 * The row for where a socket wants to go; 0: no service. At loopback addresses only the
 * node itself has services, and NodePorts: a pod's loopback is its own.
 */
static __always_inline const struct weft_svc *sock_service4(__u32 addr, __u16 port, const struct sock_peer *p)
{
	struct weft_svc4_key key = {.addr = addr, .port = port, .proto = p->proto, .scope = SVC_EXTERNAL};
	const struct weft_svc *s;

	if (addr && bpf_ntohl(addr) >> 24 != 127) /* the kernel takes 0.0.0.0 for 127.0.0.1 */
		return svc_for4(&key, true);
	if (!p->host)
		return 0;
	s = addr ? svc_at4(&key, true) : 0;
	if (s)
		return s;
	key.addr = 0;
	key.scope = SVC_EXTERNAL;
	return svc_at4(&key, true);
}

static __always_inline bool loopback6(const struct v6addr *addr)
{
	return !addr->w[0] && !addr->w[1] && !addr->w[2] && addr->w[3] == bpf_htonl(1);
}

static __always_inline const struct weft_svc *sock_service6(const struct v6addr *addr, __u16 port,
							     const struct sock_peer *p)
{
	struct weft_svc6_key key = {.addr = *addr, .port = port, .proto = p->proto, .scope = SVC_EXTERNAL};
	bool unspecified = unspecified6(addr);
	const struct weft_svc *s;

	if (!unspecified && !loopback6(addr))
		return svc_for6(&key, true);
	if (!p->host)
		return 0;
	s = unspecified ? 0 : svc_at6(&key, true);
	if (s)
		return s;
	__builtin_memset(&key.addr, 0, sizeof(key.addr));
	key.scope = SVC_EXTERNAL;
	return svc_at6(&key, true);
}

/* Who answers this socket; 0: ask for the row anew. */
static __always_inline const struct weft_backend *sock_choose(struct bpf_sock_addr *ctx, const struct weft_svc *s,
							       const struct sock_peer *p)
{
	struct weft_affinity_key client = {.service = s->service};
	__u32 ticks = s->affinity, id;
	__u64 cookie;

	if (!ticks && p->connects)
		return svc_random(s, &id);
	if (ticks) {
		client.kind = AFFINITY_NETNS;
		cookie = bpf_get_netns_cookie(ctx);
	} else {
		client.kind = AFFINITY_SOCKET;
		cookie = bpf_get_socket_cookie(ctx);
		ticks = SVC_DATAGRAM_TICKS;
	}
	client.client.w[0] = (__u32)cookie;
	client.client.w[1] = cookie >> 32;
	return svc_sticky(s, &client, ticks, bpf_get_prandom_u32(), &id);
}

/* Remembers for recvmsg and getpeername what the socket wanted. */
static __always_inline void sock_remember(struct bpf_sock_addr *ctx, const struct weft_backend *b,
					  const struct v6addr *addr, __u16 port, __u8 proto)
{
	struct weft_sk_key key = {.cookie = bpf_get_socket_cookie(ctx), .addr = b->addr, .port = b->port};
	struct weft_wanted v = {.addr = *addr, .port = port, .proto = proto};
	const struct weft_wanted *had = bpf_map_lookup_elem(&weft_sk, &key);

	if (had && same6(&had->addr, addr) && had->port == port)
		return;
	bpf_map_update_elem(&weft_sk, &key, &v, BPF_ANY); /* without it the socket is told of the backend */
}

static __always_inline int sock_refuse(int error)
{
	bpf_set_retval(-error);
	return SOCK_DENY;
}

/*
 * Where a socket goes that wants to go to addr. *to is 0 where that is no service;
 * SOCK_DENY: nobody is there. A row that changed while it was read is asked for
 * once more.
 */
static __always_inline int sock_to4(struct bpf_sock_addr *ctx, const struct sock_peer *p, __u32 addr, __u16 port,
				    const struct weft_backend **to)
{
	const struct weft_backend *b = 0;
	struct v6addr service;

	*to = 0;
	if (!enable_ipv4)
		return SOCK_PASS;
	for (int i = 0; i < 2 && !b; i++) {
		const struct weft_svc *s = sock_service4(addr, port, p);

		if (!s)
			return SOCK_PASS;
		if (s->count)
			b = sock_choose(ctx, s, p);
	}
	if (!b)
		return sock_refuse(ECONNREFUSED);
	to_event4(&service, &addr);
	sock_remember(ctx, b, &service, port, p->proto);
	*to = b;
	return SOCK_PASS;
}

static __always_inline int sock_to6(struct bpf_sock_addr *ctx, const struct sock_peer *p, const struct v6addr *addr,
				    __u16 port, const struct weft_backend **to)
{
	const struct weft_backend *b = 0;

	*to = 0;
	if (!enable_ipv6)
		return SOCK_PASS;
	for (int i = 0; i < 2 && !b; i++) {
		const struct weft_svc *s = sock_service6(addr, port, p);

		if (!s)
			return SOCK_PASS;
		if (s->count)
			b = sock_choose(ctx, s, p);
	}
	if (!b)
		return sock_refuse(ECONNREFUSED);
	sock_remember(ctx, b, addr, port, p->proto);
	*to = b;
	return SOCK_PASS;
}

static __always_inline int sock_forward4(struct bpf_sock_addr *ctx, bool connects)
{
	const struct weft_backend *b;
	struct sock_peer p;
	int verdict;

	if (!sock_ours(ctx, &p, connects))
		return SOCK_PASS;
	verdict = sock_to4(ctx, &p, ctx->user_ip4, ctx->user_port, &b);
	if (b) {
		ctx->user_ip4 = b->addr.w[3];
		ctx->user_port = b->port;
	}
	return verdict;
}

static __always_inline void sock_addr6(const struct bpf_sock_addr *ctx, struct v6addr *a)
{
	a->w[0] = ctx->user_ip6[0];
	a->w[1] = ctx->user_ip6[1];
	a->w[2] = ctx->user_ip6[2];
	a->w[3] = ctx->user_ip6[3];
}

static __always_inline void sock_set6(struct bpf_sock_addr *ctx, const struct v6addr *a, __u16 port)
{
	ctx->user_ip6[0] = a->w[0];
	ctx->user_ip6[1] = a->w[1];
	ctx->user_ip6[2] = a->w[2];
	ctx->user_ip6[3] = a->w[3];
	ctx->user_port = port;
}

/* An IPv6 socket may talk IPv4, to an address that is mapped into IPv6. */
static __always_inline int sock_forward6(struct bpf_sock_addr *ctx, bool connects)
{
	const struct weft_backend *b;
	struct sock_peer p;
	struct v6addr addr;
	int verdict;

	if (!sock_ours(ctx, &p, connects))
		return SOCK_PASS;
	sock_addr6(ctx, &addr);
	if (is_mapped(&addr))
		verdict = sock_to4(ctx, &p, addr.w[3], ctx->user_port, &b);
	else
		verdict = sock_to6(ctx, &p, &addr, ctx->user_port, &b);
	if (b)
		sock_set6(ctx, &b->addr, b->port);
	return verdict;
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	return sock_forward4(ctx, true);
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	return sock_forward6(ctx, true);
}

/* Datagrams of sockets that are not connected, each. */
SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sock_forward4(ctx, false);
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sock_forward6(ctx, false);
}

/* What a socket is to be told that it talks to; 0: what it does talk to. */
static __always_inline const struct weft_wanted *sock_service(struct bpf_sock_addr *ctx, const struct v6addr *addr)
{
	struct weft_sk_key key = {.cookie = bpf_get_socket_cookie(ctx), .addr = *addr, .port = ctx->user_port};

	return bpf_map_lookup_elem(&weft_sk, &key);
}

static __always_inline int sock_reverse4(struct bpf_sock_addr *ctx)
{
	__u32 peer = ctx->user_ip4;
	const struct weft_wanted *s;
	struct v6addr addr;

	to_event4(&addr, &peer);
	s = sock_service(ctx, &addr);
	if (s) {
		ctx->user_ip4 = s->addr.w[3];
		ctx->user_port = s->port;
	}
	return SOCK_PASS;
}

static __always_inline int sock_reverse6(struct bpf_sock_addr *ctx)
{
	const struct weft_wanted *s;
	struct v6addr addr;

	sock_addr6(ctx, &addr);
	s = sock_service(ctx, &addr);
	if (s)
		sock_set6(ctx, &s->addr, s->port);
	return SOCK_PASS;
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return sock_reverse4(ctx);
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return sock_reverse6(ctx);
}

SEC("cgroup/getpeername4")
int sock_getpeername4(struct bpf_sock_addr *ctx)
{
	return sock_reverse4(ctx);
}

SEC("cgroup/getpeername6")
int sock_getpeername6(struct bpf_sock_addr *ctx)
{
	return sock_reverse6(ctx);
}

/*
 * Is a port of the node taken by a NodePort, so that nobody who binds it would be
 * reached? A pod's hostPort keeps nobody from his port: pods come and go.
 */
static __always_inline bool port_taken4(__u16 port, __u8 proto)
{
	struct weft_svc4_key key = {.port = port, .proto = proto, .scope = SVC_EXTERNAL};
	const struct weft_svc *s = enable_ipv4 ? bpf_map_lookup_elem(&weft_svc4, &key) : 0;

	return s && s->type != SVC_HOST_PORT;
}

static __always_inline bool port_taken6(__u16 port, __u8 proto)
{
	struct weft_svc6_key key = {.port = port, .proto = proto, .scope = SVC_EXTERNAL};
	const struct weft_svc *s = enable_ipv6 ? bpf_map_lookup_elem(&weft_svc6, &key) : 0;

	return s && s->type != SVC_HOST_PORT;
}

static __always_inline bool sock_binds(struct bpf_sock_addr *ctx)
{
	__u32 proto = ctx->protocol;

	if (!sock_bind_protection || (proto != IPPROTO_TCP && proto != IPPROTO_UDP))
		return false;
	return ctx->user_port && bpf_get_netns_cookie(ctx) == host_netns_cookie;
}

SEC("cgroup/bind4")
int sock_bind4(struct bpf_sock_addr *ctx)
{
	if (sock_binds(ctx) && port_taken4(ctx->user_port, ctx->protocol))
		return sock_refuse(EADDRINUSE);
	return SOCK_PASS;
}

/* Who binds :: takes the port in both families. */
SEC("cgroup/bind6")
int sock_bind6(struct bpf_sock_addr *ctx)
{
	struct v6addr addr;
	bool mapped;

	if (!sock_binds(ctx))
		return SOCK_PASS;
	sock_addr6(ctx, &addr);
	mapped = is_mapped(&addr);
	if ((mapped || unspecified6(&addr)) && port_taken4(ctx->user_port, ctx->protocol))
		return sock_refuse(EADDRINUSE);
	if (!mapped && port_taken6(ctx->user_port, ctx->protocol))
		return sock_refuse(EADDRINUSE);
	return SOCK_PASS;
}
