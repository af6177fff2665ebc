// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	nodeName = "bench"
	// Services that somebody asks; all others have endpoints that are nowhere.
	targetName  = "target"
	changeName  = "change"
	trafficName = "traffic"

	backendPort     = 7000 // of the pod; of the other backends the next ones
	trafficPort     = 9000
	targetNodePort  = 30080
	trafficNodePort = 30900
	servicesPath    = "/api/v1/namespaces/default/services"
	slicesPath      = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
)

// objects are what the API server has been given.
type objects struct {
	api   *apiServer
	count int // Services
	// Addresses of the Services that are asked.
	target, change, traffic netip.AddrPort
}

func newObjects(api *apiServer) (*objects, error) {
	o := &objects{api: api}
	err := errors.Join(
		api.do(http.MethodPost, "/api/v1/nodes", corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: nodeName},
			Spec:       corev1.NodeSpec{PodCIDR: podRange, PodCIDRs: []string{podRange}},
		}),
		api.do(http.MethodPatch, "/api/v1/nodes/"+nodeName+"/status", corev1.Node{Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddr}},
		}}),
	)
	if err != nil {
		return nil, err
	}
	if o.target, err = o.service(targetName, "10.96.0.10", corev1.ServicePort{Port: 80, NodePort: targetNodePort}); err != nil {
		return nil, err
	}
	for i := range backends {
		if err := o.slice(http.MethodPost, sliceOf(targetName, i, backendPort+i, netip.MustParseAddr("10.128.0.1"))); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// service makes one and returns where its cluster IP is asked: an address that no
// filler has.
func (o *objects) service(name, clusterIP string, ports ...corev1.ServicePort) (netip.AddrPort, error) {
	svc := corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: ports, ClusterIP: clusterIP}}
	for _, p := range ports {
		if p.NodePort != 0 {
			svc.Spec.Type = corev1.ServiceTypeNodePort
		}
	}
	if err := o.api.do(http.MethodPost, servicesPath, svc); err != nil {
		return netip.AddrPort{}, err
	}
	o.count++
	return netip.AddrPortFrom(netip.MustParseAddr(clusterIP), uint16(ports[0].Port)), nil
}

func (o *objects) slice(method string, s discoveryv1.EndpointSlice) error {
	path := slicesPath
	if method != http.MethodPost {
		path += "/" + s.Name
	}
	return o.api.do(method, path, s)
}

// sliceOf is the i-th EndpointSlice of a Service.
func sliceOf(service string, i, port int, addrs ...netip.Addr) discoveryv1.EndpointSlice {
	number, ready := int32(port), true
	tcp, udp, name := corev1.ProtocolTCP, corev1.ProtocolUDP, ""
	s := discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", service, i), Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &number, Protocol: &tcp}},
	}
	if service == trafficName {
		t, u := "tcp", "udp"
		s.Ports = []discoveryv1.EndpointPort{{Name: &t, Port: &number, Protocol: &tcp}, {Name: &u, Port: &number, Protocol: &udp}}
	}
	node := nodeName
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a.String()}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		})
	}
	return s
}

// last adds the Services that are asked while an agent runs.
func (o *objects) last() (err error) {
	if o.change, err = o.service(changeName, "10.96.0.11", corev1.ServicePort{Port: 80}); err != nil {
		return err
	}
	o.traffic, err = o.service(trafficName, "10.96.0.12",
		corev1.ServicePort{Name: "tcp", Port: trafficPort, NodePort: trafficNodePort, Protocol: corev1.ProtocolTCP},
		corev1.ServicePort{Name: "udp", Port: trafficPort, NodePort: trafficNodePort, Protocol: corev1.ProtocolUDP})
	nowhere := netip.MustParseAddr("10.128.0.1")
	return errors.Join(err,
		o.slice(http.MethodPost, sliceOf(changeName, 0, backendPort, nowhere)),
		o.slice(http.MethodPost, sliceOf(trafficName, 0, trafficPort, nowhere)))
}

// point leads the Services that are asked to a node's backend pod.
func (o *objects) point(to netip.Addr) error {
	var errs []error
	for i := range backends {
		errs = append(errs, o.slice(http.MethodPut, sliceOf(targetName, i, backendPort+i, to)))
	}
	if o.change.IsValid() {
		errs = append(errs, o.slice(http.MethodPut, sliceOf(changeName, 0, backendPort, to)),
			o.slice(http.MethodPut, sliceOf(trafficName, 0, trafficPort, to)))
	}
	return errors.Join(errs...)
}

// switchTo gives the Service that changes another backend.
func (o *objects) switchTo(to netip.Addr, backend int) error {
	return o.slice(http.MethodPut, sliceOf(changeName, 0, backendPort+backend, to))
}
