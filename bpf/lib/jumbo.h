/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * IPv6's super-packets of more than 64 KiB carry a jumbo header (RFC 2675) on
 * older kernels (6.18 is one), which no segment has. A kernel that forwards one counts it
 * nevertheless (ip6_forward: skb_gso_validate_network_len), finds full segments
 * 8 bytes too long and answers with the MTU that the sender knows already: the
 * connection hangs. Segments of pods leave these 8 bytes free. Included for IPv6 alone.
 */

#define JUMBO_LEN 8
#define MSS_OPTION 2
#define TCP_OPTIONS_MAX 10

/* Larger than the stack forwards, though each segment would fit. */
static __always_inline bool jumbo_too_big(struct __sk_buff *skb, const struct pkt6 *k, __u32 mtu)
{
	return k->p.saved && mtu >= 1280 + JUMBO_LEN && wire_len(skb, &k->p) + k->p.saved > mtu;
}

/* Lowers the segment size that a pod's SYN asks for (RFC 9293 3.7.1). */
static __noinline int clamp_mss(struct __sk_buff *skb, const struct pkt6 *k, __u32 mtu)
{
	__u32 off, end;

	if (!k || mtu < 1280 + JUMBO_LEN)
		return 0;
	off = k->p.l4 + 20;
	end = k->p.l4 + k->p.l4_len;
	for (int i = 0; i < TCP_OPTIONS_MAX; i++) {
		__u16 mss, most = bpf_htons(mtu - JUMBO_LEN - 40 - 20);
		__u8 o[4];

		if (off + sizeof(o) > end || bpf_skb_load_bytes(skb, off, o, sizeof(o)) || !o[0])
			return 0;
		if (o[0] == MSS_OPTION && o[1] == 4) {
			__builtin_memcpy(&mss, o + 2, 2);
			if (bpf_ntohs(mss) <= bpf_ntohs(most))
				return 0;
			if (bpf_skb_store_bytes(skb, off + 2, &most, 2, 0))
				return 0;
			if ((off - k->p.l4) & 1) { /* the sum has its bytes the other way round */
				mss = mss >> 8 | mss << 8;
				most = most >> 8 | most << 8;
			}
			return bpf_l4_csum_replace(skb, k->p.l4 + 16, mss, most, sizeof(mss));
		}
		if (o[0] != 1 && o[1] < 2)
			return 0;
		off += o[0] == 1 ? 1 : o[1];
	}
	return 0;
}
