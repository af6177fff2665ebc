// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/table"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sctpPacket is an SCTP packet (RFC 9260, section 3), its chunks any bytes.
func sctpPacket(src, dst uint16, chunks []byte) []byte {
	b := make([]byte, 12, 12+len(chunks))
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	b = append(b, chunks...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

// readSCTP returns the ports of the next packet for this port, with a checksum that is right.
func readSCTP(t *testing.T, c net.PacketConn, port uint16) (from netip.AddrPort, data []byte) {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 2000)
	for {
		n, addr, err := c.ReadFrom(buf)
		must(t, err)
		b := buf[:n]
		if n < 12 || binary.BigEndian.Uint16(b[2:]) != port {
			continue
		}
		sum := binary.LittleEndian.Uint32(b[8:])
		clear(b[8:12])
		if want := crc32.Checksum(b, castagnoli); sum != want {
			t.Fatalf("%d bytes from %s: checksum %08x, want %08x", n, addr, sum, want)
		}
		host, _ := netip.ParseAddr(addr.String())
		return ap(host.WithZone(""), binary.BigEndian.Uint16(b)), b[12:]
	}
}

// rawSCTP is a raw socket: kernels need not have SCTP for a network to carry it.
func rawSCTP(t *testing.T, s *space, at netip.Addr) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	s.in(t, func() {
		var err error
		network := map[bool]string{true: "ip4", false: "ip6"}[at.Is4()]
		c, err = net.ListenPacket(fmt.Sprintf("%s:%d", network, frame.SCTP), at.String())
		must(t, err)
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Guards against SCTP services that do not answer, and packets whose checksum the other
// ports of a backend spoil: it covers the ports, and no helper of the kernel mends it.
func TestServiceSCTP(t *testing.T) {
	e := newEdge(t)
	a, b := e.nodes[0], e.nodes[1]
	for _, m := range e.nodes { // netfilter would want to see real associations
		m.in(t, func() { nft(t, "delete table inet strict\n") })
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	port := uint16(edgePorts)
	for _, fam := range families {
		for _, who := range []struct {
			name string
			*space
			at netip.Addr
		}{{"a client outside", e.client, e.at.of(fam)}, {"a pod", a.pods[1].space, a.pods[1].addr.of(fam)}} {
			for _, back := range []*pod{a.pods[0], b.pods[0]} {
				port++
				t.Run(fmt.Sprintf("%s asks %s", who.name, back.addr.of(fam)), func(t *testing.T) {
					to := ap(back.addr.of(fam), 3868)
					e.frontend(ap(unspecified(fam), port), table.ProtoSCTP, to)
					service := ap(a.addr.of(fam), port)
					client, server := rawSCTP(t, who.space, who.at), rawSCTP(t, back.space, to.Addr())
					for i := range 60 {
						chunks := make([]byte, 4*rnd.IntN(330))
						for j := range chunks {
							chunks[j] = byte(rnd.Uint32())
						}
						sport := uint16(20000 + i%3)
						_, err := client.WriteTo(sctpPacket(sport, service.Port(), chunks), &net.IPAddr{IP: service.Addr().AsSlice()})
						must(t, err)
						from, got := readSCTP(t, server, to.Port())
						if string(got) != string(chunks) {
							t.Fatalf("%d bytes came, %d were sent", len(got), len(chunks))
						}
						_, err = server.WriteTo(sctpPacket(to.Port(), from.Port(), chunks), &net.IPAddr{IP: from.Addr().AsSlice()})
						must(t, err)
						if from, _ := readSCTP(t, client, sport); from != service {
							t.Fatalf("%s was asked, and %s answers", service, from)
						}
					}
				})
			}
		}
	}
}
