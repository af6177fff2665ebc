// SPDX-License-Identifier: Apache-2.0

// Package maglev makes the lookup tables of Maglev's consistent hashing (Eisenbud
// et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
// section 3.4). A table says for each of its slots which backend flows get whose hash
// leads to the slot. It follows from the set of backends, its own size and a seed, and
// from nothing else, so that nodes which agree about these choose alike: neither ids nor
// the order in which backends came have a part in it.
package maglev

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// DefaultSize is the number of slots where nobody chooses another one: a hundred each
// for 163 backends.
const DefaultSize = 16381

// DefaultSeed is what all nodes of a cluster use where nobody chooses another one.
const DefaultSeed = "V2VmdE1hZ2xldi4x"

// Sizes are the numbers of slots that a table may have: primes, because only then each
// way through a table visits all slots, and the same as Cilium's.
func Sizes() []int {
	return []int{251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071}
}

// Seed makes the tables of one cluster others than those of the next. It must be
// the same on all nodes.
type Seed [12]byte

// ParseSeed reads a seed as it is written in settings: 12 bytes in base64.
func ParseSeed(s string) (Seed, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != len(Seed{}) {
		return Seed{}, fmt.Errorf("%q is not %d bytes in base64", s, len(Seed{}))
	}
	return Seed(b), nil
}

// Flow is the seed of hashes of flows.
func (s Seed) Flow() uint32 {
	sum := sha256.Sum256(append([]byte("flow "), s[:]...))
	return binary.LittleEndian.Uint32(sum[:])
}

// Backend is what a table is made of.
type Backend struct {
	Addr  netip.AddrPort
	Proto uint8
}

func (b Backend) compare(o Backend) int {
	return cmp.Or(b.Addr.Compare(o.Addr), cmp.Compare(b.Proto, o.Proto))
}

// bytes appends what tells a backend from others.
func (b Backend) bytes(to []byte) []byte {
	a := b.Addr.Addr().As16()
	to = append(to, a[:]...)
	return append(binary.BigEndian.AppendUint16(to, b.Addr.Port()), b.Proto)
}

// Table are the tables of a cluster: their number of slots and seed.
type Table struct {
	Size int // one of Sizes; 0: there are none
	Seed Seed
}

// Build returns for each slot the index of its backend. Of more backends than slots, some
// have none. More than 65536 are no input.
func (t Table) Build(backends []Backend) []uint16 {
	if len(backends) == 0 {
		return nil
	}
	// They choose in turn, and whose turn comes first must be the same everywhere.
	turns := make([]uint16, len(backends))
	for i := range turns {
		turns[i] = uint16(i)
	}
	slices.SortStableFunc(turns, func(a, b uint16) int { return backends[a].compare(backends[b]) })
	ways := make([]way, len(turns))
	for i, at := range turns {
		ways[i] = t.way(backends[at])
	}
	size := uint32(t.Size)
	slots, taken := make([]uint16, size), make([]bool, size)
	for left := size; ; {
		for i := range ways {
			slots[ways[i].claim(taken, size)] = turns[i]
			if left--; left == 0 {
				return slots
			}
		}
	}
}

// way is the order in which a backend would like to have slots, from the next on.
type way struct{ next, step uint32 }

// way begins at a slot and goes on in steps, both by a hash of the backend. The number of
// slots is a prime, so that it comes by each of them.
func (t Table) way(b Backend) way {
	sum := sha256.Sum256(b.bytes(append(make([]byte, 0, 32), t.Seed[:]...)))
	size := uint64(t.Size)
	return way{
		next: uint32(binary.LittleEndian.Uint64(sum[:]) % size),
		step: uint32(binary.LittleEndian.Uint64(sum[8:])%(size-1)) + 1,
	}
}

// claim takes the first slot on the way that nobody has.
func (w *way) claim(taken []bool, size uint32) uint32 {
	for {
		at := w.next
		if w.next += w.step; w.next >= size {
			w.next -= size
		}
		if !taken[at] {
			taken[at] = true
			return at
		}
	}
}

// Digest is a number for the table that Build makes of these backends, in this order. It
// is never 0.
func (t Table) Digest(backends []Backend) uint64 {
	buf := make([]byte, 0, 16+19*len(backends))
	buf = binary.LittleEndian.AppendUint32(append(buf, t.Seed[:]...), uint32(t.Size))
	for _, b := range backends {
		buf = b.bytes(buf)
	}
	sum := sha256.Sum256(buf)
	return binary.LittleEndian.Uint64(sum[:]) | 1
}

// Slot returns where a flow looks in a table: by its client, the port of the service and
// the protocol. The service's address is left out, as a NodePort has one on each node.
func (t Table) Slot(client netip.AddrPort, port uint16, proto uint8) int {
	return int(hash(t.Seed.Flow(), client, port, proto) % uint32(t.Size))
}

// hash is that of svc_number in bpf/lib/svc_ip.h: MurmurHash3 over words as they lie in
// packets, with zeros in the place of the service's address.
func hash(seed uint32, client netip.AddrPort, port uint16, proto uint8) uint32 {
	word := func(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
	ports := func(p uint16) uint32 { return uint32(p>>8 | p<<8) }
	h := mix(seed, ports(client.Port())<<16|ports(port))
	for part := range slices.Chunk(client.Addr().AsSlice(), 4) {
		h = mix(mix(h, word(part)), 0)
	}
	h = mix(h, uint32(proto))
	h ^= h >> 16
	h *= 0x85ebca6b
	h ^= h >> 13
	h *= 0xc2b2ae35
	return h ^ h>>16
}

func mix(h, v uint32) uint32 {
	v *= 0xcc9e2d51
	v = v<<15 | v>>17
	h ^= v * 0x1b873593
	h = h<<13 | h>>19
	return h*5 + 0xe6546b64
}
