// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/rpc"
)

// devices are those of a kernel, by index.
type devices struct {
	all    []link.SizedDevice
	refuse string
	sets   int
}

func (d *devices) SizedDevices() ([]link.SizedDevice, error) {
	return append([]link.SizedDevice{}, d.all...), nil
}

func (d *devices) SetSizes(index int, s link.Sizes) error {
	for i, dev := range d.all {
		if dev.Index != index {
			continue
		}
		d.sets++
		if dev.Name == d.refuse && s.GSO4+s.GSO6 > 2*link.LegacySize {
			return errors.New("invalid argument")
		}
		if dev.GSO4 == 0 && s.GSO4 != 0 || s.GSO4 > dev.Most || s.GSO6 > dev.Most {
			return errors.New("unknown attribute, or too large a bound")
		}
		d.all[i].Sizes = s
	}
	return nil
}

func sizes(v4, v6 int) link.Sizes { return link.Sizes{GSO4: v4, GRO4: v4, GSO6: v6, GRO6: v6} }

func device(index int, name string, most int) link.SizedDevice {
	return link.SizedDevice{Name: name, Index: index, Most: most, Sizes: sizes(link.LegacySize, link.LegacySize)}
}

func settings(v4, v6 bool, mode string) *config.Config {
	return &config.Config{BigTCP: config.BigTCP{IPv4: v4, IPv6: v6}, RoutingMode: mode}
}

// Guards against super-packets that some way out does not take, and against a
// kernel that is asked for what it does not have.
func TestBigTCPLimit(t *testing.T) {
	old := link.SizedDevice{Name: "eth0", Index: 2, Most: 524280, Sizes: link.Sizes{GSO6: link.LegacySize, GRO6: link.LegacySize}}
	older := link.SizedDevice{Name: "eth0", Index: 2, Sizes: link.Sizes{GSO6: link.LegacySize}}
	for name, tc := range map[string]struct {
		cfg      *config.Config
		devs     []link.SizedDevice
		want     link.BigTCP
		whyParts []string
	}{
		"both":             {settings(true, true, "native"), []link.SizedDevice{device(2, "eth0", 524280)}, link.BigTCP{IPv4: bigSize, IPv6: bigSize}, nil},
		"one family":       {settings(false, true, "native"), []link.SizedDevice{device(2, "eth0", 524280)}, link.BigTCP{IPv6: bigSize}, []string{"IPv4 off; IPv6 up to 196608 bytes"}},
		"least of all":     {settings(true, true, "native"), []link.SizedDevice{device(2, "eth0", 524280), device(3, "eth1", 131072)}, link.BigTCP{IPv4: 131072, IPv6: 131072}, nil},
		"one takes none":   {settings(true, true, "native"), []link.SizedDevice{device(2, "eth0", 524280), device(3, "eth1", 65536)}, link.BigTCP{}, []string{"eth1 takes super-packets of 65536", "enableIPv4BIGTCP=false", "enableIPv6BIGTCP=false"}},
		"Linux 6.2":        {settings(true, true, "native"), []link.SizedDevice{old}, link.BigTCP{IPv6: bigSize}, []string{"no BIG TCP of IPv4", "Linux 6.3", "IPv6 up to 196608"}},
		"Linux 5.18":       {settings(true, true, "native"), []link.SizedDevice{older}, link.BigTCP{}, []string{"no BIG TCP of IPv6", "Linux 5.19"}},
		"tunnel":           {settings(true, true, "tunnel"), []link.SizedDevice{device(2, "eth0", 524280), device(9, link.TunnelDevice, 524280)}, link.BigTCP{IPv4: bigSize, IPv6: bigSize}, nil},
		"tunnel, but not":  {settings(true, true, "tunnel"), []link.SizedDevice{device(2, "eth0", 524280), device(9, link.TunnelDevice, 65536)}, link.BigTCP{}, []string{"VXLAN carries no larger ones", "routingMode=native"}},
		"tunnel not there": {settings(true, true, "tunnel"), []link.SizedDevice{device(2, "eth0", 524280)}, link.BigTCP{}, []string{"not there yet"}},
		"tunnel that ends": {settings(true, true, "native"), []link.SizedDevice{device(2, "eth0", 524280), device(9, link.TunnelDevice, 65536)}, link.BigTCP{}, []string{"no node takes part"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := &devices{all: append(tc.devs, device(20, "docker0", 65536))}
			b := newBigTCP(tc.cfg, d, filepath.Join(t.TempDir(), "notes"), slog.New(slog.DiscardHandler))
			if err := b.apply([]int{2, 3}); err != nil {
				t.Fatal(err)
			}
			if got := b.Pods(); got != tc.want || !b.settled() {
				t.Errorf("got %+v, want %+v; %t", got, tc.want, b.settled())
			}
			c := b.Component()
			for _, p := range tc.whyParts {
				if !strings.Contains(c.Message, p) {
					t.Errorf("status %q does not say %q", c.Message, p)
				}
			}
			if off := tc.want.IPv4 == 0 && tc.cfg.BigTCP.IPv4 || tc.want.IPv6 == 0 && tc.cfg.BigTCP.IPv6; off != (c.State == rpc.StateWarning) {
				t.Errorf("status: %+v", c)
			}
			for i, dev := range d.all[:len(tc.devs)] {
				if got, want := dev.Sizes, raised(tc.devs[i].Sizes, tc.want); got != want {
					t.Errorf("%s: %+v, want %+v", dev.Name, got, want)
				}
			}
			if d.all[len(tc.devs)].Sizes != sizes(link.LegacySize, link.LegacySize) {
				t.Error("a device that carries nothing of pods was changed")
			}
		})
	}
}

// Guards against a node that does not get back what it had: after a restart, when
// another manager set something meanwhile, when a device came anew under the same
// name, or when the agent was killed at any point of it.
func TestBigTCPGivenBack(t *testing.T) {
	const l = link.LegacySize
	file := filepath.Join(t.TempDir(), "notes")
	d := &devices{all: []link.SizedDevice{device(2, "eth0", 524280), device(3, "eth1", 524280)}}
	d.all[0].GRO4, d.all[1].GSO6 = 40000, 400000 // an operator's
	was := append([]link.SizedDevice{}, d.all...)
	apply := func(v4, v6 bool, selected ...int) *bigTCP {
		t.Helper()
		b := newBigTCP(settings(v4, v6, "native"), d, file, slog.New(slog.DiscardHandler))
		if err := b.apply(selected); err != nil {
			t.Fatal(err)
		}
		return b
	}
	same := func(what string, want []link.SizedDevice) {
		t.Helper()
		if diff := cmp.Diff(want, d.all); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	apply(true, true, 2, 3)
	on := append([]link.SizedDevice{}, was...)
	on[0].Sizes = link.Sizes{GSO4: bigSize, GRO4: bigSize, GSO6: bigSize, GRO6: l}
	on[1].Sizes = link.Sizes{GSO4: bigSize, GRO4: bigSize, GSO6: 400000, GRO6: l}
	same("on", on)
	apply(true, true) // restarted, and no device is selected yet
	same("nothing known", on)
	d.sets = 0
	apply(true, true, 2, 3)
	if d.sets != 0 {
		t.Errorf("%d changes though nothing changed", d.sets)
	}
	apply(true, true, 2)
	same("eth1 carries no more", []link.SizedDevice{on[0], was[1]})
	apply(false, true, 2)
	half := was[0]
	half.GSO6 = bigSize
	same("IPv6 alone", []link.SizedDevice{half, was[1]})
	apply(true, true, 2)
	d.all[0].GSO4 = 70000 // another manager
	want := was[0]
	want.GSO4 = 70000
	b := apply(false, false)
	same("off", []link.SizedDevice{want, was[1]})
	if notes, err := b.notes.load(); err != nil || len(notes) != 0 {
		t.Errorf("notes stay: %v, %v", notes, err)
	}

	apply(true, true, 2)
	d.all[0] = device(7, "eth0", 524280) // made anew
	apply(false, false)
	same("another device", []link.SizedDevice{device(7, "eth0", 524280), was[1]})

	apply(true, true, 7)
	d.all[0].Sizes = sizes(l, l) // killed between note and change
	apply(false, false)
	same("noted, not changed", []link.SizedDevice{device(7, "eth0", 524280), was[1]})
}

// Guards against half a BIG TCP where one device refuses what it said to take, and
// against a refusal that is not tried again.
func TestBigTCPRefused(t *testing.T) {
	d := &devices{all: []link.SizedDevice{device(2, "eth0", 524280), device(3, "eth1", 524280)}, refuse: "eth1"}
	b := newBigTCP(settings(true, false, "native"), d, filepath.Join(t.TempDir(), "notes"), slog.New(slog.DiscardHandler))
	if err := b.apply([]int{2, 3}); err == nil || !strings.Contains(err.Error(), "eth1: invalid argument") {
		t.Errorf("got %v", err)
	}
	if b.Pods() != (link.BigTCP{}) || d.all[0].Sizes != sizes(link.LegacySize, link.LegacySize) {
		t.Errorf("pods %+v, eth0 %+v", b.Pods(), d.all[0].Sizes)
	}
	if c := b.Component(); c.State != rpc.StateWarning || !strings.Contains(c.Message, "IPv4 off, as device eth1") {
		t.Errorf("status: %+v", c)
	}
	d.refuse = ""
	if err := b.apply([]int{2, 3}); err != nil || b.Pods().IPv4 != bigSize || d.all[0].GSO4 != bigSize {
		t.Errorf("pods %+v, eth0 %+v, %v", b.Pods(), d.all[0].Sizes, err)
	}
}
