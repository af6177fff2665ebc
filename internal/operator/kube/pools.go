// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	ciliumv2alpha1 "github.com/weft-net/weft/api/cilium.io/v2alpha1"
	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
)

// Pools reads all CiliumPodIPPools from the API server itself, by name.
func (c *Client) Pools(ctx context.Context) (map[string]*ciliumv2alpha1.CiliumPodIPPool, error) {
	ctx, cancel := limit(ctx)
	defer cancel()
	path := "/apis/" + ciliumv2alpha1.Group + "/" + ciliumv2alpha1.Version + "/" + ciliumv2alpha1.CiliumPodIPPoolResource
	raw, err := c.cilium.Get().AbsPath(path).Do(ctx).Raw()
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("the cluster has no %s.%s: apply the chart's custom resource definitions", ciliumv2alpha1.CiliumPodIPPoolResource, ciliumv2alpha1.Group)
	}
	if err != nil {
		return nil, fmt.Errorf("list CiliumPodIPPools: %w", err)
	}
	var list ciliumv2alpha1.CiliumPodIPPoolList
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("list CiliumPodIPPools: %w", err)
	}
	out := make(map[string]*ciliumv2alpha1.CiliumPodIPPool, len(list.Items))
	for i := range list.Items {
		out[list.Items[i].Name] = &list.Items[i]
	}
	return out, nil
}

// Ledgers reads all ledgers from the API server itself, by pool.
func (c *Client) Ledgers(ctx context.Context) (map[string]*weftv1.PodCIDRLedger, error) {
	ctx, cancel := limit(ctx)
	defer cancel()
	raw, err := c.weft.Get().Resource(weftv1.PodCIDRLedgerResource).Do(ctx).Raw()
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("the cluster has no %s.%s: apply the chart's custom resource definitions", weftv1.PodCIDRLedgerResource, weftv1.Group)
	}
	if err != nil {
		return nil, fmt.Errorf("list PodCIDRLedgers: %w", err)
	}
	var list weftv1.PodCIDRLedgerList
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("list PodCIDRLedgers: %w", err)
	}
	out := make(map[string]*weftv1.PodCIDRLedger, len(list.Items))
	for i := range list.Items {
		l := &list.Items[i]
		if !owned(l.Labels) {
			return nil, fmt.Errorf("PodCIDRLedger %s %w", l.Name, ErrNotOurs)
		}
		out[l.Name] = l
	}
	return out, nil
}
