/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * SCTP's checksum (RFC 9260, appendix A) after a change of a few bytes. A CRC is
 * linear: what a change does to it depends on the change and on how many bytes
 * follow, not on the rest of the packet.
 */
#ifndef WEFT_CRC32C_H
#define WEFT_CRC32C_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define CRC32C_POLY 0x82f63b78 /* the highest power is the lowest bit, as in all of the following */

/*
 * word if the lowest bit of set is 1, else 0. By multiplication: for a branch, or the
 * shift that clang makes of a mask, the verifier would follow both ways, each time.
 */
static __always_inline __u32 crc_if(__u32 set, __u32 word)
{
	__u32 bit = set & 1;

	asm volatile("" : "+r"(bit));
	return word * bit;
}

/* The product of two polynomials, modulo CRC32C_POLY. */
static __always_inline __u32 crc_times(__u32 a, __u32 b)
{
	__u32 p = 0;

	for (int i = 0; i < 32; i++) {
		p ^= crc_if(a >> 31, b);
		a <<= 1;
		b = (b >> 1) ^ crc_if(b, CRC32C_POLY);
	}
	return p;
}

/* x^(8 * 2^i): appends 2^i bytes of zeros. Each is the square of the one before. */
static const __u32 crc_zeros[16] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c,
	0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7,
	0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a,
	0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

/*
 * What it does to the checksum that bits of a 16-bit word change, as it lies in memory,
 * which so many bytes follow. Not by a callback, as the stack has no room for one.
 */
static __always_inline __u32 crc_change(__u16 diff, __u32 follow)
{
	__u32 crc = diff;

	for (int i = 0; i < 16; i++)
		crc = (crc >> 1) ^ crc_if(crc, CRC32C_POLY);
	for (int i = 0; i < 16; i++)
		crc ^= crc_if(follow >> i, crc ^ crc_times(crc, crc_zeros[i]));
	return crc;
}

#endif
