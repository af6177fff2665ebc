// SPDX-License-Identifier: Apache-2.0

package v2alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group and Version name the API that this package holds.
const (
	Group   = "cilium.io"
	Version = "v2alpha1"
)

// CiliumPodIPPoolResource is the plural name of the resource.
const CiliumPodIPPoolResource = "ciliumpodippools"

// SchemeGroupVersion returns cilium.io/v2alpha1.
func SchemeGroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: Version}
}

// AddToScheme makes the types of this package known to s. It never fails; the
// error is there because runtime.SchemeBuilder and its callers want one.
func AddToScheme(s *runtime.Scheme) error {
	gv := SchemeGroupVersion()
	s.AddKnownTypes(gv, &CiliumPodIPPool{}, &CiliumPodIPPoolList{})
	metav1.AddToGroupVersion(s, gv)
	return nil
}
