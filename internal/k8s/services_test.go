// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-net/weft/internal/arrival"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
	"github.com/weft-net/weft/internal/table"
)

func serviceTables(t *testing.T, db *statedb.DB) *k8s.ServiceTables {
	t.Helper()
	services, err := table.NewServices(db)
	if err != nil {
		t.Fatal(err)
	}
	slices, err := table.NewEndpointSlices(db)
	if err != nil {
		t.Fatal(err)
	}
	hostPorts, err := table.NewHostPorts(db)
	if err != nil {
		t.Fatal(err)
	}
	return &k8s.ServiceTables{
		Services: services, Slices: slices, HostPorts: hostPorts,
		ServicesArrived: &arrival.Log{}, SlicesArrived: &arrival.Log{}, HostPortsArrived: &arrival.Log{},
	}
}

func (f *fixture) service(name string) *table.Service {
	s, _, _ := f.tables.Services.Services.Get(f.tables.DB.ReadTxn(), table.ServiceByName.Query("default/"+name))
	return s
}

func (f *fixture) slice(name string) *table.EndpointSlice {
	s, _, _ := f.tables.Services.Slices.Get(f.tables.DB.ReadTxn(), table.EndpointSliceByName.Query("default/"+name))
	return s
}

const (
	servicesPath = "/api/v1/namespaces/default/services"
	slicesPath   = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
)

func serviceObject(name string, spec corev1.ServiceSpec) corev1.Service {
	if spec.Ports == nil {
		spec.Ports = []corev1.ServicePort{{Name: "web", Port: 80, TargetPort: intstr.FromInt32(8080)}}
	}
	return corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
}

func sliceObject(name, service string, endpoints ...discoveryv1.Endpoint) discoveryv1.EndpointSlice {
	return discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: new("web"), Port: new(int32(8080))}},
	}
}

// Guards against fields of Services and slices that are lost or misread on the
// way, and against defaults other than those that the API names.
func testServices(t *testing.T, f *fixture) {
	s := serviceObject("web", corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, ExternalIPs: []string{"192.0.2.1"}, SessionAffinity: corev1.ServiceAffinityClientIP,
		ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, InternalTrafficPolicy: new(corev1.ServiceInternalTrafficPolicyLocal),
		LoadBalancerSourceRanges: []string{"203.0.113.0/24"},
	})
	s.Annotations = map[string]string{"service.cilium.io/lb-algorithm": "maglev"}
	f.Do(t, http.MethodPost, servicesPath, s, &s)
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
		{IP: "198.51.100.1"}, {IP: "198.51.100.2", IPMode: new(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example"},
	}
	f.Do(t, http.MethodPut, servicesPath+"/web/status", s, nil)
	f.Do(t, http.MethodPost, slicesPath, sliceObject(
		"web-1", "web",
		discoveryv1.Endpoint{Addresses: []string{"10.244.1.5"}},
		discoveryv1.Endpoint{
			Addresses: []string{"10.244.2.6"}, NodeName: new("n2"), Zone: new("b"),
			Conditions: discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)},
			Hints:      &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "b"}}, ForNodes: []discoveryv1.ForNode{{Name: "n2"}}},
		},
		discoveryv1.Endpoint{Addresses: []string{"10.244.2.7"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false), Serving: new(false)}},
	), nil)
	eventually(t, "web", func() (bool, any) { r := f.service("web"); return r != nil && len(r.Ingress) > 0, r })
	eventually(t, "web-1", func() (bool, any) { r := f.slice("web-1"); return r != nil, r })
	ip := netip.MustParseAddr
	want := &table.Service{
		Namespace: "default", Name: "web", UID: string(s.UID), Created: s.CreationTimestamp.Time, Type: table.ServiceLoadBalancer,
		ClusterIPs: []netip.Addr{ip(s.Spec.ClusterIP)}, ExternalIPs: []netip.Addr{ip("192.0.2.1")},
		Ingress:       []table.ServiceIngress{{Addr: ip("198.51.100.1")}, {Addr: ip("198.51.100.2"), Proxy: true}},
		Ports:         []table.ServicePortSpec{{Name: "web", Proto: table.ProtoTCP, Port: 80, NodePort: s.Spec.Ports[0].NodePort}},
		InternalLocal: true, ExternalLocal: true, HealthPort: uint16(s.Spec.HealthCheckNodePort), Affinity: 3 * time.Hour,
		Restricted: true, SourceRanges: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, Algorithm: table.AlgorithmMaglev,
	}
	if got := f.service("web"); !got.Equal(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	slice := &table.EndpointSlice{
		Namespace: "default", Name: "web-1", Service: "web", Ports: []table.SlicePort{{Name: "web", Proto: table.ProtoTCP, Port: 8080}},
		Endpoints: []table.SliceEndpoint{
			{Addr: ip("10.244.1.5"), Ready: true, Serving: true},
			{
				Addr: ip("10.244.2.6"), Serving: true, Terminating: true, Node: "n2", Zone: "b",
				Hints: &table.Hints{Zones: []string{"b"}, Nodes: []string{"n2"}},
			},
			{Addr: ip("10.244.2.7")},
		},
	}
	if got := f.slice("web-1"); !got.Equal(slice) {
		t.Errorf("got %+v, want %+v", got, slice)
	}
	t.Run("changes", func(t *testing.T) { testServiceChanges(t, f) })
	t.Run("hostPorts", func(t *testing.T) { testHostPorts(t, f) })
	t.Run("zone of a node", func(t *testing.T) {
		f.Do(t, http.MethodPatch, "/api/v1/nodes/n1", `{"metadata":{"labels":{"topology.kubernetes.io/zone":"b"}}}`, nil)
		eventually(t, "zone", func() (bool, any) { n := f.node("n1"); return n.Zone == "b", n })
	})
}

// Guards against objects that stay when they are gone, or when a label leaves
// them to another proxy, and against events whose arrival is not known.
func testServiceChanges(t *testing.T, f *fixture) {
	revision := f.tables.Services.Slices.Revision(f.tables.DB.ReadTxn())
	f.Do(t, http.MethodPatch, slicesPath+"/web-1", `{"endpoints":[{"addresses":["10.244.1.5"],"conditions":{"ready":false,"serving":false}}]}`, nil)
	eventually(t, "unready", func() (bool, any) {
		r := f.slice("web-1")
		return len(r.Endpoints) == 1 && !r.Endpoints[0].Ready, r
	})
	if at := f.tables.Services.SlicesArrived.At(revision + 1); at.IsZero() || time.Since(at) > time.Minute {
		t.Errorf("the change of web-1 arrived at %v", at)
	}
	for _, label := range []string{"service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"} {
		f.Do(t, http.MethodPatch, servicesPath+"/web", fmt.Sprintf(`{"metadata":{"labels":{%q:"x"}}}`, label), nil)
		eventually(t, label, func() (bool, any) { r := f.service("web"); return r == nil, r })
		f.Do(t, http.MethodPatch, servicesPath+"/web", fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, label), nil)
		eventually(t, "without "+label, func() (bool, any) { r := f.service("web"); return r != nil && !r.Elsewhere, r })
	}
	f.Do(t, http.MethodPost, servicesPath, serviceObject("headless", corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}), nil)
	eventually(t, "headless", func() (bool, any) { r := f.service("headless"); return r != nil && r.Headless, r })
	f.Do(t, http.MethodPatch, slicesPath+"/web-1", `{"metadata":{"labels":{"kubernetes.io/service-name":null}}}`, nil)
	eventually(t, "a slice of no Service", func() (bool, any) { r := f.slice("web-1"); return r == nil, r })
	f.Do(t, http.MethodDelete, servicesPath+"/web", nil, nil)
	eventually(t, "deleted", func() (bool, any) { r := f.service("web"); return r == nil, r })
}

// Guards against objects that were written before the API server checked them as
// it does today: what cannot be read is named in the row, and the rest counts.
func TestGarbageIsNamed(t *testing.T) {
	lists := map[string]string{
		"/api/v1/services": `{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[{"metadata":{"namespace":"default","name":"old",
			"annotations":{"service.beta.kubernetes.io/load-balancer-source-ranges":"10.0.0.0/8, everyone","service.cilium.io/lb-algorithm":"Maglev"}},
			"spec":{"clusterIP":"10.96.0.010","clusterIPs":["10.96.0.010","fd00::1"],"externalIPs":["192.0.2.300","192.0.2.3"],"ports":[{"port":80,"protocol":"DCCP"}]},
			"status":{"loadBalancer":{"ingress":[{"ip":"lb"}]}}}]}`,
		"/apis/discovery.k8s.io/v1/endpointslices": `{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"1"},"items":[
			{"metadata":{"namespace":"default","name":"old-1","labels":{"kubernetes.io/service-name":"old"}},"addressType":"IPv4","ports":[{}],
			"endpoints":[{"addresses":["10.0.0.300"]},{"addresses":[]},{"addresses":["10.0.0.3","10.0.0.4"]}]},
			{"metadata":{"namespace":"default","name":"names","labels":{"kubernetes.io/service-name":"old"}},"addressType":"FQDN","endpoints":[{"addresses":["a.example"]}]}]}`,
	}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") != "" {
			if r.URL.Query().Get("sendInitialEvents") != "" {
				http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`, http.StatusUnprocessableEntity)
				return
			}
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		body, ok := lists[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, body)
	}))
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	crt := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	for name, b := range map[string][]byte{"ca.crt": crt, "token": []byte("t")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := newFixture(t, &apiservertest.Server{URL: srv.URL, CredentialsDir: dir})
	f.run(t)
	eventually(t, "rows", func() (bool, any) {
		return f.service("old") != nil && f.slice("old-1") != nil, f.client.Connection()
	})
	s, sl := f.service("old"), f.slice("old-1")
	want := []string{`clusterIP "10.96.0.010"`, `externalIP "192.0.2.300"`, `load balancer address "lb"`, `loadBalancerSourceRange " everyone"`, `annotation service.cilium.io/lb-algorithm "Maglev" (random and maglev are known)`}
	if !slices.Equal(s.Garbage, want) || !s.Restricted || len(s.SourceRanges) != 1 || len(s.ClusterIPs) != 1 || len(s.ExternalIPs) != 1 || s.Ports[0].Proto != 0 || s.Algorithm != "" {
		t.Errorf("service: %+v, want garbage %s", s, strings.Join(want, ", "))
	}
	if !slices.Equal(sl.Garbage, []string{`address "10.0.0.300"`}) || len(sl.Endpoints) != 1 || sl.Endpoints[0].Addr != netip.MustParseAddr("10.0.0.3") || sl.Ports[0].Port != 0 {
		t.Errorf("slice: %+v", sl)
	}
	if f.slice("names") != nil {
		t.Error("a slice of names became a row")
	}
}
