// SPDX-License-Identifier: Apache-2.0

// Package config reads and checks the agent's settings. They come as one file a
// key from a mounted ConfigMap (cilium-config), rendered by the Helm chart. A
// key that Weft does not know is an error that names the nearest known one.
package config

import "net/netip"

// Config is what the agent runs with. The key of each field stands in its tag.
type Config struct {
	EnableIPv4           bool         `key:"enable-ipv4"`
	EnableIPv6           bool         `key:"enable-ipv6"`
	RoutingMode          string       `key:"routing-mode"` // native or tunnel
	Tunnel               Tunnel       // of mode tunnel
	AutoDirectNodeRoutes bool         `key:"auto-direct-node-routes"`
	IPAM                 string       `key:"ipam"` // kubernetes, cluster-pool or multi-pool
	Pool                 ClusterPool  // of mode cluster-pool
	Pools                MultiPool    // of mode multi-pool
	MTU                  int          `key:"mtu"` // 0: from the devices
	BigTCP               BigTCP       // super-packets beyond 64 KiB
	EnableEndpointRoutes bool         `key:"enable-endpoint-routes"`
	KubeProxyReplacement bool         `key:"kube-proxy-replacement"` // switches on what of SocketLB it takes
	SocketLB             SocketLB     // services
	Devices              []string     `key:"devices"` // globs; empty: found by address and default route
	CgroupRoot           string       `key:"cgroup-root"`
	Debug                bool         `key:"debug"`
	MonitorAggregation   string       `key:"monitor-aggregation"` // none: trace every packet; medium: new flows and drops
	HealthPort           int          `key:"agent-health-port"`   // on loopback, 9879
	PrometheusPort       int          `key:"prometheus-port"`     // on loopback, 9962; 0 is off
	PprofPort            int          `key:"pprof-port"`          // on loopback, 0 is off
	IPv4NativeCIDR       netip.Prefix `key:"ipv4-native-routing-cidr"`
	IPv6NativeCIDR       netip.Prefix `key:"ipv6-native-routing-cidr"`
	Masquerade           Masquerade   // pods' flows to the outside
	K8sAPIServer         string       `key:"k8s-api-server"` // https://HOST:PORT; empty: as the pod's environment says
}
