// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
)

// WaysMap is weft_ways: what conntrack entries remember of how to reach the other
// side holds only until it changes.
type WaysMap struct {
	m *ebpf.Map

	mu sync.Mutex
}

// Changed makes programs ask the routing table and the ipcache anew, for every
// connection. It is to be called after whatever changed is in force.
func (w *WaysMap) Changed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var row object.DatapathWeftWays
	if err := w.m.Lookup(uint32(0), &row); err != nil {
		return fmt.Errorf("map weft_ways: %w", err)
	}
	row.Generation++ // of what is there: another agent may have written it before
	return put(w.m, uint32(0), row)
}
