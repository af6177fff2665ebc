// SPDX-License-Identifier: Apache-2.0

package v2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CiliumNode is what the agent of a node tells the rest of the cluster about
// that node. It is named after the Node object, which owns it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=ciliumnodes,singular=ciliumnode,shortName={cn,ciliumn},categories={cilium}
// +kubebuilder:subresource:status
// +kubebuilder:storageversion
// +kubebuilder:metadata:labels="app.kubernetes.io/part-of=weft"
// +kubebuilder:printcolumn:name="CiliumInternalIP",type=string,JSONPath=`.spec.addresses[?(@.type=="CiliumInternalIP")].ip`,description="Address of the node inside the pod network"
// +kubebuilder:printcolumn:name="InternalIP",type=string,JSONPath=`.spec.addresses[?(@.type=="InternalIP")].ip`,description="Address of the node on its own network"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,description="Time since the object was made"
type CiliumNode struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	// Spec says where the node is and which addresses its pods have.
	Spec NodeSpec `json:"spec"`
	// Status is the agent's account of the addresses in use.
	// +optional
	Status NodeStatus `json:"status,omitzero"`
}

// CiliumNodeList is a list of CiliumNodes.
//
// +kubebuilder:object:root=true
type CiliumNodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []CiliumNode `json:"items"`
}

// NodeSpec describes a node to its peers.
type NodeSpec struct {
	// InstanceID is the provider's name of the machine, taken from
	// Node.spec.providerID. Empty where there is none.
	// +optional
	InstanceID string `json:"instance-id,omitempty"`
	// BootID changes with each boot (/proc/sys/kernel/random/boot_id): state
	// that described an earlier boot is void.
	// +optional
	BootID string `json:"bootid,omitempty"`
	// Addresses lists the node's addresses, the primary family first.
	// +optional
	Addresses []NodeAddress `json:"addresses,omitempty"`
	// HealthAddressing holds the addresses that answer the peers' probes.
	// +optional
	HealthAddressing AddressPair `json:"health,omitzero"`
	// IngressAddressing holds the addresses of the node's ingress listener.
	// Weft leaves it empty.
	// +optional
	IngressAddressing AddressPair `json:"ingress,omitzero"`
	// Encryption says how packets to this node are encrypted.
	// +optional
	Encryption EncryptionSpec `json:"encryption,omitzero"`
	// IPAM says which addresses the node's pods may have.
	// +optional
	IPAM IPAMSpec `json:"ipam,omitzero"`
	// NodeIdentity is the numeric security identity of the node itself, 0 where
	// it has none of its own.
	// +optional
	NodeIdentity uint64 `json:"nodeidentity,omitempty"`
}

// AddressType says what a node's address is for.
type AddressType string

// Types of node addresses, those of Kubernetes (core/v1 NodeAddressType) and
// one more for the node's address inside the pod network.
const (
	NodeInternalIP       AddressType = "InternalIP"
	NodeExternalIP       AddressType = "ExternalIP"
	NodeHostName         AddressType = "Hostname"
	NodeCiliumInternalIP AddressType = "CiliumInternalIP"
)

// NodeAddress is one address of a node.
type NodeAddress struct {
	// Type says what the address is for: InternalIP, ExternalIP, CiliumInternalIP.
	// +optional
	Type AddressType `json:"type,omitempty"`
	// IP is the address without a prefix length.
	// +optional
	IP string `json:"ip,omitempty"`
}

// AddressPair is one address of each family; an empty one means that the
// family is off.
type AddressPair struct {
	// IPv4 is an address in dotted notation.
	// +optional
	IPv4 string `json:"ipv4,omitempty"`
	// IPv6 is an address in the notation of RFC 5952.
	// +optional
	IPv6 string `json:"ipv6,omitempty"`
}

// EncryptionSpec names the key in use.
type EncryptionSpec struct {
	// Key is the index of the key, 0 where nothing is encrypted.
	// +optional
	Key int `json:"key,omitempty"`
}

// IPAMSpec holds the addresses that a node may give to its pods.
type IPAMSpec struct {
	// PodCIDRs are the ranges of this node. In mode kubernetes they repeat
	// Node.spec.podCIDRs.
	// +optional
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// Pool holds single IPv4 addresses that are free for this node, by address.
	// +optional
	Pool map[string]AllocationIP `json:"pool,omitempty"`
	// IPv6Pool is Pool for IPv6.
	// +optional
	IPv6Pool map[string]AllocationIP `json:"ipv6-pool,omitempty"`
	// Pools are the node's shares of named pools.
	// +optional
	Pools IPAMPoolSpec `json:"pools,omitzero"`
	// MinAllocate is the least number of addresses that the node wants at start.
	// +optional
	// +kubebuilder:validation:Minimum=0
	MinAllocate int `json:"min-allocate,omitempty"`
	// MaxAllocate is the greatest number of addresses that the node may hold, 0
	// for no limit.
	// +optional
	// +kubebuilder:validation:Minimum=0
	MaxAllocate int `json:"max-allocate,omitempty"`
	// PreAllocate is the number of free addresses to keep at hand.
	// +optional
	// +kubebuilder:validation:Minimum=0
	PreAllocate int `json:"pre-allocate,omitempty"`
	// MaxAboveWatermark is how far an allocation may go beyond PreAllocate.
	// +optional
	// +kubebuilder:validation:Minimum=0
	MaxAboveWatermark int `json:"max-above-watermark,omitempty"`
	// StaticIPTags choose the pool of a static address for the node.
	// +optional
	StaticIPTags map[string]string `json:"static-ip-tags,omitempty"`
}

// AllocationIP says who holds an address.
type AllocationIP struct {
	// Owner is the pod, as namespace/name, or another name for the use. Empty in
	// a pool, where the address is free.
	// +optional
	Owner string `json:"owner,omitempty"`
	// Resource is what the address hangs on, for example a network card.
	// +optional
	Resource string `json:"resource,omitempty"`
}

// IPAMPoolSpec is what a node asks of named pools and what it has been given.
type IPAMPoolSpec struct {
	// Requested is written by the agent.
	// +optional
	Requested []IPAMPoolRequest `json:"requested,omitempty"`
	// Allocated is added to by the operator; the agent takes out what it has
	// given back.
	// +optional
	Allocated []IPAMPoolAllocation `json:"allocated,omitempty"`
}

// IPAMPoolRequest asks for addresses from one pool.
type IPAMPoolRequest struct {
	// Pool is the name of the pool.
	// +kubebuilder:validation:MinLength=1
	Pool string `json:"pool"`
	// Needed is how many addresses the node wants in all, used ones included.
	// +optional
	Needed IPAMPoolDemand `json:"needed,omitzero"`
}

// IPAMPoolDemand counts addresses.
type IPAMPoolDemand struct {
	// IPv4Addrs is a number of IPv4 addresses.
	// +optional
	IPv4Addrs int `json:"ipv4-addrs,omitempty"`
	// IPv6Addrs is a number of IPv6 addresses.
	// +optional
	IPv6Addrs int `json:"ipv6-addrs,omitempty"`
}

// IPAMPoolAllocation holds the ranges that a node has from one pool.
type IPAMPoolAllocation struct {
	// Pool is the name of the pool.
	// +kubebuilder:validation:MinLength=1
	Pool string `json:"pool"`
	// CIDRs are the ranges, in the order in which they were given.
	// +optional
	CIDRs []IPAMPodCIDR `json:"cidrs,omitempty"`
}

// IPAMPodCIDR is a range of pod addresses, for example 10.20.3.0/24.
//
// +kubebuilder:validation:Format=cidr
type IPAMPodCIDR string

// NodeStatus is the agent's account of a node.
type NodeStatus struct {
	// IPAM says which addresses are in use.
	// +optional
	IPAM IPAMStatus `json:"ipam,omitzero"`
}

// IPAMStatus says which addresses of a node are in use.
type IPAMStatus struct {
	// Used holds the IPv4 addresses in use, by address.
	// +optional
	Used map[string]AllocationIP `json:"used,omitempty"`
	// IPv6Used is Used for IPv6.
	// +optional
	IPv6Used map[string]AllocationIP `json:"ipv6-used,omitempty"`
	// OperatorStatus is the operator's word on this node's addresses.
	// +optional
	OperatorStatus OperatorStatus `json:"operator-status,omitzero"`
}

// OperatorStatus is the operator's word on one node.
type OperatorStatus struct {
	// Error says why the node cannot have what it wants; empty when all is well.
	// +optional
	Error string `json:"error,omitempty"`
}

// Address returns the first address of the given type and family, empty if the
// node has none.
func (n *CiliumNode) Address(t AddressType, ipv6 bool) string {
	for _, a := range n.Spec.Addresses {
		if a.Type == t && isIPv6(a.IP) == ipv6 {
			return a.IP
		}
	}
	return ""
}

func isIPv6(ip string) bool {
	for i := range len(ip) {
		if ip[i] == ':' {
			return true
		}
	}
	return false
}
