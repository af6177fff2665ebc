// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
		{"routing-mode", "tunnel", "setting routing-mode: tunnel is not yet supported: set routingMode=native"},
		{"routing-mode", "", `setting routing-mode: "" is unknown`},
		{"ipam", "cluster-pool", "setting ipam: cluster-pool is not yet supported"},
		{"kube-proxy-replacement", "true", "setting kube-proxy-replacement: true is not yet supported: leave kube-proxy running"},
		{"kube-proxy-replacement", "strict", `"strict" is neither true nor false`},
		{"enable-endpoint-routes", "false", "setting enable-endpoint-routes: false is not supported"},
		{"enable-ipv4", "false", "both families are off"},
		{"mtu", "100", "setting mtu: 100 is outside 576 to 65535"},
		{"mtu", "1e3", `"1e3" is not a whole number`},
		{"devices", "eth[", `"eth[" is not a device name or glob`},
		{"ipv4-native-routing-cidr", "10.0.0.1/8", "write 10.0.0.0/8"},
		{"ipv4-native-routing-cidr", "fd00::/8", "is of the other family"},
		{"ipv6-native-routing-cidr", "fd00::/8", "its family is off"},
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

// Guards against reporting problems one restart at a time.
func TestAllProblemsAtOnce(t *testing.T) {
	_, err := config.Parse(map[string]string{"routing-mode": "tunnel", "ipam": "eni", "mtu": "3"})
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
