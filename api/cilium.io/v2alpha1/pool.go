// SPDX-License-Identifier: Apache-2.0

package v2alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Annotations by which a pod, or else its namespace, chooses pools. The one of a
// family goes before the one of both, the pod before its namespace.
const (
	PoolAnnotation     = "ipam.cilium.io/ip-pool"
	IPv4PoolAnnotation = "ipam.cilium.io/ipv4-pool"
	IPv6PoolAnnotation = "ipam.cilium.io/ipv6-pool"
)

// CiliumPodIPPool is a pool of pod addresses for IPAM mode multi-pool. It may be
// changed at any time: what nodes hold of a range that is taken out stays theirs.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=ciliumpodippools,singular=ciliumpodippool,shortName={cpip},categories={cilium}
// +kubebuilder:storageversion
// +kubebuilder:metadata:labels="app.kubernetes.io/part-of=weft"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,description="Time since the object was made"
type CiliumPodIPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	// Spec says which ranges the pool has.
	Spec IPPoolSpec `json:"spec"`
}

// CiliumPodIPPoolList is a list of CiliumPodIPPools.
//
// +kubebuilder:object:root=true
type CiliumPodIPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []CiliumPodIPPool `json:"items"`
}

// IPPoolSpec says which ranges a pool has.
type IPPoolSpec struct {
	// IPv4 is the pool's IPv4 part.
	// +optional
	IPv4 *IPv4PoolSpec `json:"ipv4,omitempty"`
	// IPv6 is the pool's IPv6 part.
	// +optional
	IPv6 *IPv6PoolSpec `json:"ipv6,omitempty"`
}

// IPv4PoolSpec is a pool's IPv4 part.
type IPv4PoolSpec struct {
	// CIDRs are cut into blocks, the first one first.
	// +kubebuilder:validation:MinItems=1
	CIDRs []PoolCIDR `json:"cidrs"`
	// MaskSize is the prefix length of the blocks that nodes get.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=30
	MaskSize int `json:"maskSize"`
}

// IPv6PoolSpec is a pool's IPv6 part.
type IPv6PoolSpec struct {
	// CIDRs are cut into blocks, the first one first.
	// +kubebuilder:validation:MinItems=1
	CIDRs []PoolCIDR `json:"cidrs"`
	// MaskSize is the prefix length of the blocks that nodes get.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=126
	MaskSize int `json:"maskSize"`
}

// PoolCIDR is a range of a pool, for example 10.20.0.0/16.
//
// +kubebuilder:validation:Format=cidr
type PoolCIDR string
