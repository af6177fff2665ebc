// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	"github.com/weft-net/weft/internal/table"
)

// nodeRow makes the row of a node; cn is nil where its agent has not spoken yet.
// With pool, the pod ranges are those of cn. Addresses and ranges that cannot be
// parsed are left out.
func nodeRow(n *corev1.Node, cn *ciliumv2.CiliumNode, local, pool bool) *table.Node {
	row := &table.Node{Name: n.Name, Local: local, UID: string(n.UID), ProviderID: n.Spec.ProviderID, Zone: n.Labels[corev1.LabelTopologyZone]}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			row.Addrs = append(row.Addrs, ip.Unmap())
		}
	}
	for _, s := range podCIDRs(n, cn, pool) {
		if p, err := netip.ParsePrefix(s); err == nil {
			row.PodCIDRs = append(row.PodCIDRs, p)
		}
	}
	for _, c := range n.Status.Conditions {
		switch c.Type {
		case corev1.NodeReady:
			row.Ready = c.Status == corev1.ConditionTrue
		case corev1.NodeNetworkUnavailable:
			row.NetworkReady = c.Status == corev1.ConditionFalse
		}
	}
	row.AgentNotReady = slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == AgentNotReadyTaint })
	if cn != nil {
		row.Tunnel = cn.Annotations[TunnelAnnotation]
		if local && pool {
			row.PoolError = cn.Status.IPAM.OperatorStatus.Error
		}
		for _, s := range []string{cn.Spec.HealthAddressing.IPv4, cn.Spec.HealthAddressing.IPv6} {
			if ip, err := netip.ParseAddr(s); err == nil {
				row.HealthIPs = append(row.HealthIPs, ip.Unmap())
			}
		}
	}
	return row
}

// podCIDRs are a node's ranges as the API server shows them. A CiliumNode that
// is not Weft's was left by another network, and its ranges are not in force.
func podCIDRs(n *corev1.Node, cn *ciliumv2.CiliumNode, pool bool) []string {
	switch {
	case pool && (cn == nil || !owned(cn.Labels)):
		return nil
	case pool && len(cn.Spec.IPAM.Pools.Allocated) > 0:
		var out []string
		for _, a := range cn.Spec.IPAM.Pools.Allocated {
			for _, c := range a.CIDRs {
				out = append(out, string(c))
			}
		}
		return out
	case pool:
		return cn.Spec.IPAM.PodCIDRs
	case len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR != "":
		return []string{n.Spec.PodCIDR}
	}
	return n.Spec.PodCIDRs
}

func sameNode(a, b *table.Node) bool {
	return a.Name == b.Name && a.Local == b.Local && a.UID == b.UID && a.ProviderID == b.ProviderID && a.Zone == b.Zone && a.PoolError == b.PoolError &&
		a.Ready == b.Ready && a.NetworkReady == b.NetworkReady && a.AgentNotReady == b.AgentNotReady && a.Tunnel == b.Tunnel &&
		slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.PodCIDRs, b.PodCIDRs) && slices.Equal(a.HealthIPs, b.HealthIPs)
}

// podRow makes the row of a CiliumEndpoint.
func podRow(e *ciliumv2.CiliumEndpoint) *table.RemotePod {
	row := &table.RemotePod{
		Namespace: e.Namespace, Pod: e.Name, UID: string(e.UID),
		Created: e.CreationTimestamp.Time, Owned: owned(e.Labels),
	}
	for _, o := range e.OwnerReferences {
		if o.Kind == "Pod" {
			row.PodUID = string(o.UID)
		}
	}
	if id := e.Status.Identity; id != nil && id.ID > 0 && id.ID <= 1<<32-1 {
		row.Identity = table.Identity(id.ID)
	}
	if nw := e.Status.Networking; nw != nil {
		if ip, err := netip.ParseAddr(nw.NodeIP); err == nil {
			row.NodeAddr = ip.Unmap()
		}
		for _, pair := range nw.Addressing {
			if pair == nil {
				continue
			}
			for _, s := range []string{pair.IPv4, pair.IPv6} {
				if ip, err := netip.ParseAddr(s); err == nil {
					row.Addrs = append(row.Addrs, ip.Unmap())
				}
			}
		}
	}
	return row
}

func samePod(a, b *table.RemotePod) bool {
	return a.UID == b.UID && a.PodUID == b.PodUID && a.NodeAddr == b.NodeAddr && a.Identity == b.Identity &&
		a.Owned == b.Owned && a.Created.Equal(b.Created) && slices.Equal(a.Addrs, b.Addrs)
}

func owned(labels map[string]string) bool {
	return labels[ciliumv2.PartOfLabel] == ciliumv2.PartOfValue
}

// stripNode copies what nodeRow reads; a Node as it comes weighs some 20 KiB,
// most of it names of images.
func stripNode(n *corev1.Node) *corev1.Node {
	out := &corev1.Node{
		ObjectMeta: stripMeta(n.ObjectMeta),
		Spec:       corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs, ProviderID: n.Spec.ProviderID},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
	}
	out.Labels = only(n.Labels, corev1.LabelTopologyZone)
	for _, t := range n.Spec.Taints {
		if t.Key == AgentNotReadyTaint {
			out.Spec.Taints = append(out.Spec.Taints, corev1.Taint{Key: t.Key, Effect: t.Effect})
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady || c.Type == corev1.NodeNetworkUnavailable {
			out.Status.Conditions = append(out.Status.Conditions, corev1.NodeCondition{Type: c.Type, Status: c.Status})
		}
	}
	return out
}

// stripCiliumNode keeps what nodeRow reads; ranges of pools with multi only.
func stripCiliumNode(n *ciliumv2.CiliumNode, multi bool) *ciliumv2.CiliumNode {
	out := &ciliumv2.CiliumNode{ObjectMeta: stripMeta(n.ObjectMeta)}
	out.Labels = n.Labels
	if tunnel := n.Annotations[TunnelAnnotation]; tunnel != "" {
		out.Annotations = map[string]string{TunnelAnnotation: tunnel}
	}
	out.Spec.HealthAddressing = n.Spec.HealthAddressing
	out.Spec.IPAM.PodCIDRs = n.Spec.IPAM.PodCIDRs
	if multi {
		out.Spec.IPAM.Pools.Allocated = n.Spec.IPAM.Pools.Allocated
	}
	out.Status.IPAM.OperatorStatus = n.Status.IPAM.OperatorStatus
	return out
}

// stripEndpoint keeps what podRow reads.
func stripEndpoint(e *ciliumv2.CiliumEndpoint) *ciliumv2.CiliumEndpoint {
	meta := stripMeta(e.ObjectMeta)
	meta.Labels, meta.OwnerReferences = e.Labels, e.OwnerReferences
	return &ciliumv2.CiliumEndpoint{
		ObjectMeta: meta,
		Status:     ciliumv2.EndpointStatus{Identity: e.Status.Identity, Networking: e.Status.Networking},
	}
}

// stripMeta keeps what a reflector and a row need.
func stripMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID,
		ResourceVersion: m.ResourceVersion, CreationTimestamp: m.CreationTimestamp,
	}
}
