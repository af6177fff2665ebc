// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"net/netip"

	"github.com/cilium/statedb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/weft-net/weft/internal/table"
)

// hostPortsResource is the name of the reflector of this node's pods, as the status
// shows it.
const hostPortsResource = "pods"

// configHash is the annotation of a mirror pod that holds the UID of the static pod
// behind it, under which the container runtime knows it.
const configHash = "kubernetes.io/config.hash"

// ofNode selects the pods of a node.
func ofNode(name string) string { return fields.OneTermEqualSelector("spec.nodeName", name).String() }

// hostPortsRow makes the row of a pod; it has no ports where the pod has no
// hostPorts, or has ended. In the node's own network a hostPort only says what the
// process binds.
func hostPortsRow(p *corev1.Pod) *table.PodHostPorts {
	row := &table.PodHostPorts{Namespace: intern(p.Namespace), Pod: p.Name, UID: string(p.UID), Created: p.CreationTimestamp.Time}
	if uid := p.Annotations[configHash]; uid != "" {
		row.UID = uid
	}
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return row
	}
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			h := table.HostPort{Port: port.HostPort, To: port.ContainerPort, Proto: protocol(port.Protocol)}
			if port.HostIP != "" {
				ip, err := netip.ParseAddr(port.HostIP)
				if err != nil {
					row.Garbage = append(row.Garbage, fmt.Sprintf("hostIP %q of hostPort %d", port.HostIP, port.HostPort))
					continue
				}
				h.HostIP = ip.Unmap()
			}
			row.Ports = append(row.Ports, h)
		}
	}
	for i := range p.Spec.InitContainers { // those that go on beside the others
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	return row
}

// stripPod keeps what hostPortsRow reads.
func stripPod(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: stripMeta(p.ObjectMeta)}
	out.Annotations = only(p.Annotations, configHash)
	out.Spec.HostNetwork, out.Status.Phase = p.Spec.HostNetwork, p.Status.Phase
	ports := func(in []corev1.Container) (out []corev1.Container) {
		for i := range in {
			if len(in[i].Ports) > 0 {
				out = append(out, corev1.Container{Name: in[i].Name, Ports: in[i].Ports, RestartPolicy: in[i].RestartPolicy})
			}
		}
		return out
	}
	out.Spec.InitContainers, out.Spec.Containers = ports(p.Spec.InitContainers), ports(p.Spec.Containers)
	return out
}

// newHostPortStore registers the table's initializer.
func newHostPortStore(db *statedb.DB, t *ServiceTables, once func(string, func(statedb.WriteTxn)) func(statedb.WriteTxn)) *objectStore[*corev1.Pod, *table.PodHostPorts] {
	txn := db.WriteTxn(t.HostPorts)
	defer txn.Commit()
	return &objectStore[*corev1.Pod, *table.PodHostPorts]{
		resource: hostPortsResource, db: db, rows: t.HostPorts, byName: table.HostPortsByPod, arrived: t.HostPortsArrived,
		strip: stripPod, row: hostPortsRow, keep: func(p *table.PodHostPorts) bool { return len(p.Ports)+len(p.Garbage) > 0 },
		done: once(hostPortsResource, t.HostPorts.RegisterInitializer(txn, hostPortsResource)),
	}
}
