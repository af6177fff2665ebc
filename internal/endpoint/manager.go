// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

// defaultConcurrency bounds operations at one time. Most of each is spent under
// the kernel's RTNL: with more, those that wait for it hand it on one by one and
// each waits for a CPU, and 110 pods at once took twice as long on two CPUs.
const defaultConcurrency = 3

// Manager owns the endpoints of this node. It is safe for concurrent use.
type Manager struct {
	p     Params
	log   *slog.Logger
	alloc *ipam.Allocator
	state *stateFile
	turns *turns
	locks keyLocks
	reap  chan struct{} // tells Run that something was retired

	mu       sync.Mutex
	ids      ids
	eps      map[uint16]*table.Endpoint // made, and in the state file
	retiring map[uint16]*table.Endpoint // deleted, but addresses and ids not free yet
	encoded  map[*table.Endpoint][]byte // as the state file has them
	resting  []byte                     // the same of the addresses that rest; nil when more do
	pins     map[string]string          // link that was retired → its attachment's key
	nodeIPs  []netip.Addr
}

// New returns a Manager without endpoints. Call Restore before anything else,
// and Run for what is done in the background.
func New(p Params) (*Manager, error) {
	switch {
	case p.Links == nil, p.Datapath == nil, p.Rows == nil, p.State.DB == nil, p.State.Endpoints == nil, p.Settings.MTU == nil:
		return nil, errors.New("endpoint manager: Links, Datapath, Rows, State and Settings.MTU are required")
	case !p.Settings.Families.V4 && !p.Settings.Families.V6:
		return nil, errors.New("endpoint manager: both address families are off: set ipv4.enabled or ipv6.enabled")
	}
	if p.Log == nil {
		p.Log = slog.Default()
	}
	if p.State.Path == "" {
		p.State.Path = StatePath
	}
	if p.Settings.Now == nil {
		p.Settings.Now = time.Now
	}
	if p.Settings.BigTCP == nil {
		p.Settings.BigTCP = func() link.BigTCP { return link.BigTCP{} }
	}
	if p.Settings.Concurrency == 0 {
		p.Settings.Concurrency = defaultConcurrency
	}
	if p.Observe == nil {
		p.Observe = func(string, time.Duration, time.Duration, error) {}
	}
	m := &Manager{
		p: p, log: p.Log,
		alloc: ipam.New(ipam.Config{Families: p.Settings.Families, Claimed: p.Settings.Claimed, Now: p.Settings.Now, Remedy: p.Settings.Remedy}),
		state: &stateFile{path: p.State.Path},
		turns: &turns{free: p.Settings.Concurrency},
		reap:  make(chan struct{}, 1),
		eps:   map[uint16]*table.Endpoint{}, retiring: map[uint16]*table.Endpoint{}, pins: map[string]string{},
	}
	m.ids.advance(0, p.Settings.Now())
	return m, nil
}

// SetRanges sets the node's pod CIDRs, in order of preference. Pods outside of
// them keep their addresses. On an error the ranges stay as they were; it names
// the range and what is wrong with it.
func (m *Manager) SetRanges(ranges []netip.Prefix) error {
	if err := m.alloc.SetRanges(ranges); err != nil {
		return fmt.Errorf("node %s: %w", m.p.Node, err)
	}
	return nil
}

// SetPools is SetRanges for ranges of several pools.
func (m *Manager) SetPools(ranges []ipam.Range) error {
	if err := m.alloc.SetPools(ranges); err != nil {
		return fmt.Errorf("node %s: %w", m.p.Node, err)
	}
	return nil
}

// ClearRanges takes the node's pod CIDRs away: pods keep their addresses, and no
// Add finds one until SetRanges.
func (m *Manager) ClearRanges() { m.alloc.Clear() }

// SetNodeAddrs sets the node's addresses, of which the host's routes to pods
// prefer the first of each family as source. Routes that exist are changed.
func (m *Manager) SetNodeAddrs(addrs []netip.Addr) error {
	m.mu.Lock()
	same := slices.Equal(m.nodeIPs, addrs)
	m.nodeIPs = slices.Clone(addrs)
	m.mu.Unlock()
	if same {
		return nil
	}
	var errs []error
	for _, ep := range m.List() {
		v, err := vethOf(&ep)
		if err == nil {
			err = m.p.Links.UpHost(v, ep.HostIfIndex, m.addressing(&ep))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoint %d (%s): %w", ep.ID, ep.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// IPAM returns how full the node's ranges are.
func (m *Manager) IPAM() ipam.Status { return m.alloc.Status() }

// Ranges returns the ranges that pods get their addresses from.
func (m *Manager) Ranges() []netip.Prefix { return m.alloc.Ranges() }

// HealthAddrs returns the reserved health address of the first range of each
// family: the IPs of the health endpoint's AddRequest.
func (m *Manager) HealthAddrs() []netip.Addr {
	var out []netip.Addr
	seen := map[bool]bool{}
	for _, p := range m.alloc.Ranges() {
		if v6 := p.Addr().Is6(); !seen[v6] {
			seen[v6] = true
			out = append(out, ipam.HealthAddr(p))
		}
	}
	return out
}

// List returns the endpoints by ascending id.
func (m *Manager) List() []table.Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]table.Endpoint, 0, len(m.eps))
	for _, id := range slices.Sorted(maps.Keys(m.eps)) {
		out = append(out, *m.eps[id])
	}
	return out
}

// find returns the endpoint of an attachment, nil if there is none.
func (m *Manager) find(containerID, ifname string) *table.Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ep := range m.eps {
		if ep.ContainerID == containerID && ep.IfName == ifname {
			return ep
		}
	}
	return nil
}

// save writes the state file as things are now.
func (m *Manager) save() error { return m.state.save(m.snapshot) }

func (m *Manager) snapshot(buf []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.resting == nil {
		// Those that were allocated or rested long enough since then stay in the
		// file: Restore knows better.
		now := m.p.Settings.Now()
		m.resting = encodeResting(slices.DeleteFunc(m.alloc.Resting(), func(r ipam.Released) bool { return now.Sub(r.At) >= ipam.Rest }))
	}
	byID := func(x, y *table.Endpoint) int { return int(x.ID) - int(y.ID) }
	doc := &stateDoc{
		Version: stateVersion, Generation: m.ids.generation, LastID: m.ids.last,
		Endpoints: slices.SortedFunc(maps.Values(m.eps), byID),
		Retiring:  slices.SortedFunc(maps.Values(m.retiring), byID),
	}
	fresh := make(map[*table.Endpoint][]byte, len(doc.Endpoints)+len(doc.Retiring))
	b, err := doc.encode(buf, func(ep *table.Endpoint) ([]byte, error) {
		e, ok := m.encoded[ep] // rows are never changed, only replaced
		if !ok {
			var err error
			if e, err = json.Marshal(ep); err != nil {
				return nil, err
			}
		}
		fresh[ep] = e
		return e, nil
	}, m.resting)
	m.encoded = fresh
	return b, err
}

// publish makes the table show an endpoint, or with gone that it is no more.
func (m *Manager) publish(ep *table.Endpoint, gone bool) {
	txn := m.p.State.DB.WriteTxn(m.p.State.Endpoints)
	defer txn.Commit()
	var err error
	if gone {
		_, _, err = m.p.State.Endpoints.Delete(txn, ep)
	} else {
		_, _, err = m.p.State.Endpoints.Insert(txn, ep)
	}
	if err != nil { // only for a table of another database
		m.log.Error("endpoint table refuses a row", "endpoint", ep.ID, "error", err)
	}
}

func (m *Manager) addressing(ep *table.Endpoint) link.Addressing {
	m.mu.Lock()
	defer m.mu.Unlock()
	return link.Addressing{IPs: addrsOf(ep), Src: m.nodeIPs}
}

// vethOf describes an endpoint's pair to package link.
func vethOf(ep *table.Endpoint) (link.Veth, error) {
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return link.Veth{}, err
	}
	host, err := net.ParseMAC(ep.HostMAC)
	if err != nil {
		return link.Veth{}, err
	}
	return link.Veth{
		HostIfName: ep.HostIfName, Alias: aliasOf(ep), Netns: ep.Netns, IfName: ep.IfName,
		MTU: ep.MTU, HostMAC: host, MAC: mac,
	}, nil
}

func key(containerID, ifname string) string { return containerID + "/" + ifname }

// owner names an endpoint to the allocator. The generation keeps an attachment
// apart from its predecessor of the same name, whose addresses still rest.
func owner(ep *table.Endpoint) string {
	return fmt.Sprintf("%s (endpoint %d, generation %d)", key(ep.ContainerID, ep.IfName), ep.ID, ep.Generation)
}

// operation is one that has its attachment's lock and its turn.
type operation struct {
	m      *Manager
	name   string
	start  time.Time
	wait   time.Duration
	unlock func()
	idle   bool // gave its turn back
}

// begin waits for the attachment's lock and for a turn. end ends both.
func (m *Manager) begin(ctx context.Context, op, containerID, ifname string) (*operation, error) {
	o := &operation{m: m, name: op, start: time.Now()}
	var err error
	o.unlock, err = m.locks.lock(ctx, key(containerID, ifname))
	if err == nil {
		if err = m.turns.take(ctx, beginning); err != nil {
			o.unlock()
		}
	}
	o.wait = time.Since(o.start)
	if err != nil {
		err = fmt.Errorf("endpoint of container %s: %s: waited %s in line: %w", containerID, op, o.wait.Round(time.Millisecond), err)
		m.p.Observe(op, o.wait, o.wait, err)
		return nil, err
	}
	return o, nil
}

// pass lets those that are about to begin go first.
func (o *operation) pass(ctx context.Context) error {
	since := time.Now()
	o.rest()
	err := o.m.turns.take(ctx, goingOn)
	o.idle = err != nil
	o.wait += time.Since(since)
	return err
}

// rest gives the turn back while only waiting is left to do.
func (o *operation) rest() {
	if !o.idle {
		o.idle = true
		o.m.turns.give()
	}
}

// end reports to the observer.
func (o *operation) end(err error) {
	o.rest()
	o.unlock()
	o.m.p.Observe(o.name, time.Since(o.start), o.wait, err)
}
