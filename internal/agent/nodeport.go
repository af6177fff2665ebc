// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/service"
)

// outside says in which families services answer from outside the node.
func outside(c *config.Config) maps.Outside {
	on := c.SocketLB.NodePort
	return maps.Outside{IPv4: on && c.EnableIPv4, IPv6: on && c.EnableIPv6}
}

// maglevModel says which Services have Maglev tables, and for how many there is room.
func maglevModel(c *config.Config, m *maps.ServiceMap) service.Maglev {
	lb := c.SocketLB
	if !lb.NodePort || !lb.Maglev.On() {
		return service.Maglev{}
	}
	return service.Maglev{
		Default: lb.Maglev.Algorithm == config.AlgorithmMaglev, Annotations: lb.Maglev.Annotations,
		MaxTables: m.MaglevRoom(lb.Maglev.TableSize), Slots: lb.Maglev.TableSize,
	}
}

// forgetOutside empties the table of connections from outside where nobody asks for
// it, and nobody else looks after it.
func (a *Agent) forgetOutside() {
	if a.cfg.SocketLB.NodePort {
		return
	}
	if _, err := a.dp.Maps().LBConns.Flush(); err != nil {
		a.log.Warn("connections from outside to services cannot be forgotten", "error", err)
	}
}

// nodePortComponent is the line of the status.
func (a *Agent) nodePortComponent() rpc.Component {
	c := rpc.Component{Name: "NodePort", State: rpc.StateDisabled, Message: "nodePort.enabled and kubeProxyReplacement are false; kube-proxy answers what comes from outside"}
	if !a.cfg.SocketLB.NodePort {
		return c
	}
	if err := a.masq.failing(); err != nil {
		c.State, c.Message = rpc.StateFailing, "clients of backends on other nodes get no port: "+err.Error()
		return c
	}
	c.State = rpc.StateOK
	if a.healthChecks != nil {
		c.Details = a.healthChecks.Problems()
	}
	c.Message = fmt.Sprintf("SNAT, ports %s, %s; external and load balancer addresses and hostPorts too", a.cfg.Masquerade.Ports, a.cfg.SocketLB.Maglev.Algorithm)
	if at := a.cfg.SocketLB.Addresses; len(at) > 0 {
		c.Message += "; NodePorts at addresses in " + strings.Trim(fmt.Sprint(at), "[]")
	}
	return c
}

// replacementComponent is the line of the status that says what stands for kube-proxy,
// in the words of Cilium's. Whether it works is said by those that follow it.
func (a *Agent) replacementComponent() rpc.Component {
	devices, err := a.devices.Selected()
	if err != nil { // which the component Datapath says
		devices = nil
	}
	return replacement(a.cfg, devices)
}

func replacement(cfg *config.Config, devices []string) rpc.Component {
	c := rpc.Component{Name: "KubeProxyReplacement", State: rpc.StateOK, Inline: true, Message: "False"}
	if cfg.KubeProxyReplacement {
		c.Message = strings.TrimSuffix("True ["+strings.Join(devices, ", ")+"]", " []")
	}
	word := func(on bool) string {
		if on {
			return "Enabled"
		}
		return "Disabled"
	}
	s, coverage := cfg.SocketLB, "Full"
	if s.HostNamespaceOnly {
		coverage = "Hostns-only"
	}
	c.Details = []string{"Socket LB: " + word(s.Enabled)}
	if s.Enabled {
		c.Details = append(c.Details, "Socket LB Coverage: "+coverage, "Session Affinity: Enabled")
	}
	if s.NodePort {
		c.Details = append(c.Details, "Mode: SNAT", "Backend Selection: Random at sockets, "+s.Maglev.Algorithm+" from outside", "XDP Acceleration: Disabled")
	}
	for _, svc := range []struct {
		name string
		on   bool
	}{{"ClusterIP", s.Enabled}, {"NodePort", s.NodePort}, {"LoadBalancer", s.NodePort}, {"externalIPs", s.NodePort}, {"HostPort", s.NodePort}} {
		c.Details = append(c.Details, svc.name+": "+word(svc.on))
	}
	return c
}
