// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/datapath/rtnl"
)

// Filters of clsact carry the programs of pods (decision 0006). Priority 1 runs
// first; the handle keeps clear of the small ones that people choose by hand.
const (
	filterPrefix   = "weft_"
	filterPriority = 1
	filterHandle   = 0x5ef7
)

func filterName(h reason.Hook) string { return filterPrefix + h.String() }

func filterParent(h reason.Hook) uint32 {
	if attachType(h) == ebpf.AttachTCXIngress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

func filterAttrs(ifindex int, h reason.Hook) netlink.FilterAttrs {
	return netlink.FilterAttrs{
		LinkIndex: ifindex, Parent: filterParent(h), Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
	}
}

// attachFilters makes hooks run their programs, in one request. A filter that is
// there is replaced in place: no packet misses it.
func attachFilters(ifindex int, hooks []reason.Hook, p programs) error {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	c.Begin("qdisc clsact", unix.RTM_NEWQDISC, rtnl.New, rtnl.TC(ifindex, netlink.MakeHandle(0xffff, 0), netlink.HANDLE_CLSACT, 0))
	c.String(nl.TCA_KIND, "clsact")
	c.Tolerate(unix.EEXIST)
	for _, h := range hooks {
		a := filterAttrs(ifindex, h)
		info := netlink.MakeHandle(a.Priority, nl.Swap16(a.Protocol))
		c.Begin("filter "+filterName(h), unix.RTM_NEWTFILTER, rtnl.Create, rtnl.TC(ifindex, a.Handle, a.Parent, info))
		c.String(nl.TCA_KIND, "bpf")
		options := c.Nest(nl.TCA_OPTIONS)
		c.Uint32(nl.TCA_BPF_FD, uint32(p.of(h).FD()))
		c.String(nl.TCA_BPF_NAME, filterName(h))
		c.Uint32(nl.TCA_BPF_FLAGS, nl.TCA_BPF_FLAG_ACT_DIRECT)
		c.End(options)
	}
	if err := c.Commit(); err != nil {
		return fmt.Errorf("%w; see `tc filter show` for a filter of another kind at priority %d", err, filterPriority)
	}
	return nil
}

// anyFilters returns all that a device has at a hook's parent, of any kind.
func anyFilters(ifindex int, h reason.Hook) ([]netlink.Filter, error) {
	l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	all, err := netlink.FilterList(l, filterParent(h))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // no clsact
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("filters: %w", err)
	}
	return all, nil
}

// filters returns the BPF filters of a hook in the order in which they run.
func filters(ifindex int, h reason.Hook) ([]*netlink.BpfFilter, error) {
	all, err := anyFilters(ifindex, h)
	var out []*netlink.BpfFilter
	for _, f := range all {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Handle != 0 {
			out = append(out, b)
		}
	}
	return out, err
}

// runningFilters returns what runs at a hook by clsact, in order.
func runningFilters(ifindex int, h reason.Hook) ([]ebpf.ProgramID, error) {
	fs, err := filters(ifindex, h)
	var out []ebpf.ProgramID
	for _, f := range fs {
		out = append(out, ebpf.ProgramID(f.Id))
	}
	return out, err
}

// ours tells whether a filter is one that Weft made at the hook.
func ours(f *netlink.BpfFilter, h reason.Hook) bool {
	return f.Handle == filterHandle && strings.HasPrefix(f.Name, filterName(h))
}

// removeFilters takes our filters off a device, and clsact with them where
// they were the last on it. A device without a filter of ours is left as it is:
// its clsact is somebody else's. A device that is gone is no error.
func removeFilters(ifindex int, hooks []reason.Hook) error {
	removed := false
	for _, h := range hooks {
		fs, err := filters(ifindex, h)
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, f := range fs {
			if !ours(f, h) {
				continue
			}
			removed = true
			del := &netlink.BpfFilter{FilterAttrs: filterAttrs(ifindex, h), Fd: -1}
			if err := netlink.FilterDel(del); err != nil && !gone(err) {
				return fmt.Errorf("filter %s: %w", f.Name, err)
			}
		}
	}
	if !removed {
		return nil
	}
	for _, h := range hooks {
		left, err := anyFilters(ifindex, h)
		if err != nil && !gone(err) {
			return err
		}
		if len(left) != 0 {
			return nil
		}
	}
	err := netlink.QdiscDel(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	})
	if err != nil && !gone(err) {
		return fmt.Errorf("qdisc clsact: %w", err)
	}
	return nil
}

func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}

// carrier is a device that has filters of ours.
type carrier struct {
	index   int
	running map[reason.Hook]ebpf.ProgramID
}

// carriers lists the devices that have filters of ours. One that goes meanwhile
// is none.
func carriers() ([]carrier, error) {
	qs, err := netlink.QdiscList(nil)
	if err != nil {
		return nil, fmt.Errorf("qdiscs: %w", err)
	}
	var out []carrier
	for _, q := range qs {
		if q.Type() != "clsact" {
			continue
		}
		c := carrier{q.Attrs().LinkIndex, map[reason.Hook]ebpf.ProgramID{}}
		for _, side := range []reason.Hook{reason.FromPod, reason.ToPod} { // an ingress and an egress
			fs, err := filters(c.index, side)
			if err != nil && !gone(err) {
				return nil, fmt.Errorf("interface %d: %w", c.index, err)
			}
			for _, f := range fs {
				if h, ok := hookOf(f); ok && attachType(h) == attachType(side) {
					c.running[h] = ebpf.ProgramID(f.Id)
				}
			}
		}
		if len(c.running) > 0 {
			out = append(out, c)
		}
	}
	return out, nil
}

// filteredDevices lists the devices that have a filter of ours at one of the hooks.
func filteredDevices(hooks []reason.Hook) ([]Device, error) {
	cs, err := carriers()
	var out []Device
	for _, c := range cs {
		if !slices.ContainsFunc(hooks, func(h reason.Hook) bool { _, runs := c.running[h]; return runs }) {
			continue
		}
		if l, err := netlink.LinkByIndex(c.index); err == nil { // else it went meanwhile
			out = append(out, Device{Name: l.Attrs().Name, Index: c.index})
		}
	}
	return out, err
}

// hookOf returns the hook that a filter of ours serves.
func hookOf(f *netlink.BpfFilter) (reason.Hook, bool) {
	for _, h := range reason.Hooks() {
		if ours(f, h) {
			return h, true
		}
	}
	return 0, false
}

// filterSites lists what an earlier agent attached as filters.
func filterSites() ([]site, error) {
	cs, err := carriers()
	if err != nil {
		return nil, err
	}
	var out []site
	for _, c := range cs {
		hooks := slices.Sorted(maps.Keys(c.running))
		running := map[string]ebpf.ProgramID{}
		for h, id := range c.running {
			running[h.String()] = id
		}
		out = append(out, site{
			name: fmt.Sprintf("filters of interface %d", c.index), running: running,
			set: func(p programs) error { return attachFilters(c.index, hooks, p) },
		})
	}
	return out, nil
}

// removeAllFilters takes our filters off every device.
func removeAllFilters() error {
	cs, err := carriers()
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range cs {
		if err := removeFilters(c.index, reason.Hooks()); err != nil {
			errs = append(errs, fmt.Errorf("interface %d: %w", c.index, err))
		}
	}
	return errors.Join(errs...)
}
