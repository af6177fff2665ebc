// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/service/maglev"
	"github.com/weft-net/weft/internal/table"
)

// Maglev fills a table as the paper says it: each backend writes down all slots in the
// order in which it would like to have them, and then they take turns, each with the
// first of its list that nobody has. Backends are in order.
func Maglev(t maglev.Table, backends []netip.AddrPort, proto uint8) []netip.AddrPort {
	lists := make([][]int, len(backends))
	for i, b := range backends {
		offset, skip := likes(t, b, proto)
		for j := range t.Size {
			lists[i] = append(lists[i], (offset+j*skip)%t.Size)
		}
	}
	slots := make([]netip.AddrPort, t.Size)
	for filled := 0; filled < t.Size; {
		for i := range backends {
			free := slices.IndexFunc(lists[i], func(at int) bool { return !slots[at].IsValid() })
			if free < 0 {
				break // the table is full in the middle of a round
			}
			slots[lists[i][free]] = backends[i]
			lists[i] = lists[i][free+1:]
			filled++
		}
	}
	return slots
}

// likes returns where a backend begins, and in which steps it goes on.
func likes(t maglev.Table, b netip.AddrPort, proto uint8) (offset, skip int) {
	ip := b.Addr().As16()
	name := slices.Concat(t.Seed[:], ip[:], []byte{byte(b.Port() >> 8), byte(b.Port()), proto})
	sum := sha256.Sum256(name)
	h1, h2 := binary.LittleEndian.Uint64(sum[0:8]), binary.LittleEndian.Uint64(sum[8:16])
	return int(h1 % uint64(t.Size)), int(h2%uint64(t.Size-1)) + 1
}

// Spread says which backend a packet from outside gets; an invalid one: any of those
// that Ask names.
func (w World) Spread(from, dst netip.AddrPort, proto uint8) netip.AddrPort {
	v := w.Ask(Outside, dst, proto)
	at := slices.IndexFunc(w.Services, func(s *table.Service) bool { return s.FullName() == v.Service })
	if at < 0 || len(v.Backends) == 0 || byClusterIPs(w.Services[at], dst) {
		return netip.AddrPort{}
	}
	algorithm := w.Algorithm
	if named := w.Services[at].Algorithm; named != "" && w.Annotations {
		algorithm = named
	}
	if algorithm != table.AlgorithmMaglev || len(v.Backends) > w.Maglev.Size {
		return netip.AddrPort{}
	}
	return Maglev(w.Maglev, v.Backends, proto)[w.Maglev.Slot(from, dst.Port(), proto)]
}

func byClusterIPs(s *table.Service, dst netip.AddrPort) bool {
	return slices.Contains(s.ClusterIPs, dst.Addr())
}
