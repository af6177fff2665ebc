// SPDX-License-Identifier: Apache-2.0

package config

import "fmt"

// Routing modes.
const (
	RoutingNative = "native" // the network, or direct routes, carry pods' packets
	RoutingTunnel = "tunnel" // the nodes do, in VXLAN
)

// Families of the underlay.
const (
	UnderlayIPv4 = "ipv4"
	UnderlayIPv6 = "ipv6"
)

// Tunnel says how nodes reach each other's pods in mode tunnel.
type Tunnel struct {
	Protocol string `key:"tunnel-protocol"`   // vxlan
	Port     int    `key:"tunnel-port"`       // UDP
	Underlay string `key:"underlay-protocol"` // of the outer packets: ipv4 or ipv6, whatever is inside
}

// Bytes that VXLAN puts around a packet: outer IP header, UDP 8, VXLAN 8, inner
// Ethernet 14 (RFC 7348).
const (
	vxlanOverIPv4 = 20 + 8 + 8 + 14
	vxlanOverIPv6 = 40 + 8 + 8 + 14
)

// Overhead is by how many bytes a pod's packet grows on its way to another node.
func (c *Config) Overhead() int {
	switch {
	case c.RoutingMode != RoutingTunnel:
		return 0
	case c.Tunnel.Underlay == UnderlayIPv6:
		return vxlanOverIPv6
	}
	return vxlanOverIPv4
}

func (c *Config) checkRouting() []error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("setting "+key+": "+format, args...))
	}
	switch c.RoutingMode {
	case RoutingNative, RoutingTunnel:
	default:
		bad("routing-mode", "%q is unknown: native and tunnel are supported", c.RoutingMode)
	}
	if c.Tunnel.Protocol == "geneve" {
		bad("tunnel-protocol", "geneve is not supported: set tunnelProtocol=vxlan")
	} else if c.Tunnel.Protocol != "vxlan" {
		bad("tunnel-protocol", "%q is unknown: vxlan is supported", c.Tunnel.Protocol)
	}
	if c.Tunnel.Port < 1 || c.Tunnel.Port > maxPort {
		bad("tunnel-port", "%d is not a port; 8472 is usual", c.Tunnel.Port)
	}
	switch c.Tunnel.Underlay {
	case UnderlayIPv4, UnderlayIPv6:
	default:
		bad("underlay-protocol", "%q is unknown: ipv4 and ipv6 are supported", c.Tunnel.Underlay)
	}
	return errs
}

const maxPort = 65535
