// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
)

// Node is what allocation looks at of a Node.
type Node struct {
	Name     string
	UID      string
	Version  string // resourceVersion
	Addrs    []netip.Addr
	PodCIDRs []netip.Prefix // of kube-controller-manager
	// Silent is since when the node is not Ready, zero while it is.
	Silent time.Time
}

// CiliumNode is what allocation looks at of a CiliumNode.
type CiliumNode struct {
	Name    string
	UID     string
	Version string // resourceVersion
	Created time.Time
	Owned   bool   // carries Weft's label
	NodeUID string // of the Node that owns it
	Addrs   []netip.Addr
	// PodCIDRs is spec.ipam.podCIDRs as it stands there.
	PodCIDRs []string
	// Published says that the node's agent has told its routes.
	Published bool
	Routes    []weftv1.NodeRoute
	Seen      uint64 // the highest release that the agent is done with
	Error     string // status.ipam.operator-status.error
	Pools     NodePools
}

// NodePools is what a CiliumNode says of named pools.
type NodePools struct {
	Requested []ciliumv2.IPAMPoolRequest
	Allocated []ciliumv2.IPAMPoolAllocation
	GiveBack  []netip.Prefix
	Seen      map[string]uint64 // by pool, the highest release that the agent is done with
}

func (p *NodePools) same(o *NodePools) bool {
	return slices.Equal(p.Requested, o.Requested) && slices.Equal(p.GiveBack, o.GiveBack) && maps.Equal(p.Seen, o.Seen) && SameAllocated(p.Allocated, o.Allocated)
}

// SameAllocated compares what a node has from pools.
func SameAllocated(a, b []ciliumv2.IPAMPoolAllocation) bool {
	return slices.EqualFunc(a, b, func(x, y ciliumv2.IPAMPoolAllocation) bool { return x.Pool == y.Pool && slices.Equal(x.CIDRs, y.CIDRs) })
}

func cutPools(n *ciliumv2.CiliumNode) NodePools {
	p := NodePools{Requested: n.Spec.IPAM.Pools.Requested, Allocated: n.Spec.IPAM.Pools.Allocated}
	var back []string
	if json.Unmarshal([]byte(n.Annotations[weftv1.GiveBackAnnotation]), &back) == nil {
		for _, s := range back {
			if r, err := netip.ParsePrefix(s); err == nil {
				p.GiveBack = append(p.GiveBack, r.Masked())
			}
		}
	}
	if json.Unmarshal([]byte(n.Annotations[weftv1.ReleaseSeenPoolsAnnotation]), &p.Seen) != nil {
		p.Seen = nil
	}
	return p
}

func (n *Node) key() string           { return n.Name }
func (n *Node) version() string       { return n.Version }
func (n *CiliumNode) key() string     { return n.Name }
func (n *CiliumNode) version() string { return n.Version }

// same tells heartbeats from news.
func (n *Node) same(o *Node) bool {
	return n.UID == o.UID && n.Silent.Equal(o.Silent) && slices.Equal(n.Addrs, o.Addrs) && slices.Equal(n.PodCIDRs, o.PodCIDRs)
}

func (n *CiliumNode) same(o *CiliumNode) bool {
	return n.UID == o.UID && n.Owned == o.Owned && n.NodeUID == o.NodeUID && n.Published == o.Published && n.Seen == o.Seen &&
		n.Error == o.Error && slices.Equal(n.Addrs, o.Addrs) && slices.Equal(n.PodCIDRs, o.PodCIDRs) && slices.Equal(n.Routes, o.Routes) && n.Pools.same(&o.Pools)
}

func cutNode(o any) *Node {
	n, ok := o.(*corev1.Node)
	if !ok {
		return nil
	}
	out := &Node{Name: n.Name, UID: string(n.UID), Version: n.ResourceVersion}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type != corev1.NodeExternalIP {
			out.Addrs = append(out.Addrs, ip.Unmap())
		}
	}
	for _, s := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(s); err == nil {
			out.PodCIDRs = append(out.PodCIDRs, p.Masked())
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			out.Silent = c.LastTransitionTime.Time
		}
	}
	return out
}

func cutCiliumNode(o any) *CiliumNode {
	n, ok := o.(*ciliumv2.CiliumNode)
	if !ok {
		return nil
	}
	out := &CiliumNode{
		Name: n.Name, UID: string(n.UID), Version: n.ResourceVersion, Created: n.CreationTimestamp.Time,
		Owned: owned(n.Labels), PodCIDRs: n.Spec.IPAM.PodCIDRs, Error: n.Status.IPAM.OperatorStatus.Error,
	}
	out.Pools = cutPools(n)
	for _, r := range n.OwnerReferences {
		if r.Kind == "Node" {
			out.NodeUID = string(r.UID)
		}
	}
	for _, a := range n.Spec.Addresses {
		if ip, err := netip.ParseAddr(a.IP); err == nil && a.Type != ciliumv2.NodeExternalIP {
			out.Addrs = append(out.Addrs, ip.Unmap())
		}
	}
	// Routes that nobody can read are routes that nobody has told: the node waits.
	if raw, ok := n.Annotations[weftv1.NodeRoutesAnnotation]; ok && json.Unmarshal([]byte(raw), &out.Routes) == nil {
		out.Published = !slices.ContainsFunc(out.Routes, func(r weftv1.NodeRoute) bool {
			_, err := netip.ParsePrefix(r.CIDR)
			return err != nil
		})
	}
	if seen, err := strconv.ParseUint(n.Annotations[weftv1.ReleaseSeenAnnotation], 10, 64); err == nil {
		out.Seen = seen
	}
	return out
}

// slim leaves of an object what cutNode and cutCiliumNode read: a Node as it
// comes weighs some 20 KiB, most of it names of images.
func slim(o any) any {
	switch n := o.(type) {
	case *corev1.Node:
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Annotations: bookmark(n.Annotations)},
			Spec:       corev1.NodeSpec{PodCIDRs: n.Spec.PodCIDRs},
			Status:     corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: n.Status.Conditions},
		}
	case *ciliumv2.CiliumNode:
		out := *n
		out.ManagedFields = nil
		return &out
	}
	return o
}

// bookmark keeps the mark by which a reflector knows the end of its first list.
func bookmark(annotations map[string]string) map[string]string {
	if v, ok := annotations[metav1.InitialEventsAnnotationKey]; ok {
		return map[string]string{metav1.InitialEventsAnnotationKey: v}
	}
	return nil
}
