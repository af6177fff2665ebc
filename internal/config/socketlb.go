// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/service/maglev"
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
	// Addresses are where an address of a node must lie for NodePorts to answer there; empty: anywhere.
	Addresses []netip.Prefix `key:"nodeport-addresses"`
	// BindProtection: the node's own sockets cannot bind ports that are NodePorts.
	BindProtection bool   `key:"node-port-bind-protection"`
	Maglev         Maglev // with NodePort
}

// Values of bpf-lb-algorithm.
const (
	AlgorithmRandom = "random"
	AlgorithmMaglev = "maglev"
)

// Maglev says which Services spread what comes from outside by Maglev tables.
type Maglev struct {
	Algorithm   string `key:"bpf-lb-algorithm"`            // of Services that name none: random or maglev
	Annotations bool   `key:"bpf-lb-algorithm-annotation"` // Services may name one
	TableSize   int    `key:"bpf-lb-maglev-table-size"`    // one of maglev.Sizes
	HashSeed    string `key:"bpf-lb-maglev-hash-seed"`     // base64 of 12 bytes, the same on all nodes
}

// On tells whether there may be tables.
func (m Maglev) On() bool { return m.Annotations || m.Algorithm == AlgorithmMaglev }

// Table is what tables are like. The settings have been checked.
func (m Maglev) Table() maglev.Table {
	seed, _ := maglev.ParseSeed(m.HashSeed) // checked: see check
	return maglev.Table{Size: m.TableSize, Seed: seed}
}

func (m Maglev) check(nodePort bool) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("setting "+key+": "+format, args...))
	}
	switch {
	case m.Algorithm != AlgorithmRandom && m.Algorithm != AlgorithmMaglev:
		bad("bpf-lb-algorithm", "%q is unknown: use random or maglev", m.Algorithm)
	case m.Algorithm == AlgorithmMaglev && !nodePort:
		bad("bpf-lb-algorithm", "maglev needs enable-node-port: set nodePort.enabled=true, or loadBalancer.algorithm=random")
	}
	if m.Annotations && !nodePort {
		bad("bpf-lb-algorithm-annotation", "true needs enable-node-port: set nodePort.enabled=true, or bpf.lbAlgorithmAnnotation=false")
	}
	if !slices.Contains(maglev.Sizes(), m.TableSize) {
		bad("bpf-lb-maglev-table-size", "%d is none of the primes that a table may have: %s; a hundred times as many as a service has backends is usual", m.TableSize,
			strings.Trim(fmt.Sprint(maglev.Sizes()), "[]"))
	}
	if _, err := maglev.ParseSeed(m.HashSeed); err != nil {
		bad("bpf-lb-maglev-hash-seed", "%w: head -c12 /dev/urandom | base64 makes one", err)
	}
	return errs
}

// Backends is how many backends there may be: ids begin at 1.
func (s SocketLB) Backends() int { return 2*s.MapMax - 1 }

// replaceKubeProxy switches on all that stands for kube-proxy, whatever its own keys
// say, as Cilium does.
func (c *Config) replaceKubeProxy() {
	if c.KubeProxyReplacement {
		c.SocketLB.Enabled, c.SocketLB.NodePort = true, true
	}
}

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
	return c.SocketLB.Maglev.check(c.SocketLB.NodePort)
}
