// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
)

// ErrFull is wrapped by errors of Upsert when a map has no room for the row.
// Nothing else is affected: rows that exist can still be changed and deleted.
var ErrFull = errors.New("map is full")

// Set is all maps of the datapath.
type Set struct {
	Config    *ConfigMap
	Endpoints *EndpointMap
	IPCache   *IPCacheMap
	CT        *CTMap
	NAT       *NATMap
	Services  *ServiceMap
	LBConns   *LBConnMap
	Metrics   *MetricsMap
	Ways      *WaysMap

	raw map[string]*ebpf.Map
}

// NewSet wraps the maps, given by name. It takes ownership: Close closes them.
func NewSet(raw map[string]*ebpf.Map) (*Set, error) {
	for _, n := range Names() {
		if raw[n] == nil {
			return nil, fmt.Errorf("map %s: missing", n)
		}
	}
	ways := &WaysMap{m: raw[object.DatapathMapWeftWays]}
	return &Set{
		Config:    &ConfigMap{m: raw[object.DatapathMapWeftCfg], ways: ways},
		Endpoints: &EndpointMap{rows: raw[object.DatapathMapWeftEp], devices: raw[object.DatapathMapWeftDev]},
		IPCache: &IPCacheMap{
			exact4: raw[object.DatapathMapWeftIpc4], exact6: raw[object.DatapathMapWeftIpc6],
			net4: raw[object.DatapathMapWeftNet4], net6: raw[object.DatapathMapWeftNet6],
			ways: ways,
		},
		CT: &CTMap{
			answered4: raw[object.DatapathMapWeftCt4], answered6: raw[object.DatapathMapWeftCt6],
			new4: raw[object.DatapathMapWeftCtn4], new6: raw[object.DatapathMapWeftCtn6],
		},
		NAT: &NATMap{
			main4: raw[object.DatapathMapWeftNat4], main6: raw[object.DatapathMapWeftNat6],
			new4: raw[object.DatapathMapWeftNatn4], new6: raw[object.DatapathMapWeftNatn6],
			client4: raw[object.DatapathMapWeftNatc4], client6: raw[object.DatapathMapWeftNatc6],
			addresses: raw[object.DatapathMapWeftNatip], devices: raw[object.DatapathMapWeftNatdev],
			exclude4: raw[object.DatapathMapWeftNomasq4], exclude6: raw[object.DatapathMapWeftNomasq6],
		},
		Services: &ServiceMap{
			svc4: raw[object.DatapathMapWeftSvc4], svc6: raw[object.DatapathMapWeftSvc6], sets: raw[object.DatapathMapWeftSvcset],
			backends: raw[object.DatapathMapWeftBe], sockets: raw[object.DatapathMapWeftSk], affinity: raw[object.DatapathMapWeftAffinity],
			sources4: raw[object.DatapathMapWeftSrc4], sources6: raw[object.DatapathMapWeftSrc6], tables: raw[object.DatapathMapWeftMaglev],
		},
		LBConns: &LBConnMap{
			main4: raw[object.DatapathMapWeftLbct4], main6: raw[object.DatapathMapWeftLbct6],
			new4: raw[object.DatapathMapWeftLbctn4], new6: raw[object.DatapathMapWeftLbctn6],
			pods4: raw[object.DatapathMapWeftLbctp4], pods6: raw[object.DatapathMapWeftLbctp6],
		},
		Metrics: &MetricsMap{m: raw[object.DatapathMapWeftMetrics]},
		Ways:    ways,
		raw:     raw,
	}, nil
}

// Names lists all maps in alphabetical order.
func Names() []string {
	return []string{
		object.DatapathMapWeftAffinity, object.DatapathMapWeftBe, object.DatapathMapWeftCfg, object.DatapathMapWeftCt4, object.DatapathMapWeftCt6,
		object.DatapathMapWeftCtn4, object.DatapathMapWeftCtn6, object.DatapathMapWeftDev,
		object.DatapathMapWeftEp, object.DatapathMapWeftEvents, object.DatapathMapWeftFrag4,
		object.DatapathMapWeftFrag6, object.DatapathMapWeftIpc4, object.DatapathMapWeftIpc6,
		object.DatapathMapWeftLbct4, object.DatapathMapWeftLbct6, object.DatapathMapWeftLbctn4, object.DatapathMapWeftLbctn6,
		object.DatapathMapWeftLbctp4, object.DatapathMapWeftLbctp6, object.DatapathMapWeftMaglev, object.DatapathMapWeftMetrics, object.DatapathMapWeftNat4, object.DatapathMapWeftNat6,
		object.DatapathMapWeftNatc4, object.DatapathMapWeftNatc6, object.DatapathMapWeftNatdev, object.DatapathMapWeftNatip, object.DatapathMapWeftNatn4,
		object.DatapathMapWeftNatn6, object.DatapathMapWeftNet4, object.DatapathMapWeftNet6,
		object.DatapathMapWeftNomasq4, object.DatapathMapWeftNomasq6,
		object.DatapathMapWeftRate, object.DatapathMapWeftSk, object.DatapathMapWeftSrc4, object.DatapathMapWeftSrc6, object.DatapathMapWeftSvc4, object.DatapathMapWeftSvc6,
		object.DatapathMapWeftSvcset, object.DatapathMapWeftWays,
	}
}

// IsYoung says whether flows begin in the map of a name: the small tables of those that did
// not go on after an answer (decision 0005).
func IsYoung(name string) bool {
	return slices.Contains([]string{"weft_ctn", "weft_natn", "weft_natc", "weft_lbctn", "weft_lbctp"}, strings.TrimRight(name, "46"))
}

// Raw returns a map by its name, nil if there is none.
func (s *Set) Raw(name string) *ebpf.Map { return s.raw[name] }

// Close closes the file descriptors; pins stay.
func (s *Set) Close() error {
	var errs []error
	for _, m := range s.raw {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// dump reads a whole map in batches. Entries that come or go meanwhile may or
// may not be in the result.
func dump[K, V any](m *ebpf.Map) ([]K, []V, error) {
	var keys []K
	var vals []V
	err := batches(m, func(k []K, v []V) bool {
		keys, vals = append(keys, k...), append(vals, v...)
		return true
	})
	return keys, vals, err
}

// batches calls f with consecutive parts of a map until f returns false. The
// slices are f's only until it returns.
func batches[K, V any](m *ebpf.Map, f func([]K, []V) bool) error {
	size := min(512, int(m.MaxEntries()))
	k, v := make([]K, size), make([]V, size)
	var cur ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cur, k, v, nil)
		if errors.Is(err, syscall.ENOSPC) {
			// One bucket holds more than fits: the kernel wants a larger buffer.
			k, v = make([]K, 2*len(k)), make([]V, 2*len(v))
			continue
		}
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !done {
			return fmt.Errorf("map %s: %w", mapName(m), err)
		}
		if (n > 0 && !f(slices.Clip(k[:n]), slices.Clip(v[:n]))) || done {
			return nil
		}
	}
}

func mapName(m *ebpf.Map) string {
	if info, err := m.Info(); err == nil {
		return info.Name
	}
	return m.String()
}

// put writes one row and says what to do when there is no room.
func put(m *ebpf.Map, k, v any) error {
	err := m.Update(k, v, ebpf.UpdateAny)
	if errors.Is(err, syscall.E2BIG) || errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("map %s: %w: it holds %d entries; enlarge it", mapName(m), ErrFull, m.MaxEntries())
	}
	if err != nil {
		return fmt.Errorf("map %s: %w", mapName(m), err)
	}
	return nil
}

// remove deletes one row; one that is not there is no error.
func remove(m *ebpf.Map, k any) error {
	if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("map %s: %w", mapName(m), err)
	}
	return nil
}
