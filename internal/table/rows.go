// SPDX-License-Identifier: Apache-2.0

package table

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Identity is a security identity. 1 to 255 are reserved and mean the same on
// every node, 256 to 65535 belong to the cluster, from 2^24 on they are local
// to one node.
type Identity uint32

// Reserved identities, with the numbers and names that Cilium's users know.
const (
	IdentityUnknown    Identity = 0
	IdentityHost       Identity = 1
	IdentityWorld      Identity = 2
	IdentityUnmanaged  Identity = 3
	IdentityHealth     Identity = 4
	IdentityInit       Identity = 5
	IdentityRemoteNode Identity = 6
	IdentityAPIServer  Identity = 7
	IdentityIngress    Identity = 8
)

var identityNames = map[Identity]string{
	IdentityUnknown: "unknown", IdentityHost: "host", IdentityWorld: "world",
	IdentityUnmanaged: "unmanaged", IdentityHealth: "health", IdentityInit: "init",
	IdentityRemoteNode: "remote-node", IdentityAPIServer: "kube-apiserver", IdentityIngress: "ingress",
}

// String returns "reserved:NAME" for reserved identities, the number otherwise.
func (i Identity) String() string {
	if n, ok := identityNames[i]; ok {
		return "reserved:" + n
	}
	return strconv.FormatUint(uint64(i), 10)
}

// EndpointState says how far an endpoint has come.
type EndpointState string

// Endpoint states, named as in CiliumEndpoint.status.state.
const (
	EndpointCreating      EndpointState = "creating"
	EndpointReady         EndpointState = "ready"
	EndpointDisconnecting EndpointState = "disconnecting"
)

// EndpointKind tells a pod from what the agent makes for itself.
type EndpointKind string

// Endpoint kinds. A health endpoint answers the peers' probes from a network
// namespace of its own; a proof endpoint lives for one self-test.
const (
	EndpointPod    EndpointKind = "pod"
	EndpointHealth EndpointKind = "health"
	EndpointProof  EndpointKind = "proof"
)

// Endpoint is one network attachment on this node. It is written by
// internal/endpoint only. It is also what the state file holds, as JSON.
type Endpoint struct {
	ID          uint16        `json:"id"` // 1 to maps.MaxEndpoints-1, index into the endpoint map
	Generation  uint32        `json:"generation"`
	Kind        EndpointKind  `json:"kind"`
	ContainerID string        `json:"containerID"` // sandbox id of the CNI request
	IfName      string        `json:"ifName"`      // inside the pod, "eth0"
	Netns       string        `json:"netns"`       // path given by the runtime
	Namespace   string        `json:"namespace"`
	Pod         string        `json:"pod"`
	PodUID      string        `json:"podUID,omitempty"`
	HostIfName  string        `json:"hostIfName"` // lxc...
	HostIfIndex int           `json:"hostIfIndex"`
	MAC         string        `json:"mac"`     // of the pod's end
	HostMAC     string        `json:"hostMAC"` // of the host's end
	IPv4        netip.Addr    `json:"ipv4"`    // invalid where the family is off
	IPv6        netip.Addr    `json:"ipv6"`
	MTU         int           `json:"mtu"`
	Identity    Identity      `json:"identity"`
	State       EndpointState `json:"state"`
	CreatedAt   time.Time     `json:"createdAt"`
}

// Name returns namespace/pod, or the kind for what is not a pod.
func (e *Endpoint) Name() string {
	if e.Kind == EndpointPod {
		return e.Namespace + "/" + e.Pod
	}
	return string(e.Kind)
}

// TableHeader names the columns of TableRow.
func (*Endpoint) TableHeader() []string {
	return []string{"ENDPOINT", "NAME", "IDENTITY", "IPV4", "IPV6", "INTERFACE", "STATUS"}
}

// TableRow renders the endpoint under TableHeader.
func (e *Endpoint) TableRow() []string {
	return []string{strconv.Itoa(int(e.ID)), e.Name(), e.Identity.String(), addr(e.IPv4), addr(e.IPv6), e.HostIfName, string(e.State)}
}

// Node is one Kubernetes node as the API server shows it, with what its agent
// publishes in CiliumNode. It is written by internal/k8s only.
type Node struct {
	Name      string         `json:"name"`
	Local     bool           `json:"local"`
	Addrs     []netip.Addr   `json:"addrs"`    // InternalIPs, the primary family first
	PodCIDRs  []netip.Prefix `json:"podCIDRs"` // Node.spec.podCIDRs, with ipam cluster-pool CiliumNode.spec.ipam.podCIDRs
	HealthIPs []netip.Addr   `json:"healthIPs"`
	Ready     bool           `json:"ready"` // condition Ready

	UID           string `json:"uid,omitempty"`           // of the Node
	ProviderID    string `json:"providerID,omitempty"`    // Node.spec.providerID
	Zone          string `json:"zone,omitempty"`          // label topology.kubernetes.io/zone
	AgentNotReady bool   `json:"agentNotReady,omitempty"` // carries the taint node.cilium.io/agent-not-ready
	NetworkReady  bool   `json:"networkReady,omitempty"`  // condition NetworkUnavailable is False
	PoolError     string `json:"poolError,omitempty"`     // of the local node: why the operator gives it no range

	// Tunnel is how its agent says that it takes part in the overlay, for example
	// "vxlan:8472:ipv4"; empty: it does not.
	Tunnel string `json:"tunnel,omitempty"`
}

// Addr returns the node's address of the family of like, or an invalid one.
func (n *Node) Addr(v6 bool) netip.Addr {
	for _, a := range n.Addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// TableHeader names the columns of TableRow.
func (*Node) TableHeader() []string {
	return []string{"NAME", "INTERNAL-IP", "POD-CIDR", "HEALTH-IP", "READY"}
}

// TableRow renders the node under TableHeader.
func (n *Node) TableRow() []string {
	name := n.Name
	if n.Local {
		name += " (local)"
	}
	return []string{name, join(n.Addrs), join(n.PodCIDRs), join(n.HealthIPs), strconv.FormatBool(n.Ready)}
}

// RemotePod is a pod's network attachment as its CiliumEndpoint shows it, for
// pods of any node. It is written by internal/k8s only.
type RemotePod struct {
	Namespace string       `json:"namespace"`
	Pod       string       `json:"pod"`
	UID       string       `json:"uid"`      // of the CiliumEndpoint
	PodUID    string       `json:"podUID"`   // of the pod that owns it
	NodeAddr  netip.Addr   `json:"nodeAddr"` // status.networking.node
	Addrs     []netip.Addr `json:"addrs"`    // of the pod
	Identity  Identity     `json:"identity"`
	Created   time.Time    `json:"created"` // decides between two that claim one address
	Owned     bool         `json:"owned"`   // carries Weft's label
}

// Name returns namespace/pod.
func (p *RemotePod) Name() string { return p.Namespace + "/" + p.Pod }

// TableHeader names the columns of TableRow.
func (*RemotePod) TableHeader() []string {
	return []string{"NAME", "IDENTITY", "ADDRESSES", "NODE"}
}

// TableRow renders the pod under TableHeader.
func (p *RemotePod) TableRow() []string {
	return []string{p.Name(), p.Identity.String(), join(p.Addrs), addr(p.NodeAddr)}
}

// HostKind says what stands behind an address.
type HostKind uint8

// Kinds of addresses; the numbers are shared with bpf/lib/types.h.
const (
	KindUnknown   HostKind = 0 // not of the cluster
	KindHost      HostKind = 1 // an address of this node
	KindNode      HostKind = 2 // an address of another node
	KindLocalPod  HostKind = 3 // an endpoint of this node
	KindRemotePod HostKind = 4 // a pod of another node
)

// String returns the kind as users read it.
func (k HostKind) String() string {
	switch k {
	case KindHost:
		return "host"
	case KindNode:
		return "node"
	case KindLocalPod:
		return "local-pod"
	case KindRemotePod:
		return "remote-pod"
	}
	return "unknown"
}

// IPCache says who stands behind an address or a range of addresses. Rows with
// a full-length prefix go to the exact-match map, all others to the LPM map.
// Several owners may claim one prefix; the derivation (internal/agent) resolves
// them and is the only writer.
type IPCache struct {
	Prefix     netip.Prefix `json:"prefix"`
	Identity   Identity     `json:"identity"`
	Kind       HostKind     `json:"kind"`
	EndpointID uint16       `json:"endpointID,omitempty"` // of local pods
	NodeAddr   netip.Addr   `json:"nodeAddr"`             // of remote pods: the node that holds them
	Owner      string       `json:"owner"`                // "node/n1", "cep/default/web-0", "endpoint/12"

	// Of other nodes and their pods, where this node takes part in the overlay: who
	// may send from the prefix by it, and whether it is also sent to by it.
	Tunnel   netip.Addr `json:"tunnel,omitzero"`
	ByTunnel bool       `json:"byTunnel,omitempty"`

	// NoNodePort: of a node's address, that NodePorts do not answer there (nodePort.addresses).
	NoNodePort bool `json:"noNodePort,omitempty"`
}

// TableHeader names the columns of TableRow.
func (*IPCache) TableHeader() []string {
	return []string{"PREFIX", "IDENTITY", "KIND", "ENDPOINT", "NODE", "OWNER"}
}

// TableRow renders the entry under TableHeader.
func (c *IPCache) TableRow() []string {
	ep := ""
	if c.EndpointID != 0 {
		ep = strconv.Itoa(int(c.EndpointID))
	}
	return []string{c.Prefix.String(), c.Identity.String(), c.Kind.String(), ep, addr(c.NodeAddr), c.Owner}
}

// Device is a network device of the node. Written by the netlink watcher.
type Device struct {
	Name     string         `json:"name"`
	Index    int            `json:"index"`
	MTU      int            `json:"mtu"`
	Up       bool           `json:"up"`
	MAC      string         `json:"mac"`
	Addrs    []netip.Prefix `json:"addrs"`
	Selected bool           `json:"selected"` // carries from_net and to_net
}

// TableHeader names the columns of TableRow.
func (*Device) TableHeader() []string {
	return []string{"NAME", "INDEX", "MTU", "UP", "SELECTED", "ADDRESSES"}
}

// TableRow renders the device under TableHeader.
func (d *Device) TableRow() []string {
	return []string{d.Name, strconv.Itoa(d.Index), strconv.Itoa(d.MTU), strconv.FormatBool(d.Up), strconv.FormatBool(d.Selected), join(d.Addrs)}
}

// Route is a route that Weft wants in the node's main table.
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	Via    netip.Addr   `json:"via"` // invalid: on link
	Device string       `json:"device"`
	Src    netip.Addr   `json:"src"` // preferred source, may be invalid
	Owner  string       `json:"owner"`
	// Type is RouteUnreachable, or empty for a route that leads somewhere.
	Type string `json:"type,omitempty"`
}

// RouteUnreachable is the type of a route that answers with ICMP what no longer
// prefix takes. It has neither next hop nor device.
const RouteUnreachable = "unreachable"

// TableHeader names the columns of TableRow.
func (*Route) TableHeader() []string {
	return []string{"PREFIX", "VIA", "DEVICE", "SRC", "OWNER"}
}

// TableRow renders the route under TableHeader.
func (r *Route) TableRow() []string {
	via := addr(r.Via)
	if r.Type != "" {
		via = r.Type
	}
	return []string{r.Prefix.String(), via, r.Device, addr(r.Src), r.Owner}
}

func addr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func join[T interface{ String() string }](xs []T) string {
	s := make([]string, len(xs))
	for i, x := range xs {
		s[i] = x.String()
	}
	return strings.Join(s, ",")
}
