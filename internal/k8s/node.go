// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
)

// ErrNotOurs is returned for an object that carries no label of Weft and is
// therefore left as it is.
var ErrNotOurs = errors.New("was not made by Weft (label " + ciliumv2.PartOfLabel + "=" + ciliumv2.PartOfValue + " is missing): delete it if nothing else needs it")

// NodeInfo is what an agent publishes about its node.
type NodeInfo struct {
	UID        string // of the Node, which owns the CiliumNode
	BootID     string
	ProviderID string
	Addrs      []netip.Addr   // InternalIPs
	PodCIDRs   []netip.Prefix // not with Config.ClusterPool, where they are the operator's to write
	HealthIPs  []netip.Addr
	Tunnel     string // how the node takes part in the overlay; empty: not
	// Requested is what this node asks of pools, with Config.MultiPool only.
	Requested []ciliumv2.IPAMPoolRequest
	// Annotations to set; all others stay as they are.
	Annotations map[string]string
}

// TunnelAnnotation of a CiliumNode says that its agent takes packets by the
// overlay, and how: protocol, UDP port and family of the outer packets. Others
// that speak the same send to it that way; all else keeps the network's way.
const TunnelAnnotation = "weft.dev/tunnel"

// Publisher keeps this node's CiliumNode as Set was told last.
type Publisher struct {
	client *Client
	own    <-chan struct{} // somebody touched the object
	set    chan struct{}

	mu   sync.Mutex
	want *NodeInfo
	err  error
}

// NewPublisher returns a publisher that does nothing until Set and Run.
func NewPublisher(client *Client, r *Reflect) *Publisher {
	return &Publisher{client: client, own: r.nodes.ownChanged, set: make(chan struct{}, 1)}
}

// Set says what to publish from now on.
func (p *Publisher) Set(info NodeInfo) {
	p.mu.Lock()
	p.want = &info
	p.mu.Unlock()
	select {
	case p.set <- struct{}{}:
	default:
	}
}

// Err returns why the last attempt failed, nil if it did not.
func (p *Publisher) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Run publishes until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	const first, longest = 500 * time.Millisecond, 15 * time.Second
	delay := first
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.set:
			delay = first
		case <-p.own:
		case <-retry:
		}
		retry = nil
		p.mu.Lock()
		want := p.want
		p.mu.Unlock()
		if want == nil {
			continue
		}
		err := p.client.publishNode(ctx, *want)
		p.client.conn.note("ciliumnode "+p.client.node, err)
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		if err == nil {
			delay = first
			continue
		}
		p.client.log.Debug("ciliumnode cannot be written", "node", p.client.node, "error", err)
		retry = time.After(jitter(delay))
		delay = min(2*delay, longest)
	}
}

func (c *Client) publishNode(ctx context.Context, info NodeInfo) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	want := ciliumNode(c.node, info)
	var cur ciliumv2.CiliumNode
	err := c.cilium.Get().Resource(ciliumv2.CiliumNodeResource).Name(c.node).Do(ctx).Into(&cur)
	if apierrors.IsNotFound(err) {
		if err := c.checkOwner(ctx, info.UID); err != nil {
			return err
		}
		err = c.cilium.Post().Resource(ciliumv2.CiliumNodeResource).Body(want).Do(ctx).Error()
		return wrap(err, "create CiliumNode %s", c.node)
	}
	if err != nil {
		return fmt.Errorf("get CiliumNode %s: %w", c.node, err)
	}
	if !owned(cur.Labels) {
		return fmt.Errorf("CiliumNode %s %w", c.node, ErrNotOurs)
	}
	if c.pool {
		want.Spec.IPAM = cur.Spec.IPAM
		want.Spec.IPAM.Pools.Requested = info.Requested
	}
	annotated := cur.Annotations[TunnelAnnotation] == info.Tunnel
	for k, v := range info.Annotations {
		have, ok := cur.Annotations[k]
		annotated = annotated && ok && have == v
	}
	if annotated && equality.Semantic.DeepEqual(cur.Spec, want.Spec) && equality.Semantic.DeepEqual(cur.OwnerReferences, want.OwnerReferences) {
		return nil
	}
	annotate(&cur, TunnelAnnotation, info.Tunnel)
	cur.Spec, cur.OwnerReferences = want.Spec, want.OwnerReferences
	if cur.Annotations == nil {
		cur.Annotations = map[string]string{}
	}
	maps.Copy(cur.Annotations, want.Annotations)
	err = c.cilium.Put().Resource(ciliumv2.CiliumNodeResource).Name(c.node).Body(&cur).Do(ctx).Error()
	return wrap(err, "update CiliumNode %s", c.node)
}

// checkOwner fails if the Node that is to own the CiliumNode is gone. Kubernetes'
// garbage collector would remove the new object at once, and so on for ever.
func (c *Client) checkOwner(ctx context.Context, uid string) error {
	if uid == "" {
		return nil
	}
	var n metav1.PartialObjectMetadata
	err := c.core.Get().Resource(nodesResource).Name(c.node).
		SetHeader("Accept", acceptMetadata).Do(ctx).Into(&n)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("get node %s: %w", c.node, err)
	}
	if string(n.UID) != uid {
		return fmt.Errorf("create CiliumNode %s: its Node was deleted: restart the kubelet of this node to register it again", c.node)
	}
	return nil
}

func ciliumNode(name string, info NodeInfo) *ciliumv2.CiliumNode {
	n := &ciliumv2.CiliumNode{
		TypeMeta: metav1.TypeMeta{APIVersion: ciliumv2.SchemeGroupVersion().String(), Kind: "CiliumNode"},
		ObjectMeta: metav1.ObjectMeta{
			Name:   name,
			Labels: map[string]string{ciliumv2.PartOfLabel: ciliumv2.PartOfValue},
		},
		Spec: ciliumv2.NodeSpec{BootID: info.BootID, InstanceID: info.ProviderID},
	}
	n.Annotations = maps.Clone(info.Annotations)
	annotate(n, TunnelAnnotation, info.Tunnel)
	if info.UID != "" {
		n.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(info.UID)}}
	}
	for _, a := range info.Addrs {
		n.Spec.Addresses = append(n.Spec.Addresses, ciliumv2.NodeAddress{Type: ciliumv2.NodeInternalIP, IP: a.String()})
	}
	for _, p := range info.PodCIDRs {
		n.Spec.IPAM.PodCIDRs = append(n.Spec.IPAM.PodCIDRs, p.String())
	}
	n.Spec.IPAM.Pools.Requested = info.Requested
	for _, a := range info.HealthIPs {
		if a.Is4() {
			n.Spec.HealthAddressing.IPv4 = a.String()
		} else {
			n.Spec.HealthAddressing.IPv6 = a.String()
		}
	}
	return n
}

// annotate sets an annotation, or with an empty value takes it away.
func annotate(n *ciliumv2.CiliumNode, key, value string) {
	if value == "" {
		delete(n.Annotations, key)
		return
	}
	if n.Annotations == nil {
		n.Annotations = map[string]string{}
	}
	n.Annotations[key] = value
}

// MarkReady removes the taint agent-not-ready from this node and sets its
// condition NetworkUnavailable to False. Both are left alone where they are so
// already.
func (c *Client) MarkReady(ctx context.Context) error {
	err := c.markReady(ctx)
	c.conn.note("node "+c.node, err)
	return err
}

func (c *Client) markReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var node corev1.Node
	if err := c.core.Get().Resource(nodesResource).Name(c.node).Do(ctx).Into(&node); err != nil {
		return fmt.Errorf("get node %s: %w", c.node, err)
	}
	if !networkAvailable(&node) {
		now := metav1.Now()
		patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
			Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: "CiliumIsUp",
			Message: "Weft has proven the node's pod network", LastHeartbeatTime: now, LastTransitionTime: now,
		}}}})
		if err != nil {
			return fmt.Errorf("node %s: condition: %w", c.node, err)
		}
		if err := c.core.Patch(types.StrategicMergePatchType).Resource(nodesResource).Name(c.node).SubResource("status").Body(patch).Do(ctx).Error(); err != nil {
			return fmt.Errorf("set condition NetworkUnavailable of node %s: %w", c.node, err)
		}
	}
	patch, err := taintPatch(node.Spec.Taints)
	if err != nil || patch == nil {
		return err
	}
	err = c.core.Patch(types.JSONPatchType).Resource(nodesResource).Name(c.node).Body(patch).Do(ctx).Error()
	return wrap(err, "remove taint "+AgentNotReadyTaint+" from node %s", c.node)
}

func networkAvailable(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionFalse
	})
}

// taintPatch returns the JSON patch that removes our taint, nil if there is
// none. It tests for the taints that it was made from: a patch by index must not
// hit a taint that somebody added meanwhile.
func taintPatch(taints []corev1.Taint) ([]byte, error) {
	rest := slices.DeleteFunc(slices.Clone(taints), func(t corev1.Taint) bool { return t.Key == AgentNotReadyTaint })
	if len(rest) == len(taints) {
		return nil, nil
	}
	ops := []map[string]any{
		{"op": "test", "path": "/spec/taints", "value": taints},
		{"op": "replace", "path": "/spec/taints", "value": rest},
	}
	patch, err := json.Marshal(ops)
	if err != nil {
		return nil, fmt.Errorf("taints: %w", err)
	}
	return patch, nil
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
