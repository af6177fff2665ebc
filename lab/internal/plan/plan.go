// SPDX-License-Identifier: Apache-2.0

// Package plan computes what a lab consists of: its hosts, subnets, addresses
// and device names. It is pure; everything that touches the kernel takes a
// Plan and carries it out.
package plan

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Addresses that every lab uses. Labs do not see each other (each has its own
// network namespaces), so all of them use the same ones.
const (
	PodCIDR4     = "10.244.0.0/16"
	PodCIDR6     = "fd00:10:244::/56"
	ServiceCIDR4 = "10.96.0.0/16"
	ServiceCIDR6 = "fd00:10:96::/112"
	DNS4         = "10.96.0.10"
	DNS6         = "fd00:10:96::a"
	APIService4  = "10.96.0.1"
	NodeMask4    = 24
	NodeMask6    = 64
	ClusterName  = "cluster.local"
	APIPort      = 6443
)

// Values of Options.CNI and Options.Proxy.
const (
	CNINone = "none"
	CNIPtp  = "ptp"
	CNIWeft = "weft"

	ProxyNone     = "none"
	ProxyIptables = "iptables"
	ProxyNftables = "nftables"
)

// MaxNode is the highest number that a node may have: the address plan gives
// node nK the host part 10+K, and K is written in two digits.
const MaxNode = 99

const maxNameLen = 20

// Options are what the user asks for.
type Options struct {
	Name      string   `json:"name"`      // prefix of all that the lab makes outside of its own namespaces
	Nodes     int      `json:"nodes"`     // n1 ... nN
	Subnets   int      `json:"subnets"`   // 1 or 2 node subnets
	NICs      int      `json:"nics"`      // 1 or 2 per node
	MTU       int      `json:"mtu"`       // of every link, bytes
	CNI       string   `json:"cni"`       // weft, ptp or none
	Proxy     string   `json:"proxy"`     // kube-proxy's mode, or none
	RoutePods bool     `json:"routePods"` // routes to the pod ranges in the router and, as one covering route, in the nodes
	DNS       bool     `json:"dns"`       // CoreDNS
	Taints    []string `json:"taints"`    // KEY[=VALUE]:EFFECT that nodes register with
	// NoNodeCIDRs: the controller manager gives nodes no pod ranges; the network
	// must have its own idea of them, and nothing routes them.
	NoNodeCIDRs bool `json:"noNodeCIDRs,omitempty"`
}

// Defaults are the options of `weft-lab up` without flags.
func Defaults() Options {
	return Options{Name: "weft", Nodes: 3, Subnets: 2, NICs: 1, MTU: 1500, CNI: CNIPtp, Proxy: ProxyIptables, RoutePods: true, DNS: true}
}

// Subnet is one layer-2 segment: a bridge in the router's namespace, whose own
// addresses are the gateways of the hosts on it.
type Subnet struct {
	Name   string       `json:"name"` // control, a, b, a2, b2, outside
	Bridge string       `json:"bridge"`
	V4     netip.Prefix `json:"v4"`
	V6     netip.Prefix `json:"v6"`
	GW4    netip.Addr   `json:"gw4"`
	GW6    netip.Addr   `json:"gw6"`
	MAC    string       `json:"mac"` // of the bridge; a bridge without one changes it with its ports
}

// Kind says what a host is.
type Kind string

// Kinds of hosts.
const (
	Control Kind = "control-plane"
	Node    Kind = "node"
	Outside Kind = "outside"
)

// Port is one network device of a host and its other end at the router.
type Port struct {
	Dev    string       `json:"dev"`    // in the host: eth0, eth1
	Peer   string       `json:"peer"`   // in the router: n1, n1-1
	Subnet string       `json:"subnet"` // Subnet.Name
	V4     netip.Prefix `json:"v4"`     // the host's address with the subnet's length
	V6     netip.Prefix `json:"v6"`
	MAC    string       `json:"mac"`
}

// Host is one machine of the lab.
type Host struct {
	Name  string `json:"name"`
	Kind  Kind   `json:"kind"`
	Mark  uint32 `json:"mark"` // what the router tags frames from this host with
	Ports []Port `json:"ports"`
}

// Addr4 is the host's address on its first device.
func (h Host) Addr4() netip.Addr { return h.Ports[0].V4.Addr() }

// Addr6 is the host's IPv6 address on its first device.
func (h Host) Addr6() netip.Addr { return h.Ports[0].V6.Addr() }

var nameRE = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)

// Validate checks the options and names the first that cannot be.
func (o Options) Validate() error {
	if !nameRE.MatchString(o.Name) || len(o.Name) > maxNameLen {
		return fmt.Errorf("lab name %q: want 1 to %d of a-z, 0-9 and '-', beginning with a letter", o.Name, maxNameLen)
	}
	if o.Nodes < 0 || o.Nodes > MaxNode {
		return fmt.Errorf("nodes %d: want 0 to %d", o.Nodes, MaxNode)
	}
	if o.Subnets != 1 && o.Subnets != 2 {
		return fmt.Errorf("subnets %d: want 1 or 2", o.Subnets)
	}
	if o.NICs != 1 && o.NICs != 2 {
		return fmt.Errorf("nics %d: want 1 or 2", o.NICs)
	}
	if o.MTU < 1280 || o.MTU > 65535 {
		return fmt.Errorf("mtu %d: want 1280 (the least that IPv6 allows) to 65535", o.MTU)
	}
	if err := oneOf("cni", o.CNI, CNIWeft, CNIPtp, CNINone); err != nil {
		return err
	}
	if err := oneOf("kube-proxy mode", o.Proxy, ProxyIptables, ProxyNftables, ProxyNone); err != nil {
		return err
	}
	if o.NoNodeCIDRs && o.CNI == CNIPtp {
		return fmt.Errorf("cni %s: the stand-in network needs the nodes' pod ranges: leave --node-cidrs on, or choose %s or %s", o.CNI, CNIWeft, CNINone)
	}
	for _, t := range o.Taints {
		if _, err := ParseTaint(t); err != nil {
			return err
		}
	}
	return nil
}

func oneOf(what, got string, want ...string) error {
	if slices.Contains(want, got) {
		return nil
	}
	return fmt.Errorf("%s %q: want %s", what, got, strings.Join(want, ", "))
}

// Taint is one taint of a node, as kubelet's configuration has it.
type Taint struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect"`
}

// ParseTaint reads KEY[=VALUE]:EFFECT.
func ParseTaint(s string) (Taint, error) {
	kv, effect, ok := strings.Cut(s, ":")
	key, value, _ := strings.Cut(kv, "=")
	if !ok || key == "" || oneOf("effect", effect, "NoSchedule", "PreferNoSchedule", "NoExecute") != nil {
		return Taint{}, fmt.Errorf("taint %q: want KEY[=VALUE]:EFFECT with effect NoSchedule, PreferNoSchedule or NoExecute", s)
	}
	return Taint{Key: key, Value: value, Effect: effect}, nil
}

// subnets in the order in which they are made. The second number of an IPv6
// subnet and the third of an IPv4 one are the same, so that either can be read
// from the other.
func subnets(o Options) []Subnet {
	s := []Subnet{subnet("control", 0), subnet("a", 1)}
	if o.Subnets == 2 {
		s = append(s, subnet("b", 2))
	}
	if o.NICs == 2 {
		s = append(s, subnet("a2", 11))
		if o.Subnets == 2 {
			s = append(s, subnet("b2", 12))
		}
	}
	return append(s, subnet("outside", 9))
}

func subnet(name string, third int) Subnet {
	v4 := netip.MustParsePrefix(fmt.Sprintf("172.18.%d.0/24", third))
	v6 := netip.MustParsePrefix(fmt.Sprintf("fd00:18:%d::/64", third))
	return Subnet{
		Name: name, Bridge: "br-" + name, V4: v4, V6: v6, GW4: v4.Addr().Next(), GW6: v6.Addr().Next(),
		MAC: fmt.Sprintf("0a:18:00:00:%02x:01", third),
	}
}

// AllSubnets are the segments of a lab with these options.
func (o Options) AllSubnets() []Subnet { return subnets(o) }

// Subnet finds a segment by name.
func (o Options) Subnet(name string) (Subnet, error) {
	for _, s := range subnets(o) {
		if s.Name == name {
			return s, nil
		}
	}
	return Subnet{}, fmt.Errorf("subnet %q: this lab has no such subnet", name)
}

// port puts a host on a subnet. The host part is written with the same digits
// in both families: 172.18.1.11 and fd00:18:1::11.
func port(s Subnet, dev, peer string, hostPart int) Port {
	b := s.V4.Addr().As4()
	third := b[2]
	b[3] = byte(hostPart)
	v6 := netip.MustParseAddr(strings.TrimSuffix(s.V6.Addr().String(), "::") + "::" + strconv.Itoa(hostPart))
	return Port{
		Dev: dev, Peer: peer, Subnet: s.Name,
		V4:  netip.PrefixFrom(netip.AddrFrom4(b), s.V4.Bits()),
		V6:  netip.PrefixFrom(v6, s.V6.Bits()),
		MAC: fmt.Sprintf("0a:18:00:00:%02x:%02x", third, hostPart),
	}
}

// NodeNumber is K of nK.
func NodeNumber(name string) (int, error) {
	k, err := strconv.Atoi(strings.TrimPrefix(name, "n"))
	if err != nil || !strings.HasPrefix(name, "n") || k < 1 || k > MaxNode || name != "n"+strconv.Itoa(k) {
		return 0, fmt.Errorf("node name %q: want n1 to n%d", name, MaxNode)
	}
	return k, nil
}

// defaultSubnet: n1 and n2 share a subnet, n3 stands alone on the other, then
// they alternate. Three nodes thus have a pair on one segment and two pairs
// across the router.
func (o Options) defaultSubnet(k int) string {
	if o.Subnets == 1 || k == 1 || k > 2 && k%2 == 0 || k == 2 {
		return "a"
	}
	return "b"
}

// NewNode plans node nK. An empty subnet means the default one for K.
func (o Options) NewNode(name, subnetName string) (Host, error) {
	k, err := NodeNumber(name)
	if err != nil {
		return Host{}, err
	}
	if subnetName == "" {
		subnetName = o.defaultSubnet(k)
	}
	if err := oneOf("node subnet", subnetName, "a", "b"); err != nil {
		return Host{}, err
	}
	first, err := o.Subnet(subnetName)
	if err != nil {
		return Host{}, err
	}
	h := Host{Name: name, Kind: Node, Mark: uint32(16 + k), Ports: []Port{port(first, "eth0", name, 10+k)}}
	if o.NICs == 2 {
		second, err := o.Subnet(subnetName + "2")
		if err != nil {
			return Host{}, err
		}
		h.Ports = append(h.Ports, port(second, "eth1", name+"-1", 10+k))
	}
	return h, nil
}

// FixedHosts are the hosts that every lab has beside its nodes: the control
// plane and the two outside the cluster.
func (o Options) FixedHosts() []Host {
	control, _ := o.Subnet("control")
	outside, _ := o.Subnet("outside")
	return []Host{
		{Name: "cp", Kind: Control, Mark: 1, Ports: []Port{port(control, "eth0", "cp", 2)}},
		{Name: "client", Kind: Outside, Mark: 2, Ports: []Port{port(outside, "eth0", "client", 10)}},
		{Name: "firewall", Kind: Outside, Mark: 3, Ports: []Port{port(outside, "eth0", "firewall", 20)}},
	}
}

// Hosts plans all hosts of a new lab.
func (o Options) Hosts() ([]Host, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	hosts := o.FixedHosts()
	for k := 1; k <= o.Nodes; k++ {
		h, err := o.NewNode("n"+strconv.Itoa(k), "")
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}
