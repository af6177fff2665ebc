// SPDX-License-Identifier: Apache-2.0

package reason

// Verdicts, notes and drop reasons, as in enum weft_code.
const (
	Stack   Code = 1
	Peer    Code = 2
	Neigh   Code = 3
	Answer  Code = 4
	Marked  Code = 5
	Tunnel  Code = 6
	Ignored Code = 7

	EventLost      Code = 64
	CTFull         Code = 65
	FragFull       Code = 66
	ICMPSent       Code = 67
	ICMPSuppressed Code = 68
	CTNew          Code = 69
	CTPickedUp     Code = 70
	CTToStack      Code = 71
	NATNew         Code = 72
	SvcNew         Code = 73
	SvcFull        Code = 74
	SvcRefused     Code = 75

	Malformed           Code = 128
	Truncated           Code = 129
	ExtHeaders          Code = 130
	RoutingHeader       Code = 131
	FragmentUnknown     Code = 132
	FragmentOverlap     Code = 133
	SourceSpoofed       Code = 134
	ARPSpoofed          Code = 135
	NDSpoofed           Code = 136
	NDInvalid           Code = 137
	RouterAdvertisement Code = 138
	ICMPRedirect        Code = 139
	LinkLocalSource     Code = 140
	MartianDestination  Code = 141
	UnknownProtocol     Code = 142
	FamilyDisabled      Code = 143
	NoEndpoint          Code = 144
	NotForEndpoint      Code = 145
	TooBig              Code = 146
	RedirectFailed      Code = 147
	PortsInUse          Code = 148
	TunnelNode          Code = 149
	TunnelSource        Code = 150
	TunnelEndpoint      Code = 151
	TunnelForeign       Code = 152
	TunnelBypassed      Code = 153
	NATExhausted        Code = 154
	NATUnsupported      Code = 155
	NATNoAddress        Code = 156
	NoBackend           Code = 157
	SourceRanges        Code = 158
)

// All returns every code that the programs of this version count.
func All() []Info {
	return append(verdicts(), drops()...)
}

func verdicts() []Info {
	return []Info{
		{Stack, "stack", "left to the kernel's network stack", ""},
		{Peer, "peer", "put straight into a local pod", ""},
		{Neigh, "neigh", "sent straight to the next hop", ""},
		{Answer, "answer", "answered by the program: ARP or neighbour solicitation", ""},
		{Marked, "marked", "sent by the fast path at an earlier hook", ""},
		{Tunnel, "tunnel", "sent to another node by the overlay", ""},
		{Ignored, "ignored", "multicast of the node's own stack, which the overlay does not carry", ""},
		{EventLost, "event-lost", "a trace or drop record was not written: rate limit or full ring buffer", "raise the event rate or reduce monitor-aggregation's detail"},
		{CTFull, "ct-full", "conntrack took no entry; the packet was forwarded all the same", "enlarge the conntrack maps"},
		{FragFull, "frag-full", "the fragment table took no entry; later fragments will be dropped", "enlarge the fragment maps"},
		{ICMPSent, "icmp-sent", "a packet-too-big or fragmentation-needed message was sent", ""},
		{ICMPSuppressed, "icmp-suppressed", "a packet-too-big or fragmentation-needed message was not sent: rate limit, or an ICMP error would have answered an ICMP error", ""},
		{CTNew, "ct-new", "a conntrack entry was made", ""},
		{CTPickedUp, "ct-picked-up", "a conntrack entry was made for a TCP connection in mid-stream", ""},
		{CTToStack, "ct-to-stack", "a connection of the fast path was seen coming out of the stack and stays there from now on", ""},
		{NATNew, "nat-new", "a masqueraded flow was given an address and port of the node", ""},
		{SvcNew, "svc-new", "a connection to a service, from outside or past a pod's socket, was given a backend", ""},
		{SvcFull, "svc-full", "the table of connections to services took no entry", "enlarge bpf.lbMapMax"},
		{SvcRefused, "svc-refused", "a packet for a service without backends: the stack was told to refuse it", ""},
	}
}

func drops() []Info {
	return []Info{
		{Malformed, "malformed", "lengths, versions or header fields contradict each other", "find the sender with `weft monitor --type drop`; capture there"},
		{Truncated, "truncated", "the packet ends within a header", "find the sender with `weft monitor --type drop`; capture there"},
		{ExtHeaders, "ext-headers", "more IPv6 extension headers than are walked (6)", "the sender must use fewer extension headers"},
		{RoutingHeader, "routing-header", "IPv6 routing header of type 0, which RFC 5095 forbids", "the sender must not use it"},
		{FragmentUnknown, "fragment-unknown", "a later fragment between pods arrived before its first fragment, or after that was forgotten", "avoid fragments: lower the sender's datagram size or align the MTUs"},
		{FragmentOverlap, "fragment-overlap", "a fragment would overwrite ports or TCP flags (RFC 1858), or a first fragment lacks its transport header", "treat as an attack unless the sender is known to be broken"},
		{SourceSpoofed, "source-spoofed", "the source address does not belong to the sender: not the pod's own, or a local address arriving from outside", "a pod must send from the addresses in its status; for routers or VPNs in pods use hostNetwork"},
		{ARPSpoofed, "arp-spoofed", "a pod sent ARP for an address or MAC that is not its own", "a pod must use the addresses in its status"},
		{NDSpoofed, "nd-spoofed", "a pod advertised a neighbour address that is not its own", "a pod must use the addresses in its status"},
		{NDInvalid, "nd-invalid", "a neighbour discovery message that RFC 4861 or RFC 6980 tells to discard", "find the sender with `weft monitor --type drop`; capture there"},
		{RouterAdvertisement, "router-advertisement", "a pod tried to act as an IPv6 router", "stop the router daemon in the pod, or use hostNetwork"},
		{ICMPRedirect, "icmp-redirect", "a pod sent an ICMP redirect, which could steer other traffic to it", "switch off net.ipv4.conf.*.send_redirects in the pod"},
		{LinkLocalSource, "link-local-source", "a pod used a link-local source for something other than neighbour or multicast listener discovery", "the application must bind to the pod's own address"},
		{MartianDestination, "martian-destination", "a destination that never leaves a host: loopback, unspecified, reserved, or the pod's own address", "check the address that the application was given"},
		{UnknownProtocol, "unknown-protocol", "neither IP nor ARP", "pods speak IPv4, IPv6 and ARP only"},
		{FamilyDisabled, "family-disabled", "IPv4 or IPv6, which is off on this node", "enable the family (ipv4.enabled, ipv6.enabled) or stop the sender"},
		{NoEndpoint, "no-endpoint", "a device or address without an endpoint: the pod is just being made or deleted", "if it lasts: `weft endpoint list` and `weft doctor`"},
		{NotForEndpoint, "not-for-endpoint", "the node sent a pod what is not addressed to it", "compare `ip route` with `weft endpoint list`"},
		{TooBig, "too-big", "larger than the MTU of the next link; the sender was told the right one", "if it goes on, ICMP is blocked on the way back, or the sender ignores it"},
		{RedirectFailed, "redirect-failed", "the kernel refused to change or redirect the packet", "`weft status`; look for memory pressure"},
		{PortsInUse, "ports-in-use", "a connection through a service would have got the addresses and ports of one that the pod has without it", "nothing: the client tries again, or from another port"},
		{TunnelNode, "tunnel-node", "the outer source address is not that of a node of the cluster", "compare the address with `weft node list`; a new node is known after some seconds; else somebody sends to the tunnel port who should not reach it"},
		{TunnelSource, "tunnel-source", "the inner source address does not belong to the node that sent it", "compare `weft ipcache list` with the sending node; outside clients must be masqueraded before a node forwards them to another's pod"},
		{TunnelEndpoint, "tunnel-endpoint", "a packet left by the tunnel device, but no node is known for its destination", "compare `ip route` with `weft ipcache list`; routes to the tunnel device are Weft's alone to make"},
		{TunnelForeign, "tunnel-foreign", "a packet left by the tunnel device whose source is neither a pod nor an address of this node", "masquerade what the node forwards to pods of other nodes, or let clients reach the pod's own node (externalTrafficPolicy: Local)"},
		{TunnelBypassed, "tunnel-bypassed", "a pod's address of a node that takes part in the overlay came by the network instead", "treat as spoofed, unless that node was just switched to another routing mode"},
		{NATExhausted, "nat-exhausted", "no port of the node is free towards this destination: every one that was tried is in use there", "widen bpf.masqueradePorts, or spread the connections over more nodes, destination addresses or ports"},
		{NATUnsupported, "nat-unsupported", "must be masqueraded, but its flow cannot be told from others: no TCP, UDP, SCTP or echo request, or an ICMP error about nothing known", "route the pod ranges there and name the destination in ipv4NativeRoutingCIDR or ipMasqAgent.config.nonMasqueradeCIDRs"},
		{NATNoAddress, "nat-no-address", "must be masqueraded, but neither the device nor the node has an address of the family", "give the device an address, or the node an InternalIP of the family"},
		{NoBackend, "no-backend", "a packet for a service that nobody answers here", "`weft service list` shows its backends: pods that are not ready, or on no node where externalTrafficPolicy is Local"},
		{SourceRanges, "source-ranges", "a packet from outside for a service whose loadBalancerSourceRanges leave this client out", "add the client's range to loadBalancerSourceRanges, if it is to be served"},
	}
}
