// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
)

// SetPodCIDRs writes a node's ranges into its CiliumNode, if that is still the
// version that n is, and returns the next one. A conflict is apierrors.IsConflict.
func (c *Cache) SetPodCIDRs(ctx context.Context, n *CiliumNode, cidrs []string) (*CiliumNode, error) {
	return c.patch(ctx, n, "", map[string]any{"spec": map[string]any{"ipam": map[string]any{"podCIDRs": cidrs}}})
}

// SetAllocated writes what a node has from pools, as SetPodCIDRs does.
func (c *Cache) SetAllocated(ctx context.Context, n *CiliumNode, have []ciliumv2.IPAMPoolAllocation) (*CiliumNode, error) {
	var value any // null removes the field
	if len(have) > 0 {
		value = have
	}
	return c.patch(ctx, n, "", map[string]any{"spec": map[string]any{"ipam": map[string]any{"pools": map[string]any{"allocated": value}}}})
}

// SetError writes the operator's word on a node's addresses; "" takes it back.
func (c *Cache) SetError(ctx context.Context, n *CiliumNode, text string) (*CiliumNode, error) {
	var value any // null removes the field
	if text != "" {
		value = text
	}
	return c.patch(ctx, n, "status", map[string]any{"status": map[string]any{"ipam": map[string]any{"operator-status": map[string]any{"error": value}}}})
}

func (c *Cache) patch(ctx context.Context, n *CiliumNode, sub string, patch map[string]any) (*CiliumNode, error) {
	if !n.Owned {
		return nil, fmt.Errorf("CiliumNode %s %w", n.Name, ErrNotOurs)
	}
	ctx, cancel := limit(ctx)
	defer cancel()
	patch["metadata"] = map[string]any{"uid": n.UID, "resourceVersion": n.Version}
	body, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("CiliumNode %s: %w", n.Name, err)
	}
	req := c.client.cilium.Patch(types.MergePatchType).Resource(ciliumv2.CiliumNodeResource).Name(n.Name).Body(body)
	if sub != "" {
		req = req.SubResource(sub)
	}
	var out ciliumv2.CiliumNode
	if err := req.Do(ctx).Into(&out); err != nil {
		return nil, fmt.Errorf("patch CiliumNode %s: %w", n.Name, err)
	}
	return c.saw(&out), nil
}

// Gone asks the API server itself, not the cache, whether there is neither a Node
// nor a CiliumNode of a name.
func (c *Client) Gone(ctx context.Context, name string) (bool, error) {
	ctx, cancel := limit(ctx)
	defer cancel()
	err := c.cilium.Get().Resource(ciliumv2.CiliumNodeResource).Name(name).Do(ctx).Error()
	if err == nil {
		return false, nil
	}
	if !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("get CiliumNode %s: %w", name, err)
	}
	uid, err := c.nodeUID(ctx, name)
	return uid == "" && err == nil, err
}

// NodeUID asks the API server itself for the UID of a Node, "" if there is none.
func (c *Client) NodeUID(ctx context.Context, name string) (string, error) {
	ctx, cancel := limit(ctx)
	defer cancel()
	return c.nodeUID(ctx, name)
}

func (c *Client) nodeUID(ctx context.Context, name string) (string, error) {
	var n corev1.Node
	err := c.core.Get().Resource("nodes").Name(name).Do(ctx).Into(&n)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("get node %s: %w", name, err)
	}
	return string(n.UID), nil
}

// DeleteCiliumNode removes a CiliumNode, if it is still the version that n is.
func (c *Client) DeleteCiliumNode(ctx context.Context, n *CiliumNode) error {
	if !n.Owned {
		return fmt.Errorf("CiliumNode %s %w", n.Name, ErrNotOurs)
	}
	ctx, cancel := limit(ctx)
	defer cancel()
	uid, version := types.UID(n.UID), n.Version
	err := c.cilium.Delete().Resource(ciliumv2.CiliumNodeResource).Name(n.Name).
		Body(&metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}}).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete CiliumNode %s: %w", n.Name, err)
	}
	return nil
}

// Event is something that happened to a node, or to none in particular.
type Event struct {
	Node    string // empty: about the operator's own Lease
	Warning bool
	Reason  string // one word in CamelCase
	Message string
}

// maxEventMessage is what the API server takes of an event's message, in bytes.
const maxEventMessage = 1024

// Emit writes an event, so that `kubectl describe node` shows it. The same reason
// and message within an hour make one event.
func (c *Client) Emit(ctx context.Context, namespace string, e Event) error {
	ctx, cancel := limit(ctx)
	defer cancel()
	if len(e.Message) > maxEventMessage {
		e.Message = e.Message[:maxEventMessage-3] + "..."
	}
	now := metav1.NewTime(time.Now())
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, e.Reason, e.Message, now.Truncate(time.Hour).Unix())
	name, kind := e.Node, corev1.EventTypeNormal
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	// kubectl describe node looks events up by the node's name as UID, as kubelet writes them.
	about := corev1.ObjectReference{Kind: "Node", Name: e.Node, UID: types.UID(e.Node), APIVersion: "v1"}
	ns := metav1.NamespaceDefault
	if e.Node == "" {
		name, ns = LeaseName, namespace
		about = corev1.ObjectReference{Kind: "Lease", Name: LeaseName, Namespace: ns, APIVersion: "coordination.k8s.io/v1"}
	}
	ev := &corev1.Event{
		TypeMeta:       metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta:     metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("%s.%x", name, h.Sum64())},
		InvolvedObject: about, Reason: e.Reason, Message: e.Message, Type: kind,
		Source: corev1.EventSource{Component: "weft-operator"}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
	err := c.core.Post().Namespace(ns).Resource("events").Body(ev).Do(ctx).Error()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("event %s: %w", e.Reason, err)
	}
	return nil
}
