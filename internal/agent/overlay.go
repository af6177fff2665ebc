// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// Times of the overlay.
const (
	overlayEvery = 30 * time.Second // a look at the device without cause
	overlaySoon  = time.Second      // another while something is under way
	overlayFirst = 50 * time.Millisecond
	// quietAfter is how long nobody has taken part before the device goes: the
	// others hear of the last one's change when they do.
	quietAfter = 10 * time.Second
	// readyAfter is how long the programs are given to learn of all other nodes:
	// one whose range nobody believes must not keep this one out.
	readyAfter = 5 * time.Second
	// strictAfter is how long the others have known that this node takes part,
	// before what they send past the overlay is taken for forged.
	strictAfter = 10 * time.Second
)

// tunnelLinks is what the overlay needs of link.Links.
type tunnelLinks interface {
	FindTunnel() (index, port int, err error)
	EnsureTunnel(link.Tunnel) (int, error)
	TunnelUp(int, link.Tunnel) error
	RemoveTunnel() (bool, error)
}

// overlayHooks puts the programs onto the device; *datapath.Datapath does.
type overlayHooks interface {
	SyncOverlay(*datapath.Device) error
}

// overlaySurroundings are what the overlay depends on.
type overlaySurroundings struct {
	nodes func() (rows []*table.Node, complete bool)
	addrs func() []netip.Addr        // of this node, as long as its row has not come
	local func() map[netip.Addr]bool // addresses that the node's other devices have
	mtu   func() int                 // of pods
	// known tells whether the programs believe what comes by the overlay from other
	// nodes and their pods, and know where to send what goes there. Before that,
	// what they are invited to send would be dropped.
	known func(nodes []*table.Node, v6 bool) bool
	// changed puts a new state into effect: programs' configuration, derivation.
	changed func() error
}

// overlay keeps this node's part in the overlay.
//
// In mode tunnel there is a device, and the node announces it: a node sends by
// the overlay to those alone that announce what it speaks itself. So nodes may
// change the mode one after another. After a change to native the device stays,
// unannounced, as long as some other node still takes part and may send to it.
type overlay struct {
	on       bool // mode tunnel
	settings config.Tunnel
	node     string
	least    int // MTU
	links    tunnelLinks
	hooks    overlayHooks
	around   overlaySurroundings
	log      *slog.Logger

	work sync.Mutex // one check at a time

	mu        sync.Mutex
	state     maps.Overlay // IfIndex 0: no part
	port      int
	joined    time.Time // zero: no part
	ready     bool      // the programs know the other nodes; or our word is out already
	announced time.Time // since when the API server has shown our word
	quiet     time.Time // since when, in mode native, no other node has taken part
	err       error
}

// announcement is how a node says that it takes part.
func announcement(port int, v6 bool) string {
	family := config.UnderlayIPv4
	if v6 {
		family = config.UnderlayIPv6
	}
	return fmt.Sprintf("vxlan:%d:%s", port, family)
}

// restore takes over what an earlier agent left, if the device is still that one.
func (o *overlay) restore(was maps.Overlay) error {
	index, port, err := o.links.FindTunnel()
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if index != 0 && index == was.IfIndex {
		// What the programs knew of the others is pinned with them.
		o.state, o.port, o.ready = was, port, true
		// The others take this node for one that does not take part, and send past
		// the overlay from now on.
		o.state.Strict = was.Strict && o.on
	}
	return nil
}

// config is what the programs are to know.
func (o *overlay) config() maps.Overlay {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state
}

// view is what the derivation is to know.
func (o *overlay) view() overlayView {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state.IfIndex == 0 {
		return overlayView{}
	}
	v6 := o.state.Local.Is6()
	return overlayView{on: true, announce: announcement(o.port, v6), v6: v6, send: o.ready}
}

// announce is what the other nodes are to know; empty: do not send here.
func (o *overlay) announce() string {
	v := o.view()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.on && v.on && o.ready {
		return v.announce
	}
	return ""
}

// next is how long the present state may last without another look.
func (o *overlay) next() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.on && o.state.IfIndex != 0 && !o.ready:
		return overlayFirst
	case o.on && !o.state.Strict, !o.quiet.IsZero():
		return overlaySoon
	}
	return overlayEvery
}

// failing returns what the last check found wrong.
func (o *overlay) failing() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// check brings device and programs into the state that they should have.
func (o *overlay) check() error {
	o.work.Lock()
	defer o.work.Unlock()
	err := o.apply()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil && (o.err == nil || o.err.Error() != err.Error()) {
		o.log.Warn("overlay is not as it should be", "error", err)
	}
	o.err = err
	return err
}

func (o *overlay) apply() error {
	rows, complete := o.around.nodes()
	if o.on {
		return o.join(rows, complete)
	}
	index, _, err := o.links.FindTunnel()
	if err != nil {
		return err
	}
	view := o.view()
	if index == 0 && !view.on {
		return nil
	}
	if view.on && index == o.config().IfIndex && !o.alone(!complete || anyAnnounces(rows, view.announce)) {
		return nil
	}
	return o.leave()
}

// alone tells whether nobody else has taken part for long enough.
func (o *overlay) alone(others bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case others:
		o.quiet = time.Time{}
	case o.quiet.IsZero():
		o.quiet = time.Now()
	}
	return !others && time.Since(o.quiet) >= quietAfter
}

func anyAnnounces(rows []*table.Node, what string) bool {
	for _, n := range rows {
		if !n.Local && n.Tunnel == what {
			return true
		}
	}
	return false
}

// join makes or mends the device.
func (o *overlay) join(rows []*table.Node, complete bool) error {
	addrs, told := o.around.addrs(), ""
	for _, n := range rows {
		if n.Local {
			addrs, told = n.Addrs, n.Tunnel
		}
	}
	v6 := o.settings.Underlay == config.UnderlayIPv6
	local := firstOf(addrs, v6)
	if !local.IsValid() {
		if len(addrs) == 0 {
			return errors.New("overlay: this node's addresses are not known yet")
		}
		return fmt.Errorf("overlay: this node has no InternalIP of the underlay's family (%s): start its kubelet with --node-ip for it, or set underlayProtocol", o.settings.Underlay)
	}
	t := link.Tunnel{Port: o.settings.Port, MTU: o.around.mtu(), MAC: tunnelMAC(o.node)}
	if t.MTU < o.least {
		return fmt.Errorf("overlay: the MTU of this node's devices leaves %d bytes for a pod's packet, and IPv6 needs %d (RFC 8200): raise the devices' MTU by %d, or set ipv6.enabled=false", t.MTU, o.least, o.least-t.MTU)
	}
	here := o.around.local()
	for _, six := range []bool{false, true} {
		if a := firstOf(addrs, six); here[a] {
			t.Addrs = append(t.Addrs, a)
		}
	}
	index, err := o.links.EnsureTunnel(t)
	if err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	if err := o.hooks.SyncOverlay(&datapath.Device{Name: link.TunnelDevice, Index: index}); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	if err := o.links.TunnelUp(index, t); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	shown := told == announcement(t.Port, v6)
	next := maps.Overlay{IfIndex: index, MTU: t.MTU, Local: local, Port: uint16(t.Port), Strict: o.heard(shown)}
	if err := o.set(next, t.Port); err != nil {
		return err
	}
	return o.settle(shown || (complete && o.around.known(rows, v6)))
}

// settle lets this node be announced, and routes lead by the overlay, once it is
// ready for both.
func (o *overlay) settle(ready bool) error {
	o.mu.Lock()
	was := o.ready
	o.ready = o.ready || ready || time.Since(o.joined) >= readyAfter
	changed := o.ready != was
	o.mu.Unlock()
	if !changed {
		return nil
	}
	return o.around.changed()
}

// heard tells whether the others have known our word for long enough.
func (o *overlay) heard(shown bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case !shown:
		o.announced = time.Time{}
	case o.announced.IsZero():
		o.announced = time.Now()
	}
	return shown && time.Since(o.announced) >= strictAfter
}

// leave takes the node out: first nothing is sent any more, then the device goes.
func (o *overlay) leave() error {
	if err := o.set(maps.Overlay{}, 0); err != nil {
		return err
	}
	if err := o.hooks.SyncOverlay(nil); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	removed, err := o.links.RemoveTunnel()
	if err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	if removed {
		o.log.Info("tunnel device is removed: no node takes part in the overlay any more", "device", link.TunnelDevice)
	}
	return nil
}

func (o *overlay) set(next maps.Overlay, port int) error {
	o.mu.Lock()
	was, wasPort := o.state, o.port
	o.state, o.port = next, port
	switch {
	case next.IfIndex == 0:
		o.joined, o.ready, o.quiet = time.Time{}, false, time.Time{}
	case o.joined.IsZero():
		o.joined = time.Now()
	}
	o.mu.Unlock()
	if was == next && wasPort == port {
		return nil
	}
	o.log.Info("part in the overlay changed", "device", next.IfIndex, "mtu", next.MTU, "address", next.Local, "port", port, "strict", next.Strict)
	return o.around.changed()
}

func firstOf(addrs []netip.Addr, v6 bool) netip.Addr {
	for _, a := range addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// tunnelMAC is that of a node's tunnel device: locally administered, and the same
// whenever it is made.
func tunnelMAC(node string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("weft-overlay/" + node))
	return net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// newOverlay makes the node's part in the overlay, on what the maps say of an
// earlier one.
func (a *Agent) newOverlay() error {
	a.overlay = &overlay{
		on: a.cfg.RoutingMode == config.RoutingTunnel, settings: a.cfg.Tunnel, node: a.opts.NodeName,
		links: a.links, hooks: a.dp, log: a.log,
		around: overlaySurroundings{
			nodes: func() (rows []*table.Node, complete bool) {
				txn := a.t.db.ReadTxn()
				for n := range a.t.nodes.All(txn) {
					rows = append(rows, n)
				}
				complete, _ = a.t.nodes.Initialized(txn)
				return rows, complete
			},
			addrs: func() []netip.Addr {
				a.mu.Lock()
				defer a.mu.Unlock()
				return a.mem.Addrs
			},
			local:   a.deviceAddrs,
			known:   a.knownByTunnel,
			mtu:     a.mtu,
			changed: a.overlayChanged,
		},
	}
	if a.fam.v6 {
		a.overlay.least = ipv6MinMTU
	}
	was, err := a.dp.Maps().Config.Get()
	if err != nil {
		return err
	}
	if err := a.overlay.restore(was.Overlay); err != nil {
		return err
	}
	a.masq.tunnel = func() int { return a.overlay.config().IfIndex }
	a.masq.Set(nil, nil)
	return nil
}

// ipv6MinMTU is the least MTU of a link that carries IPv6 (RFC 8200).
const ipv6MinMTU = 1280

// deviceAddrs are the addresses of the node's devices, but for the overlay's.
func (a *Agent) deviceAddrs() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for d := range a.t.devices.All(a.t.db.ReadTxn()) {
		if d.Name == link.TunnelDevice {
			continue
		}
		for _, p := range d.Addrs {
			out[p.Addr()] = true
		}
	}
	return out
}

// knownByTunnel looks into the maps, where a row arrives last: for all of a node's
// addresses and ranges, and for each pod of which there is a row of its own.
func (a *Agent) knownByTunnel(nodes []*table.Node, v6 bool) bool {
	outer := map[netip.Addr]netip.Addr{} // by address of a node
	for _, n := range nodes {
		to := n.Addr(v6)
		if n.Local || !to.IsValid() {
			continue
		}
		ranges := slices.Clone(n.PodCIDRs)
		for _, x := range n.Addrs {
			ranges = append(ranges, single(x))
			outer[x] = to
		}
		for _, p := range ranges {
			if a.fam.has(p.Addr()) && !a.leadsTo(p, to) {
				return false
			}
		}
	}
	for row := range a.t.ipcache.All(a.t.db.ReadTxn()) {
		if to, ok := outer[nodeOf(*row)]; ok && !a.leadsTo(row.Prefix, to) {
			return false
		}
	}
	return true
}

func (a *Agent) leadsTo(p netip.Prefix, outer netip.Addr) bool {
	row, ok, err := a.dp.Maps().IPCache.Lookup(p)
	return err == nil && ok && row.Tunnel == outer
}

func (a *Agent) overlayChanged() error {
	if a.derive == nil {
		return nil // the agent starts: it configures and derives when all is there
	}
	a.mu.Lock()
	addrs := a.mem.Addrs
	a.mu.Unlock()
	if err := a.configure(addrs); err != nil {
		return err
	}
	a.masq.Set(nil, nil) // its device may be another one
	a.derive.SetOverlay(a.overlay.view())
	return nil
}

// followOverlay keeps device and announcement as they should be, whenever nodes
// or devices change, and once in a while.
func (a *Agent) followOverlay(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.begin: // what is told the others is known from then on
	}
	said := a.overlay.announce()
	for {
		txn := a.t.db.ReadTxn()
		_, nodes := a.t.nodes.AllWatch(txn)
		_, devices := a.t.devices.AllWatch(txn)
		_ = a.overlay.check() // told and kept there
		if now := a.overlay.announce(); now != said {
			said = now
			select {
			case a.republish <- struct{}{}:
			default:
			}
		}
		next := a.overlay.next()
		// One look a second at most: another manager that changes the device in a
		// loop must not be answered in a loop.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(next, time.Second)):
		}
		if next <= overlaySoon {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-nodes:
		case <-devices:
		case <-time.After(next):
		}
	}
}
