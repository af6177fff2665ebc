// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the objects of the API group weft.dev, version
// v1alpha1: what Cilium has no word for. ReservedCIDR declares a range that
// pods must never get; PodCIDRLedger says which node holds which range of a
// pool (DATAPATH rules 16 and 20). The package also names the annotations by
// which agents and operator speak to each other on a CiliumNode.
//
// +kubebuilder:object:generate=true
// +groupName=weft.dev
package v1alpha1
