// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

const (
	// bigSize is how large super-packets get, in bytes, where all devices allow it:
	// what Cilium gives them too. Beyond that little is gained, and a lost one costs more.
	bigSize = 196608
	// bigTCPEvery is a look at the bounds without cause: the kernel notifies
	// nobody when another manager changes them.
	bigTCPEvery = 5 * time.Minute
	bigTCPRetry = 15 * time.Second
)

// bigTCP bounds the super-packets of the node's devices, and says how large those
// of pods may get: the least that the devices which carry them allow. A device
// that is given a larger one than it takes would have the kernel cut it up.
type bigTCP struct {
	want   families // by the settings
	tunnel bool     // the mode
	links  sizedLinks
	notes  boundNotes
	log    *slog.Logger

	mu    sync.Mutex
	known bool        // it was once decided
	pods  link.BigTCP // 0: off
	why   [2]string   // a family is off that is wanted: IPv4, IPv6
	err   error
}

// sizedLinks is what BIG TCP needs of link.Links.
type sizedLinks interface {
	SizedDevices() ([]link.SizedDevice, error)
	SetSizes(index int, s link.Sizes) error
}

func newBigTCP(cfg *config.Config, links sizedLinks, file string, log *slog.Logger) *bigTCP {
	return &bigTCP{
		want: families{cfg.BigTCP.IPv4, cfg.BigTCP.IPv6}, tunnel: cfg.RoutingMode == config.RoutingTunnel,
		links: links, notes: boundNotes{file}, log: log,
	}
}

func (b *bigTCP) wanted() bool { return b.want.v4 || b.want.v6 }

// Pods is how large pods' super-packets may get.
func (b *bigTCP) Pods() link.BigTCP {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pods
}

// settled tells whether Pods is a decision, and not only that none was taken yet.
func (b *bigTCP) settled() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.known
}

// apply gives the node's devices their bounds. While none is selected, nothing is
// known and nothing changes.
func (b *bigTCP) apply(selected []int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.decide(selected)
	if err != nil && (b.err == nil || b.err.Error() != err.Error()) {
		b.log.Warn("super-packets of the node's devices are not bounded as they should be", "error", err)
	}
	b.err = err
	return err
}

func (b *bigTCP) decide(selected []int) error {
	notes, err := b.notes.load()
	if err != nil {
		return err
	}
	if !b.wanted() && len(notes) == 0 {
		b.known = true
		return nil
	}
	all, err := b.links.SizedDevices()
	if err != nil {
		return err
	}
	var carry []link.SizedDevice
	if b.wanted() {
		if !slices.ContainsFunc(all, func(d link.SizedDevice) bool { return slices.Contains(selected, d.Index) }) {
			return nil
		}
		carry = slices.DeleteFunc(slices.Clone(all), func(d link.SizedDevice) bool {
			return !slices.Contains(selected, d.Index) && d.Name != link.TunnelDevice
		})
	}
	big, why := b.limit(carry)
	err = b.put(all, carry, big, notes)
	if err != nil && big != (link.BigTCP{}) {
		// One of them refuses: then the others' are of no use.
		for i, on := range []bool{big.IPv4 > 0, big.IPv6 > 0} {
			if on {
				why[i] = err.Error()
			}
		}
		big = link.BigTCP{}
		err = errors.Join(err, b.takeBack())
	}
	b.tell(big, why)
	b.known, b.pods, b.why = true, big, why
	return err
}

// takeBack gives all devices back what they had.
func (b *bigTCP) takeBack() error {
	notes, err := b.notes.load()
	if err != nil {
		return err
	}
	all, err := b.links.SizedDevices()
	if err != nil {
		return err
	}
	return b.put(all, nil, link.BigTCP{}, notes)
}

// limit returns how large super-packets may get on all of the devices, and why a
// family that is wanted is off.
func (b *bigTCP) limit(carry []link.SizedDevice) (big link.BigTCP, why [2]string) {
	for i, f := range []struct {
		on          bool
		name, since string
		helm        string
		has         func(link.SizedDevice) bool
		size        *int
	}{
		{b.want.v4, "IPv4", "6.3", "enableIPv4BIGTCP", func(d link.SizedDevice) bool { return d.GSO4 > 0 }, &big.IPv4},
		{b.want.v6, "IPv6", "5.19", "enableIPv6BIGTCP", func(d link.SizedDevice) bool { return d.GRO6 > 0 }, &big.IPv6},
	} {
		if !f.on {
			continue
		}
		*f.size = bigSize
		if b.tunnel && !slices.ContainsFunc(carry, func(d link.SizedDevice) bool { return d.Name == link.TunnelDevice }) {
			why[i] = "the tunnel device is not there yet"
		}
		for _, d := range carry {
			switch {
			case why[i] != "":
			case !f.has(d) || d.Most == 0:
				why[i] = fmt.Sprintf("this kernel has no BIG TCP of %s, which came with Linux %s: set %s=false", f.name, f.since, f.helm)
			case d.Most <= link.LegacySize:
				why[i] = fmt.Sprintf("device %s takes super-packets of %d bytes at most (tso_max_size in `ip -d link show %s`): %s", d.Name, d.Most, d.Name, b.remedy(d, f.helm))
			default:
				*f.size = min(*f.size, d.Most)
			}
		}
		if why[i] != "" {
			*f.size = 0
		}
	}
	return big, why
}

func (b *bigTCP) remedy(d link.SizedDevice, helm string) string {
	switch {
	case d.Name != link.TunnelDevice:
		return fmt.Sprintf("set %s=false, or devices to such as take more", helm)
	case b.tunnel:
		return fmt.Sprintf("this kernel's VXLAN carries no larger ones; set routingMode=native, or %s=false", helm)
	}
	return "it goes once no node takes part in the overlay any more"
}

// tell logs what changes.
func (b *bigTCP) tell(big link.BigTCP, why [2]string) {
	for i, f := range []struct {
		name     string
		was, now int
	}{{"IPv4", b.pods.IPv4, big.IPv4}, {"IPv6", b.pods.IPv6, big.IPv6}} {
		if why[i] != "" && why[i] != b.why[i] {
			b.log.Warn("BIG TCP is off, everything else works", "family", f.name, "why", why[i])
		}
		if f.was != f.now {
			b.log.Info("super-packets of TCP are bounded anew", "family", f.name, "bytes", max(f.now, link.LegacySize))
		}
	}
}

// Component is the part of the status.
func (b *bigTCP) Component() rpc.Component {
	c := rpc.Component{Name: "BIG TCP", State: rpc.StateDisabled}
	if !b.wanted() {
		return c
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c.State, c.Inline = rpc.StateOK, true
	var parts []string
	for i, f := range []struct {
		name string
		on   bool
		size int
	}{{"IPv4", b.want.v4, b.pods.IPv4}, {"IPv6", b.want.v6, b.pods.IPv6}} {
		switch {
		case !f.on:
			parts = append(parts, f.name+" off")
		case f.size > 0:
			parts = append(parts, fmt.Sprintf("%s up to %d bytes", f.name, f.size))
		case b.why[i] != "":
			c.State = rpc.StateWarning
			parts = append(parts, fmt.Sprintf("%s off, as %s", f.name, b.why[i]))
		default:
			c.State = rpc.StateWarning
			parts = append(parts, f.name+" off, as no device of the node is selected yet")
		}
	}
	c.Message = strings.Join(parts, "; ")
	if b.err != nil {
		c.State = rpc.StateWarning
		c.Details = append(c.Details, b.err.Error())
	}
	return c
}

// followBigTCP keeps the bounds of the node's devices and of running pods as they
// should be until ctx ends.
func (a *Agent) followBigTCP(ctx context.Context) error {
	for {
		all, changed := a.t.devices.AllWatch(a.t.db.ReadTxn())
		var devs []table.Device
		for d := range all {
			devs = append(devs, *d)
		}
		again := bigTCPEvery
		if err := a.boundPackets(ctx, devs); err != nil && ctx.Err() == nil {
			again = bigTCPRetry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(again):
		}
	}
}

// boundPackets bounds super-packets: of devices, then the programs are told, then
// of pods, whose connections need both.
func (a *Agent) boundPackets(ctx context.Context, devs []table.Device) error {
	was := a.bigTCP.Pods()
	err := a.bigTCP.apply(selectedIndexes(devs)) // told and kept there
	if !a.bigTCP.settled() {
		return err
	}
	if a.bigTCP.Pods() != was {
		a.mu.Lock()
		addrs := a.mem.Addrs
		a.mu.Unlock()
		if cerr := a.configure(addrs); cerr != nil {
			a.log.Error("programs cannot be told of BIG TCP", "error", cerr)
			err = errors.Join(err, cerr)
		}
	}
	if perr := a.endpoints.FollowBigTCP(ctx); perr != nil && ctx.Err() == nil {
		a.log.Error("super-packets of pods are not bounded as they should be", "error", perr, "again", bigTCPRetry)
		err = errors.Join(err, perr)
	}
	return err
}

func selectedIndexes(devs []table.Device) []int {
	var out []int
	for _, d := range devs {
		if d.Selected {
			out = append(out, d.Index)
		}
	}
	return out
}
