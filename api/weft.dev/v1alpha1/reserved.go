// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ReservedCIDR declares a range outside the cluster that pods must never get:
// a firewall's subnet, a VPN, a peered network. It is for what no node can see
// in its own routes, because it lies behind the default route. What nodes
// already hold of the range stays theirs and is reported.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=reservedcidrs,singular=reservedcidr,shortName={rcidr},categories={weft}
// +kubebuilder:storageversion
// +kubebuilder:metadata:labels="app.kubernetes.io/part-of=weft"
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`,description="Range that pods never get"
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.reason`,description="Who uses the range"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,description="Time since the object was made"
type ReservedCIDR struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	// Spec says which range, and why.
	Spec ReservedCIDRSpec `json:"spec"`
}

// ReservedCIDRList is a list of ReservedCIDRs.
//
// +kubebuilder:object:root=true
type ReservedCIDRList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ReservedCIDR `json:"items"`
}

// ReservedCIDRSpec names a range and who uses it.
type ReservedCIDRSpec struct {
	// CIDR is the range, for example 10.20.30.0/24. Bits beyond the prefix
	// length are ignored.
	CIDR CIDR `json:"cidr"`
	// Reason says who uses the range. It is repeated in every refusal.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Reason string `json:"reason,omitempty"`
}

// CIDR is an address range in the notation of RFC 4632 or RFC 5952, for
// example 10.20.3.0/24 or fd00:1::/64.
//
// +kubebuilder:validation:Format=cidr
// +kubebuilder:validation:MaxLength=64
type CIDR string
