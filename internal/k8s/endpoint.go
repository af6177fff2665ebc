// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/statedb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	"github.com/weft-net/weft/internal/table"
)

// annotationMirror names, on the API server's image of a static pod, the UID
// that kubelet and container runtime know the pod by.
const annotationMirror = "kubernetes.io/config.mirror"

// NodeLabel names, on a CiliumEndpoint, the node whose agent writes it; the
// chart's admission policy lets nobody else.
const NodeLabel = "weft.dev/node"

// HeldError says that a CiliumEndpoint still belongs to another node.
type HeldError struct{ Name, Node string }

func (e *HeldError) Error() string {
	return fmt.Sprintf("CiliumEndpoint %s: still belongs to node %s, whose agent or the garbage collector will delete it", e.Name, e.Node)
}

// EndpointWriter is the target (reconcile.Target) that publishes this node's
// endpoints as CiliumEndpoints. Of several agents that write an object of one
// name, as when a StatefulSet's pod moves, the one whose pod exists wins: each
// deletes only what it wrote itself.
type EndpointWriter struct {
	client *Client
	db     *statedb.DB
	nodes  statedb.Table[*table.Node]
	pods   statedb.Table[*table.RemotePod]
}

// NewEndpointWriter returns a writer that reads the nodes' and CiliumEndpoints'
// tables to spare calls.
func NewEndpointWriter(client *Client, t Tables) *EndpointWriter {
	return &EndpointWriter{client: client, db: t.DB, nodes: t.Nodes, pods: t.Pods}
}

// Update publishes an endpoint.
func (w *EndpointWriter) Update(ctx context.Context, ep, _ *table.Endpoint, _ bool) error {
	if ep.Kind != table.EndpointPod || ep.State != table.EndpointReady {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := w.update(ctx, ep)
	if held := new(HeldError); !errors.As(err, &held) {
		w.client.conn.note("ciliumendpoints of this node", err)
	}
	return err
}

func (w *EndpointWriter) update(ctx context.Context, ep *table.Endpoint) error {
	self, err := w.self()
	if err != nil {
		return err
	}
	if row, _, ok := w.pods.Get(w.db.ReadTxn(), table.RemotePodByName.Query(ep.Name())); ok && shows(row, ep, self) {
		return nil
	}
	uid, err := w.podUID(ctx, ep)
	if err != nil || uid == "" {
		return err
	}
	want := ciliumEndpoint(ep, uid, w.client.node, self)
	for range 3 {
		again, err := w.apply(ctx, want)
		if err != nil || !again {
			return err
		}
	}
	return fmt.Errorf("CiliumEndpoint %s: another writer keeps changing it", ep.Name())
}

// shows tells whether the row is what we would write. A static pod's UID differs
// from the endpoint's, so the owner is compared only where both are known alike.
func shows(row *table.RemotePod, ep *table.Endpoint, self netip.Addr) bool {
	return row.Owned && row.NodeAddr == self && row.Identity == ep.Identity && row.PodUID == ep.PodUID && ep.PodUID != "" &&
		slices.Equal(row.Addrs, endpointAddrs(ep))
}

// apply brings the object to want. again asks to call once more, as the object
// changed or went meanwhile.
func (w *EndpointWriter) apply(ctx context.Context, want *ciliumv2.CiliumEndpoint) (again bool, err error) {
	c := w.client.cilium
	name := want.Namespace + "/" + want.Name
	err = c.Post().Namespace(want.Namespace).Resource(ciliumv2.CiliumEndpointResource).Body(want).Do(ctx).Error()
	if !apierrors.IsAlreadyExists(err) {
		return false, wrap(err, "create CiliumEndpoint %s", name)
	}
	var cur ciliumv2.CiliumEndpoint
	err = c.Get().Namespace(want.Namespace).Resource(ciliumv2.CiliumEndpointResource).Name(want.Name).Do(ctx).Into(&cur)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("get CiliumEndpoint %s: %w", name, err)
	}
	if !owned(cur.Labels) {
		return false, fmt.Errorf("CiliumEndpoint %s %w", name, ErrNotOurs)
	}
	if holder := cur.Labels[NodeLabel]; holder != "" && holder != w.client.node {
		// Of an earlier pod of this name on another node. That node's agent, or the
		// garbage collector, deletes it; ours is not allowed to.
		return false, &HeldError{Name: name, Node: holder}
	}
	if !equality.Semantic.DeepEqual(cur.OwnerReferences, want.OwnerReferences) {
		// Of an earlier pod of this name. The garbage collector may be on its way
		// to delete it for that pod's sake: only a new object is safe from it.
		err := w.client.deleteEndpoint(ctx, &cur)
		return err == nil, err
	}
	if equality.Semantic.DeepEqual(cur.Status, want.Status) && cur.Labels[NodeLabel] == w.client.node {
		return false, nil
	}
	cur.Status = want.Status
	cur.Labels[NodeLabel] = w.client.node
	err = c.Put().Namespace(want.Namespace).Resource(ciliumv2.CiliumEndpointResource).Name(want.Name).Body(&cur).Do(ctx).Error()
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, wrap(err, "update CiliumEndpoint %s", name)
}

// Delete takes the object back, unless it is another pod's by now.
func (w *EndpointWriter) Delete(ctx context.Context, ep *table.Endpoint) error {
	if ep.Kind != table.EndpointPod {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := w.remove(ctx, ep)
	w.client.conn.note("ciliumendpoints of this node", err)
	return err
}

func (w *EndpointWriter) remove(ctx context.Context, ep *table.Endpoint) error {
	var cur ciliumv2.CiliumEndpoint
	err := w.client.cilium.Get().Namespace(ep.Namespace).Resource(ciliumv2.CiliumEndpointResource).Name(ep.Pod).Do(ctx).Into(&cur)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get CiliumEndpoint %s: %w", ep.Name(), err)
	}
	ids := cur.Status.ExternalIdentifiers
	if !owned(cur.Labels) || ids == nil || ids.ContainerID != ep.ContainerID {
		return nil
	}
	return w.client.deleteEndpoint(ctx, &cur)
}

// Prune deletes this node's CiliumEndpoints that have no endpoint.
func (w *EndpointWriter) Prune(ctx context.Context, desired []*table.Endpoint) error {
	txn := w.db.ReadTxn()
	if ok, _ := w.pods.Initialized(txn); !ok {
		return fmt.Errorf("ciliumendpoints of this node: not listed yet")
	}
	self, err := w.self()
	if err != nil {
		return err
	}
	keep := make(map[string]bool, len(desired))
	for _, ep := range desired {
		keep[ep.Name()] = true
	}
	for row := range w.pods.All(txn) {
		if row.NodeAddr != self || !row.Owned || keep[row.Name()] {
			continue
		}
		cur := &ciliumv2.CiliumEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: row.Namespace, Name: row.Pod, UID: types.UID(row.UID)}}
		cctx, cancel := context.WithTimeout(ctx, requestTimeout)
		err := w.client.deleteEndpoint(cctx, cur)
		cancel()
		w.client.conn.note("ciliumendpoints of this node", err)
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteEndpoint deletes exactly this object, not another of its name.
func (c *Client) deleteEndpoint(ctx context.Context, e *ciliumv2.CiliumEndpoint) error {
	opts := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &e.UID}}
	err := c.cilium.Delete().Namespace(e.Namespace).Resource(ciliumv2.CiliumEndpointResource).Name(e.Name).Body(&opts).Do(ctx).Error()
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or replaced
	}
	return wrap(err, "delete CiliumEndpoint %s/%s", e.Namespace, e.Name)
}

// self returns the address by which peers reach this node.
func (w *EndpointWriter) self() (netip.Addr, error) {
	n, _, ok := w.nodes.Get(w.db.ReadTxn(), table.NodeByName.Query(w.client.node))
	if !ok || len(n.Addrs) == 0 {
		return netip.Addr{}, fmt.Errorf("node %s: has no InternalIP yet: is the kubelet registered?", w.client.node)
	}
	return n.Addrs[0], nil
}

// podUID returns the UID of the pod as the API server knows it, "" if the pod is
// gone or has been replaced: its DEL is on its way.
func (w *EndpointWriter) podUID(ctx context.Context, ep *table.Endpoint) (string, error) {
	var pod corev1.Pod
	err := w.client.core.Get().Namespace(ep.Namespace).Resource("pods").Name(ep.Pod).Do(ctx).Into(&pod)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("get pod %s: %w", ep.Name(), err)
	}
	if ep.PodUID != "" && string(pod.UID) != ep.PodUID && pod.Annotations[annotationMirror] != ep.PodUID {
		return "", nil
	}
	return string(pod.UID), nil
}

func ciliumEndpoint(ep *table.Endpoint, podUID, nodeName string, node netip.Addr) *ciliumv2.CiliumEndpoint {
	pair := &ciliumv2.AddressPair{}
	if ep.IPv4.IsValid() {
		pair.IPv4 = ep.IPv4.String()
	}
	if ep.IPv6.IsValid() {
		pair.IPv6 = ep.IPv6.String()
	}
	return &ciliumv2.CiliumEndpoint{
		TypeMeta: metav1.TypeMeta{APIVersion: ciliumv2.SchemeGroupVersion().String(), Kind: "CiliumEndpoint"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       ep.Namespace,
			Name:            ep.Pod,
			Labels:          map[string]string{ciliumv2.PartOfLabel: ciliumv2.PartOfValue, NodeLabel: nodeName},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: ep.Pod, UID: types.UID(podUID)}},
		},
		Status: ciliumv2.EndpointStatus{
			ID: int64(ep.ID),
			ExternalIdentifiers: &ciliumv2.EndpointIdentifiers{
				CNIAttachmentID: ep.ContainerID + ":" + ep.IfName, ContainerID: ep.ContainerID,
				K8sNamespace: ep.Namespace, K8sPodName: ep.Pod, PodName: ep.Name(),
			},
			Identity:   &ciliumv2.EndpointIdentity{ID: int64(ep.Identity), Labels: identityLabels(ep.Identity)},
			Networking: &ciliumv2.EndpointNetworking{NodeIP: node.String(), Addressing: ciliumv2.AddressPairList{pair}},
			State:      ciliumv2.EndpointState(ep.State),
		},
	}
}

func identityLabels(id table.Identity) []string {
	if id < 256 {
		return []string{id.String()}
	}
	return nil
}

func endpointAddrs(ep *table.Endpoint) []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// jitter spreads retries of many agents: between half of d and d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
