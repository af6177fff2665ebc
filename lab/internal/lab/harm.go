// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/relay"
	"github.com/weft-net/weft/lab/internal/state"
	"github.com/weft-net/weft/lab/internal/wire"
)

// Cut interrupts the way between two hosts.
func Cut(ctx context.Context, name string, c state.Cut, out io.Writer) error {
	return change(ctx, name, out, func(l *Lab) error {
		for _, h := range []string{c.A, c.B} {
			if _, err := l.rec.Host(h); err != nil && h != wire.All {
				return err
			}
		}
		if err := wire.CheckCut(c); err != nil {
			return err
		}
		if !slices.Contains(l.rec.Cuts, c) {
			l.rec.Cuts = append(l.rec.Cuts, c)
		}
		if err := l.applyRules(ctx); err != nil {
			return err
		}
		l.report.line("cut %s", c)
		return nil
	})
}

// Heal takes back all cuts between two hosts, or with empty names all.
func Heal(ctx context.Context, name, a, b string, out io.Writer) error {
	return change(ctx, name, out, func(l *Lab) error {
		for _, h := range []string{a, b} {
			if _, err := l.rec.Host(h); err != nil && h != wire.All && h != "" {
				return err
			}
		}
		before := len(l.rec.Cuts)
		l.rec.Cuts = slices.DeleteFunc(l.rec.Cuts, func(c state.Cut) bool {
			return a == "" && b == "" || c.A == a && c.B == b || c.A == b && c.B == a
		})
		if err := l.applyRules(ctx); err != nil {
			return err
		}
		l.report.line("%d cuts healed, %d left", before-len(l.rec.Cuts), len(l.rec.Cuts))
		return nil
	})
}

func (l *Lab) applyRules(ctx context.Context) error {
	ruleset := wire.NoRules
	if len(l.rec.Cuts) > 0 || len(l.rec.Links) > 0 {
		ruleset = wire.Ruleset(l.rec.Hosts, l.rec.Cuts, l.rec.Links)
	}
	return wire.ApplyRules(ctx, l.netns(router), ruleset)
}

// CheckImpairments refuses what no link can be.
func CheckImpairments(i state.Impairments) error {
	switch {
	case i.MTU != 0 && (i.MTU < 68 || i.MTU > 65535):
		return fmt.Errorf("mtu %d: want 68 to 65535; below 1280 the kernel turns IPv6 off on the device", i.MTU)
	case i.WireMTU != 0 && (i.WireMTU < 68 || i.WireMTU > 65535):
		return fmt.Errorf("wire mtu %d: want 68 to 65535", i.WireMTU)
	case i.Loss < 0 || i.Loss > 100:
		return fmt.Errorf("loss %g: want 0 to 100 percent", i.Loss)
	case i.DelayMS < 0 || i.DelayMS > 10000:
		return fmt.Errorf("delay %g ms: want 0 to 10 s", i.DelayMS)
	}
	return nil
}

// SetLink makes the link of a host's device what the impairments say; what
// they leave out is whole again.
func SetLink(ctx context.Context, name, hostName, dev string, i state.Impairments, out io.Writer) error {
	if err := CheckImpairments(i); err != nil {
		return err
	}
	return change(ctx, name, out, func(l *Lab) error {
		h, err := l.rec.Host(hostName)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(h.Ports, func(p plan.Port) bool { return p.Dev == dev })
		if at < 0 {
			return fmt.Errorf("host %s has no device %s", hostName, dev)
		}
		p := h.Ports[at]
		before := l.rec.Links[p.Peer]
		l.rec.Links[p.Peer] = i
		if i == (state.Impairments{}) {
			delete(l.rec.Links, p.Peer)
		}
		if err := l.dir.Save(l.rec); err != nil { // the next `link` then knows what may be half done
			return err
		}
		if err := l.harm(ctx, h, p, before, i); err != nil {
			return err
		}
		l.report.line("link %s %s: %s", hostName, dev, i)
		return nil
	})
}

func (l *Lab) harm(ctx context.Context, h plan.Host, p plan.Port, before, now state.Impairments) error {
	if before.MTU != now.MTU {
		if err := wire.SetMTU(l.netns(router), l.netns(h.Name), l.rec.Options, p, l.rec.Links, l.rec.Hosts); err != nil {
			return err
		}
		client, err := l.cluster.NewClient(l.netns(l.cluster.Control.Name))
		if err != nil {
			return err
		}
		if err := l.layRoutes(ctx, client); err != nil {
			return err
		}
		for _, other := range append([]string{router}, hostNames(l.rec.Hosts)...) {
			if err := wire.ForgetPaths(ctx, l.netns(other)); err != nil {
				return err
			}
		}
	}
	if before.DelayMS != now.DelayMS {
		if err := l.delay(ctx, p, now.DelayMS); err != nil {
			return err
		}
	}
	if err := l.setOffloads(); err != nil {
		return err
	}
	return l.applyRules(ctx)
}

func hostNames(hosts []plan.Host) []string {
	var names []string
	for _, h := range hosts {
		names = append(names, h.Name)
	}
	return names
}

// setOffloads: segmentation offload is off on all links as soon as one link
// loses or refuses frames, because a frame is cut by its sender.
func (l *Lab) setOffloads() error {
	on := true
	for _, i := range l.rec.Links {
		on = on && i.MTU == 0 && i.WireMTU == 0 && i.Loss == 0
	}
	for _, h := range l.rec.Hosts {
		for _, p := range h.Ports {
			if err := wire.SetOffload(l.netns(h.Name), p.Dev, on); err != nil {
				return err
			}
			if err := wire.SetOffload(l.netns(router), p.Peer, on); err != nil {
				return err
			}
		}
	}
	return nil
}

const relayLimit = 10 * time.Second

// delay puts a relay between the host's link and the bridge, or takes it out.
// A relay ends when its TAP device is deleted.
func (l *Lab) delay(ctx context.Context, p plan.Port, ms float64) error {
	s, err := l.rec.Options.Subnet(p.Subnet)
	if err != nil {
		return err
	}
	tap := p.Peer + wire.RelaySuffix
	if err := wire.DeleteLink(l.netns(router), tap); err != nil {
		return err
	}
	if ms == 0 {
		return wire.Plug(l.netns(router), p.Peer, s.Bridge)
	}
	if err := l.startRelay(p.Peer, tap, ms); err != nil {
		return err
	}
	log := l.dir.Path("relay-" + p.Peer + ".log")
	err = waitFor(ctx, relayLimit, "delay relay of "+p.Peer, log, func(context.Context) (bool, string) {
		return wire.HasLink(l.netns(router), tap), "device " + tap + " is not there"
	})
	if err != nil {
		return err
	}
	if err := wire.Plug(l.netns(router), p.Peer, ""); err != nil {
		return err
	}
	return wire.SetUpPort(l.netns(router), tap, s.Bridge, max(l.rec.Options.MTU, l.rec.Links[p.Peer].MTU))
}

func (l *Lab) startRelay(veth, tap string, ms float64) error {
	f, err := l.openRunGroup()
	if err != nil {
		return err
	}
	defer f.Close()
	log, err := os.Create(l.dir.Path("relay-" + veth + ".log"))
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", relay.Verb, veth, tap, fmt.Sprintf("%gms", ms)) //nolint:noctx // it outlives us
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(f.Fd())}
	if err := wire.In(l.netns(router), cmd.Start); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	return cmd.Process.Release()
}

// RunRelay is the relay's process, inside the router's network namespace.
func RunRelay(ctx context.Context, veth, tap, delay string) error {
	d, err := time.ParseDuration(delay)
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	index, err := relay.Index(veth)
	if err != nil {
		return err
	}
	f, err := relay.Open(tap)
	if err != nil {
		return err
	}
	return relay.Run(ctx, f, index, d)
}
