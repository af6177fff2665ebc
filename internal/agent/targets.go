// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net/netip"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// ipcacheMap is what ipcacheTarget needs of maps.IPCacheMap.
type ipcacheMap interface {
	Upsert(maps.IPCacheRow) error
	Delete(netip.Prefix) error
	List() ([]maps.IPCacheRow, error)
}

// ipcacheTarget carries the ipcache table into the maps. Rows of this node's
// endpoints are written by their Manager too, before the table shows them, and
// with the same values; here they take part so that a claim that lost to them
// cannot stay in the map.
type ipcacheTarget struct {
	m ipcacheMap
	// local tells whether an endpoint holds the address right now.
	local func(netip.Addr) bool
}

func (t ipcacheTarget) Update(_ context.Context, row, _ *table.IPCache, _ bool) error {
	return t.m.Upsert(maps.IPCacheRow{
		Prefix: row.Prefix, Identity: row.Identity, Kind: row.Kind, EndpointID: row.EndpointID,
		Tunnel: row.Tunnel, ByTunnel: row.ByTunnel, NoNodePort: row.NoNodePort,
	})
}

func (t ipcacheTarget) Delete(_ context.Context, last *table.IPCache) error {
	if last.Prefix.IsSingleIP() && t.local(last.Prefix.Addr()) {
		return nil // an endpoint's row, which its Manager removes
	}
	return t.m.Delete(last.Prefix)
}

func (t ipcacheTarget) Prune(_ context.Context, desired []*table.IPCache) error {
	keep := make(map[netip.Prefix]bool, len(desired))
	for _, d := range desired {
		keep[d.Prefix] = true
	}
	rows, err := t.m.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range rows {
		if keep[r.Prefix] || (r.Prefix.IsSingleIP() && t.local(r.Prefix.Addr())) {
			continue
		}
		errs = append(errs, t.m.Delete(r.Prefix))
	}
	return errors.Join(errs...)
}

// routeTable is Weft's part of the node's main routing table: routes to other
// nodes. link.Links is one.
type routeTable interface {
	UpsertRoute(table.Route) error
	DeleteRoute(netip.Prefix) error
	ListRoutes() ([]table.Route, error)
}

// routeTarget carries routes to other nodes into the kernel. Upsert replaces:
// a route that moves to another device leaves nothing behind.
type routeTarget struct{ rt routeTable }

func (t routeTarget) Update(_ context.Context, r, _ *table.Route, _ bool) error {
	return t.rt.UpsertRoute(*r)
}

func (t routeTarget) Delete(_ context.Context, last *table.Route) error {
	return t.rt.DeleteRoute(last.Prefix)
}

func (t routeTarget) Prune(_ context.Context, desired []*table.Route) error {
	keep := make(map[netip.Prefix]bool, len(desired))
	for _, d := range desired {
		keep[d.Prefix] = true
	}
	have, err := t.rt.ListRoutes()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range have {
		if !keep[r.Prefix] {
			errs = append(errs, t.rt.DeleteRoute(r.Prefix))
		}
	}
	return errors.Join(errs...)
}

// drifted tells whether the kernel lacks a desired route or has it otherwise.
func (t routeTarget) drifted(desired []*table.Route) (bool, error) {
	have, err := t.rt.ListRoutes()
	if err != nil {
		return false, err
	}
	byPrefix := make(map[netip.Prefix]table.Route, len(have))
	for _, r := range have {
		byPrefix[r.Prefix] = r
	}
	for _, d := range desired {
		r, ok := byPrefix[d.Prefix]
		if !ok || r.Via != d.Via || r.Device != d.Device || r.Type != d.Type {
			return true, nil
		}
	}
	return false, nil
}
