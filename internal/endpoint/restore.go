// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

// found is what a start finds of an earlier life.
type found struct {
	links map[string]link.Link       // Weft's, by name
	rows  map[uint16]*table.Endpoint // of the endpoint map
}

// Restore takes over the endpoints of an earlier life of the agent: it brings
// the kernel to what the state file says, and clears up what was left half-way.
// It must end before the first Add. An endpoint whose link is gone is deleted;
// one whose namespace path alone is gone stays, as something still holds the
// namespace, and the runtime's DEL or GC ends it.
//
// A state file that is corrupt is moved aside. Then, or if it is not there though
// the node has links or rows of Weft, the endpoints are rebuilt from the endpoint
// map and the links' aliases: whoever lost the file must not cost running pods
// their network. An error means that nothing was done.
func (m *Manager) Restore(ctx context.Context) error {
	f, err := m.look()
	if err != nil {
		return fmt.Errorf("restore endpoints: %w", err)
	}
	doc, err := m.load(f)
	if err != nil {
		return fmt.Errorf("restore endpoints: %w", err)
	}
	m.adopt(doc, f)
	m.clearRows(f)
	m.clearLinks(f)
	for _, ep := range m.List() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("restore endpoints: %w", err)
		}
		if err := m.mend(&ep); err != nil {
			m.log.Error("endpoint is not as it should be", "endpoint", ep.ID, "name", ep.Name(), "error", err)
		}
	}
	if err := m.save(); err != nil {
		m.log.Error("state file could not be written", "error", err)
	}
	m.wake()
	return nil
}

// mend is install for an endpoint of an earlier life. It leaves the pod's end
// alone, unless the ADD was killed before the pod could send: a pod that runs may
// have changed its routes.
func (m *Manager) mend(ep *table.Endpoint) error {
	v, err := vethOf(ep)
	if err != nil {
		return err
	}
	if err := m.p.Rows.WriteEndpoint(ep); err != nil {
		return err
	}
	if err := m.p.Datapath.AttachEndpoint(ep.HostIfName, ep.HostIfIndex); err != nil {
		return err
	}
	return m.p.Links.Mend(v, ep.HostIfIndex, m.addressing(ep))
}

// load returns the state of the earlier life, from the file or else from what
// the kernel has.
func (m *Manager) load(f *found) (*stateDoc, error) {
	now := m.p.Settings.Now()
	doc, err := m.state.load(now)
	var corrupt *corruptError
	switch {
	case errors.As(err, &corrupt):
		doc = m.rebuild(f)
		m.alloc.Hold(corrupt.written.Add(ipam.Rest))
		m.log.Error("state file is corrupt; endpoints were rebuilt from the endpoint map and the links' aliases",
			"file", m.p.State.Path, "error", corrupt.err, "movedTo", corrupt.movedTo, "endpoints", len(doc.Endpoints))
	case errors.Is(err, errNoState) && len(f.links)+len(f.rows) == 0: // a new node, or one that booted
		return &stateDoc{Version: stateVersion}, nil
	case errors.Is(err, errNoState):
		doc = m.rebuild(f)
		m.alloc.Hold(now.Add(ipam.Rest)) // nobody knows when an address was released last
		m.log.Error("state file is missing though the node has endpoints; they were rebuilt from the endpoint map and the links' aliases",
			"file", m.p.State.Path, "links", len(f.links), "rows", len(f.rows), "endpoints", len(doc.Endpoints))
	case err != nil:
		return nil, err
	}
	return doc, nil
}

func (m *Manager) look() (*found, error) {
	f := &found{links: map[string]link.Link{}, rows: map[uint16]*table.Endpoint{}}
	links, err := m.p.Links.List()
	if err != nil {
		return nil, err
	}
	for _, k := range links {
		f.links[k.Name] = k
	}
	rows, err := m.p.Rows.ListEndpoints()
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		f.rows[r.ID] = r
	}
	return f, nil
}

// rebuild makes a state from the kernel: who an endpoint is stands in the alias
// of its link, what it has in its row. Only where both agree it is one.
func (m *Manager) rebuild(f *found) *stateDoc {
	doc := &stateDoc{Version: stateVersion}
	for _, k := range f.links {
		ep, ok := parseAlias(k.Alias)
		row := f.rows[ep.ID]
		if !ok || k.Retired || row == nil || row.Generation != ep.Generation || row.HostIfIndex != k.Index {
			m.log.Warn("link tells of no endpoint that the map has", "link", k.Name, "alias", k.Alias)
			continue
		}
		ep.HostIfName, ep.HostIfIndex, ep.MAC, ep.HostMAC = k.Name, k.Index, row.MAC, row.HostMAC
		ep.IPv4, ep.IPv6, ep.MTU, ep.Identity = row.IPv4, row.IPv6, row.MTU, row.Identity
		ep.State, ep.CreatedAt = table.EndpointReady, m.p.Settings.Now().UTC()
		doc.Endpoints = append(doc.Endpoints, &ep)
	}
	return doc
}

// adopt fills the Manager from the state.
func (m *Manager) adopt(doc *stateDoc, f *found) {
	m.mu.Lock()
	m.ids.last = min(doc.LastID, maxID)
	m.ids.advance(doc.Generation, m.p.Settings.Now())
	for _, r := range f.rows {
		m.ids.advance(r.Generation, m.p.Settings.Now())
	}
	m.mu.Unlock()
	var gone []*table.Endpoint
	for _, ep := range doc.Endpoints {
		k, ok := f.links[ep.HostIfName]
		alive := ok && k.Index == ep.HostIfIndex && !k.Retired && ep.State == table.EndpointReady
		if !alive {
			m.log.Info("endpoint's link is gone, deleting the endpoint", "endpoint", ep.ID, "name", ep.Name(), "link", ep.HostIfName)
		}
		m.take(ep, alive)
		if !alive {
			gone = append(gone, ep)
		}
	}
	for _, ep := range doc.Retiring {
		m.take(ep, false)
	}
	for _, ep := range append(gone, doc.Retiring...) { // all that live are known by now
		m.clear(ep)
	}
	m.alloc.RestoreResting(doc.Resting)
	m.mu.Lock()
	m.resting = nil
	m.mu.Unlock()
}

// take puts an endpoint of the state to the living or to the retiring.
func (m *Manager) take(ep *table.Endpoint, alive bool) {
	m.mu.Lock()
	m.ids.take(ep.ID)
	if alive {
		m.eps[ep.ID] = ep
	} else {
		m.retiring[ep.ID] = ep
	}
	m.mu.Unlock()
	if ep.Kind == table.EndpointPod {
		if err := m.alloc.Restore(owner(ep), addrsOf(ep)...); err != nil {
			m.log.Error("two endpoints have one address: delete one of the pods", "endpoint", ep.ID, "name", ep.Name(), "error", err)
		}
	}
	if alive {
		m.publish(ep, false)
	}
}

// clear removes what a retiring endpoint may still have. Its link's name may
// belong to a living successor by now: the same attachment, made anew.
func (m *Manager) clear(ep *table.Endpoint) {
	errs := []error{m.p.Rows.RemoveEndpoint(ep)}
	if !m.hasLink(ep.HostIfName) {
		errs = append(errs, m.retire(ep.HostIfName, key(ep.ContainerID, ep.IfName)))
	}
	if err := errors.Join(errs...); err != nil {
		m.log.Error("endpoint that is no more left something behind", "endpoint", ep.ID, "name", ep.Name(), "error", err)
	}
}

// clearRows removes rows that no endpoint owns: their ADD or DEL was killed.
func (m *Manager) clearRows(f *found) {
	for id, row := range f.rows {
		m.mu.Lock()
		_, alive := m.eps[id]
		_, retiring := m.retiring[id]
		m.mu.Unlock()
		if alive || retiring {
			continue
		}
		m.log.Info("endpoint map has a row of no endpoint, removing it", "endpoint", id, "ipv4", row.IPv4, "ipv6", row.IPv6)
		row.Kind, row.ContainerID, row.IfName, row.HostIfName = table.EndpointPod, fmt.Sprintf("unknown-%d", id), "unknown", "unknown"
		m.take(row, false)
		m.clear(row)
	}
}

// clearLinks retires links that no endpoint owns.
func (m *Manager) clearLinks(f *found) {
	owned := map[string]bool{}
	for _, ep := range m.List() {
		owned[ep.HostIfName] = true
	}
	for name, k := range f.links {
		if owned[name] || k.Retired {
			continue
		}
		m.log.Info("link belongs to no endpoint, deleting it", "link", name, "alias", k.Alias)
		ep, _ := parseAlias(k.Alias)
		if err := m.retire(name, key(ep.ContainerID, ep.IfName)); err != nil {
			m.log.Error("link that belongs to no endpoint cannot be deleted", "link", name, "error", err)
		}
	}
}
