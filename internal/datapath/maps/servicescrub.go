// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

// Kinds of clients in weft_affinity, AFFINITY_* of bpf/lib/lb.h.
const (
	affinityFirst = 1
	affinityLast  = 3
)

// Clear empties all maps of services: where sockets are left alone, nobody asks
// for what is in them, and nobody else looks after it.
func (m *ServiceMap) Clear() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.memory = nil
	_, e1 := purge(m.svc4, func(object.DatapathWeftSvc4Key, object.DatapathWeftSvc) bool { return true }, 0, nil)
	_, e2 := purge(m.svc6, func(object.DatapathWeftSvc6Key, object.DatapathWeftSvc) bool { return true }, 0, nil)
	_, e3 := purge(m.sets, func(object.DatapathWeftSvcsetKey, object.DatapathWeftSvcChunk) bool { return true }, 0, nil)
	_, e4 := purge(m.sockets, func(object.DatapathWeftSkKey, object.DatapathWeftWanted) bool { return true }, 0, nil)
	_, e5 := purge(m.affinity, func(object.DatapathWeftAffinityKey, object.DatapathWeftChosen) bool { return true }, 0, nil)
	_, e6 := purge(m.sources4, func(object.DatapathWeftSrc4Key, uint32) bool { return true }, 0, nil)
	_, e7 := purge(m.sources6, func(object.DatapathWeftSrc6Key, uint32) bool { return true }, 0, nil)
	_, e8 := purge(m.tables, func(object.DatapathWeftMaglevKey, object.DatapathWeftMaglevChunk) bool { return true }, 0, nil)
	return errors.Join(e1, e2, e3, e4, e5, e6, e7, e8, m.clearBackends())
}

func (m *ServiceMap) clearBackends() error {
	ids, values, err := dump[uint32, object.DatapathWeftBackend](m.backends)
	if err != nil {
		return err
	}
	for i, id := range ids {
		if values[i] == (object.DatapathWeftBackend{}) {
			continue
		}
		if err := m.backends.Update(id, object.DatapathWeftBackend{}, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("map weft_be: %w", err)
		}
	}
	return nil
}

// clients removes what cannot be true from what programs alone write: which
// backend a client got, and what a socket was told to talk to. Frontends and
// backends are Prune's business.
func (m *ServiceMap) clients(now uint32) (int, error) {
	most := m.backends.MaxEntries()
	a, e1 := purge(m.affinity, func(k object.DatapathWeftAffinityKey, v object.DatapathWeftChosen) bool {
		return k.Kind < affinityFirst || k.Kind > affinityLast || k.Pad != [3]uint8{} || v.Backend == 0 || v.Backend >= most || v.Used > now+slack
	}, 0, nil)
	s, e2 := purge(m.sockets, func(k object.DatapathWeftSkKey, v object.DatapathWeftWanted) bool {
		known := v.Proto == table.ProtoTCP || v.Proto == table.ProtoUDP
		return !known || v.Spare != 0 || k.Pad != [6]uint8{} || v.Port == 0 || k.Port == 0 || addr6(k.Addr).Is4In6() != addr6(v.Addr).Is4In6()
	}, 0, nil)
	return a + s, errors.Join(e1, e2)
}
