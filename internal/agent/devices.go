// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/table"
)

// defaultMTU is what pods get while no device is selected.
const defaultMTU = 1500

// podMTU is the MTU of pods' devices: the setting, or the least of the selected
// devices, so that no packet of a pod is too large for a way out.
func podMTU(setting int, devices []*table.Device) int {
	if setting != 0 {
		return setting
	}
	mtu := 0
	for _, d := range devices {
		if d.Selected && d.MTU > 0 && (mtu == 0 || d.MTU < mtu) {
			mtu = d.MTU
		}
	}
	if mtu == 0 {
		return defaultMTU
	}
	return mtu
}

func sameDevice(a, b *table.Device) bool {
	return a.Name == b.Name && a.Index == b.Index && a.MTU == b.MTU && a.Up == b.Up && a.MAC == b.MAC &&
		a.Selected == b.Selected && slices.Equal(a.Addrs, b.Addrs)
}

// hooks puts the programs onto devices of the node; *datapath.Datapath does.
type hooks interface {
	SyncDevices([]datapath.Device) error
}

// nodeDevices keeps the table of devices and has the programs on those that are
// selected. It is the table's only writer.
type nodeDevices struct {
	t     tables
	hooks hooks
	log   *slog.Logger
	done  func(statedb.WriteTxn) // initialiser; nil when done

	mu      sync.Mutex
	settled bool // it is known what devices are selected by: before that, nothing is attached or taken off
	seen    []table.Device
	synced  []datapath.Device
	err     error
}

func newNodeDevices(t tables, h hooks, settled bool, log *slog.Logger) *nodeDevices {
	txn := t.db.WriteTxn(t.devices)
	defer txn.Commit()
	return &nodeDevices{t: t, hooks: h, log: log, settled: settled, done: t.devices.RegisterInitializer(txn, "netlink")}
}

// Settle says that from now on devices come with the right selection.
func (n *nodeDevices) Settle() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.settled = true
}

// Set tells all devices as they are.
func (n *nodeDevices) Set(devs []table.Device) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = devs
	return n.apply()
}

// Retry tries again what failed.
func (n *nodeDevices) Retry() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		_ = n.apply() // told and kept there
	}
}

// apply brings table and hooks up to date. n.mu is held.
func (n *nodeDevices) apply() error {
	had := n.err
	n.err = errors.Join(n.write(), n.attach())
	if n.err != nil && (had == nil || had.Error() != n.err.Error()) {
		n.log.Warn("devices of the node are not as they should be", "error", n.err)
	}
	return n.err
}

func (n *nodeDevices) write() error {
	txn := n.t.db.WriteTxn(n.t.devices)
	defer txn.Abort()
	keep := map[string]bool{}
	for i := range n.seen {
		row := n.seen[i]
		keep[row.Name] = true
		if old, _, ok := n.t.devices.Get(txn, table.DeviceByName.Query(row.Name)); ok && sameDevice(old, &row) {
			continue
		}
		if _, _, err := n.t.devices.Insert(txn, &row); err != nil {
			return fmt.Errorf("device %s: %w", row.Name, err)
		}
	}
	for old := range n.t.devices.All(txn) {
		if keep[old.Name] {
			continue
		}
		if _, _, err := n.t.devices.Delete(txn, old); err != nil {
			return fmt.Errorf("device %s: %w", old.Name, err)
		}
	}
	if n.done != nil {
		n.done(txn)
		n.done = nil
	}
	txn.Commit()
	return nil
}

func (n *nodeDevices) attach() error {
	if !n.settled {
		return nil
	}
	want := []datapath.Device{}
	for _, d := range n.seen {
		if d.Selected {
			want = append(want, datapath.Device{Name: d.Name, Index: d.Index})
		}
	}
	slices.SortFunc(want, func(a, b datapath.Device) int { return cmp.Compare(a.Name, b.Name) })
	if n.synced != nil && slices.Equal(n.synced, want) {
		return nil
	}
	n.synced = nil
	if err := n.hooks.SyncDevices(want); err != nil {
		return err
	}
	n.synced = want
	n.log.Info("programs are on the node's devices", "devices", names(want))
	return nil
}

// Selected returns the devices that carry the programs, and what is wrong.
func (n *nodeDevices) Selected() ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return names(n.synced), n.err
}

func names(devs []datapath.Device) []string {
	out := make([]string, len(devs))
	for i, d := range devs {
		out[i] = d.Name
	}
	return out
}

// followDevices feeds the table until ctx ends.
func (a *Agent) followDevices(ctx context.Context) error {
	return a.watcher.Run(ctx, func(devs []table.Device) {
		_ = a.devices.Set(devs)
		a.masq.Set(nil, devs)
	})
}
