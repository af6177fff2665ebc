// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/table"
)

const (
	// reapDelay collects what is deleted at nearly one time: the kernel deletes
	// many links in one operation as fast as one, and one at a time each would
	// make the next ADD wait for 20 ms. Often the runtime removes the network
	// namespace meanwhile, and the links with it.
	reapDelay = 250 * time.Millisecond
	// reapRetry is how long after a failure the next attempt follows.
	reapRetry = 5 * time.Second
)

// Attachment names an attachment of a container to the network.
type Attachment struct{ ContainerID, IfName string }

// ErrUnknown is wrapped by Check for an attachment that does not exist.
var ErrUnknown = errors.New("no such endpoint")

// Delete takes an attachment out of service. It returns when no packet can
// reach it or come from it; Run deletes the link and frees the addresses after
// that. An unknown attachment is no error.
func (m *Manager) Delete(ctx context.Context, containerID, ifname string) (err error) {
	op, err := m.begin(ctx, "delete", containerID, ifname)
	if err != nil {
		return err
	}
	defer func() { op.end(err) }()
	ep := m.find(containerID, ifname)
	if ep == nil {
		// An ADD that was killed half-way may have left a link of this name.
		return m.retire(HostIfName(table.EndpointPod, containerID, ifname), key(containerID, ifname))
	}
	if err := m.remove(ep); err != nil {
		return err
	}
	m.log.Info("endpoint deleted", "endpoint", ep.ID, "name", ep.Name(), "ipv4", ep.IPv4, "ipv6", ep.IPv6)
	return nil
}

// retire takes a link out of service and leaves the rest to Run: the link's
// deletion, and then its programs, which cost two grace periods (20 ms) to take
// off a link that lives and nothing when it is gone.
func (m *Manager) retire(name, key string) error {
	if err := m.p.Links.Retire(name); err != nil {
		return err
	}
	m.mu.Lock()
	m.pins[name] = key
	m.mu.Unlock()
	m.wake()
	return nil
}

// remove is Delete for an endpoint that exists, under its lock. If a step fails,
// the others are done nevertheless and the endpoint stays for another attempt.
func (m *Manager) remove(ep *table.Endpoint) error {
	err := errors.Join(m.p.Rows.RemoveEndpoint(ep), m.retire(ep.HostIfName, key(ep.ContainerID, ep.IfName)))
	if err != nil {
		left := *ep
		left.State = table.EndpointDisconnecting
		m.remember(&left)
		m.publish(&left, false)
		return fmt.Errorf("endpoint %d (%s): delete: %w", ep.ID, ep.Name(), err)
	}
	m.mu.Lock()
	delete(m.eps, ep.ID)
	m.retiring[ep.ID] = ep
	m.mu.Unlock()
	m.publish(ep, true)
	if err := m.save(); err != nil {
		// Not the runtime's concern: Restore would find the link gone.
		m.log.Error("endpoint is deleted, but the state file still has it", "endpoint", ep.ID, "error", err)
	}
	return nil
}

// GC deletes the endpoints of pods that are not among valid. As CNI 1.1 demands
// of runtimes, no ADD and no DEL runs beside it.
func (m *Manager) GC(ctx context.Context, valid []Attachment) (err error) {
	start := time.Now()
	defer func() { m.p.Observe("gc", time.Since(start), 0, err) }()
	keep := map[Attachment]bool{}
	for _, a := range valid {
		keep[a] = true
	}
	var errs []error
	for _, ep := range m.List() {
		if ep.Kind != table.EndpointPod || keep[Attachment{ep.ContainerID, ep.IfName}] {
			continue
		}
		m.log.Info("endpoint belongs to no container that the runtime knows, deleting it", "endpoint", ep.ID, "name", ep.Name())
		errs = append(errs, m.Delete(ctx, ep.ContainerID, ep.IfName))
	}
	return errors.Join(errs...)
}

// Check compares an attachment with the kernel: its link, addresses, routes and
// neighbours, and with ips (those of the runtime's prevResult, if any). The
// error names the first object that is wrong.
func (m *Manager) Check(ctx context.Context, containerID, ifname string, ips []netip.Addr) (err error) {
	op, err := m.begin(ctx, "check", containerID, ifname)
	if err != nil {
		return err
	}
	defer func() { op.end(err) }()
	ep := m.find(containerID, ifname)
	if ep == nil {
		return fmt.Errorf("container %s, interface %s: %w: delete the pod, so that it is made anew", containerID, ifname, ErrUnknown)
	}
	for _, ip := range ips {
		if ip != ep.IPv4 && ip != ep.IPv6 {
			return fmt.Errorf("endpoint %d (%s): the runtime believes in address %s, it has %s: delete the pod, so that it is made anew",
				ep.ID, ep.Name(), ip, joinAddrs(addrsOf(ep)))
		}
	}
	v, err := vethOf(ep)
	if err != nil {
		return err
	}
	if err := m.p.Links.Check(v, ep.HostIfIndex, m.addressing(ep)); err != nil {
		return fmt.Errorf("endpoint %d (%s): %w", ep.ID, ep.Name(), err)
	}
	return nil
}

func joinAddrs(as []netip.Addr) string {
	s := make([]string, len(as))
	for i, a := range as {
		s[i] = a.String()
	}
	return strings.Join(s, " and ")
}

// wake tells Run that there is something to do.
func (m *Manager) wake() {
	select {
	case m.reap <- struct{}{}:
	default:
	}
}

// Run deletes retired links and frees addresses until ctx ends. Without it,
// DELs are answered all the same, but nothing becomes free.
func (m *Manager) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	armed := true // one round at start, for what Restore found
	for {
		select {
		case <-ctx.Done():
			return nil // what is left stands in the state file
		case <-m.reap:
			if !armed {
				timer.Reset(reapDelay)
				armed = true
			}
		case <-timer.C:
			armed = false
			if err := m.Reap(ctx); err != nil && ctx.Err() == nil {
				m.log.Error("clearing up after deleted endpoints failed, trying again", "error", err, "after", reapRetry)
				timer.Reset(reapRetry)
				armed = true
			}
		}
	}
}

// Reap does one round of what Run does: deletes the retired links, purges the
// conntrack entries of retired endpoints, and only then lets their addresses
// rest and their ids be used again.
func (m *Manager) Reap(ctx context.Context) error {
	m.mu.Lock()
	batch := slices.Collect(maps.Values(m.retiring))
	pins := maps.Clone(m.pins)
	m.mu.Unlock()
	if err := m.p.Links.DeleteRetired(); err != nil {
		return err
	}
	for name, key := range pins {
		if err := m.unpin(ctx, name, key); err != nil {
			return err
		}
	}
	if len(batch) == 0 {
		return nil
	}
	var addrs []netip.Addr
	for _, ep := range batch {
		addrs = append(addrs, addrsOf(ep)...)
	}
	if err := m.p.Datapath.PurgeAddrs(addrs...); err != nil {
		return fmt.Errorf("conntrack entries of %d deleted endpoints: %w", len(batch), err)
	}
	m.mu.Lock()
	for _, ep := range batch {
		m.alloc.Release(owner(ep))
		delete(m.retiring, ep.ID)
		m.ids.free(ep.ID)
	}
	m.resting = nil
	m.mu.Unlock()
	if err := m.save(); err != nil {
		m.log.Error("addresses are free, but the state file does not say so", "error", err)
	}
	return nil
}

// unpin takes the programs off a link that is gone, unless the attachment was
// made anew meanwhile: the new link has the same name.
func (m *Manager) unpin(ctx context.Context, name, key string) error {
	unlock, err := m.locks.lock(ctx, key)
	if err != nil {
		return fmt.Errorf("link %s: wait for its attachment: %w", name, err)
	}
	defer unlock()
	if !m.hasLink(name) {
		if err := m.p.Datapath.DetachEndpoint(name); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pins, name)
	return nil
}

// hasLink reports whether a living endpoint has the link.
func (m *Manager) hasLink(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ep := range m.eps {
		if ep.HostIfName == name {
			return true
		}
	}
	return false
}
