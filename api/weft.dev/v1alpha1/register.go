// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group and Version name the API that this package holds.
const (
	Group   = "weft.dev"
	Version = "v1alpha1"
)

// Plural names of the resources, as they stand in URLs and RBAC rules.
const (
	ReservedCIDRResource  = "reservedcidrs"
	PodCIDRLedgerResource = "podcidrledgers"
)

// PartOfLabel and PartOfValue mark what Weft has made in the API server. Weft
// never changes a ledger that does not carry them.
const (
	PartOfLabel = "app.kubernetes.io/part-of"
	PartOfValue = "weft"
)

// SchemeGroupVersion returns weft.dev/v1alpha1.
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
		&ReservedCIDR{}, &ReservedCIDRList{},
		&PodCIDRLedger{}, &PodCIDRLedgerList{},
	)
	metav1.AddToGroupVersion(s, gv)
	return nil
}
