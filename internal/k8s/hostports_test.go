// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"net/http"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/internal/table"
)

const podsPath = "/api/v1/namespaces/default/pods"

func podOn(node, name string, change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i", Ports: []corev1.ContainerPort{
			{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 53, HostPort: 53, HostIP: "127.0.0.1", Protocol: corev1.ProtocolUDP}, {ContainerPort: 81},
		}}}},
	}
	change(p)
	return p
}

// Guards against hostPorts of pods of other nodes, of pods that have ended, or of the
// node's own network; and against a static pod under another UID than the container
// runtime says.
func testHostPorts(t *testing.T, f *fixture) {
	rows := f.tables.Services.HostPorts
	get := func(name string) *table.PodHostPorts {
		r, _, _ := rows.Get(f.tables.DB.ReadTxn(), table.HostPortsByPod.Query("default/"+name))
		return r
	}
	for _, p := range []*corev1.Pod{
		podOn("n2", "port-elsewhere", func(*corev1.Pod) {}),
		podOn("n1", "port-none", func(p *corev1.Pod) { p.Spec.Containers[0].Ports = p.Spec.Containers[0].Ports[2:] }),
		podOn("n1", "port-host", func(p *corev1.Pod) {
			p.Spec.HostNetwork, p.Spec.Containers[0].Ports = true, []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}}
		}),
		podOn("n1", "port-static", func(p *corev1.Pod) {
			p.Annotations = map[string]string{"kubernetes.io/config.hash": "of-the-file", "kubernetes.io/config.mirror": "of-the-file"}
		}),
		podOn("n1", "port-sidecar", func(p *corev1.Pod) {
			side := corev1.Container{Name: "s", Image: "i", Ports: []corev1.ContainerPort{{ContainerPort: 90, HostPort: 9090}}}
			before := side
			side.RestartPolicy, before.Name = new(corev1.ContainerRestartPolicyAlways), "b"
			p.Spec.InitContainers, p.Spec.Containers[0].Ports = []corev1.Container{before, side}, nil
		}),
		podOn("n1", "port-web", func(*corev1.Pod) {}),
	} {
		f.Do(t, http.MethodPost, podsPath, p, p)
	}
	eventually(t, "web", func() (bool, any) { r := get("port-web"); return r != nil, f.client.Connection() })
	want := &table.PodHostPorts{Namespace: "default", Pod: "port-web", UID: get("port-web").UID, Created: get("port-web").Created, Ports: []table.HostPort{
		{Port: 8080, To: 80, Proto: table.ProtoTCP}, {HostIP: netip.MustParseAddr("127.0.0.1"), Port: 53, To: 53, Proto: table.ProtoUDP},
	}}
	if got := get("port-web"); !got.Equal(want) || got.UID == "" || got.Created.IsZero() {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if r := get("port-static"); r == nil || r.UID != "of-the-file" {
		t.Errorf("static pod: %+v", r)
	}
	if r := get("port-sidecar"); r == nil || len(r.Ports) != 1 || r.Ports[0].Port != 9090 {
		t.Errorf("container that goes on beside the others: %+v", r)
	}
	if n := rows.NumObjects(f.tables.DB.ReadTxn()); n != 3 {
		t.Errorf("%d pods with hostPorts, want 3", n)
	}
	f.Do(t, http.MethodPatch, podsPath+"/port-web/status", `{"status":{"phase":"Succeeded"}}`, nil)
	eventually(t, "ended", func() (bool, any) { r := get("port-web"); return r == nil, r })
	f.Do(t, http.MethodDelete, podsPath+"/port-sidecar?gracePeriodSeconds=0", nil, nil)
	eventually(t, "deleted", func() (bool, any) { r := get("port-sidecar"); return r == nil, r })
}
