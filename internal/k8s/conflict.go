// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"fmt"
	"hash/fnv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
)

// FindCilium returns a sentence that names a live agent or operator of Cilium in
// the cluster, "" if there is none. Weft's own pods carry Cilium's labels too,
// for the sake of runbooks, and its own beside them.
func (c *Client) FindCilium(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for _, labels := range []string{"k8s-app=cilium", "name=cilium-operator", "io.cilium/app=operator"} {
		opts := metav1.ListOptions{
			LabelSelector: labels + "," + ciliumv2.PartOfLabel + "!=" + ciliumv2.PartOfValue,
			FieldSelector: "status.phase!=Succeeded,status.phase!=Failed",
			Limit:         1,
		}
		var pods corev1.PodList
		err := c.core.Get().Resource("pods").VersionedParams(&opts, c.params).Do(ctx).Into(&pods)
		c.conn.note("pods", err)
		if err != nil {
			return "", fmt.Errorf("look for a running Cilium: %w", err)
		}
		if len(pods.Items) > 0 {
			p := pods.Items[0]
			return fmt.Sprintf("pod %s/%s on node %s is a running Cilium (label %s): two networks cannot share a node: uninstall Cilium first",
				p.Namespace, p.Name, p.Spec.NodeName, labels), nil
		}
	}
	return "", nil
}

// EventType is the type of a Kubernetes event.
type EventType string

// Types of events.
const (
	EventNormal  EventType = "Normal"
	EventWarning EventType = "Warning"
)

// Event reports something about this node, so that `kubectl describe node` shows
// it. The same reason and message within an hour make one event.
func (c *Client) Event(ctx context.Context, kind EventType, reason, message string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	h := fnv.New64a()
	now := metav1.NewTime(time.Now())
	_, _ = fmt.Fprint(h, reason, message, now.Truncate(time.Hour).Unix())
	ev := &corev1.Event{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: fmt.Sprintf("%s.%x", c.node, h.Sum64())},
		// kubectl describe node looks events up by the node's name as UID, as kubelet writes them.
		InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: c.node, UID: types.UID(c.node), APIVersion: "v1"},
		Reason:         reason, Message: message, Type: string(kind),
		Source:         corev1.EventSource{Component: "weft-agent", Host: c.node},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
	err := c.core.Post().Namespace(metav1.NamespaceDefault).Resource("events").Body(ev).Do(ctx).Error()
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return wrap(err, "event %s", reason)
}
