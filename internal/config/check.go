// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"slices"
)

// Bounds of an MTU in bytes: the least that each family must carry (RFC 791,
// RFC 8200) and the most that an IPv4 header can say.
const (
	minMTU4 = 576
	minMTU6 = 1280
	maxMTU  = 65535
)

func (c *Config) checkFamilies() []error {
	if c.EnableIPv4 || c.EnableIPv6 {
		return nil
	}
	return []error{errors.New("setting enable-ipv4: both families are off: set enable-ipv4 or enable-ipv6 to true")}
}

func (c *Config) checkIPAM() []error {
	bad := func(format string, args ...any) []error {
		return []error{fmt.Errorf("setting ipam: "+format, args...)}
	}
	switch c.IPAM {
	case IPAMKubernetes, IPAMClusterPool, IPAMMultiPool:
	case "crd", "eni", "azure", "alibabacloud", "delegated-plugin":
		return bad("%s is not yet supported: set ipam.mode=cluster-pool, or ipam.mode=kubernetes and let kube-controller-manager allocate node ranges (--allocate-node-cidrs)", c.IPAM)
	default:
		return bad("%q is unknown: kubernetes, cluster-pool and multi-pool are supported", c.IPAM)
	}
	return nil
}

// check returns one error for each value that Weft cannot work with.
func (c *Config) check() []error {
	errs := append(c.checkFamilies(), c.checkIPAM()...)
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("setting "+key+": "+format, args...))
	}
	if !c.EnableEndpointRoutes {
		bad("enable-endpoint-routes", "false is not supported: the node reaches each pod by a route of its own; set endpointRoutes.enabled=true")
	}
	switch c.MonitorAggregation {
	case "none", "medium":
	case "lowest", "low", "maximum":
		bad("monitor-aggregation", "%s is not yet supported: use none or medium", c.MonitorAggregation)
	default:
		bad("monitor-aggregation", "%q is unknown: use none or medium", c.MonitorAggregation)
	}
	if !filepath.IsAbs(c.CgroupRoot) {
		bad("cgroup-root", "%q is not an absolute path", c.CgroupRoot)
	}
	return slices.Concat(errs, c.checkRouting(), c.checkMasquerade(), c.checkPool(), c.checkPools(), c.checkBigTCP(), c.checkSocketLB(), c.checkNetwork())
}

func (c *Config) checkNetwork() []error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("setting "+key+": "+format, args...))
	}
	least := minMTU4
	if c.EnableIPv6 {
		least = minMTU6
	}
	least += c.Overhead()
	if c.MTU != 0 && (c.MTU < least || c.MTU > maxMTU) {
		bad("mtu", "%d is outside %d to %d; 0 takes the devices' own", c.MTU, least, maxMTU)
	}
	for _, d := range c.Devices {
		if _, err := path.Match(d, ""); err != nil {
			bad("devices", "%q is not a device name or glob", d)
		}
	}
	cidr := func(key string, p netip.Prefix, v6, enabled bool) {
		switch {
		case !p.IsValid():
		case p.Addr().Is6() != v6:
			bad(key, "%s is of the other family", p)
		case !enabled:
			bad(key, "%s is set but its family is off", p)
		}
	}
	cidr("ipv4-native-routing-cidr", c.IPv4NativeCIDR, false, c.EnableIPv4)
	cidr("ipv6-native-routing-cidr", c.IPv6NativeCIDR, true, c.EnableIPv6)
	if c.HealthPort == 0 {
		bad("agent-health-port", "0 is not possible: the kubelet's probes need it; 9879 is usual")
	}
	ports := map[int]string{}
	for _, p := range []struct {
		key  string
		port int
	}{{"agent-health-port", c.HealthPort}, {"prometheus-port", c.PrometheusPort}, {"pprof-port", c.PprofPort}} {
		if p.port < 0 || p.port > 65535 {
			bad(p.key, "%d is not a port", p.port)
			continue
		}
		if other, taken := ports[p.port]; taken && p.port != 0 {
			bad(p.key, "%d is taken by %s already", p.port, other)
		}
		ports[p.port] = p.key
	}
	if c.K8sAPIServer != "" {
		if err := checkServer(c.K8sAPIServer); err != nil {
			bad("k8s-api-server", "%q: %v: write https://HOST:PORT", c.K8sAPIServer, err)
		}
	}
	return errs
}

func checkServer(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return errors.New("is not a URL")
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("does not start with https://")
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/"):
		return errors.New("is more or less than a host and a port")
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil && u.Port() != "" {
		return errors.New("has no valid port")
	}
	return nil
}
