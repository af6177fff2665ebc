// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
)

// TraceLevel says which packets that were not dropped leave a record.
type TraceLevel uint32

// Trace levels, as enum weft_trace.
const (
	TraceNone TraceLevel = 0
	TraceNew  TraceLevel = 1 // the first packet of a flow at each hook
	TraceAll  TraceLevel = 2
)

// Config is what programs read at run time. A zero field takes its default,
// except Trace and the node's addresses.
type Config struct {
	Trace     TraceLevel `json:"trace"`
	EventRate int        `json:"eventRate"` // records a second and CPU, drops and traces each
	ICMPRate  int        `json:"icmpRate"`  // packet-too-big messages a second and CPU
	NodeIPv4  netip.Addr `json:"nodeIPv4"`  // source of those; invalid: the gateway's address
	NodeIPv6  netip.Addr `json:"nodeIPv6"`
	// BigTCP6: IPv6 super-packets may be larger than 64 KiB. Pods' connections
	// then leave room for the header that marks them.
	BigTCP6  bool     `json:"bigTCP6"`
	Timeouts Timeouts `json:"timeouts"`
	Overlay  Overlay  `json:"overlay"`
	// Masquerade is off where it is zero.
	Masquerade Masquerade `json:"masquerade"`
	// Outside says whether services answer what comes from outside the node packet
	// by packet. Backends on other nodes see the node's address and a port of
	// Masquerade's.
	Outside Outside `json:"outside"`
}

// Outside names families.
type Outside struct {
	IPv4 bool `json:"ipv4"`
	IPv6 bool `json:"ipv6"`
}

// Masquerade says which flows of pods leave with the node's address.
type Masquerade struct {
	IPv4    bool   `json:"ipv4"`
	IPv6    bool   `json:"ipv6"`
	PortMin uint16 `json:"portMin"` // ports that they get, and clients of services
	PortMax uint16 `json:"portMax"`
}

// Bits of weft_cfg.nat, as NAT_* in bpf/lib/types.h.
const (
	natIPv4 = 1 << 0
	natIPv6 = 1 << 1

	natServices4 = 1 << 2
	natServices6 = 1 << 3
)

func natBits(v4, v6 bool, bit4, bit6 uint32) (b uint32) {
	if v4 {
		b |= bit4
	}
	if v6 {
		b |= bit6
	}
	return b
}

// Overlay is this node's part in the overlay network. IfIndex 0: none, nothing
// is sent by it.
type Overlay struct {
	IfIndex int        `json:"ifIndex"` // of the tunnel device
	MTU     int        `json:"mtu"`     // of that device: bytes of the inner packet
	Local   netip.Addr `json:"local"`   // this node's address in the underlay, source of outer headers
	Port    uint16     `json:"port"`    // of that device; 0: its packets are looked at like all others when they come in
	// Strict: pods of nodes that take part are not believed when they come by the
	// network instead.
	Strict bool `json:"strict"`
}

// flagBigTCP6 is CONFIG_BIG_TCP6 of bpf/lib/types.h.
const flagBigTCP6 = 1 << 0

// flagStrict is TUNNEL_STRICT of bpf/lib/types.h.
const flagStrict = 1 << 0

// Timeouts are how long conntrack entries live without a packet. They are
// rounded to ticks of 2^30 ns.
type Timeouts struct {
	Established   time.Duration `json:"established"`   // TCP, answered
	SYN           time.Duration `json:"syn"`           // TCP, unanswered
	Closing       time.Duration `json:"closing"`       // TCP after RST or both FINs
	Answered      time.Duration `json:"answered"`      // all else, on the fast path
	AnsweredStack time.Duration `json:"answeredStack"` // all else, on the stack: longer than netfilter's 120 s
	Unanswered    time.Duration `json:"unanswered"`    // all else; longer than netfilter's 30 s
	Fragment      time.Duration `json:"fragment"`      // ports of a first fragment
	NATHold       time.Duration `json:"natHold"`       // port of a closed masqueraded TCP flow: the server remembers it
}

// DefaultConfig returns what Open starts with.
func DefaultConfig() Config {
	return Config{
		Trace: TraceNone, EventRate: 1000, ICMPRate: 100,
		Timeouts: Timeouts{
			Established: 8000 * time.Second, SYN: 60 * time.Second, Closing: 10 * time.Second,
			Answered: 60 * time.Second, AnsweredStack: 180 * time.Second,
			Unanswered: 40 * time.Second, Fragment: 30 * time.Second, NATHold: 60 * time.Second,
		},
	}
}

// tickShift makes ticks out of nanoseconds, as bpf/lib/time.h does.
const tickShift = 30

func ticks(d, def time.Duration) uint32 {
	if d <= 0 {
		d = def
	}
	return uint32(max(1, int64(d)>>tickShift))
}

func duration(ticks int64) time.Duration { return time.Duration(ticks << tickShift) }

// perTick turns a rate a second into one a tick (1.07 s).
func perTick(n, def int) uint32 {
	if n <= 0 {
		n = def
	}
	return uint32((int64(n) << tickShift) / int64(time.Second))
}

// ConfigMap is weft_cfg.
type ConfigMap struct {
	m    *ebpf.Map
	ways *WaysMap
}

// Set puts the configuration into effect at once, for all programs.
func (c *ConfigMap) Set(cfg Config) error {
	d := DefaultConfig()
	t, dt := cfg.Timeouts, d.Timeouts
	row := object.DatapathWeftConfig{
		Trace:         uint32(cfg.Trace),
		EventRate:     perTick(cfg.EventRate, d.EventRate),
		IcmpRate:      perTick(cfg.ICMPRate, d.ICMPRate),
		Established:   ticks(t.Established, dt.Established),
		Syn:           ticks(t.SYN, dt.SYN),
		Closing:       ticks(t.Closing, dt.Closing),
		Answered:      ticks(t.Answered, dt.Answered),
		AnsweredStack: ticks(t.AnsweredStack, dt.AnsweredStack),
		Unanswered:    ticks(t.Unanswered, dt.Unanswered),
		Fragment:      ticks(t.Fragment, dt.Fragment),
		NodeV4:        raw4(cfg.NodeIPv4),
		NodeV6:        raw6(cfg.NodeIPv6),
		TunnelLocal:   mapped(cfg.Overlay.Local),
		TunnelIfindex: uint32(cfg.Overlay.IfIndex),
		TunnelMtu:     uint32(cfg.Overlay.MTU),
		TunnelPort:    port(cfg.Overlay.Port),
		Nat:           natBits(cfg.Masquerade.IPv4, cfg.Masquerade.IPv6, natIPv4, natIPv6) | natBits(cfg.Outside.IPv4, cfg.Outside.IPv6, natServices4, natServices6),
		NatMin:        cfg.Masquerade.PortMin,
		NatMax:        cfg.Masquerade.PortMax,
		NatHold:       ticks(t.NATHold, dt.NATHold),
	}
	var err error
	if row.NatSeed, err = c.seed(); err != nil {
		return err
	}
	if cfg.BigTCP6 {
		row.Flags |= flagBigTCP6
	}
	if cfg.Overlay.Strict {
		row.TunnelFlags |= flagStrict
	}
	if err := put(c.m, uint32(0), row); err != nil {
		return err
	}
	return c.ways.Changed()
}

// seed returns what the choice of ports starts from: what the map holds, so that
// an agent that starts anew chooses as the last one did, or something random.
func (c *ConfigMap) seed() (uint32, error) {
	var old object.DatapathWeftConfig
	if err := c.m.Lookup(uint32(0), &old); err != nil {
		return 0, fmt.Errorf("map weft_cfg: %w", err)
	}
	if old.NatSeed != 0 {
		return old.NatSeed, nil
	}
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.NativeEndian.Uint32(b[:]) | 1, nil
}

// Get returns what is in effect, rounded to ticks.
func (c *ConfigMap) Get() (Config, error) {
	var row object.DatapathWeftConfig
	if err := c.m.Lookup(uint32(0), &row); err != nil {
		return Config{}, fmt.Errorf("map weft_cfg: %w", err)
	}
	d := func(t uint32) time.Duration { return duration(int64(t)) }
	rate := func(n uint32) int { return int((int64(n)*int64(time.Second) + 1<<tickShift - 1) >> tickShift) }
	cfg := Config{
		Trace: TraceLevel(row.Trace), EventRate: rate(row.EventRate), ICMPRate: rate(row.IcmpRate),
		Timeouts: Timeouts{
			Established: d(row.Established), SYN: d(row.Syn), Closing: d(row.Closing), Answered: d(row.Answered),
			AnsweredStack: d(row.AnsweredStack), Unanswered: d(row.Unanswered), Fragment: d(row.Fragment), NATHold: d(row.NatHold),
		},
		Masquerade: Masquerade{
			IPv4: row.Nat&natIPv4 != 0, IPv6: row.Nat&natIPv6 != 0,
			PortMin: row.NatMin, PortMax: row.NatMax,
		},
	}
	cfg.Outside = Outside{IPv4: row.Nat&natServices4 != 0, IPv6: row.Nat&natServices6 != 0}
	cfg.Overlay = Overlay{
		IfIndex: int(row.TunnelIfindex), MTU: int(row.TunnelMtu), Local: unmapped(row.TunnelLocal),
		Strict: row.TunnelFlags&flagStrict != 0, Port: port(row.TunnelPort),
	}
	cfg.BigTCP6 = row.Flags&flagBigTCP6 != 0
	if row.NodeV4 != 0 {
		cfg.NodeIPv4 = addr4(row.NodeV4)
	}
	if a := addr6(row.NodeV6); !a.IsUnspecified() {
		cfg.NodeIPv6 = a
	}
	return cfg, nil
}
