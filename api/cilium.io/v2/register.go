// SPDX-License-Identifier: Apache-2.0

package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group and Version name the API that this package holds.
const (
	Group   = "cilium.io"
	Version = "v2"
)

// Plural names of the resources, as they stand in URLs and RBAC rules.
const (
	CiliumNodeResource     = "ciliumnodes"
	CiliumEndpointResource = "ciliumendpoints"
)

// PartOfLabel and PartOfValue mark what Weft has made in the API server, its
// custom resource definitions first. Weft never changes a definition that does
// not carry them.
const (
	PartOfLabel = "app.kubernetes.io/part-of"
	PartOfValue = "weft"
)

// NodeLabel is the label of a CiliumEndpoint that names the Kubernetes node of
// the agent that writes it. The chart's admission policy compares it with the
// node in the agent's token: an agent that leaves it out is refused.
const NodeLabel = "weft.dev/node"

// SchemeGroupVersion returns cilium.io/v2.
func SchemeGroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: Version}
}

// Resource returns the full name of a resource of this version, for dynamic
// and REST clients.
func Resource(plural string) schema.GroupVersionResource {
	return SchemeGroupVersion().WithResource(plural)
}

// AddToScheme makes the types of this package known to s. It never fails; the
// error is there because runtime.SchemeBuilder and its callers want one.
func AddToScheme(s *runtime.Scheme) error {
	gv := SchemeGroupVersion()
	s.AddKnownTypes(gv,
		&CiliumNode{}, &CiliumNodeList{},
		&CiliumEndpoint{}, &CiliumEndpointList{},
	)
	metav1.AddToGroupVersion(s, gv)
	return nil
}
