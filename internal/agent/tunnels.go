// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/arrival"
	"github.com/weft-net/weft/internal/table"
)

// overlayView is what the derivation knows of this node's part in the overlay.
type overlayView struct {
	on       bool
	announce string // who announces the same is sent to by the overlay
	v6       bool   // the family of the outer packets
	send     bool   // the programs know how to reach the others: routes may lead there
}

// reaches tells whether the overlay leads to a node's pods.
func (o overlayView) reaches(n *table.Node) bool {
	return o.on && o.send && !n.Local && n.Tunnel == o.announce && n.Addr(o.v6).IsValid()
}

// nodeTunnel is how the overlay knows another node.
type nodeTunnel struct {
	addr netip.Addr // outer source and destination
	by   bool       // it is sent to by the overlay, too
}

// SetOverlay has everything derived anew if the view changed.
func (d *deriver) SetOverlay(o overlayView) {
	d.mu.Lock()
	changed := d.overlay != o
	d.overlay = o
	d.mu.Unlock()
	if changed {
		d.Refresh()
	}
}

func (d *deriver) overlaid() overlayView {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.overlay
}

// retunnel adds to the work the prefixes of nodes that the overlay knows otherwise
// than before.
func (d *deriver) retunnel(txn statedb.ReadTxn, w *work) {
	view := d.overlaid()
	next := map[netip.Addr]nodeTunnel{}
	if view.on {
		for n := range d.t.nodes.All(txn) {
			if addr := n.Addr(view.v6); !n.Local && addr.IsValid() {
				for _, a := range n.Addrs {
					next[a] = nodeTunnel{addr: addr, by: view.reaches(n)}
				}
			}
		}
	}
	moved := map[netip.Addr]bool{}
	for a, t := range next {
		if d.tunnels[a] != t {
			moved[a] = true
		}
	}
	for a := range d.tunnels {
		if _, ok := next[a]; !ok {
			moved[a] = true
		}
	}
	d.tunnels = next
	if len(moved) == 0 {
		return
	}
	for p, cs := range d.claims.prefixes {
		for _, c := range cs {
			if moved[nodeOf(c.row)] {
				w.touch(p, w.nodes)
			}
		}
	}
}

// hold takes from the work what depends on other nodes, and gives it back once all
// of them are known, and whether they take part in the overlay: an agent that
// starts knows pods before nodes, and nodes before their part. What the kernel has
// from the agent before is right until then.
func (d *deriver) hold(txn statedb.ReadTxn, w *work) {
	if complete, _ := d.t.nodes.Initialized(txn); complete || !d.overlaid().on {
		if d.held != nil {
			for p, arrived := range d.held.prefixes {
				w.touch(p, arrived)
			}
			w.routes = w.routes || d.held.routes
			w.nodes = arrival.Earlier(w.nodes, d.held.nodes)
			d.held = nil
		}
		return
	}
	if d.held == nil {
		d.held = &work{prefixes: map[netip.Prefix]time.Time{}}
	}
	for p, arrived := range w.prefixes {
		if row, ok := d.claims.winner(p); ok && nodeOf(row).IsValid() {
			d.held.touch(p, arrived)
			delete(w.prefixes, p)
		}
	}
	d.held.routes = d.held.routes || w.routes
	d.held.nodes = arrival.Earlier(d.held.nodes, w.nodes)
	w.routes = false
}

// nodeOf returns the address of the other node that stands behind a row, or an
// invalid one.
func nodeOf(row table.IPCache) netip.Addr {
	switch row.Kind {
	case table.KindNode:
		return row.Prefix.Addr()
	case table.KindRemotePod:
		return row.NodeAddr
	}
	return netip.Addr{}
}

// tunnelled adds to a row what the overlay knows of its node.
func (d *deriver) tunnelled(row table.IPCache) table.IPCache {
	if t, ok := d.tunnels[nodeOf(row)]; ok {
		row.Tunnel, row.ByTunnel = t.addr, t.by
	}
	return row
}
