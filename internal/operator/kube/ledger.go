// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
)

// ErrStale says that somebody else wrote the ledger since it was read.
var ErrStale = errors.New("somebody else wrote the ledger meanwhile")

// maxLedger is when a ledger is refused before etcd refuses it (1.5 MiB for a
// request; the API server's own encoding needs some of it), in bytes.
const maxLedger = 1400 << 10

// Ledger reads the ledger of a pool from the API server itself, nil if there is
// none.
func (c *Client) Ledger(ctx context.Context, pool string) (*weftv1.PodCIDRLedger, error) {
	ctx, cancel := limit(ctx)
	defer cancel()
	var l weftv1.PodCIDRLedger
	raw, err := c.weft.Get().Resource(weftv1.PodCIDRLedgerResource).Name(pool).Do(ctx).Raw()
	if apierrors.IsNotFound(err) {
		return nil, c.served(ctx, weftv1.PodCIDRLedgerResource)
	}
	if err != nil {
		return nil, fmt.Errorf("get PodCIDRLedger %s: %w", pool, err)
	}
	if err := json.Unmarshal(raw, &l); err != nil {
		return nil, fmt.Errorf("PodCIDRLedger %s: %w", pool, err)
	}
	if !owned(l.Labels) {
		return nil, fmt.Errorf("PodCIDRLedger %s %w", pool, ErrNotOurs)
	}
	return &l, nil
}

// served tells a missing object from a missing definition: both are "not found".
func (c *Client) served(ctx context.Context, resource string) error {
	err := c.weft.Get().Resource(resource).VersionedParams(&metav1.ListOptions{Limit: 1}, c.params).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("the cluster has no %s.%s: apply the chart's custom resource definitions", resource, weftv1.Group)
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", resource, err)
	}
	return nil
}

// WriteLedger creates l where it has no version yet, else replaces the version
// that it was read as. It returns ErrStale when somebody was faster, and the
// length of the ledger in bytes. l gets the new version.
func (c *Client) WriteLedger(ctx context.Context, l *weftv1.PodCIDRLedger) (int, error) {
	ctx, cancel := limit(ctx)
	defer cancel()
	l.TypeMeta = metav1.TypeMeta{APIVersion: weftv1.SchemeGroupVersion().String(), Kind: "PodCIDRLedger"}
	if l.Labels == nil {
		l.Labels = map[string]string{}
	}
	l.Labels[weftv1.PartOfLabel] = weftv1.PartOfValue
	if l.Annotations == nil {
		l.Annotations = map[string]string{}
	}
	l.Annotations[weftv1.ReleaseSeqAnnotation] = strconv.FormatInt(l.Spec.Seq, 10)
	l.ManagedFields = nil
	body, err := json.Marshal(l)
	if err != nil {
		return 0, fmt.Errorf("PodCIDRLedger %s: %w", l.Name, err)
	}
	if len(body) > maxLedger {
		return 0, fmt.Errorf("PodCIDRLedger %s: %d bytes, more than etcd takes: remove Nodes that are gone for good", l.Name, len(body))
	}
	req := c.weft.Post().Resource(weftv1.PodCIDRLedgerResource)
	if l.ResourceVersion != "" {
		req = c.weft.Put().Resource(weftv1.PodCIDRLedgerResource).Name(l.Name)
	}
	raw, err := req.Body(body).Do(ctx).Raw()
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err):
		return 0, fmt.Errorf("PodCIDRLedger %s: %w", l.Name, ErrStale)
	case err != nil:
		return 0, fmt.Errorf("write PodCIDRLedger %s: %w", l.Name, err)
	}
	var meta metav1.PartialObjectMetadata
	if err := json.Unmarshal(raw, &meta); err != nil {
		return 0, fmt.Errorf("PodCIDRLedger %s: %w", l.Name, err)
	}
	l.ObjectMeta = meta.ObjectMeta
	return len(body), nil
}

// Ranges are what no pod may get, with where each comes from.
type Ranges struct {
	Services []Range // of ServiceCIDR objects, and the address of the service kubernetes
	Reserved []weftv1.ReservedCIDR
}

// Range is a range and the object that names it.
type Range struct {
	CIDR  string
	Where string
}

// Forbidden reads ServiceCIDRs, the service kubernetes and ReservedCIDRs from the
// API server itself: a guard that was declared a moment ago holds.
func (c *Client) Forbidden(ctx context.Context) (Ranges, error) {
	ctx, cancel := limit(ctx)
	defer cancel()
	var out Ranges
	var cidrs networkingv1.ServiceCIDRList
	err := c.networking.Get().Resource("servicecidrs").Do(ctx).Into(&cidrs)
	// Before Kubernetes 1.33 there are none; the service's own address is left.
	if err != nil && !apierrors.IsNotFound(err) {
		return out, fmt.Errorf("list servicecidrs: %w", err)
	}
	for _, s := range cidrs.Items {
		for _, p := range s.Spec.CIDRs {
			out.Services = append(out.Services, Range{CIDR: p, Where: "ServiceCIDR " + s.Name})
		}
	}
	var svc corev1.Service
	err = c.core.Get().Namespace(metav1.NamespaceDefault).Resource("services").Name("kubernetes").Do(ctx).Into(&svc)
	if err != nil && !apierrors.IsNotFound(err) {
		return out, fmt.Errorf("get service default/kubernetes: %w", err)
	}
	for _, ip := range svc.Spec.ClusterIPs {
		if !within(ip, out.Services) {
			out.Services = append(out.Services, Range{CIDR: ip, Where: "service default/kubernetes"})
		}
	}
	var reserved weftv1.ReservedCIDRList
	err = c.weft.Get().Resource(weftv1.ReservedCIDRResource).Do(ctx).Into(&reserved)
	if apierrors.IsNotFound(err) {
		return out, fmt.Errorf("the cluster has no %s.%s: apply the chart's custom resource definitions", weftv1.ReservedCIDRResource, weftv1.Group)
	}
	if err != nil {
		return out, fmt.Errorf("list reservedcidrs: %w", err)
	}
	out.Reserved = reserved.Items
	return out, nil
}

// within reports whether an address lies in one of the ranges.
func within(ip string, ranges []Range) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && slices.ContainsFunc(ranges, func(r Range) bool {
		p, err := netip.ParsePrefix(r.CIDR)
		return err == nil && p.Contains(a)
	})
}
