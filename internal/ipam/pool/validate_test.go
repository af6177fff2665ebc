// SPDX-License-Identifier: Apache-2.0

package pool_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/ipam/pool"
)

// Fault: a pool that hides something else from pods is taken without a word,
// or one that does not is refused (DATAPATH rule 20).
func TestOverlapRules(t *testing.T) {
	const where = "node z, device eth1"
	for _, c := range []struct {
		name     string
		cidr     string
		hazard   string
		kind     pool.HazardKind
		ack      string
		severity pool.Severity // 0: no finding
		free     bool          // whether 10.20.5.0/24, or the pool's only block, is granted
	}{
		{"equal route", "10.20.5.0/24", "10.20.5.0/24", pool.Route, "", pool.Refuse, false},
		{"more specific route", "10.20.4.0/23", "10.20.5.7/32", pool.Route, "", pool.Withhold, false},
		{"wider route", "10.20.5.0/24", "10.0.0.0/8", pool.Route, "", pool.Warn, true},
		{"default route", "10.20.5.0/24", "0.0.0.0/0", pool.Route, "", 0, true},
		{"route elsewhere", "10.20.5.0/24", "10.20.6.0/24", pool.Route, "", 0, true},
		{"wider route, acknowledged", "10.20.5.0/24", "10.0.0.0/8", pool.Route, "10.20.0.0/16", 0, true},
		{"connected subnet inside", "10.20.4.0/23", "10.20.5.0/25", pool.Connected, "", pool.Withhold, false},
		{"connected subnet around", "10.20.5.0/24", "10.20.0.0/16", pool.Connected, "", pool.Refuse, false},
		{"connected subnet, acknowledged", "10.20.5.0/24", "10.20.0.0/16", pool.Connected, "10.20.0.0/16", 0, true},
		{"the pool's part of it acknowledged", "10.20.5.0/24", "10.20.0.0/16", pool.Connected, "10.20.5.0/24", 0, true},
		{"half acknowledged", "10.20.5.0/24", "10.20.5.0/24", pool.Connected, "10.20.5.0/25", pool.Refuse, false},
		{"reserved", "10.20.4.0/23", "10.20.5.0/30", pool.Reserved, "", pool.Withhold, false},
		{"reserved around", "10.20.5.0/24", "10.0.0.0/8", pool.Reserved, "", pool.Refuse, false},
		{"a reservation cannot be acknowledged", "10.20.5.0/24", "10.20.5.0/24", pool.Reserved, "10.0.0.0/8", pool.Refuse, false},
		{"service CIDR", "10.20.4.0/23", "10.20.5.0/24", pool.ServiceCIDR, "", pool.Withhold, false},
		{"service CIDR around, acknowledged", "10.20.5.0/24", "10.0.0.0/8", pool.ServiceCIDR, "10.0.0.0/8", pool.Refuse, false},
		{"node address", "10.20.4.0/23", "10.20.5.9/32", pool.NodeAddress, "", pool.Withhold, false},
		{"other node's range", "10.20.4.0/23", "10.20.5.0/24", pool.NodeRange, "10.0.0.0/8", pool.Withhold, false},
		{"IPv6", "10.20.5.0/24", "fd00::/64", pool.Reserved, "", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := v4Pool(24, c.cidr)
			in := inputs(p, pool.Hazard{CIDR: prefix(c.hazard), Kind: c.kind, Where: where})
			if c.ack != "" {
				in.Acknowledged = prefixes(c.ack)
			}
			findings := pool.Validate(in)
			if c.severity == 0 && len(findings) > 0 || c.severity != 0 && (len(findings) != 1 || findings[0].Severity != c.severity) {
				t.Errorf("findings:\n%s", texts(findings))
			}
			for _, f := range findings {
				mustContain(t, f.Text, "pool default", c.cidr, c.hazard, c.kind.String(), where)
			}
			l, _, _ := pool.Plan(pool.Ledger{}, in, wants(p, "a", "b"))
			if got := strings.Contains(granted(l), "10.20.5.0/24"); got != c.free {
				t.Errorf("granted %v: %s", got, granted(l))
			}
		})
	}
}

// Fault: a pool from which nothing sensible can be cut is found out when the
// first node joins, or worse.
func TestUnusablePools(t *testing.T) {
	for _, c := range []struct {
		name  string
		cidrs []string
		mask  int
		v6    bool
		want  string // empty: it is fine
	}{
		{"plain", []string{"10.20.0.0/16"}, 24, false, ""},
		{"one block", []string{"10.20.0.0/24"}, 24, false, ""},
		{"IPv6", []string{"fd00::/48"}, 64, true, ""},
		{"2^118 blocks", []string{"fd00::/8"}, 126, true, ""},
		{"mask shorter than the range", []string{"10.20.0.0/16", "10.30.0.0/25"}, 24, false, "CIDR 10.30.0.0/25: is smaller than one block, which is a /24: set ipam.operator.clusterPoolIPv4MaskSize to 25"},
		{"no room for pods", []string{"10.20.0.0/16"}, 31, false, "blocks of /31 leave no address for pods: set ipam.operator.clusterPoolIPv4MaskSize to 30"},
		{"no room for pods, IPv6", []string{"fd00::/64"}, 127, true, "to 126 or less"},
		{"no mask", []string{"10.20.0.0/16"}, 0, false, "is not set"},
		{"host bits", []string{"10.20.0.1/16"}, 24, false, "write 10.20.0.0/16"},
		{"twice", []string{"10.20.0.0/16", "10.20.0.0/16"}, 24, false, "overlaps 10.20.0.0/16 of the same pool"},
		{"one in another", []string{"10.20.0.0/16", "10.20.3.0/24"}, 24, false, "CIDR 10.20.3.0/24: overlaps 10.20.0.0/16"},
		{"wrong family", []string{"fd00::/64"}, 80, false, "is not IPv4: move it"},
		{"mapped", []string{"::ffff:10.0.0.0/104"}, 120, true, "IPv4-mapped"},
		{"loopback", []string{"127.0.0.0/16"}, 24, false, "loopback"},
		{"link-local", []string{"fe80::/64"}, 80, true, "link-local"},
		{"everything", []string{"0.0.0.0/0"}, 24, false, "never a pod's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pool.Pool{Name: "default"}
			if f := (pool.Family{CIDRs: prefixes(c.cidrs...), MaskSize: c.mask}); c.v6 {
				p.V6 = f
			} else {
				p.V4 = f
			}
			got := texts(pool.Validate(inputs(p)))
			if c.want == "" && got != "" || c.want != "" && !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	bad := pool.Pool{Name: "default", V4: pool.Family{CIDRs: []netip.Prefix{{}}, MaskSize: 24}}
	mustContain(t, texts(pool.Validate(inputs(bad))), "is not a CIDR")
	pool.Plan(pool.Ledger{}, inputs(bad), wants(bad, "a"))
}

// Fault: two pools that overlap, each with a ledger of its own, give out the
// same range.
func TestOverlappingPools(t *testing.T) {
	blue := pool.Pool{Name: "blue", Object: "CiliumPodIPPool blue", V4: pool.Family{CIDRs: prefixes("10.20.0.0/16"), MaskSize: 24}}
	red := pool.Pool{Name: "red", Object: "CiliumPodIPPool red", V4: pool.Family{CIDRs: prefixes("10.20.0.0/23"), MaskSize: 26}}
	in := inputs(blue)
	in.Others = []pool.Pool{red}
	l, _, findings := pool.Plan(pool.Ledger{}, in, wants(blue, "a"))
	if got := granted(l); got != "a:[10.20.2.0/24]" {
		t.Error(got)
	}
	mustContain(t, texts(findings), "pool blue: CIDR 10.20.0.0/16 overlaps other pool 10.20.0.0/23 (pool red): 2 of its 256 blocks of /24 are not granted")
	in.Pool, in.Others = red, []pool.Pool{blue}
	l, results, findings := pool.Plan(pool.Ledger{}, in, wants(red, "a"))
	if len(l.Grants) > 0 {
		t.Error(granted(l))
	}
	mustContain(t, texts(findings), "none of its blocks is granted; take the range out of spec.ipv4.cidrs of CiliumPodIPPool red or of the other pool")
	mustContain(t, results[0].Refused[0].Error(), "pool red", "CiliumPodIPPool red", "pool blue")
}

// Fault: the subnet of 5,000 nodes is reported 5,000 times, and each of their
// addresses once more.
func TestFindingsAreFew(t *testing.T) {
	p := v4Pool(24, "10.0.0.0/8")
	in := inputs(p)
	for i := range 5000 {
		h, err := pool.RouteHazard("n"+strings.Repeat("x", i%7), v1alpha1.NodeRoute{CIDR: "10.1.0.0/16", Dev: "eth0"})
		if err != nil {
			t.Fatal(err)
		}
		in.Hazards = append(in.Hazards, h, pool.Hazard{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32), Kind: pool.NodeAddress})
	}
	findings := pool.Validate(in)
	if len(findings) != 1 {
		t.Errorf("%d findings", len(findings))
	}
	mustContain(t, texts(findings), "connected subnet 10.1.0.0/16 (node n, device eth0, and 4999 more): 256 of its 65536 blocks of /24 are not granted")
}

// Fault: a route by way of a gateway counts as connected, or a broken one ends
// up as a hazard that covers everything.
func TestRouteHazard(t *testing.T) {
	h, err := pool.RouteHazard("n1", v1alpha1.NodeRoute{CIDR: "10.0.0.9/8", Dev: "tun0", Via: "10.9.9.9"})
	if want := (pool.Hazard{CIDR: prefix("10.0.0.0/8"), Kind: pool.Route, Where: "node n1, device tun0, via 10.9.9.9"}); err != nil || h != want {
		t.Errorf("got %+v, %v", h, err)
	}
	for _, bad := range []string{"", "10.0.0.0", "10.0.0.0/33", "::ffff:10.0.0.0/104", "x/8"} {
		if h, err := pool.RouteHazard("n1", v1alpha1.NodeRoute{CIDR: bad}); err == nil {
			t.Errorf("%q became %v", bad, h)
		}
	}
}
