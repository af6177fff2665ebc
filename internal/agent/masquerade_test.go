// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

// ports is a node's net.ipv4.ip_local_reserved_ports.
type ports struct {
	list string
	err  error
}

func (p *ports) ReservedPorts() (string, error) { return p.list, p.err }

func (p *ports) SetReservedPorts(s string) error {
	if p.err == nil {
		p.list = s
	}
	return p.err
}

// Guards against reserved ports of others that vanish, and ours that stay.
func TestReservedPorts(t *testing.T) {
	p := &ports{list: "8080,50000-50010"}
	r := reservation{p, filepath.Join(t.TempDir(), "reserved")}
	want := func(list string, err error) {
		t.Helper()
		if err != nil || p.list != list {
			t.Errorf("%q, %v, want %q", p.list, err, list)
		}
	}
	want("8080,49152-65535", r.ensure(true, 49152, 65535))
	want("8080,49152-65535", r.ensure(true, 49152, 65535))
	p.list = "9" // somebody else writes his own
	want("9,49152-65535", r.ensure(true, 49152, 65535))
	p.list = "9,10,49152-65535"                            // or adds
	want("9-10,60000-65535", r.ensure(true, 60000, 65535)) // a smaller range
	p.list = "9-10,49152-50999,60000-65535"
	want("9-10,49152-50999", r.ensure(false, 0, 0))
	if _, err := os.Stat(r.file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the note stays: %v", err)
	}
	want("9-10,49152-50999", r.ensure(false, 0, 0))
	// A port that others had reserved before is not given back.
	p.list = "60000"
	want("60000-60999", r.ensure(true, 60000, 60999))
	want("60000", r.ensure(false, 0, 0))
	p.err = errors.New("read-only")
	if err := r.ensure(true, 60000, 60999); err == nil {
		t.Error("no error where the list cannot be read")
	}
	if err := r.ensure(false, 0, 0); err != nil {
		t.Errorf("masquerade that was never on needs the list: %v", err)
	}
}

type natRecorder struct {
	devices []maps.NATDevice
	exclude []netip.Prefix
}

func (n *natRecorder) SetDevices(d []maps.NATDevice) error  { n.devices = d; return nil }
func (n *natRecorder) SetExclusions(p []netip.Prefix) error { n.exclude = p; return nil }

func masquerading(t *testing.T, values map[string]string) (*masquerader, *natRecorder, string) {
	t.Helper()
	cfg, err := config.Parse(values)
	if err != nil {
		t.Fatal(err)
	}
	n, dir := &natRecorder{}, t.TempDir()
	file := filepath.Join(dir, "ip-masq-agent")
	m := newMasquerader(cfg, n, reservation{&ports{}, filepath.Join(dir, "reserved")}, file, slog.New(slog.DiscardHandler))
	m.Set([]netip.Addr{ip("10.0.0.5")}, []table.Device{
		{Name: "eth0", Index: 2, Selected: true, Addrs: []netip.Prefix{cidr("10.0.0.5/24")}},
		{Name: "eth1", Index: 3, Selected: true, Addrs: []netip.Prefix{cidr("203.0.113.7/24")}},
		{Name: "docker0", Index: 4, Addrs: []netip.Prefix{cidr("172.17.0.1/16")}},
	})
	return m, n, file
}

// Guards against a line of `weft status` that Cilium's users do not know, and
// against flows that leave with the address of another device.
func TestMasqueradingComponent(t *testing.T) {
	m, n, _ := masquerading(t, map[string]string{
		"enable-bpf-masquerade": "true", "enable-ipv4-masquerade": "true", "ipv4-native-routing-cidr": "10.0.0.0/16",
	})
	if c := m.Component(); c.State != rpc.StateOK || !c.Inline || c.Message != "BPF [eth0 eth1] 10.0.0.0/16 [IPv4: Enabled, IPv6: Disabled]" {
		t.Errorf("component %+v", c)
	}
	want := []maps.NATDevice{{Index: 2, IPv4: ip("10.0.0.5")}, {Index: 3, IPv4: ip("203.0.113.7")}}
	if !slices.Equal(n.devices, want) || !slices.Equal(n.exclude, []netip.Prefix{cidr("10.0.0.0/16")}) {
		t.Errorf("devices %v, excluded %v", n.devices, n.exclude)
	}
	now := time.Now()
	m.observe(1000, 5, now) // an earlier agent's
	if c := m.Component(); c.State != rpc.StateOK {
		t.Errorf("drops of long ago: %+v", c)
	}
	m.observe(1007, 5, now)
	if c := m.Component(); c.State != rpc.StateWarning || !strings.Contains(c.Message, "7 packets") || !strings.Contains(c.Message, "nat-exhausted") {
		t.Errorf("exhaustion: %+v", c)
	}
	m.observe(1007, 5, now)
	if c := m.Component(); c.State != rpc.StateOK {
		t.Errorf("afterwards: %+v", c)
	}
	off, n, _ := masquerading(t, nil)
	if c := off.Component(); c.State != rpc.StateDisabled || len(n.devices) != 0 || len(n.exclude) != 0 || (off.settings() != maps.Masquerade{}) {
		t.Errorf("off: %+v %v %v", c, n.devices, n.exclude)
	}
}

// Guards against a typing error in ip-masq-agent's settings that changes what is
// masqueraded, and against changes that wait for a restart.
func TestMasqAgentFile(t *testing.T) {
	m, n, file := masquerading(t, map[string]string{
		"enable-bpf-masquerade": "true", "enable-ipv4-masquerade": "true", "enable-ip-masq-agent": "true",
	})
	has := func(p string) bool { return slices.Contains(n.exclude, cidr(p)) }
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := m.apply(); err != nil {
			t.Fatal(err)
		}
	}
	if !has("172.16.0.0/12") || !has("169.254.0.0/16") {
		t.Errorf("without a file: %v", n.exclude)
	}
	write(`{"nonMasqueradeCIDRs":["10.7.0.0/16"],"masqLinkLocal":true}`)
	if !has("10.7.0.0/16") || has("172.16.0.0/12") || has("169.254.0.0/16") {
		t.Errorf("with a file: %v", n.exclude)
	}
	write(`{"nonMasqueradeCIDRs":["10.8.0.0"]}`)
	if c := m.Component(); !has("10.7.0.0/16") || c.State != rpc.StateWarning || !strings.Contains(c.Message, "the last good settings stay") {
		t.Errorf("bad file: %v %+v", n.exclude, c)
	}
	write(`{"nonMasqueradeCIDRs":["10.9.0.0/16"]}`)
	if c := m.Component(); !has("10.9.0.0/16") || has("10.7.0.0/16") || c.State != rpc.StateOK {
		t.Errorf("mended: %v %+v", n.exclude, c)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := m.apply(); err != nil || !has("172.16.0.0/12") {
		t.Errorf("removed: %v %v", n.exclude, err)
	}
}
