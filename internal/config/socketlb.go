// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
)

// Bounds of bpf-lb-map-max. The map of backends is allocated in full.
const (
	minLBMap     = 256
	maxLBMap     = 1 << 22
	defaultLBMap = 1 << 16
)

// SocketLB says whether connections to Services get their backend at the socket.
type SocketLB struct {
	Enabled           bool `key:"bpf-lb-sock"`
	HostNamespaceOnly bool `key:"bpf-lb-sock-hostns-only"` // sockets of pods are left alone
	MapMax            int  `key:"bpf-lb-map-max"`          // frontends of each family; there may be twice as many backends
	// NodePort: Services answer what comes from outside the node, packet by packet.
	NodePort bool `key:"enable-node-port"`
	// HealthCheck: with NodePort, the node answers at Services' healthCheckNodePorts.
	HealthCheck bool `key:"enable-health-check-nodeport"`
}

// Backends is how many backends there may be: ids begin at 1.
func (s SocketLB) Backends() int { return 2*s.MapMax - 1 }

func (c *Config) checkSocketLB() []error {
	if c.SocketLB.HostNamespaceOnly && !c.SocketLB.Enabled {
		return []error{errors.New("setting bpf-lb-sock-hostns-only: true needs bpf-lb-sock: set socketLB.enabled=true, or socketLB.hostNamespaceOnly=false")}
	}
	if c.SocketLB.NodePort && !c.SocketLB.Enabled {
		return []error{errors.New("setting enable-node-port: true needs bpf-lb-sock: set socketLB.enabled=true, or nodePort.enabled=false")}
	}
	if m := c.SocketLB.MapMax; m < minLBMap || m > maxLBMap {
		return []error{fmt.Errorf("setting bpf-lb-map-max: %d is outside %d to %d: set bpf.lbMapMax to what the cluster's Services need, %d is usual", m, minLBMap, maxLBMap, defaultLBMap)}
	}
	return nil
}
