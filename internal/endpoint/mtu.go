// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"

	"github.com/weft-net/weft/internal/table"
)

// leastMTU is that of a link that carries the family: RFC 791, RFC 8200. With
// less, the kernel takes a device's IPv6 away.
const (
	leastMTU4 = 68
	leastMTU6 = 1280
)

// FollowMTU gives all endpoints the MTU that Settings.MTU tells now: both ends
// of their pairs and their rows. Endpoints that cannot follow stay as they are
// and are named by the error; repeating it tries them again.
func (m *Manager) FollowMTU(ctx context.Context) error {
	mtu := m.p.Settings.MTU()
	least := leastMTU4
	if m.p.Settings.Families.V6 {
		least = leastMTU6
	}
	if mtu < least {
		return fmt.Errorf("pods keep their MTU: this node's devices leave %d bytes for a pod's packet, and %d are needed: raise the devices' MTU", mtu, least)
	}
	var errs []error
	changed := 0
	for _, ep := range m.List() {
		if ep.MTU == mtu {
			continue
		}
		done, err := m.followMTU(ctx, ep.ContainerID, ep.IfName, mtu)
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoint %d (%s): MTU %d: %w", ep.ID, ep.Name(), mtu, err))
		}
		if done {
			changed++
		}
	}
	if changed > 0 {
		m.log.Info("pods follow the MTU of the node's devices", "mtu", mtu, "endpoints", changed)
		if err := m.save(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) followMTU(ctx context.Context, containerID, ifname string, mtu int) (bool, error) {
	unlock, err := m.locks.lock(ctx, key(containerID, ifname))
	if err != nil {
		return false, err
	}
	defer unlock()
	ep := m.find(containerID, ifname)
	if ep == nil || ep.State != table.EndpointReady || ep.MTU == mtu {
		return false, nil
	}
	return true, m.resize(ep, mtu)
}

// resize runs under the endpoint's lock. A packet that is too large for what
// follows must be answered and not be lost: the row, by which the programs
// answer, shrinks before the devices and grows after them.
func (m *Manager) resize(ep *table.Endpoint, mtu int) error {
	grows := mtu > ep.MTU
	next := *ep
	next.MTU = mtu
	v, err := vethOf(&next)
	if err != nil {
		return err
	}
	if !grows {
		if err := m.p.Rows.WriteEndpoint(&next); err != nil {
			return err
		}
	}
	if err := m.p.Links.Resize(v, ep.HostIfIndex, grows); err != nil {
		return err
	}
	if grows {
		if err := m.p.Rows.WriteEndpoint(&next); err != nil {
			return err
		}
	}
	m.remember(&next)
	m.publish(&next, false)
	return nil
}
