// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/table"
)

// FollowBigTCP gives both ends of all endpoints' pairs the bounds of
// super-packets that Settings.BigTCP tells now. What they have, the kernel is
// asked: it outlives the agent. Endpoints that cannot follow are named by the
// error; repeating it tries them again. Sockets that are connected keep what
// they began with.
func (m *Manager) FollowBigTCP(ctx context.Context) error {
	want := m.p.Settings.BigTCP()
	all, err := m.p.Links.SizedDevices()
	if err != nil {
		return fmt.Errorf("pods' BIG TCP: %w", err)
	}
	devs := make(map[int]link.SizedDevice, len(all))
	for _, d := range all {
		devs[d.Index] = d
	}
	var errs []error
	changed := 0
	for _, ep := range m.List() {
		d := devs[ep.HostIfIndex]
		if d.Name != ep.HostIfName || d.Sizes == d.Known(want.Sizes()) {
			continue
		}
		if err := m.followBigTCP(ctx, ep.ContainerID, ep.IfName, d.Known(want.Sizes())); err != nil {
			errs = append(errs, fmt.Errorf("endpoint %d (%s): %w", ep.ID, ep.Name(), err))
			continue
		}
		changed++
	}
	if changed > 0 {
		m.log.Info("pods follow BIG TCP", "ipv4", want.Sizes().GSO4, "ipv6", want.Sizes().GSO6, "endpoints", changed)
	}
	return errors.Join(errs...)
}

func (m *Manager) followBigTCP(ctx context.Context, containerID, ifname string, s link.Sizes) error {
	unlock, err := m.locks.lock(ctx, key(containerID, ifname))
	if err != nil {
		return err
	}
	defer unlock()
	ep := m.find(containerID, ifname)
	if ep == nil || ep.State != table.EndpointReady {
		return nil
	}
	v, err := vethOf(ep)
	if err != nil {
		return err
	}
	return m.p.Links.SetPodSizes(v, ep.HostIfIndex, s)
}

// catchUp gives a new endpoint what changed while it was made, when neither
// FollowMTU nor FollowBigTCP saw it. It returns the endpoint as it is now.
func (m *Manager) catchUp(ep *table.Endpoint, made link.Veth) *table.Endpoint {
	if mtu := m.p.Settings.MTU(); mtu != ep.MTU {
		if err := m.resize(ep, mtu); err != nil {
			m.log.Warn("endpoint has an MTU that is not the node's any more", "endpoint", ep.ID, "mtu", ep.MTU, "want", mtu, "error", err)
		} else if now := m.find(ep.ContainerID, ep.IfName); now != nil {
			ep = now
		}
	}
	if big := m.p.Settings.BigTCP(); big != made.BigTCP {
		if err := m.p.Links.SetPodSizes(made, ep.HostIfIndex, big.Sizes()); err != nil {
			m.log.Warn("endpoint's super-packets are bounded otherwise than the node's", "endpoint", ep.ID, "error", err)
		}
	}
	return ep
}
