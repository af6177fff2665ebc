/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Layouts that programs, maps and the agent share.
 *
 * Everything here is an ABI: while an upgrade swaps links, programs of version
 * N and N-1 read and write the same maps (DATAPATH rule 13). Append into spare
 * fields; a changed size makes the agent replace the map.
 * internal/datapath/maps reads these through the types that bpf2go generates.
 */
#ifndef WEFT_TYPES_H
#define WEFT_TYPES_H

#include <linux/types.h>
#include <linux/bpf.h>

typedef _Bool bool;
#define true 1
#define false 0

/* What stands behind an address. Equal to table.HostKind. */
enum weft_kind {
	KIND_UNKNOWN = 0,
	KIND_HOST = 1,
	KIND_NODE = 2,
	KIND_LOCAL_POD = 3,
	KIND_REMOTE_POD = 4,
};

/* Reserved identities, equal to table.Identity*. */
#define IDENTITY_UNKNOWN 0
#define IDENTITY_HOST 1
#define IDENTITY_WORLD 2
#define IDENTITY_HEALTH 4
#define IDENTITY_INIT 5
#define IDENTITY_REMOTE_NODE 6
#define IDENTITY_FIRST 256 /* lower ones are reserved */

/*
 * Skb marks. The upper half names us, so that 0x4000 and 0x8000 (kube-proxy)
 * and the small marks that people choose by hand are never touched.
 */
#define MARK_OURS 0x5EF70000U
#define MARK_MASK 0xFFFF0000U
#define MARK_FAST 0x5EF70001U /* sent by the fast path: to_pod and to_net let it pass */
#define MARK_SERVICE 0x5EF70002U /* translated for a service: the stack's, and accepted in FORWARD */
#define MARK_REFUSE 0x5EF70003U /* for a service that nobody answers: the stack's, and refused in FORWARD */

#ifndef TCX_NEXT
#define TCX_NEXT -1 /* linux 6.6; the headers may be older */
#endif

#define MAX_ENDPOINTS 4096

struct v6addr {
	__u32 w[4];
};

/* weft_cfg[0]: settings that may change while running. */
struct weft_config {
	__u32 trace;	     /* enum weft_trace */
	__u32 event_rate;    /* trace and drop records per tick and CPU, each */
	__u32 icmp_rate;     /* ICMP errors that we build, per tick and CPU */
	__u32 established;    /* ticks; TCP, answered */
	__u32 syn;	      /* ticks; TCP, unanswered */
	__u32 closing;	      /* ticks; TCP after RST or both FINs */
	__u32 answered;	      /* ticks; all else, answered, fast path */
	__u32 answered_stack; /* ticks; all else, answered, stack: not shorter than netfilter's */
	__u32 unanswered;     /* ticks; all else, unanswered */
	__u32 fragment;	      /* ticks; ports of a first fragment */
	__u32 node_v4;	     /* source of the ICMP errors that we build; 0: none */
	__u32 flags;	     /* CONFIG_* */
	struct v6addr node_v6;
	struct v6addr tunnel_local; /* this node as the overlay's nodes know it; IPv4 mapped into IPv6 */
	__u32 tunnel_ifindex;	    /* of the tunnel device; 0: nothing is sent by the overlay */
	__u32 tunnel_mtu;	    /* of that device: bytes of the inner packet */
	__u32 tunnel_flags;	    /* TUNNEL_* */
	__u16 tunnel_port;	    /* network order; of that device */
	__u16 tunnel_spare;
	__u32 nat;	/* NAT_*: what is masqueraded, 0: nothing */
	__u32 nat_seed; /* of the choice of ports; the same as long as the map lives */
	__u32 nat_hold; /* ticks; TCP, closed: the server still remembers it */
	__u16 nat_min;	/* host order; ports that are given to masqueraded flows */
	__u16 nat_max;
};

/* IPv6 super-packets may be larger than 64 KiB: BIG TCP. */
#define CONFIG_BIG_TCP6 (1U << 0)

/* Pods of nodes that take part in the overlay are believed only if they come by it. */
#define TUNNEL_STRICT (1U << 0)

#define NAT_IPV4 (1U << 0)
#define NAT_IPV6 (1U << 1)
/* Services answer what comes from outside; what goes to backends elsewhere gets the node's address. */
#define NAT_SERVICES4 (1U << 2)
#define NAT_SERVICES6 (1U << 3)

enum weft_trace {
	TRACE_NONE = 0,
	TRACE_NEW = 1, /* the first packet of a flow at each hook */
	TRACE_ALL = 2,
};

/* weft_ep[id]: one local endpoint. generation 0: no such endpoint. */
struct weft_endpoint {
	__u32 ifindex; /* host's end */
	__u32 generation;
	__u32 revision; /* of its policy */
	__u32 identity;
	__u32 mtu; /* bytes from the network header on */
	__u32 flags;
	__u32 v4; /* network order; 0: none */
	__u8 mac[6];
	__u8 host_mac[6];
	struct v6addr v6; /* all zero: none */
	__u32 spare[2];
};

/* weft_dev: ifindex -> what the device is to us. */
struct weft_device {
	__u32 kind;	/* enum weft_device_kind */
	__u32 endpoint; /* of DEVICE_POD */
};

enum weft_device_kind {
	DEVICE_POD = 1, /* host's end of an endpoint */
	DEVICE_NET = 2, /* carries from_net and to_net */
};

/* weft_ipc*: exact address -> who; weft_net*: prefix -> who. */
struct weft_ipcache {
	__u32 identity;
	__u16 endpoint; /* of local pods */
	__u8 kind;	/* enum weft_kind */
	__u8 flags;	/* IPC_* */
	struct v6addr tunnel; /* of other nodes and their pods: the node in the overlay; all zero: none */
};

#define IPC_TUNNEL (1U << 0) /* reached by the overlay; else only believed when it comes by it */
#define IPC_NO_NODE_PORT (1U << 1) /* an address of a node at which NodePorts do not answer */

struct weft_net4_key {
	__u32 prefixlen;
	__u32 addr;
};

struct weft_net6_key {
	__u32 prefixlen;
	struct v6addr addr;
};

/*
 * Conntrack. One key a connection, whichever way a packet flies: the lower
 * (address, port) pair comes first, compared word by word as the host reads it.
 * An ICMP echo request has its id as source port and 0 as destination port, its
 * reply the other way round.
 */
struct weft_ct4_key {
	__u32 addr[2];
	__u16 port[2];
	__u8 proto;
	__u8 pad[3];
};

struct weft_ct6_key {
	struct v6addr addr[2];
	__u16 port[2];
	__u8 proto;
	__u8 pad[3];
};

#define CT_OPENER_HI (1U << 0)	/* the second pair of the key opened */
#define CT_STACK (1U << 1)	/* path: stack; else fast */
#define CT_ANSWERED (1U << 2)	/* the other side has sent something */
#define CT_GUESSED (1U << 3)	/* picked up in mid-stream: the opener is a guess */
#define CT_FIN_OPENER (1U << 4) /* TCP */
#define CT_FIN_ANSWER (1U << 5) /* TCP */
#define CT_RST (1U << 6)	/* TCP */
#define CT_SERVICE (1U << 7)	/* of a pod, past its socket: what answers gets a service's address */
#define CT_CLOSING(f) (((f) & CT_RST) || ((f) & (CT_FIN_OPENER | CT_FIN_ANSWER)) == (CT_FIN_OPENER | CT_FIN_ANSWER))

/* Where packets of a connection that go away from this node were last sent to. Empty: stamp 0. */
struct weft_hop {
	__u32 stamp; /* until when it holds: lib/hop.h */
	__u32 check; /* sum over all else and whose it is */
	__u32 flow;  /* the bits of the header that routing may look at */
	__u32 ifindex;
	__u16 mtu;
	__u8 family; /* of to; 0: another node by the overlay */
	__u8 pad;
	struct v6addr to; /* next hop, IPv4 in the first word; by the overlay the node, IPv4 mapped */
};

/* weft_ways[0]: changes whenever something about ways did: routes, devices, who is where. */
struct weft_ways {
	__u32 generation;
	__u32 spare;
};

/* src is the side that opened, dst the one that answers. */
struct weft_ct {
	__u32 expires; /* tick */
	__u32 flags;   /* CT_* */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 src_class; /* CIDR class, 0 for now */
	__u32 dst_class;
	__u32 src_generation; /* of src_endpoint */
	__u32 dst_generation;
	__u32 src_revision; /* policy revisions, 0 for now */
	__u32 dst_revision;
	__u16 src_endpoint; /* 0: not local */
	__u16 dst_endpoint;
	__u32 nat; /* what the opener is to the outside: slot << 16 | port, 0: itself */
	struct weft_hop hop;
};

/*
 * Masquerade. weft_ct*.nat says what a flow's opener looks like from outside;
 * weft_nat* leads back. weft_natn* holds the flows that did not go on after an
 * answer, as weft_ctn* does; weft_natc* those of services' clients outside.
 */
struct weft_nat4_key {
	__u32 peer;
	__u32 addr; /* the node's */
	__u16 peer_port;
	__u16 port; /* the node's; of ICMP echo the id */
	__u8 proto;
	__u8 pad[3];
};

struct weft_nat6_key {
	struct v6addr peer;
	struct v6addr addr;
	__u16 peer_port;
	__u16 port;
	__u8 proto;
	__u8 pad[3];
};

#define NATF_ANSWERED (1U << 0)
#define NATF_WENT_ON (1U << 1) /* the owner sent again after an answer */
#define NATF_FIN_OWNER (1U << 2)
#define NATF_FIN_PEER (1U << 3)
#define NATF_RST (1U << 4)
#define NATF_GUESSED (1U << 5) /* of the host, in mid-stream: never moves to weft_nat */
#define NATF_SLOT_SHIFT 16     /* slot of the node's address in weft_natip */

struct weft_nat {
	__u32 expires; /* tick */
	__u32 flags;   /* NATF_* */
	__u32 generation;
	__u16 endpoint;	    /* owner; 0: the host */
	__u16 port;	    /* of the owner */
	struct v6addr addr; /* of the owner; IPv4 in the first word */
};

/* weft_natip[slot]: an address of the node. 0 is no slot. */
#define NAT_SLOTS 256

struct weft_nat_address {
	struct v6addr v6;
	__u32 v4;
	__u32 pad;
};

/* weft_natdev: device with to_net -> slots of the addresses that flows leave it with. */
struct weft_nat_device {
	__u32 v4;
	__u32 v6;
};

/* weft_frag*: a datagram's fragments -> ports of the first one. */
struct weft_frag4_key {
	__u32 saddr;
	__u32 daddr;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

struct weft_frag6_key {
	struct v6addr saddr;
	struct v6addr daddr;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

struct weft_frag {
	__u32 expires; /* tick */
	__u16 sport;   /* as struct packet has them */
	__u16 dport;
	__u8 proto; /* behind extension headers */
	__u8 pad[3];
};

/* weft_metrics[hook * 256 + code] */
struct weft_metric {
	__u64 packets;
	__u64 bytes; /* from the network header on */
};

/* weft_rate[0], per CPU: what was spent in the current tick. */
struct weft_spent {
	__u32 tick;
	__u32 drops;
	__u32 traces;
	__u32 icmp;
};

/* weft_events: one record. Append only; a reader takes what it knows. */
#define EVENT_VERSION 1

enum weft_event_type {
	EVENT_DROP = 1,
	EVENT_TRACE = 2,
};

struct weft_event {
	__u8 version;
	__u8 type; /* enum weft_event_type */
	__u8 hook; /* enum weft_hook */
	__u8 code; /* enum weft_code */
	__u32 length;
	__u64 time; /* ns, CLOCK_MONOTONIC */
	__u32 ifindex;
	__u32 out_ifindex; /* 0: not redirected */
	__u32 src_identity;
	__u32 dst_identity;
	struct v6addr saddr; /* IPv4: mapped into ::ffff:0:0/96 */
	struct v6addr daddr;
	__u16 sport; /* host order; of ICMP: type << 8 | code */
	__u16 dport;
	__u16 endpoint;
	__u8 proto;
	__u8 tcp_flags;
	__u8 family; /* 4 or 6; 0: not IP */
	__u8 pad[7];
};

#endif
