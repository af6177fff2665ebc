// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// nodePortEvery: one Service in so many has a NodePort.
	nodePortEvery = 10
	firstNodePort = 31000
	// aTime is how many Services are written at a time: etcd takes 128 objects.
	aTime = 40
)

// put is one write of etcd's.
type put struct {
	RequestPut struct {
		Key   []byte `json:"key"`
		Value []byte `json:"value"`
	} `json:"requestPut"`
}

// fill brings the number of Services to n, with their endpoints, by writing to
// etcd what the API server would: through the API this takes minutes, most of them
// for the choice of addresses.
func (o *objects) fill(n int) error {
	for o.count < n {
		var puts []put
		for range min(aTime, n-o.count) {
			some, err := filler(o.count)
			if err != nil {
				return err
			}
			puts = append(puts, some...)
			o.count++
		}
		if err := write(puts); err != nil {
			return err
		}
	}
	// The API server answers from what it has seen of etcd.
	last := fmt.Sprintf("/filler-%05d", n-1)
	if n == 1 {
		return nil
	}
	return eventually(slowTick, time.Minute, func() error {
		return errors.Join(
			o.api.do(http.MethodGet, servicesPath+last+"?resourceVersion=0", nil),
			o.api.do(http.MethodGet, slicesPath+last+"-0?resourceVersion=0", nil),
		)
	})
}

func write(puts []put) error {
	body, err := json.Marshal(map[string]any{"success": puts})
	if err != nil {
		return err
	}
	resp, err := http.Post(etcdURL+"/v3/kv/txn", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("etcd: %s: %s", resp.Status, b)
	}
	return err
}

// filler is the i-th Service with its address and its EndpointSlice.
func filler(i int) ([]put, error) {
	name := fmt.Sprintf("filler-%05d", i)
	ip := netip.AddrFrom4([4]byte{10, 96, byte(1 + i>>8), byte(i)}).String()
	port := corev1.ServicePort{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}
	single, cluster := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster
	spec := corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
		SessionAffinity: corev1.ServiceAffinityNone, IPFamilyPolicy: &single, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		InternalTrafficPolicy: &cluster,
	}
	if i%nodePortEvery == 0 {
		spec.Type, spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyTypeCluster
		port.NodePort = int32(firstNodePort + i/nodePortEvery)
	}
	spec.Ports = []corev1.ServicePort{port}
	addrs := make([]netip.Addr, backends)
	for j := range addrs {
		n := i*backends + j
		addrs[j] = netip.AddrFrom4([4]byte{10, 128 + byte(n>>16), byte(n >> 8), byte(n)})
	}
	slice := sliceOf(name, 0, 8080, addrs...)
	slice.TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
	slice.ObjectMeta = stored(slice.Name, "default", slice.Labels, 3*i)
	svc := corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: stored(name, "default", nil, 3*i+1), Spec: spec}
	addr := networkingv1.IPAddress{
		TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "IPAddress"},
		ObjectMeta: stored(ip, "", map[string]string{
			networkingv1.LabelIPAddressFamily: "IPv4", networkingv1.LabelManagedBy: "ipallocator.k8s.io",
		}, 3*i+2),
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: name}},
	}
	var puts []put
	var errs []error
	for key, object := range map[string]any{
		"services/specs/default/" + name: svc, "endpointslices/default/" + slice.Name: slice, "ipaddresses/" + ip: addr,
	} {
		value, err := json.Marshal(object)
		var p put
		p.RequestPut.Key, p.RequestPut.Value = []byte("/registry/"+key), value
		puts, errs = append(puts, p), append(errs, err)
	}
	return puts, errors.Join(errs...)
}

// stored is what of an object the API server adds.
func stored(name, namespace string, labels map[string]string, number int) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: name, Namespace: namespace, Labels: labels, Generation: 1, CreationTimestamp: metav1.NewTime(time.Now()),
		UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", number)),
	}
}

// list returns how long the API server takes to tell all Services and
// EndpointSlices to a client that throws them away: the floor of what programs them.
func (o *objects) list() (time.Duration, error) {
	start := time.Now()
	done := make(chan error, 2)
	for _, path := range []string{servicesPath, slicesPath} {
		go func() { done <- o.api.read(path + "?resourceVersion=0") }()
	}
	err := errors.Join(<-done, <-done)
	return time.Since(start), err
}

// read reads an answer as clients get it, in protobuf.
func (a *apiServer) read(path string) error {
	req, err := http.NewRequest(http.MethodGet, apiURL+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/vnd.kubernetes.protobuf")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
