// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-net/weft/internal/config"
)

// Guards against a ConfigMap mount being misread: its links and its trailing
// newlines are part of how the kubelet writes it.
func TestLoadConfigMapMount(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "..2026_11_21_00_00_00.1")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"enable-ipv6": "true\n", "mtu": "1450", "devices": "eth0, bond*", "ipv4-native-routing-cidr": "10.0.0.0/8",
	} {
		if err := os.WriteFile(filepath.Join(data, k), []byte(v), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", k), filepath.Join(dir, k)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Base(data), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.EnableIPv6, want.MTU, want.Devices = true, 1450, []string{"eth0", "bond*"}
	want.IPv4NativeCIDR = netip.MustParsePrefix("10.0.0.0/8")
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

// Guards against a wrong value that takes effect, or that is refused without
// saying what to do.
func TestRefusals(t *testing.T) {
	for _, tc := range []struct{ key, value, want string }{
		{"enable-ip6", "true", "setting enable-ip6: unknown: did you mean enable-ipv6?"},
		{"tofqdns-proxy-response-max-delay", "1", "setting tofqdns-proxy-response-max-delay: unknown: remove it"},
		{"routing-mode", "overlay", `setting routing-mode: "overlay" is unknown: native and tunnel are supported`},
		{"tunnel-protocol", "geneve", "setting tunnel-protocol: geneve is not supported: set tunnelProtocol=vxlan"},
		{"tunnel-port", "0", "setting tunnel-port: 0 is not a port"},
		{"underlay-protocol", "auto", `setting underlay-protocol: "auto" is unknown`},
		{"routing-mode", "", `setting routing-mode: "" is unknown`},
		{"ipam", "crd", "setting ipam: crd is not yet supported"},
		{"ipam-multi-pool-pre-allocation", "blue:7", "is not POOL=N"},
		{"cluster-pool-ipv4-cidr", "10.0.0.0/8 10.1.0.0/16", "10.0.0.0/8 and 10.1.0.0/16 overlap"},
		{"cluster-pool-ipv4-cidr", "10.0.0.0/26", "setting cluster-pool-ipv4-mask-size: /24 is longer"},
		{"cluster-pool-ipv4-cidr", "fd00::/48", "fd00::/48 is not an IPv4 range"},
		{"cluster-pool-ipv4-cidr", "::ffff:10.0.0.0/104", "is not an IPv4 range"},
		{"cluster-pool-ipv6-cidr", "10.0.0.0/8", "10.0.0.0/8 is not an IPv6 range"},
		{"cluster-pool-ipv4-mask-size", "31", "write 1 to 30"},
		{"cluster-pool-ipv6-mask-size", "0", "write 1 to 126"},
		{"cluster-pool-acknowledged-overlaps", "10.0.0.1/8", "write 10.0.0.0/8"},
		{"cluster-pool-quarantine", "10", `"10" is not a duration such as 10m`},
		{"cluster-pool-quarantine", "-1s", "is outside 0 to 24h0m0s"},
		{"nodeport-addresses", "10.0.0.1/8", "write 10.0.0.0/8"},
		{"kube-proxy-replacement", "strict", `"strict" is neither true nor false`},
		{"enable-endpoint-routes", "false", "setting enable-endpoint-routes: false is not supported"},
		{"enable-ipv4", "false", "both families are off"},
		{"mtu", "100", "setting mtu: 100 is outside 576 to 65535"},
		{"mtu", "1e3", `"1e3" is not a whole number`},
		{"devices", "eth[", `"eth[" is not a device name or glob`},
		{"ipv4-native-routing-cidr", "10.0.0.1/8", "write 10.0.0.0/8"},
		{"ipv4-native-routing-cidr", "fd00::/8", "is of the other family"},
		{"ipv6-native-routing-cidr", "fd00::/8", "its family is off"},
		{"enable-ipv6-big-tcp", "true", "setting enable-ipv6-big-tcp: true needs enable-ipv6: set enableIPv6BIGTCP=false, or ipv6.enabled=true"},
		{"enable-ipv4-big-tcp", "on", `"on" is neither true nor false`},
		{"enable-ipv4-masquerade", "true", "set bpf.masquerade=true, or enableIPv4Masquerade=false"},
		{"enable-ip-masq-agent", "true", "true needs enable-bpf-masquerade"},
		{"masquerade-port-range", "30000-40000", "overlaps NodePorts"},
		{"masquerade-port-range", "80-2000", "begins below 1024"},
		{"masquerade-port-range", "50000-50010", "fewer than"},
		{"masquerade-port-range", "50000", "is not a range of ports such as 49152-65535"},
		{"bpf-lb-sock-hostns-only", "true", "true needs bpf-lb-sock: set socketLB.enabled=true"},
		{"enable-node-port", "true", "true needs bpf-lb-sock: set socketLB.enabled=true"},
		{"bpf-lb-sock", "on", `"on" is neither true nor false`},
		{"bpf-lb-map-max", "0", "setting bpf-lb-map-max: 0 is outside 256 to 4194304: set bpf.lbMapMax"},
		{"bpf-lb-algorithm", "maglev", "maglev needs enable-node-port: set nodePort.enabled=true"},
		{"bpf-lb-algorithm", "least-conn", `"least-conn" is unknown: use random or maglev`},
		{"bpf-lb-algorithm-annotation", "true", "true needs enable-node-port: set nodePort.enabled=true"},
		{"bpf-lb-maglev-table-size", "16384", "16384 is none of the primes that a table may have: 251 509 1021 2039 4093 8191 16381 32749 65521 131071"},
		{"bpf-lb-maglev-hash-seed", "JAeU", `"JAeU" is not 12 bytes in base64: head -c12 /dev/urandom | base64 makes one`},
		{"prometheus-port", "9879", "9879 is taken by agent-health-port already"},
		{"prometheus-port", "70000", "70000 is not a port"},
		{"agent-health-port", "0", "0 is not possible"},
		{"monitor-aggregation", "maximum", "maximum is not yet supported"},
		{"cgroup-root", "sys/fs", "is not an absolute path"},
		{"k8s-api-server", "10.0.0.1:6443", "write https://HOST:PORT"},
	} {
		t.Run(tc.key+"="+tc.value, func(t *testing.T) {
			_, err := config.Parse(map[string]string{tc.key: tc.value})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want it to contain %q", err, tc.want)
			}
		})
	}
}

// Guards against kubeProxyReplacement that leaves something of it off, and against
// settings of NodePorts that are read otherwise than they are written.
func TestKubeProxyReplacement(t *testing.T) {
	for _, tc := range []struct {
		values   map[string]string
		sock, np bool
	}{
		{map[string]string{}, false, false},
		{map[string]string{"kube-proxy-replacement": "false", "bpf-lb-sock": "true"}, true, false},
		{map[string]string{"kube-proxy-replacement": "true"}, true, true},
		{map[string]string{"kube-proxy-replacement": "true", "bpf-lb-sock": "false", "enable-node-port": "false"}, true, true},
	} {
		cfg, err := config.Parse(tc.values)
		if err != nil || cfg.SocketLB.Enabled != tc.sock || cfg.SocketLB.NodePort != tc.np {
			t.Errorf("%v: %+v %v", tc.values, cfg, err)
		}
	}
	if cfg, err := config.Parse(map[string]string{"kube-proxy-replacement": "true", "bpf-lb-sock-hostns-only": "true"}); err != nil || !cfg.SocketLB.HostNamespaceOnly {
		t.Errorf("pods' connections past their sockets: %+v %v", cfg, err)
	}
	cfg, err := config.Parse(map[string]string{"nodeport-addresses": "10.0.0.0/8, fd00::/8", "node-port-bind-protection": "false"})
	if err != nil || len(cfg.SocketLB.Addresses) != 2 || cfg.SocketLB.BindProtection {
		t.Errorf("%+v %v", cfg, err)
	}
}

// Guards against a pool that is read otherwise than it is written: lists with
// commas or spaces, and a family that is off.
func TestClusterPool(t *testing.T) {
	cfg, err := config.Parse(map[string]string{
		"ipam": "cluster-pool", "enable-ipv6": "true", "cluster-pool-ipv4-cidr": "10.10.0.0/16,10.12.0.0/16",
		"cluster-pool-ipv6-cidr": "fd00:10::/104\n", "cluster-pool-acknowledged-overlaps": "10.0.0.0/8", "cluster-pool-quarantine": "90s",
	})
	if err != nil {
		t.Fatal(err)
	}
	pfx := netip.MustParsePrefix
	if want := []netip.Prefix{pfx("10.10.0.0/16"), pfx("10.12.0.0/16"), pfx("fd00:10::/104")}; !slices.Equal(cfg.Pool.CIDRs(), want) {
		t.Errorf("pool %v, want %v", cfg.Pool.CIDRs(), want)
	}
	if cfg.Pool.IPv4MaskSize != 24 || cfg.Pool.IPv6MaskSize != 120 || cfg.Pool.Quarantine != 90*time.Second || len(cfg.Pool.Acknowledged) != 1 {
		t.Errorf("got %+v", cfg.Pool)
	}
	_, err = config.Parse(map[string]string{"ipam": "cluster-pool", "cluster-pool-ipv6-cidr": "fd00:10::/104"})
	if err == nil || !strings.Contains(err.Error(), "fd00:10::/104 is set but its family is off") {
		t.Errorf("got %v", err)
	}
}

// Guards against masquerade that nobody asked for, or that starts without
// knowing where pods' addresses are routed.
func TestMasquerade(t *testing.T) {
	on := map[string]string{"enable-bpf-masquerade": "true", "enable-ipv4-masquerade": "true", "enable-ipv6-masquerade": "true"}
	with := func(more ...string) map[string]string {
		out := maps.Clone(on)
		for i := 0; i < len(more); i += 2 {
			out[more[i]] = more[i+1]
		}
		return out
	}
	if _, err := config.Parse(on); err == nil || !strings.Contains(err.Error(), "set ipv4NativeRoutingCIDR to the range") {
		t.Errorf("without a range: %v", err)
	}
	for _, tc := range []struct {
		values map[string]string
		v4, v6 bool
	}{
		{nil, false, false},
		{with("ipv4-native-routing-cidr", "10.0.0.0/8"), true, false},
		{with("enable-ip-masq-agent", "true"), true, false},
		{with("enable-ip-masq-agent", "true", "enable-ipv6", "true"), true, true},
		{with("enable-ipv4-masquerade", "false"), false, false},
	} {
		c, err := config.Parse(tc.values)
		if err != nil {
			t.Errorf("%v: %v", tc.values, err)
			continue
		}
		if v4, v6 := c.Masquerades(); v4 != tc.v4 || v6 != tc.v6 {
			t.Errorf("%v: IPv4 %t, IPv6 %t", tc.values, v4, v6)
		}
	}
	if low, high := config.Default().Masquerade.PortRange(); low != 49152 || high != 65535 {
		t.Errorf("ports %d-%d", low, high)
	}
}

// Guards against reporting problems one restart at a time.
func TestAllProblemsAtOnce(t *testing.T) {
	_, err := config.Parse(map[string]string{"routing-mode": "overlay", "ipam": "eni", "mtu": "3"})
	for _, key := range []string{"routing-mode", "ipam", "mtu"} {
		if err == nil || !strings.Contains(err.Error(), "setting "+key+":") {
			t.Errorf("%s is missing from %v", key, err)
		}
	}
}

// Guards against a directory that is absent being taken for empty settings.
func TestLoadMissingDirectory(t *testing.T) {
	if _, err := config.Load(filepath.Join(t.TempDir(), "no")); err == nil || !strings.Contains(err.Error(), "--config-dir") {
		t.Errorf("got %v", err)
	}
}

// Guards against settings that Weft accepts but shows differently from what it runs with.
func FuzzParse(f *testing.F) {
	f.Add("mtu", "1500", "devices", "eth0 ens*")
	f.Add("enable-ipv6", "true", "ipv6-native-routing-cidr", "fd00::/8")
	f.Add("k8s-api-server", "https://[::1]:6443", "cgroup-root", "/x")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		cfg, err := config.Parse(map[string]string{k1: v1, k2: v2})
		if err != nil {
			if cfg != nil {
				t.Error("settings returned beside an error")
			}
			return
		}
		again, err := config.Parse(cfg.Values())
		if err != nil {
			t.Fatalf("values of accepted settings are refused: %v", err)
		}
		if d := cmp.Diff(cfg.Values(), again.Values()); d != "" {
			t.Error(d)
		}
	})
}

// Guards against the operator's settings stopping the agents and the other way
// round, and against a key that neither of them knows.
func TestOperatorReadsItsOwnKeys(t *testing.T) {
	o, err := config.ParseOperator(map[string]string{
		"mtu": "nonsense", "routing-mode": "tunnel", "operator-prometheus-port": "0", "ipam": "cluster-pool",
		"cluster-pool-ipv4-cidr": "10.10.0.0/16", "nodes-gc-interval": "2m0s",
	})
	if err != nil {
		t.Fatal(err)
	}
	if o.Service.NodesGC != 2*time.Minute || o.Service.PrometheusPort != 0 || len(o.Pool.IPv4CIDRs) != 1 || o.Service.HealthPort != 9234 {
		t.Errorf("got %+v", o)
	}
	if _, err := config.Parse(map[string]string{"operator-prometheus-port": "nonsense"}); err != nil {
		t.Errorf("the agent: %v", err)
	}
	for _, tc := range []struct{ key, value, want string }{
		{"operator-healthport", "1", "did you mean operator-health-port?"},
		{"operator-health-port", "0", "0 is not a port"},
		{"operator-prometheus-port", "9234", "taken by operator-health-port"},
		{"nodes-gc-interval", "48h", "is outside 0 to 24h0m0s"},
		{"cluster-pool-ipv4-mask-size", "31", "write 1 to 30"},
		{"ipam", "eni", "eni is not yet supported"},
		{"enable-ipv4", "false", "both families are off"},
		{"k8s-api-server", "x", "write https://HOST:PORT"},
	} {
		if _, err := config.ParseOperator(map[string]string{tc.key: tc.value}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s=%s: got %v, want it to contain %q", tc.key, tc.value, err, tc.want)
		}
	}
}

// Guards against pods whose packets do not fit through the overlay: by what each
// grows is said in one place.
func TestOverhead(t *testing.T) {
	for _, tc := range []struct {
		mode, underlay string
		want           int
	}{{"native", "ipv4", 0}, {"native", "ipv6", 0}, {"tunnel", "ipv4", 50}, {"tunnel", "ipv6", 70}} {
		cfg, err := config.Parse(map[string]string{"routing-mode": tc.mode, "underlay-protocol": tc.underlay})
		if err != nil {
			t.Fatal(err)
		}
		if got := cfg.Overhead(); got != tc.want {
			t.Errorf("%s over %s: %d bytes, want %d", tc.mode, tc.underlay, got, tc.want)
		}
	}
}
