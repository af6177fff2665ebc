// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// fakeTunnel is the device and its programs in memory. It fails a test that lets
// the device take packets in before there are programs on it.
type fakeTunnel struct {
	t       *testing.T
	index   int // 0: no device
	made    link.Tunnel
	up      bool
	hooked  int
	refuses error
	next    int
}

func (f *fakeTunnel) FindTunnel() (int, int, error) { return f.index, f.made.Port, nil }

func (f *fakeTunnel) EnsureTunnel(tn link.Tunnel) (int, error) {
	if f.refuses != nil {
		return 0, f.refuses
	}
	if f.index == 0 || f.made.Port != tn.Port {
		f.next++
		f.index, f.up = f.next, false
	}
	f.made = tn
	return f.index, nil
}

func (f *fakeTunnel) TunnelUp(index int, _ link.Tunnel) error {
	if f.hooked != index {
		f.t.Error("the device comes up without programs: whatever arrives is believed")
	}
	f.up = true
	return nil
}

func (f *fakeTunnel) RemoveTunnel() (bool, error) {
	had := f.index != 0
	f.index, f.up = 0, false
	return had, nil
}

func (f *fakeTunnel) SyncOverlay(d *datapath.Device) error {
	f.hooked = 0
	if d != nil {
		f.hooked = d.Index
	}
	return nil
}

// overlayWorld is an overlay with all that it depends on.
type overlayWorld struct {
	*overlay
	tun      *fakeTunnel
	rows     []*table.Node
	complete bool
	known    bool
	changes  []maps.Overlay
}

func newOverlayWorld(t *testing.T, mode string) *overlayWorld {
	t.Helper()
	w := &overlayWorld{tun: &fakeTunnel{t: t}, complete: true, known: true}
	w.rows = []*table.Node{
		{Name: "n1", Local: true, Addrs: []netip.Addr{ip("10.9.0.1"), ip("fd09::1")}},
		{Name: "n2", Addrs: []netip.Addr{ip("10.9.0.2"), ip("fd09::2")}},
	}
	w.overlay = &overlay{
		on: mode == config.RoutingTunnel, settings: config.Tunnel{Protocol: "vxlan", Port: 8472, Underlay: config.UnderlayIPv4},
		node: "n1", least: 1280, links: w.tun, hooks: w.tun, log: slog.New(slog.DiscardHandler),
		around: overlaySurroundings{
			nodes:   func() ([]*table.Node, bool) { return w.rows, w.complete },
			addrs:   func() []netip.Addr { return nil },
			local:   func() map[netip.Addr]bool { return map[netip.Addr]bool{ip("10.9.0.1"): true, ip("fd09::1"): true} },
			mtu:     func() int { return 1450 },
			known:   func([]*table.Node, bool) bool { return w.known },
			changed: func() error { w.changes = append(w.changes, w.config()); return nil },
		},
	}
	return w
}

func (w *overlayWorld) must(t *testing.T) {
	t.Helper()
	if err := w.check(); err != nil {
		t.Fatal(err)
	}
}

// Guards against an invitation that is out before what it invites is believed:
// packets of the other nodes would be dropped until the last row is written.
func TestOverlayAnnouncesWhenReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOverlayWorld(t, config.RoutingTunnel)
		w.known = false
		w.must(t)
		if !w.tun.up || w.tun.made.MTU != 1450 || !slices.Equal(w.tun.made.Addrs, []netip.Addr{ip("10.9.0.1"), ip("fd09::1")}) {
			t.Errorf("device: %+v", w.tun)
		}
		if want := (overlayView{on: true, announce: "vxlan:8472:ipv4"}); w.view() != want {
			t.Errorf("view %+v, want %+v", w.view(), want)
		}
		if got := w.announce(); got != "" {
			t.Errorf("announces %q to nodes that it does not believe yet", got)
		}
		w.known = true
		before := len(w.changes)
		w.must(t)
		if got := w.announce(); got != "vxlan:8472:ipv4" {
			t.Errorf("announces %q", got)
		}
		if !w.view().send || len(w.changes) == before {
			t.Errorf("view %+v, told %d times: nothing would be sent by the overlay", w.view(), len(w.changes)-before)
		}
		// A node that nobody believes must not take the word back, nor keep it in for ever.
		w.known = false
		w.must(t)
		if w.announce() == "" {
			t.Error("the announcement was taken back")
		}
		late := newOverlayWorld(t, config.RoutingTunnel)
		late.known = false
		late.must(t)
		time.Sleep(readyAfter) // of the bubble's clock
		late.must(t)
		if late.announce() == "" {
			t.Error("a node that is not believed keeps this one out for ever")
		}
	})
}

// Guards against taking for forged what comes from nodes that cannot know yet that
// this one takes part.
func TestOverlayStrictLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOverlayWorld(t, config.RoutingTunnel)
		w.must(t)
		time.Sleep(time.Hour)
		w.must(t)
		if w.config().Strict {
			t.Error("strict although the API server does not show our word")
		}
		w.rows[0].Tunnel = "vxlan:8472:ipv4"
		w.must(t)
		if w.config().Strict {
			t.Error("strict at once")
		}
		time.Sleep(strictAfter)
		w.must(t)
		if !w.config().Strict {
			t.Error("not strict at last")
		}
	})
}

// Guards against a node that leaves the overlay while others still send to it, and
// against a device that stays for good.
func TestOverlayLeavesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := newOverlayWorld(t, config.RoutingTunnel)
		before.must(t)
		w := newOverlayWorld(t, config.RoutingNative)
		w.tun.index, w.tun.made, w.tun.up, w.tun.hooked = before.tun.index, before.tun.made, true, before.tun.index
		was := before.config()
		was.Strict = true
		if err := w.restore(was); err != nil {
			t.Fatal(err)
		}
		if w.config().Strict {
			t.Error("what nodes send past the overlay is refused by one that does not invite them to use it")
		}
		w.rows[1].Tunnel = "vxlan:8472:ipv4"
		for _, step := range []struct {
			what   string
			do     func()
			device bool
		}{
			{"nodes are not known yet", func() { w.complete = false; w.rows = w.rows[:1] }, true},
			{"another takes part", func() { w.complete = true; w.rows = w.rows[:2] }, true},
			{"the last one changed just now", func() { w.rows[1].Tunnel = "" }, true},
			{"one comes back", func() { time.Sleep(quietAfter); w.rows[1].Tunnel = "vxlan:8472:ipv4" }, true},
			{"it goes again", func() { w.rows[1].Tunnel = "" }, true},
			{"nobody for a while", func() { time.Sleep(quietAfter) }, false},
		} {
			step.do()
			w.must(t)
			if got := w.tun.index != 0; got != step.device {
				t.Errorf("%s: device %v, want %v", step.what, got, step.device)
			}
			if w.announce() != "" {
				t.Errorf("%s: a node in native mode announces %q", step.what, w.announce())
			}
			if w.view().on != step.device {
				t.Errorf("%s: view %+v", step.what, w.view())
			}
		}
		if w.next() != overlayEvery {
			t.Errorf("looks every %s at nothing", w.next())
		}
	})
}

// Guards against errors that do not say what to do, and against a mode that ends
// forwarding because the device cannot be mended now.
func TestOverlayRefusals(t *testing.T) {
	w := newOverlayWorld(t, config.RoutingTunnel)
	w.settings.Underlay = config.UnderlayIPv6
	w.rows[0].Addrs = w.rows[0].Addrs[:1]
	if err := w.check(); err == nil || !strings.Contains(err.Error(), "--node-ip") {
		t.Errorf("no address in the underlay: %v", err)
	}
	w = newOverlayWorld(t, config.RoutingTunnel)
	w.around.mtu = func() int { return 1230 }
	if err := w.check(); err == nil || !strings.Contains(err.Error(), "raise the devices' MTU by 50") {
		t.Errorf("too small devices: %v", err)
	}
	w = newOverlayWorld(t, config.RoutingTunnel)
	w.must(t)
	was := w.config()
	w.tun.refuses = errors.New("device flannel.1: has UDP port 8472 already")
	if err := w.check(); err == nil || w.failing() == nil {
		t.Error("the error is lost")
	}
	if w.config() != was {
		t.Errorf("state %+v after a failed look, want %+v", w.config(), was)
	}
}
