// SPDX-License-Identifier: Apache-2.0

package connectivity_test

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/connectivity"
)

// outsideCells plans what concerns the host outside.
func outsideCells(t connectivity.Topology) []connectivity.Cell {
	return connectivity.Plan(t, connectivity.Filter{Cells: []string{"*outside*"}})
}

// TestExpectedSource guards against a test that takes any source address: with
// masquerade a pod's own is wrong, without it a node's.
func TestExpectedSource(t *testing.T) {
	on := map[string]string{
		"routing-mode": "tunnel", "enable-bpf-masquerade": "true", "enable-ipv4-masquerade": "true", "enable-ipv6-masquerade": "true",
	}
	with := func(extra ...string) map[string]string {
		out := maps.Clone(on)
		for i := 0; i < len(extra); i += 2 {
			out[extra[i]] = extra[i+1]
		}
		return out
	}
	for name, tc := range map[string]struct {
		settings map[string]string
		want4    []netip.Addr // of n1's cells
		want6    []netip.Addr
		says     string
	}{
		"off": {
			map[string]string{"routing-mode": "native", "enable-ipv4-masquerade": "true"}, // of iptables' kind, which Weft has not
			[]netip.Addr{v4(2, 0)}, []netip.Addr{v6(2, 0)}, "native routing, no masquerade",
		},
		"on": {with(), []netip.Addr{v4(1, 0), v4(11, 0)}, []netip.Addr{v6(1, 0), v6(11, 0)}, "tunnel (VXLAN), masquerade"},
		"IPv4 only": {
			with("enable-ipv6-masquerade", "false"),
			[]netip.Addr{v4(1, 0), v4(11, 0)},
			[]netip.Addr{v6(2, 0)},
			"tunnel (VXLAN), masquerade of IPv4 only",
		},
		"not to there": {
			with("ipv4-native-routing-cidr", "10.0.0.0/8"),
			[]netip.Addr{v4(2, 0)},
			[]netip.Addr{v6(1, 0), v6(11, 0)},
			"tunnel (VXLAN), masquerade, but not to 10.0.0.0/8",
		},
		"elsewhere exempt": {
			with("ipv4-native-routing-cidr", "192.0.2.0/24"),
			[]netip.Addr{v4(1, 0), v4(11, 0)},
			[]netip.Addr{v6(1, 0), v6(11, 0)},
			"tunnel (VXLAN), masquerade, but not to 192.0.2.0/24",
		},
		"agent's exceptions": {with("enable-ip-masq-agent", "true"), nil, nil, "tunnel (VXLAN), masquerade, ip-masq-agent's exceptions"},
	} {
		t.Run(name, func(t *testing.T) {
			topo := topology(2)
			topo.Network = connectivity.NetworkOf(tc.settings)
			if got := topo.Network.String(); got != tc.says {
				t.Errorf("%q, want %q", got, tc.says)
			}
			for _, c := range outsideCells(topo) {
				want := tc.want4
				if c.Family == connectivity.IPv6 {
					want = tc.want6
				}
				if c.Path != connectivity.PodToOutside {
					want = nil
				}
				if c.From.Node != "n2" && !slices.Equal(c.Source, want) {
					t.Errorf("%s %s: source %v, want %v", c.Path, c.Name(), c.Source, want)
				}
			}
		})
	}
}

// TestLearnsMTU guards against loss that is excused where nothing has to be
// learned, and against a tunnel whose large answers are taken for lost.
func TestLearnsMTU(t *testing.T) {
	for _, mode := range []string{"native", "tunnel"} {
		topo := topology(1)
		topo.Network = connectivity.NetworkOf(map[string]string{"routing-mode": mode})
		for _, c := range connectivity.Plan(topo, connectivity.Filter{}) {
			want := mode == "tunnel" && c.Path == connectivity.PodToOutside && c.Proto != connectivity.TCP &&
				(c.Size == connectivity.MTUPlus1 || c.Size == connectivity.Max)
			if c.LearnsMTU != want {
				t.Errorf("%s: %s %s: %t", mode, c.Path, c.Name(), c.LearnsMTU)
			}
		}
	}
}

// TestForeignTarget guards against asking a stranger's host for what it need
// not answer, and against cells that vanish without a word where no host
// outside is known.
func TestForeignTarget(t *testing.T) {
	topo := topology(1)
	topo.Outside = connectivity.Outside{Targets: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:443"), netip.MustParseAddrPort("[2001:db8::7]:0")}}
	var got []string
	for _, c := range outsideCells(topo) {
		if c.Path == connectivity.OutsideToNode && !strings.Contains(c.Skip, "--from-outside") || c.Fail != "" || len(c.Source) > 0 {
			t.Errorf("%s %s: skipped %q, failed %q", c.Path, c.Name(), c.Skip, c.Fail)
		}
		if c.Runs() {
			got = append(got, c.Name()+" "+netip.AddrPortFrom(c.Addr, c.Port).String())
		}
	}
	want := []string{
		"IPv4 TCP connect 192.0.2.7:443", "IPv4 ICMP 1B 192.0.2.7:0", "IPv4 ICMP MTU 192.0.2.7:0",
		"IPv6 ICMP 1B [2001:db8::7]:0", "IPv6 ICMP MTU [2001:db8::7]:0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("runs %q, want %q", got, want)
	}
	topo.Outside = connectivity.Outside{}
	cells := outsideCells(topo)
	for _, c := range cells {
		if !strings.Contains(c.Skip, "--external-target") {
			t.Errorf("%s %s: skipped %q, failed %q", c.Path, c.Name(), c.Skip, c.Fail)
		}
	}
	if len(cells) != 2*24 {
		t.Errorf("%d cells are skipped, want 48", len(cells))
	}
}

// TestParseTarget guards against a port that is taken for part of an address.
func TestParseTarget(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7:0", "192.0.2.7:443": "192.0.2.7:443", "2001:db8::7": "[2001:db8::7]:0", "[2001:db8::7]:443": "[2001:db8::7]:443",
		"::ffff:192.0.2.7": "192.0.2.7:0",
	} {
		got, err := connectivity.ParseTarget(t.Context(), in)
		if err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("%s: %v, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "192.0.2.7:x", "[2001:db8::7", "http://a", "192.0.2.7:70000"} {
		if got, err := connectivity.ParseTarget(t.Context(), in); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}
