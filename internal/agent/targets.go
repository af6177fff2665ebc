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
	return t.m.Upsert(maps.IPCacheRow{Prefix: row.Prefix, Identity: row.Identity, Kind: row.Kind, EndpointID: row.EndpointID})
}

func (t ipcacheTarget) Delete(_ context.Context, last *table.IPCache) error {
	if last.Kind != table.KindLocalPod && last.Prefix.IsSingleIP() && t.local(last.Prefix.Addr()) {
		return nil // a new endpoint's row by now
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

// routeTable is the node's main routing table, Weft's own part of it.
type routeTable interface {
	Upsert(table.Route) error
	Delete(table.Route) error
	List() ([]table.Route, error) // routes with Weft's protocol number
}

// routeTarget carries routes to other nodes into the kernel.
type routeTarget struct {
	rt routeTable
	// managed tells whether a route that is in the kernel is of this kind: the
	// routes to this node's own pods carry the same protocol number and belong
	// to internal/endpoint.
	managed func(table.Route) bool
}

func (t routeTarget) Update(_ context.Context, r, last *table.Route, had bool) error {
	if had && (last.Device != r.Device || last.Via != r.Via) {
		// A route of another device is another route to the kernel. The new one
		// comes first: between the two there is always one.
		if err := t.rt.Upsert(*r); err != nil {
			return err
		}
		if last.Device != r.Device {
			return t.rt.Delete(*last)
		}
		return nil
	}
	return t.rt.Upsert(*r)
}

func (t routeTarget) Delete(_ context.Context, last *table.Route) error { return t.rt.Delete(*last) }

func (t routeTarget) Prune(_ context.Context, desired []*table.Route) error {
	keep := make(map[table.Route]bool, len(desired))
	for _, d := range desired {
		keep[table.Route{Prefix: d.Prefix, Via: d.Via, Device: d.Device}] = true
	}
	have, err := t.rt.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range have {
		if t.managed(r) && !keep[table.Route{Prefix: r.Prefix, Via: r.Via, Device: r.Device}] {
			errs = append(errs, t.rt.Delete(r))
		}
	}
	return errors.Join(errs...)
}
