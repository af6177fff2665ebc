// SPDX-License-Identifier: Apache-2.0

package v2_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/yaml"

	v2 "github.com/weft-net/weft/api/cilium.io/v2"
)

// Fault: a kind missing from the scheme, so that a client fails at run time
// with "no kind is registered".
func TestDecodeThroughScheme(t *testing.T) {
	s := runtime.NewScheme()
	if err := v2.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	dec := serializer.NewCodecFactory(s).UniversalDeserializer()
	for _, kind := range []string{"CiliumNode", "CiliumNodeList", "CiliumEndpoint", "CiliumEndpointList"} {
		obj, gvk, err := dec.Decode([]byte(`{"apiVersion":"cilium.io/v2","kind":"`+kind+`"}`), nil, nil)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if want := (schema.GroupVersionKind{Group: "cilium.io", Version: "v2", Kind: kind}); *gvk != want {
			t.Errorf("%s decoded as %s", kind, gvk)
		}
		if obj.DeepCopyObject() == obj {
			t.Errorf("%s: DeepCopyObject returned the object itself", kind)
		}
	}
}

// Fault: a JSON name that differs from the one that users' scripts and other
// tools read, or a zero struct that shows up as an empty object.
func TestWireNames(t *testing.T) {
	node := v2.CiliumNode{Spec: v2.NodeSpec{
		InstanceID:       "i-1",
		BootID:           "b-1",
		Addresses:        []v2.NodeAddress{{Type: v2.NodeInternalIP, IP: "10.0.0.1"}},
		HealthAddressing: v2.AddressPair{IPv4: "10.20.0.1", IPv6: "fd00::1"},
		IPAM:             v2.IPAMSpec{PodCIDRs: []string{"10.20.0.0/24"}},
	}}
	wantJSON(t, node, `{"metadata":{},"spec":{"instance-id":"i-1","bootid":"b-1",
		"addresses":[{"type":"InternalIP","ip":"10.0.0.1"}],"health":{"ipv4":"10.20.0.1","ipv6":"fd00::1"},
		"ipam":{"podCIDRs":["10.20.0.0/24"]}}}`)

	ep := v2.CiliumEndpoint{Status: v2.EndpointStatus{
		ID:                  7,
		ExternalIdentifiers: &v2.EndpointIdentifiers{CNIAttachmentID: "abc:eth0", ContainerID: "abc", K8sNamespace: "default", K8sPodName: "web", PodName: "default/web"},
		Identity:            &v2.EndpointIdentity{ID: 5, Labels: []string{"reserved:init"}},
		Networking:          &v2.EndpointNetworking{Addressing: v2.AddressPairList{{IPv4: "10.20.0.9"}}, NodeIP: "10.0.0.1"},
		State:               v2.EndpointReady,
		Policy:              &v2.EndpointPolicy{Ingress: &v2.EndpointPolicyDirection{State: v2.PolicyDisabled}},
		NamedPorts:          []v2.NamedPort{{Name: "http", Port: 80, Protocol: "TCP"}},
		ServiceAccount:      "default",
	}}
	wantJSON(t, ep, `{"metadata":{},"status":{"id":7,
		"external-identifiers":{"cni-attachment-id":"abc:eth0","container-id":"abc","k8s-namespace":"default","k8s-pod-name":"web","pod-name":"default/web"},
		"identity":{"id":5,"labels":["reserved:init"]},
		"networking":{"addressing":[{"ipv4":"10.20.0.9"}],"node":"10.0.0.1"},
		"policy":{"ingress":{"enforcing":false,"state":"<status disabled>"}},
		"state":"ready","named-ports":[{"name":"http","port":80,"protocol":"TCP"}],"service-account":"default"}}`)
}

func wantJSON(t *testing.T, obj any, want string) {
	t.Helper()
	raw, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	var g, w any
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(w, g); d != "" {
		t.Errorf("%T (-want +got):\n%s", obj, d)
	}
}

func TestAddressOfFamily(t *testing.T) {
	n := v2.CiliumNode{Spec: v2.NodeSpec{Addresses: []v2.NodeAddress{
		{Type: v2.NodeHostName, IP: "n1"},
		{Type: v2.NodeInternalIP, IP: "10.0.0.1"},
		{Type: v2.NodeInternalIP, IP: "fd00::1"},
	}}}
	for v6, want := range map[bool]string{false: "10.0.0.1", true: "fd00::1"} {
		if got := n.Address(v2.NodeInternalIP, v6); got != want {
			t.Errorf("InternalIP, ipv6=%v: %q, want %q", v6, got, want)
		}
	}
	if got := n.Address(v2.NodeExternalIP, false); got != "" {
		t.Errorf("ExternalIP: %q, want none", got)
	}
}

// crd is the part of a custom resource definition that users and scripts see.
type crd struct {
	Metadata struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec struct {
		Group string `json:"group"`
		Scope string `json:"scope"`
		Names struct {
			ShortNames []string `json:"shortNames"`
			Categories []string `json:"categories"`
		} `json:"names"`
		Versions []struct {
			Name         string         `json:"name"`
			Served       bool           `json:"served"`
			Storage      bool           `json:"storage"`
			Subresources map[string]any `json:"subresources"`
			Columns      []struct {
				Name     string `json:"name"`
				Priority int    `json:"priority"`
			} `json:"additionalPrinterColumns"`
		} `json:"versions"`
	} `json:"spec"`
}

// Fault: a marker lost or misspelt, so that `kubectl get cep` or a column that
// a runbook relies on is gone, or the definition is not marked as Weft's.
func TestCustomResourceDefinitions(t *testing.T) {
	cases := []struct {
		plural, scope string
		short         []string
		columns       []string
		status        bool
	}{
		{v2.CiliumNodeResource, "Cluster", []string{"cn", "ciliumn"}, []string{"CiliumInternalIP", "InternalIP", "Age"}, true},
		{
			v2.CiliumEndpointResource, "Namespaced",
			[]string{"cep", "ciliumep"},
			[]string{"Security Identity", "Ingress Enforcement", "Egress Enforcement", "Endpoint State", "IPv4", "IPv6"},
			false,
		},
	}
	for _, c := range cases {
		t.Run(c.plural, func(t *testing.T) {
			raw, err := os.ReadFile(filepath.Join("..", "..", "..", "install", "helm", "weft", "crds", v2.Group+"_"+c.plural+".yaml"))
			if err != nil {
				t.Fatal(err)
			}
			var d crd
			if err := yaml.Unmarshal(raw, &d); err != nil {
				t.Fatal(err)
			}
			if d.Metadata.Name != c.plural+".cilium.io" || d.Metadata.Labels[v2.PartOfLabel] != v2.PartOfValue {
				t.Errorf("metadata %+v: name or label is wrong", d.Metadata)
			}
			if d.Spec.Group != v2.Group || d.Spec.Scope != c.scope || len(d.Spec.Versions) != 1 {
				t.Fatalf("group %s, scope %s, %d versions", d.Spec.Group, d.Spec.Scope, len(d.Spec.Versions))
			}
			if diff := cmp.Diff(c.short, d.Spec.Names.ShortNames); diff != "" {
				t.Errorf("short names (-want +got):\n%s", diff)
			}
			v := d.Spec.Versions[0]
			if v.Name != v2.Version || !v.Served || !v.Storage {
				t.Errorf("version %+v is not the served and stored v2", v)
			}
			if _, ok := v.Subresources["status"]; ok != c.status {
				t.Errorf("status subresource: %v, want %v", ok, c.status)
			}
			var columns []string
			for _, col := range v.Columns {
				columns = append(columns, col.Name)
			}
			if diff := cmp.Diff(c.columns, columns); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
		})
	}
}
