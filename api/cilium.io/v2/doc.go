// SPDX-License-Identifier: Apache-2.0

// Package v2 holds the objects of the API group cilium.io, version v2, that
// Weft writes and reads: CiliumNode and CiliumEndpoint. Kinds, fields, short
// names and columns are those that users of Cilium 1.20 know, so that their
// scripts and manifests keep working; the types themselves are Weft's own.
//
// Cloud providers' sections of CiliumNode (eni, azure, alibaba-cloud) are left
// out: Weft has nothing to put there.
//
// +kubebuilder:object:generate=true
// +groupName=cilium.io
package v2
