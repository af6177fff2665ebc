// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	v2 "github.com/weft-net/weft/api/cilium.io/v2"
	"github.com/weft-net/weft/internal/masquerade"
)

// Network is how the cluster's network is set up, as far as it decides what has
// to arrive outside.
type Network struct {
	Routing    string          `json:"routing"`               // native, VXLAN, or unknown
	Masquerade map[Family]bool `json:"masquerade"`            // what pods send outside carries the node's address
	Exempt     []netip.Prefix  `json:"exempt,omitempty"`      // destinations that are not masqueraded
	Agent      bool            `json:"ipMasqAgent,omitempty"` // further destinations come from ip-masq-agent's settings, which are not known here
	Why        string          `json:"why,omitempty"`         // why it is unknown
}

// vxlan is what Routing is in a tunnel.
const vxlan = "VXLAN"

// Tunnels says whether pods of different nodes talk through a tunnel.
func (n Network) Tunnels() bool { return n.Routing == vxlan }

// settingsMap holds the agents' settings.
const settingsMap = "cilium-config"

// agentMap holds ip-masq-agent's settings.
const agentMap = "ip-masq-agent"

// NetworkOf reads the agents' settings, as they stand in the ConfigMap.
func NetworkOf(settings map[string]string) Network {
	n := Network{Routing: settings["routing-mode"], Masquerade: map[Family]bool{}}
	if n.Routing == "tunnel" {
		n.Routing = vxlan
	}
	bpf := settings["enable-bpf-masquerade"] == "true"
	n.Masquerade[IPv4] = bpf && settings["enable-ipv4-masquerade"] == "true"
	n.Masquerade[IPv6] = bpf && settings["enable-ipv6-masquerade"] == "true"
	n.Agent = bpf && settings["enable-ip-masq-agent"] == "true"
	for _, key := range []string{"ipv4-native-routing-cidr", "ipv6-native-routing-cidr"} {
		if p, err := netip.ParsePrefix(settings[key]); err == nil {
			n.Exempt = append(n.Exempt, p.Masked())
		}
	}
	return n
}

// String is "native routing, IPv4 masqueraded, IPv6 not".
func (n Network) String() string {
	if n.Why != "" {
		return "unknown: " + n.Why
	}
	words := []string{n.Routing + " routing"}
	if n.Tunnels() {
		words[0] = "tunnel (VXLAN)"
	}
	switch {
	case n.Masquerade[IPv4] && n.Masquerade[IPv6]:
		words = append(words, "masquerade")
	case n.Masquerade[IPv4]:
		words = append(words, "masquerade of IPv4 only")
	case n.Masquerade[IPv6]:
		words = append(words, "masquerade of IPv6 only")
	default:
		words = append(words, "no masquerade")
	}
	var exempt []string
	for _, p := range n.Exempt {
		if n.Masquerade[familyOf(p.Addr())] {
			exempt = append(exempt, p.String())
		}
	}
	if len(exempt) > 0 {
		words = append(words, "but not to "+strings.Join(exempt, ", "))
	}
	if n.Agent {
		words = append(words, "ip-masq-agent's exceptions")
	}
	return strings.Join(words, ", ")
}

func familyOf(a netip.Addr) Family {
	if a.Is6() {
		return IPv6
	}
	return IPv4
}

// source says which addresses may arrive at a host outside from a pod of the
// node, and in words which these are; none if nobody can say.
func (n Network) source(node *Node, pod Pod, to netip.Addr) ([]netip.Addr, string) {
	f := familyOf(to)
	on, why := n.Masquerade[f], "off"
	for _, p := range n.Exempt {
		if on && p.Contains(to) {
			on, why = false, "not done to "+p.String()
		}
	}
	if n.Why != "" || (on && n.Agent) {
		return nil, ""
	}
	var of []netip.Addr
	if !on {
		for _, a := range pod.Addrs {
			if f.Is(a) {
				of = append(of, a)
			}
		}
		return of, fmt.Sprintf("the pod's own address (masquerade is %s)", why)
	}
	for _, a := range node.All {
		if f.Is(a) {
			of = append(of, a)
		}
	}
	return of, fmt.Sprintf("an address of node %s (masquerade is on)", node.Name)
}

// readNetwork reads the agents' settings and what they publish of their nodes:
// ranges that are not Kubernetes' own, and all addresses.
func (r *runner) readNetwork(ctx context.Context) error {
	var settings corev1.ConfigMap
	err := r.api.Get(ctx, "/api/v1/namespaces/"+r.opts.System+"/configmaps/"+settingsMap, &settings)
	switch {
	case r.api.Gone(err):
		r.topo.Network = Network{Routing: "unknown", Why: fmt.Sprintf("there is no ConfigMap %s in namespace %s", settingsMap, r.opts.System)}
	case err != nil:
		return err
	default:
		r.topo.Network = NetworkOf(settings.Data)
	}
	if err := r.readMasqAgent(ctx); err != nil {
		return err
	}
	var nodes v2.CiliumNodeList
	if err := r.api.Get(ctx, "/apis/cilium.io/v2/ciliumnodes", &nodes); err != nil {
		if r.api.Gone(err) {
			return nil
		}
		return err
	}
	for i := range r.topo.Nodes {
		for j := range nodes.Items {
			if r.topo.Nodes[i].Name == nodes.Items[j].Name {
				r.topo.Nodes[i].adopt(&nodes.Items[j].Spec)
			}
		}
	}
	return nil
}

// readMasqAgent adds ip-masq-agent's exceptions, where they count. A file that
// the agents cannot read leaves them with an older one, which nobody knows here.
func (r *runner) readMasqAgent(ctx context.Context) error {
	n := &r.topo.Network
	if !n.Agent {
		return nil
	}
	var m corev1.ConfigMap
	err := r.api.Get(ctx, "/api/v1/namespaces/"+r.opts.System+"/configmaps/"+agentMap, &m)
	if err != nil && !r.api.Gone(err) {
		return err
	}
	c, err := masquerade.ParseAgentConfig([]byte(m.Data["config"]))
	if err == nil {
		n.Exempt, n.Agent = append(n.Exempt, c.Exclusions()...), false
	}
	return nil
}

// adopt takes over what the node's agent published.
func (n *Node) adopt(spec *v2.NodeSpec) {
	for _, a := range spec.Addresses {
		n.All = append(n.All, parseAddrs([]string{a.IP})...)
	}
	cidrs := spec.IPAM.PodCIDRs
	for _, pool := range spec.IPAM.Pools.Allocated {
		for _, c := range pool.CIDRs {
			cidrs = append(cidrs, string(c))
		}
	}
	var ranges []netip.Prefix
	for _, c := range cidrs {
		if p, err := netip.ParsePrefix(c); err == nil {
			ranges = append(ranges, p)
		}
	}
	if len(ranges) > 0 {
		n.Ranges = ranges
	}
}
