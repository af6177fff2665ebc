// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/weft-net/weft/internal/datapath/reason"
)

var (
	podHooks = []reason.Hook{reason.FromPod, reason.ToPod}
	netHooks = []reason.Hook{reason.FromNet, reason.ToNet}

	overlayHooks = []reason.Hook{reason.FromOverlay, reason.ToOverlay}
)

// attachType is where the program of a hook sits: packets that come from a pod
// the net or the overlay enter the node through the device's ingress.
func attachType(h reason.Hook) ebpf.AttachType {
	switch h {
	case reason.FromPod, reason.FromNet, reason.FromOverlay:
		return ebpf.AttachTCXIngress
	}
	return ebpf.AttachTCXEgress
}

func linkName(device string, h reason.Hook) string { return device + "_" + h.String() }

// parseLinkName splits the name of a pin into device and hook.
func parseLinkName(name string) (device string, h reason.Hook, ok bool) {
	for _, h := range reason.Hooks() {
		if dev, found := strings.CutSuffix(name, "_"+h.String()); found && dev != "" {
			return dev, h, true
		}
	}
	return "", 0, false
}

// AttachEndpoint puts from_pod and to_pod onto the host's end of an endpoint, by
// clsact filters: attaching a tcx link waits 16 ms for an RCU grace period, with
// the lock held that every other pod's device needs (decision 0006). It may be
// called again, also after the device was replaced by another of the same name.
func (d *Datapath) AttachEndpoint(ifname string, ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := checkEthernet(ifindex); err != nil {
		return fmt.Errorf("attach %s: %w", ifname, err)
	}
	if err := attachFilters(ifindex, podHooks, d.programs); err != nil {
		return fmt.Errorf("attach %s: %w", ifname, err)
	}
	d.wanted[ifname] = wantedDevice{index: ifindex, hooks: podHooks}
	return nil
}

// DetachEndpoint takes the programs off. One that is not attached, or whose
// device is gone, is no error.
func (d *Datapath) DetachEndpoint(ifname string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.wanted, ifname)
	index, err := indexOf(ifname)
	if err != nil {
		return fmt.Errorf("detach %s: %w", ifname, err)
	}
	if index == 0 {
		return nil
	}
	if err := removeFilters(index, podHooks); err != nil {
		return fmt.Errorf("detach %s: %w", ifname, err)
	}
	return nil
}

// SyncDevices puts from_net and to_net onto exactly these devices of the node.
// It does what it can and returns all errors together.
func (d *Datapath) SyncDevices(devs []Device) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	unlock, err := lockRoot(d.root)
	if err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	defer unlock()
	keep := map[string]bool{}
	var indexes []int
	var errs []error
	for _, dev := range devs {
		keep[dev.Name] = true
		if err := d.attachDevice(dev, netHooks); err != nil {
			errs = append(errs, fmt.Errorf("device %s: %w", dev.Name, err))
			continue
		}
		indexes = append(indexes, dev.Index)
	}
	// After the hooks are there, and before others go.
	errs = append(errs, d.maps.Endpoints.SetNetDevices(indexes))
	names, err := d.devicesWith(netHooks)
	errs = append(errs, err)
	for _, name := range names {
		if !keep[name] {
			errs = append(errs, d.detachDevice(name, netHooks))
		}
	}
	return errors.Join(errs...)
}

// SyncOverlay puts from_overlay and to_overlay onto this device and no other, or
// with nil onto none. The device should come up only afterwards: what it takes in
// without them nobody judges.
func (d *Datapath) SyncOverlay(dev *Device) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	unlock, err := lockRoot(d.root)
	if err != nil {
		return fmt.Errorf("tunnel device: %w", err)
	}
	defer unlock()
	var errs []error
	if dev != nil {
		if err := d.attachDevice(*dev, overlayHooks); err != nil {
			errs = append(errs, fmt.Errorf("tunnel device %s: %w", dev.Name, err))
		}
	}
	names, err := d.devicesWith(overlayHooks)
	errs = append(errs, err)
	for _, name := range names {
		if dev == nil || name != dev.Name {
			errs = append(errs, d.detachDevice(name, overlayHooks))
		}
	}
	return errors.Join(errs...)
}

func (d *Datapath) attachDevice(dev Device, hooks []reason.Hook) error {
	if dev.Name == "" || strings.ContainsAny(dev.Name, "/.") {
		return fmt.Errorf("name %q cannot name a pin: rename the device without dots and slashes", dev.Name)
	}
	if err := checkEthernet(dev.Index); err != nil {
		return err
	}
	d.wanted[dev.Name] = wantedDevice{dev.Index, hooks, d.features.tcx}
	if !d.features.tcx {
		return attachFilters(dev.Index, hooks, d.programs)
	}
	for _, h := range hooks {
		if err := d.attach(dev.Name, dev.Index, h); err != nil {
			return fmt.Errorf("%s: %w", h, err)
		}
	}
	return removeFilters(dev.Index, hooks) // of a time when the kernel had no tcx
}

func (d *Datapath) detachDevice(name string, hooks []reason.Hook) error {
	delete(d.wanted, name)
	var errs []error
	for _, h := range hooks {
		errs = append(errs, removeLink(filepath.Join(d.root, linksDir, linkName(name, h))))
	}
	if !d.features.tcx {
		index, err := indexOf(name)
		errs = append(errs, err)
		if index != 0 {
			errs = append(errs, removeFilters(index, hooks))
		}
	}
	return errors.Join(errs...)
}

// attach makes one hook of a device run the current program, first in line. A
// pinned link of the same device is updated in place: no packet misses it.
func (d *Datapath) attach(ifname string, ifindex int, h reason.Hook) error {
	rel := filepath.Join(linksDir, linkName(ifname, h))
	path := filepath.Join(d.root, rel)
	l, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		defer l.Close()
		if at, err := linkTarget(l); err == nil && at == (target{ifindex, attachType(h)}) {
			return updateLink(l, d.programs.of(h))
		}
		d.log.Info("replacing a link that leads elsewhere", "link", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	fresh, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: d.programs.of(h), Attach: attachType(h), Anchor: link.Head(),
	})
	if err != nil {
		return err
	}
	defer fresh.Close()
	return pinAtomic(fresh, d.root, rel)
}

type target struct {
	ifindex int
	hook    ebpf.AttachType
}

// linkTarget tells where a link sits. A link whose device is gone sits on 0.
func linkTarget(l link.Link) (target, error) {
	info, err := l.Info()
	if err != nil {
		return target{}, err
	}
	tcx := info.TCX()
	if tcx == nil {
		return target{}, fmt.Errorf("a link of type %d, not tcx", info.Type)
	}
	return target{int(tcx.Ifindex), ebpf.AttachType(tcx.AttachType)}, nil
}

// updateLink makes a link run the program, unless it does so already.
func updateLink(l link.Link, p *ebpf.Program) error {
	want, err := p.Info()
	if err != nil {
		return err
	}
	info, err := l.Info()
	if err != nil {
		return err
	}
	if id, ok := want.ID(); ok && id == info.Program {
		return nil
	}
	return l.Update(p)
}

// removeLink detaches and unpins. Unpinning alone would leave the program
// attached for as long as anybody holds the link open.
func removeLink(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	defer l.Close()
	detach := detachLink(l)
	return errors.Join(detach, l.Unpin())
}

// devicesWith lists the devices that this agent, or one before it, gave the hooks to.
func (d *Datapath) devicesWith(hooks []reason.Hook) ([]string, error) {
	names, err := d.pinnedDevices(hooks)
	for name, w := range d.wanted {
		if w.hooks[0] == hooks[0] {
			names = append(names, name)
		}
	}
	if d.features.tcx {
		return names, err
	}
	devs, ferr := filteredDevices(hooks)
	for _, dev := range devs {
		names = append(names, dev.Name)
	}
	return names, errors.Join(err, ferr)
}

// pinnedDevices lists devices that have a pin for one of the hooks.
func (d *Datapath) pinnedDevices(hooks []reason.Hook) ([]string, error) {
	files, err := os.ReadDir(filepath.Join(d.root, linksDir))
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var names []string
	for _, f := range files {
		dev, h, ok := parseLinkName(f.Name())
		if ok && (h == hooks[0] || h == hooks[1]) && !seen[dev] {
			seen[dev] = true
			names = append(names, dev)
		}
	}
	return names, nil
}

// Unload takes the programs off every device and removes every pin under root. What is not
// there is no error; the bpffs itself stays mounted.
func Unload(root string) error {
	if root == "" {
		root = DefaultRoot
	}
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lockRoot(root)
	if err != nil {
		return fmt.Errorf("unload: %w", err)
	}
	defer unlock()
	errs := []error{removeAllFilters()}
	files, err := os.ReadDir(filepath.Join(root, linksDir))
	errs = append(errs, err)
	for _, f := range files {
		errs = append(errs, removeLink(filepath.Join(root, linksDir, f.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("unload: %w", err)
	}
	if err := os.RemoveAll(root); err != nil {
		return fmt.Errorf("unload: %w", err)
	}
	return nil
}
