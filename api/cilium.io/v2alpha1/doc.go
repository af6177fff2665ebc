// SPDX-License-Identifier: Apache-2.0

// Package v2alpha1 holds the objects of the API group cilium.io, version
// v2alpha1, that Weft reads: CiliumPodIPPool. Kinds, fields, short names and
// columns are those that users of Cilium 1.20 know; the types are Weft's own.
//
// +kubebuilder:object:generate=true
// +groupName=cilium.io
package v2alpha1
