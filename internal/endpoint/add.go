// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

// HealthIfName is the host's end of the health endpoint's pair.
const HealthIfName = "lxc_health"

// ErrNoPodCIDR is wrapped by Add before the node's ranges are known.
var ErrNoPodCIDR = errors.New("no podCIDR yet")

// HostIfName returns the name of the host's end of an attachment's pair.
func HostIfName(kind table.EndpointKind, containerID, ifname string) string {
	if kind == table.EndpointHealth {
		return HealthIfName
	}
	sum := sha256.Sum256([]byte(key(containerID, ifname)))
	return link.HostPrefix + hex.EncodeToString(sum[:])[:11]
}

// Add attaches a container to the network and returns once the kernel holds all
// that its packets need. For an attachment that exists it mends what is missing
// and returns it. If it fails, nothing stays behind.
//
// Errors: ErrNoPodCIDR, *ipam.ExhaustedError, *ipam.HoldError, *link.NetnsError,
// link.ErrIfNameTaken, *StateError; all others mean a fault of the node.
func (m *Manager) Add(ctx context.Context, req AddRequest) (ep table.Endpoint, err error) {
	if err := validate(req); err != nil {
		return ep, err
	}
	op, err := m.begin(ctx, "add", req.ContainerID, req.IfName)
	if err != nil {
		return ep, err
	}
	defer func() { op.end(err) }()

	if old := m.find(req.ContainerID, req.IfName); old != nil {
		again, err := m.again(req, old)
		if err != nil || again != nil {
			return deref(again), err
		}
	}
	made, err := m.make(ctx, op, req)
	return deref(made), err
}

func deref(ep *table.Endpoint) table.Endpoint {
	if ep == nil {
		return table.Endpoint{}
	}
	return *ep
}

// again serves an Add of an attachment that exists. It returns nil if there is
// nothing left of it and it must be made anew.
func (m *Manager) again(req AddRequest, old *table.Endpoint) (*table.Endpoint, error) {
	index, err := m.p.Links.ByName(old.HostIfName)
	if err != nil {
		return nil, err
	}
	if index == old.HostIfIndex && (old.Netns == "" || old.Netns == req.Netns) && old.State == table.EndpointReady && sameIPs(req, old) {
		mend := *old
		mend.Netns = req.Netns
		m.remember(&mend)
		return &mend, m.install(&mend, nil, nil)
	}
	m.log.Info("attachment is added again with another namespace or without its link, making it anew",
		"endpoint", old.ID, "container", old.ContainerID, "netns", req.Netns)
	return nil, m.remove(old)
}

func sameIPs(req AddRequest, old *table.Endpoint) bool {
	for _, ip := range req.IPs {
		if ip != old.IPv4 && ip != old.IPv6 {
			return false
		}
	}
	return true
}

// make builds a new endpoint; each step that is done has an undo, and those run
// in reverse if a later one fails.
func (m *Manager) make(ctx context.Context, op *operation, req AddRequest) (made *table.Endpoint, err error) {
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, u := range slices.Backward(undo) {
			if e := u(); e != nil {
				m.log.Error("undoing a failed ADD left something behind", "container", req.ContainerID, "error", e)
			}
		}
	}()

	ep, err := m.describe(req)
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() error { m.freeID(ep.ID); return nil })
	if err := m.address(ctx, ep, req); err != nil {
		return nil, err
	}
	undo = append(undo, func() error { m.alloc.Cancel(owner(ep)); return nil })
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("endpoint of container %s: %w", req.ContainerID, err)
	}
	v, err := vethOf(ep)
	if err != nil {
		return nil, err
	}
	v.BigTCP = m.p.Settings.BigTCP()
	if ep.HostIfIndex, err = m.p.Links.Create(v); err != nil {
		return nil, err
	}
	undo = append(undo, func() error { return m.retire(ep.HostIfName, key(ep.ContainerID, ep.IfName)) })
	if err := op.pass(ctx); err != nil {
		return nil, fmt.Errorf("endpoint of container %s: %w", req.ContainerID, err)
	}
	if err := m.install(ep, &undo, op.rest); err != nil {
		return nil, err
	}
	ep = m.catchUp(ep, v)
	m.publish(ep, false)
	m.log.Info("endpoint added", "endpoint", ep.ID, "name", ep.Name(), "ipv4", ep.IPv4, "ipv6", ep.IPv6, "link", ep.HostIfName)
	return ep, nil
}

// install brings an endpoint whose pair exists into service: map rows, then
// programs, then the state file, and only then traffic. undo collects how to
// take each back; it is nil when an endpoint in service is mended. configured is
// called when only waiting for the kernel is left; it may be nil.
func (m *Manager) install(ep *table.Endpoint, undo *[]func() error, configured func()) error {
	note := func(f func() error) {
		if undo != nil {
			*undo = append(*undo, f)
		}
	}
	v, err := vethOf(ep)
	if err != nil {
		return err
	}
	note(func() error { return m.p.Rows.RemoveEndpoint(ep) })
	if err := m.p.Rows.WriteEndpoint(ep); err != nil {
		return err
	}
	if err := m.p.Datapath.AttachEndpoint(ep.HostIfName, ep.HostIfIndex); err != nil {
		return err
	}
	if undo != nil {
		m.remember(ep)
		note(func() error { return m.forget(ep) })
		if err := m.save(); err != nil {
			return err
		}
	}
	return m.p.Links.Up(v, ep.HostIfIndex, m.addressing(ep), configured)
}

func (m *Manager) remember(ep *table.Endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.eps[ep.ID] = ep
}

// forget is the undo of remember and save. The file is written once more only
// to be true; if that fails, Restore will find that the link is gone.
func (m *Manager) forget(ep *table.Endpoint) error {
	m.mu.Lock()
	delete(m.eps, ep.ID)
	m.mu.Unlock()
	if err := m.save(); err != nil {
		m.log.Warn("state file is behind", "error", err)
	}
	return nil
}

func (m *Manager) freeID(id uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ids.free(id)
}

// describe makes the row of a new endpoint, without addresses and link.
func (m *Manager) describe(req AddRequest) (*table.Endpoint, error) {
	m.mu.Lock()
	id, generation, err := m.ids.next()
	m.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", m.p.Node, err)
	}
	ep := &table.Endpoint{
		ID: id, Generation: generation, Kind: req.Kind, ContainerID: req.ContainerID, IfName: req.IfName,
		Netns: req.Netns, Namespace: req.Namespace, Pod: req.Pod, PodUID: req.PodUID,
		HostIfName: HostIfName(req.Kind, req.ContainerID, req.IfName),
		MAC:        randomMAC().String(), HostMAC: randomMAC().String(), MTU: m.p.Settings.MTU(),
		Identity: table.IdentityInit, State: table.EndpointReady, CreatedAt: m.p.Settings.Now().UTC(),
	}
	if req.Kind == table.EndpointHealth {
		ep.Identity = table.IdentityHealth
	}
	return ep, nil
}

// address gives ep the addresses that req fixes, or allocates some.
func (m *Manager) address(ctx context.Context, ep *table.Endpoint, req AddRequest) error {
	ips := req.IPs
	if len(ips) == 0 {
		var err error
		ips, err = m.allocate(ctx, ep)
		if errors.Is(err, ipam.ErrNoRanges) {
			return fmt.Errorf("node %s has %w: %s", m.p.Node, ErrNoPodCIDR, m.noRange())
		}
		if err != nil {
			return fmt.Errorf("node %s: %w", m.p.Node, err)
		}
	} else if err := m.checkFixed(ips); err != nil {
		return fmt.Errorf("endpoint of container %s: %w", req.ContainerID, err)
	}
	for _, ip := range ips {
		if ip.Is4() {
			ep.IPv4 = ip
		} else {
			ep.IPv6 = ip
		}
	}
	return nil
}

// allocate gives ep addresses of the pools that its pod chooses.
func (m *Manager) allocate(ctx context.Context, ep *table.Endpoint) ([]netip.Addr, error) {
	if m.p.Settings.Pools == nil {
		return m.alloc.Allocate(owner(ep))
	}
	pools, err := m.p.Settings.Pools.Choose(ctx, ep.Namespace, ep.Pod)
	if err != nil {
		return nil, err
	}
	ips, err := m.alloc.AllocateFrom(owner(ep), pools)
	m.p.Settings.Pools.Outcome(ep.Namespace, ep.Pod, pools, err)
	return ips, err
}

// noRange says what is missing on a node without ranges.
func (m *Manager) noRange() string {
	if m.p.Settings.NoRange != nil {
		if why := m.p.Settings.NoRange(); why != "" {
			return why
		}
	}
	return fmt.Sprintf("the API server has not told this agent one: see kubectl get node %s -o jsonpath={.spec.podCIDRs}, "+
		"and run kube-controller-manager with --allocate-node-cidrs", m.p.Node)
}

// checkFixed makes sure that nobody has, or could be given, the addresses.
func (m *Manager) checkFixed(ips []netip.Addr) error {
	for _, ip := range ips {
		if m.alloc.Allocatable(ip) {
			return fmt.Errorf("address %s is one of the pods' pool and cannot be fixed", ip)
		}
		for _, ep := range m.List() {
			if ip == ep.IPv4 || ip == ep.IPv6 {
				return fmt.Errorf("address %s belongs to endpoint %d (%s)", ip, ep.ID, ep.Name())
			}
		}
	}
	return nil
}

// randomMAC returns a unicast, locally administered address (IEEE 802).
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails: crypto/rand
	mac[0] = mac[0]&^1 | 2
	return mac
}

// validate refuses a request that could not become an endpoint.
func validate(req AddRequest) error {
	switch {
	case req.Kind != table.EndpointPod && req.Kind != table.EndpointHealth && req.Kind != table.EndpointProof:
		return fmt.Errorf("endpoint of container %s: unknown kind %q", req.ContainerID, req.Kind)
	case req.ContainerID == "":
		return errors.New("endpoint: no container id")
	case req.IfName == "" || len(req.IfName) > 15:
		return fmt.Errorf("endpoint of container %s: interface name %q must be of 1 to 15 bytes", req.ContainerID, req.IfName)
	case req.Netns == "":
		return fmt.Errorf("endpoint of container %s: no network namespace", req.ContainerID)
	case req.Kind != table.EndpointPod && len(req.IPs) == 0:
		return fmt.Errorf("endpoint of container %s: a %s endpoint needs fixed addresses", req.ContainerID, req.Kind)
	}
	seen := map[bool]netip.Addr{}
	for _, ip := range req.IPs {
		if !ip.IsValid() || ip.Is4In6() || ip.Zone() != "" {
			return fmt.Errorf("endpoint of container %s: address %q is not one of a host", req.ContainerID, ip)
		}
		if other, ok := seen[ip.Is6()]; ok {
			return fmt.Errorf("endpoint of container %s: %s and %s are of one family", req.ContainerID, other, ip)
		}
		seen[ip.Is6()] = ip
	}
	return nil
}
