// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/masquerade"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

// masqEvery is how often ip-masq-agent's file and the reserved ports are looked at.
const masqEvery = 5 * time.Second

// natMaps is what the masquerader needs of maps.NATMap.
type natMaps interface {
	SetDevices([]maps.NATDevice) error
	SetExclusions([]netip.Prefix) error
}

// masquerader puts into effect which flows of pods leave with the node's
// address, and keeps the node's own sockets off their ports.
type masquerader struct {
	cfg      *config.Config
	v4, v6   bool
	services maps.Outside // clients of services at backends on other nodes get ports, too
	tunnel   func() int   // the overlay's device; 0: none
	nat      natMaps
	reserved reservation
	file     string // ip-masq-agent's
	log      *slog.Logger
	wake     chan struct{}

	mu        sync.Mutex
	agent     masquerade.AgentConfig // the last good one
	read      string                 // what the file held when it was read last
	node      []netip.Addr
	devices   []table.Device
	err       error // of the maps and ports
	agentErr  error // of the file
	exhausted exhaustion
	flows     int
}

// exhaustion remembers when packets were dropped for lack of a port.
type exhaustion struct {
	total uint64
	added uint64 // in the last round of looking
	last  time.Time
}

func newMasquerader(cfg *config.Config, nat natMaps, r reservation, file string, log *slog.Logger) *masquerader {
	m := &masquerader{cfg: cfg, nat: nat, reserved: r, file: file, log: log, wake: make(chan struct{}, 1), agent: masquerade.DefaultAgentConfig()}
	m.v4, m.v6 = cfg.Masquerades()
	m.services = outside(cfg)
	m.tunnel = func() int { return 0 }
	return m
}

// on tells whether flows of pods are masqueraded.
func (m *masquerader) on() bool { return m.v4 || m.v6 }

// translates tells whether any flow gets an address and port of the node.
func (m *masquerader) translates() bool { return m.on() || m.services != maps.Outside{} }

// settings are what the programs are to do.
func (m *masquerader) settings() maps.Masquerade {
	if !m.translates() {
		return maps.Masquerade{}
	}
	low, high := m.cfg.Masquerade.PortRange()
	return maps.Masquerade{IPv4: m.v4, IPv6: m.v6, PortMin: low, PortMax: high}
}

// Set tells the node's addresses and devices; a nil one stays as it was.
func (m *masquerader) Set(node []netip.Addr, devices []table.Device) {
	m.mu.Lock()
	if node != nil {
		m.node = node
	}
	if devices != nil {
		m.devices = devices
	}
	m.mu.Unlock()
	_ = m.apply() // kept for the status, and tried again
}

// run keeps everything as it should be until ctx ends.
func (m *masquerader) run(ctx context.Context) error {
	tick := time.NewTicker(masqEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		_ = m.apply()
	}
}

// apply brings file, maps and ports up to date.
func (m *masquerader) apply() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.readAgent()
	had := m.err
	var devs []maps.NATDevice
	var exclude []netip.Prefix
	if m.translates() {
		devs, exclude = append(m.natDevices(), m.natTunnel()...), m.exclusions()
	}
	low, high := m.settings().PortMin, m.settings().PortMax
	m.err = errors.Join(m.nat.SetDevices(devs), m.nat.SetExclusions(exclude), m.reserved.ensure(m.translates(), low, high))
	if m.err != nil && (had == nil || had.Error() != m.err.Error()) {
		m.log.Warn("masquerade is not as it should be", "error", m.err)
	}
	return m.err
}

func (m *masquerader) natDevices() []maps.NATDevice {
	var out []maps.NATDevice
	for _, d := range m.devices {
		if !d.Selected {
			continue
		}
		nd := maps.NATDevice{Index: d.Index}
		if m.v4 || m.services.IPv4 {
			nd.IPv4 = masquerade.DeviceAddr(d.Addrs, m.node, false)
		}
		if m.v6 || m.services.IPv6 {
			nd.IPv6 = masquerade.DeviceAddr(d.Addrs, m.node, true)
		}
		out = append(out, nd)
	}
	return out
}

// natTunnel is the overlay's device: by it the other nodes take the node's own
// address, which they know, for a client of a service.
func (m *masquerader) natTunnel() []maps.NATDevice {
	index := m.tunnel()
	if index == 0 || m.services == (maps.Outside{}) {
		return nil
	}
	return []maps.NATDevice{{Index: index, IPv4: firstOf(m.node, false), IPv6: firstOf(m.node, true)}}
}

func (m *masquerader) exclusions() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []netip.Prefix{m.cfg.IPv4NativeCIDR, m.cfg.IPv6NativeCIDR} {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	if m.cfg.Masquerade.Agent {
		out = append(out, m.agent.Exclusions()...)
	}
	return out
}

// readAgent reads ip-masq-agent's file, if it is to be heeded and changed. What
// cannot be read leaves the last good settings in effect.
func (m *masquerader) readAgent() {
	if !m.cfg.Masquerade.Agent {
		return
	}
	b, err := os.ReadFile(m.file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.noteAgent(err)
		return
	}
	if string(b) == m.read && m.agentErr == nil {
		return
	}
	c, err := masquerade.ParseAgentConfig(b)
	if err != nil {
		m.noteAgent(fmt.Errorf("%s: %w; the last good settings stay in effect", m.file, err))
		return
	}
	m.agent, m.read = c, string(b)
	m.noteAgent(nil)
	m.log.Info("took over ip-masq-agent's settings", "file", m.file, "exceptions", len(c.NonMasquerade), "masqLinkLocal", c.MasqLinkLocal)
}

func (m *masquerader) noteAgent(err error) {
	if err != nil && (m.agentErr == nil || m.agentErr.Error() != err.Error()) {
		m.log.Warn("settings of ip-masq-agent cannot be taken over", "error", err)
	}
	m.agentErr = err
}

// observe takes note of the counters: dropped tells packets dropped for lack of
// a port so far, flows how many are translated.
func (m *masquerader) observe(dropped uint64, flows int, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flows = flows
	if m.exhausted.last.IsZero() || dropped < m.exhausted.total {
		m.exhausted.total, m.exhausted.last = dropped, now // an earlier agent's
		return
	}
	m.exhausted.added = dropped - m.exhausted.total
	m.exhausted.total, m.exhausted.last = dropped, now
}

func (m *masquerader) translated() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flows
}

// failing returns why flows get no address and port of the node; nil: they do.
func (m *masquerader) failing() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Component is the line of `weft status`, in the words that Cilium's users know.
func (m *masquerader) Component() rpc.Component {
	c := rpc.Component{Name: "Masquerading", State: rpc.StateDisabled}
	if !m.on() {
		return c
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var devs []string
	for _, d := range m.natDevices() {
		i := slices.IndexFunc(m.devices, func(t table.Device) bool { return t.Index == d.Index })
		devs = append(devs, m.devices[i].Name)
		c.Details = append(c.Details, fmt.Sprintf("%s: %s", m.devices[i].Name, strings.Trim(show(d.IPv4)+" "+show(d.IPv6), " ")))
	}
	parts := []string{"BPF", fmt.Sprint(devs)}
	if m.cfg.Masquerade.Agent {
		parts[0] = "BPF (ip-masq-agent)"
	}
	for _, p := range []netip.Prefix{m.cfg.IPv4NativeCIDR, m.cfg.IPv6NativeCIDR} {
		if p.IsValid() {
			parts = append(parts, p.String())
		}
	}
	parts = append(parts, fmt.Sprintf("[IPv4: %s, IPv6: %s]", enabledWord(m.v4), enabledWord(m.v6)))
	c.State, c.Inline, c.Message = rpc.StateOK, true, strings.Join(parts, " ")
	c.Details = append(c.Details, fmt.Sprintf("ports %s, %d flows", m.cfg.Masquerade.Ports, m.flows))
	for _, p := range m.exclusions() {
		c.Details = append(c.Details, "not masqueraded: "+p.String())
	}
	switch {
	case m.err != nil:
		c.State, c.Message = rpc.StateFailing, m.err.Error()
	case m.agentErr != nil:
		c.State, c.Message = rpc.StateWarning, m.agentErr.Error()
	case m.exhausted.added > 0:
		c.State = rpc.StateWarning
		c.Message = fmt.Sprintf("%d packets were dropped in the last %s (nat-exhausted): no port was free towards their destination; widen bpf.masqueradePorts or spread the connections", m.exhausted.added, sweepEvery)
	}
	return c
}

func show(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func enabledWord(on bool) string {
	if on {
		return "Enabled"
	}
	return "Disabled"
}
