// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// DefaultPool is the name of the pool, and so of the ledger, of IPAM mode
// cluster-pool.
const DefaultPool = "default"

// PodCIDRLedger is the truth about which node holds which range of one pool;
// it is named after the pool. Every change is an update that carries the
// resourceVersion that was read: of two operators that both believe they lead,
// one is refused. It is written before CiliumNode, and an agent uses a range
// only if the ledger names it for its node.
//
// Only the operator writes it. To take a range from a node, drain the node and
// delete its Node object.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=podcidrledgers,singular=podcidrledger,shortName={pcl},categories={weft}
// +kubebuilder:storageversion
// +kubebuilder:metadata:labels="app.kubernetes.io/part-of=weft"
// +kubebuilder:printcolumn:name="Releases",type=integer,JSONPath=`.spec.seq`,description="Number of releases so far"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,description="Time since the object was made"
type PodCIDRLedger struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	// Spec holds the grants and the ranges that rest.
	Spec PodCIDRLedgerSpec `json:"spec"`
}

// PodCIDRLedgerList is a list of PodCIDRLedgers.
//
// +kubebuilder:object:root=true
type PodCIDRLedgerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []PodCIDRLedger `json:"items"`
}

// PodCIDRLedgerSpec holds the grants and the ranges that rest. Lists and maps
// are atomic: the ledger of 5,000 nodes stays below 1 MiB because the API
// server does not note who owns each entry.
type PodCIDRLedgerSpec struct {
	// Seq counts releases. A range that was released with the number n may be
	// granted again only after every agent has seen n.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Seq int64 `json:"seq,omitempty"`
	// Pool is the pool as it was at the last write. Writing it here before any
	// grant follows from it makes an operator with an older pool lose the race.
	// +optional
	Pool LedgerPool `json:"pool,omitzero"`
	// Grants holds the ranges of each node, by the node's name.
	// +optional
	// +mapType=atomic
	Grants map[string][]CIDR `json:"grants,omitempty"`
	// Quarantine holds released ranges that nobody may have yet, oldest first.
	// +optional
	// +listType=atomic
	Quarantine []LedgerRelease `json:"quarantine,omitempty"`
	// Rested holds released ranges whose quarantine is over, oldest first: they
	// are granted before any that was never used.
	// +optional
	// +listType=atomic
	Rested []CIDR `json:"rested,omitempty"`
	// Growth holds how many ranges were held, an hour or more apart, oldest
	// first: the forecast is made from it.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Growth []LedgerSample `json:"growth,omitempty"`
}

// LedgerPool is a pool as the ledger saw it.
type LedgerPool struct {
	// IPv4 is the pool's IPv4 part.
	// +optional
	IPv4 LedgerFamily `json:"ipv4,omitzero"`
	// IPv6 is the pool's IPv6 part.
	// +optional
	IPv6 LedgerFamily `json:"ipv6,omitzero"`
}

// LedgerFamily is a pool's part of one address family.
type LedgerFamily struct {
	// CIDRs are the ranges that are cut into blocks, in order of preference.
	// +optional
	// +listType=atomic
	CIDRs []CIDR `json:"cidrs,omitempty"`
	// MaskSize is the prefix length of a block.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=128
	MaskSize int `json:"maskSize,omitempty"`
}

// LedgerRelease is a range that a node has given back.
type LedgerRelease struct {
	// CIDR is the range.
	CIDR CIDR `json:"cidr"`
	// Node held it.
	// +optional
	Node string `json:"node,omitempty"`
	// At is when it was released.
	At metav1.Time `json:"at"`
	// Seq is the number of the release.
	// +kubebuilder:validation:Minimum=0
	Seq int64 `json:"seq"`
}

// LedgerSample is how many ranges were held at a time.
type LedgerSample struct {
	// At is the time.
	At metav1.Time `json:"at"`
	// IPv4 counts held IPv4 ranges.
	// +optional
	IPv4 int `json:"ipv4,omitempty"`
	// IPv6 counts held IPv6 ranges.
	// +optional
	IPv6 int `json:"ipv6,omitempty"`
}
