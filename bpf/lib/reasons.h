/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hooks, verdicts, notes and drop reasons. Each packet is counted once under
 * one verdict or one drop reason of the hook that decided; notes come on top.
 * internal/datapath/reasons.go holds names and explanations, a test keeps the
 * two equal. Numbers are an ABI: append, never renumber.
 */
#ifndef WEFT_REASONS_H
#define WEFT_REASONS_H

enum weft_hook {
	HOOK_FROM_POD = 0,
	HOOK_TO_POD = 1,
	HOOK_FROM_NET = 2,
	HOOK_TO_NET = 3,
	HOOK_FROM_OVERLAY = 4,
	HOOK_TO_OVERLAY = 5,
	HOOK_MAX = 6,
};

#define CODES_PER_HOOK 256

enum weft_code {
	CODE_NONE = 0,

	/* verdicts */
	VERDICT_STACK = 1,  /* left to the kernel's stack (or, at to_*, to the device) */
	VERDICT_PEER = 2,   /* put into a local pod */
	VERDICT_NEIGH = 3,  /* sent to the next hop */
	VERDICT_ANSWER = 4, /* answered in place: ARP, neighbour solicitation */
	VERDICT_MARKED = 5, /* carries the mark of the fast path */
	VERDICT_TUNNEL = 6, /* sent to another node by the overlay */
	VERDICT_IGNORED = 7, /* multicast of this node's own stack, which the overlay does not carry */

	/* notes */
	NOTE_EVENT_LOST = 64,	    /* no record: rate limit or full ring */
	NOTE_CT_FULL = 65,	    /* conntrack took no entry */
	NOTE_FRAG_FULL = 66,	    /* the fragment table took no entry */
	NOTE_ICMP_SENT = 67,	    /* a packet-too-big or fragmentation-needed was sent */
	NOTE_ICMP_SUPPRESSED = 68,  /* one was not: rate limit or the packet did not let us */
	NOTE_CT_NEW = 69,	    /* a conntrack entry was made */
	NOTE_CT_PICKED_UP = 70,	    /* ... for a TCP flow in mid-stream */
	NOTE_CT_TO_STACK = 71,	    /* a fast flow was seen coming out of the stack */
	NOTE_NAT_NEW = 72,	    /* a flow was given an address and port of the node */
	NOTE_SVC_NEW = 73,	    /* a connection from outside to a service was given a backend */
	NOTE_SVC_FULL = 74,	    /* the table of such connections took no entry */
	NOTE_SVC_REFUSED = 75,	    /* nobody answers: the stack is to say so */

	/* drops */
	DROP_MALFORMED = 128,	       /* lengths or versions contradict each other */
	DROP_TRUNCATED = 129,	       /* the packet ends within a header */
	DROP_EXT_HEADERS = 130,	       /* IPv6 extension headers: too many */
	DROP_ROUTING_HEADER = 131,     /* IPv6 routing header type 0 (RFC 5095) */
	DROP_FRAGMENT_UNKNOWN = 132,   /* later fragment without its first one */
	DROP_FRAGMENT_OVERLAP = 133,   /* fragment that would overwrite ports or TCP flags (RFC 1858, 5722) */
	DROP_SOURCE_SPOOFED = 134,     /* source address is not the sender's */
	DROP_ARP_SPOOFED = 135,	       /* ARP for somebody else's address */
	DROP_ND_SPOOFED = 136,	       /* neighbour advertisement for somebody else's address */
	DROP_ND_INVALID = 137,	       /* neighbour discovery that RFC 4861 tells to discard */
	DROP_ROUTER_ADVERTISEMENT = 138,
	DROP_ICMP_REDIRECT = 139,
	DROP_LINK_LOCAL_SOURCE = 140,  /* link-local source, neither ND nor MLD */
	DROP_MARTIAN_DESTINATION = 141,
	DROP_UNKNOWN_PROTOCOL = 142,   /* neither IP nor ARP from or to a pod */
	DROP_FAMILY_DISABLED = 143,    /* IPv4 or IPv6 is off on this node */
	DROP_NO_ENDPOINT = 144,	       /* device or address without an endpoint row */
	DROP_NOT_FOR_ENDPOINT = 145,   /* to_pod: destination is not the endpoint's */
	DROP_TOO_BIG = 146,	       /* larger than the next link; the sender was told */
	DROP_REDIRECT_FAILED = 147,    /* the kernel refused to change or redirect the packet */
	DROP_PORTS_IN_USE = 148,       /* opens, translated, what a fast connection has */
	DROP_TUNNEL_NODE = 149,	       /* from_overlay: the outer source is no node of the cluster */
	DROP_TUNNEL_SOURCE = 150,      /* from_overlay: the inner source is not of the node that sent it */
	DROP_TUNNEL_ENDPOINT = 151,    /* to_overlay: no node is known for the destination */
	DROP_TUNNEL_FOREIGN = 152,     /* to_overlay: the source is not of this node */
	DROP_TUNNEL_BYPASSED = 153,    /* from_net: a pod's address that ought to come by the overlay */
	DROP_NAT_EXHAUSTED = 154,      /* no port is free towards this destination */
	DROP_NAT_UNSUPPORTED = 155,    /* must be masqueraded, but has nothing to tell flows apart by */
	DROP_NAT_NO_ADDRESS = 156,     /* must be masqueraded, but the device has no address */
	DROP_NO_BACKEND = 157,	       /* for a service that nobody answers */
	DROP_SOURCE_RANGES = 158,      /* for a service that is not for this client */
};

#endif
