// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"errors"
	"net/netip"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// MapRows implements Rows on the pinned maps.
type MapRows struct {
	Endpoints *maps.EndpointMap
	IPCache   *maps.IPCacheMap
}

// WriteEndpoint writes the endpoint's row before the addresses that lead to it.
func (m MapRows) WriteEndpoint(ep *table.Endpoint) error {
	err := m.Endpoints.Upsert(maps.EndpointRow{
		ID: ep.ID, IfIndex: ep.HostIfIndex, IfName: ep.HostIfName, MAC: ep.MAC, HostMAC: ep.HostMAC,
		IPv4: ep.IPv4, IPv6: ep.IPv6, MTU: ep.MTU, Generation: ep.Generation, Identity: ep.Identity,
	})
	if err != nil {
		return err
	}
	for _, a := range addrsOf(ep) {
		row := maps.IPCacheRow{
			Prefix: netip.PrefixFrom(a, a.BitLen()), Identity: ep.Identity,
			Kind: table.KindLocalPod, EndpointID: ep.ID,
		}
		if err := m.IPCache.Upsert(row); err != nil {
			return err
		}
	}
	return nil
}

// RemoveEndpoint removes what WriteEndpoint wrote, in reverse.
func (m MapRows) RemoveEndpoint(ep *table.Endpoint) error {
	var errs []error
	for _, a := range addrsOf(ep) {
		errs = append(errs, m.IPCache.Delete(netip.PrefixFrom(a, a.BitLen())))
	}
	return errors.Join(append(errs, m.Endpoints.Delete(ep.ID))...)
}

// ListEndpoints reads the endpoint map.
func (m MapRows) ListEndpoints() ([]*table.Endpoint, error) {
	rows, err := m.Endpoints.List()
	if err != nil {
		return nil, err
	}
	eps := make([]*table.Endpoint, len(rows))
	for i, r := range rows {
		eps[i] = &table.Endpoint{
			ID: r.ID, Generation: r.Generation, HostIfIndex: r.IfIndex, MAC: r.MAC, HostMAC: r.HostMAC,
			IPv4: r.IPv4, IPv6: r.IPv6, MTU: r.MTU, Identity: r.Identity,
		}
	}
	return eps, nil
}

// addrsOf returns the addresses that an endpoint has, IPv4 first.
func addrsOf(ep *table.Endpoint) []netip.Addr {
	var as []netip.Addr
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if a.IsValid() {
			as = append(as, a)
		}
	}
	return as
}
