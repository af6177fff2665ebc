// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Find returns what is left, in the order in which Remove takes it away. With an
// error, which names what could not be looked at, the rest is there.
func Find(ctx context.Context) ([]Object, error) {
	var out []Object
	var errs []error
	tables, err := iptables(ctx)
	errs = append(errs, err)
	for _, t := range tables {
		out = append(out, t.objects()...)
	}
	for _, f := range []func(context.Context) ([]Object, error){nftTables, virtualServices, devices, sets} {
		objs, err := f(ctx)
		out, errs = append(out, objs...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

// Remove removes what Find finds, and tells of each object that went. It goes on
// after an error; the error names every object that stays. It may be repeated.
// A kube-proxy that runs makes everything anew: ask Running first.
func Remove(ctx context.Context, told func(Object)) error {
	tables, err := iptables(ctx)
	errs := []error{err}
	for i := range tables {
		errs = append(errs, tables[i].remove(ctx, told))
	}
	for _, step := range []struct {
		find   func(context.Context) ([]Object, error)
		remove func(context.Context, Object) error
	}{
		{nftTables, removeNFTTable},
		// By the addresses of the device and the ports of the sets it is known
		// which services are kube-proxy's: these two go after them.
		{virtualServices, removeVirtualService},
		{devices, removeDevice},
		{sets, removeSet},
	} {
		objs, err := step.find(ctx)
		errs = append(errs, err)
		for _, o := range objs {
			if err := step.remove(ctx, o); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", o, err))
				continue
			}
			told(o)
		}
	}
	return errors.Join(errs...)
}

const inNFTables = "nftables"

// nftTables are the tables of the nftables mode, which it shares with nobody.
func nftTables(ctx context.Context) ([]Object, error) {
	out, err := run(ctx, "", "nft", "list", "tables")
	if err != nil {
		return nil, err
	}
	var objs []Object
	for line := range strings.Lines(out) {
		switch name := strings.TrimPrefix(strings.TrimSpace(line), "table "); name {
		case "ip kube-proxy", "ip6 kube-proxy":
			objs = append(objs, Object{KindTable, inNFTables, name})
		}
	}
	return objs, nil
}

func removeNFTTable(ctx context.Context, o Object) error {
	_, err := run(ctx, "delete table "+o.Name+"\n", "nft", "-f", "-")
	return err
}

func devices(context.Context) ([]Object, error) {
	l, err := netlink.LinkByName(device)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	if l.Type() != "dummy" {
		return nil, nil // somebody's who likes the name
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("device %s: addresses: %w", device, err)
	}
	return []Object{{KindDevice, fmt.Sprintf("dummy, %d addresses", len(addrs)), device}}, nil
}

func removeDevice(context.Context, Object) error {
	l, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// sets asks for each set by its name: a list of all would bring the entries of
// everybody's. Where the kernel has not loaded ipset there are none, and asking
// would load it.
func sets(context.Context) ([]Object, error) {
	if _, err := os.Stat("/sys/module/ip_set"); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var out []Object
	for _, name := range ownSets() {
		r, err := netlink.IpsetList(name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("set %s: %w", name, err)
		}
		out = append(out, Object{KindSet, fmt.Sprintf("ipset %s, %d entries", r.TypeName, len(r.Entries)), name})
	}
	return out, nil
}

func removeSet(_ context.Context, o Object) error {
	err := netlink.IpsetDestroy(o.Name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)):
		return fmt.Errorf("%w: a rule of somebody else matches it; remove that rule and repeat", err)
	}
	return err
}
