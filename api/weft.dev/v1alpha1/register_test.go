// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/api/weft.dev/v1alpha1"
)

// Fault: a kind missing from the scheme, so that a client fails at run time
// with "no kind is registered".
func TestDecodeThroughScheme(t *testing.T) {
	s := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	dec := serializer.NewCodecFactory(s).UniversalDeserializer()
	for _, kind := range []string{"ReservedCIDR", "ReservedCIDRList", "PodCIDRLedger", "PodCIDRLedgerList"} {
		obj, gvk, err := dec.Decode([]byte(`{"apiVersion":"weft.dev/v1alpha1","kind":"`+kind+`"}`), nil, nil)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if want := (schema.GroupVersionKind{Group: "weft.dev", Version: "v1alpha1", Kind: kind}); *gvk != want {
			t.Errorf("%s decoded as %s", kind, gvk)
		}
		if obj.DeepCopyObject() == obj {
			t.Errorf("%s: DeepCopyObject returned the object itself", kind)
		}
	}
}

// Fault: a ledger that outgrows what etcd takes in one request (1.5 MiB), so
// that from some size of the cluster on no node can join or leave.
func TestLedgerOfALargeClusterIsSmall(t *testing.T) {
	l := v1alpha1.PodCIDRLedger{Spec: v1alpha1.PodCIDRLedgerSpec{Grants: map[string][]v1alpha1.CIDR{}}}
	for i := range 5000 {
		node := fmt.Sprintf("ip-10-100-%d-%d.eu-central-1.compute.internal", 100+i/256, i%256)
		l.Spec.Grants[node] = []v1alpha1.CIDR{
			v1alpha1.CIDR(fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256)), v1alpha1.CIDR(fmt.Sprintf("fd12:3456:789a:%x::/64", i)),
		}
	}
	raw, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 1<<20 {
		t.Errorf("5,000 dual-stack nodes take %d bytes, more than 1 MiB", len(raw))
	}
}

// Fault: a JSON name or a notation that differs from what the other programs,
// and runbooks, read.
func TestWireNames(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	spec := v1alpha1.PodCIDRLedgerSpec{
		Seq:        7,
		Pool:       v1alpha1.LedgerPool{IPv4: v1alpha1.LedgerFamily{CIDRs: []v1alpha1.CIDR{"10.0.0.0/8"}, MaskSize: 24}},
		Grants:     map[string][]v1alpha1.CIDR{"n1": {"10.0.0.0/24"}},
		Quarantine: []v1alpha1.LedgerRelease{{CIDR: "10.0.1.0/24", Node: "n2", At: at, Seq: 7}},
		Rested:     []v1alpha1.CIDR{"10.0.2.0/24"},
		Growth:     []v1alpha1.LedgerSample{{At: at, IPv4: 2}},
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"seq":7,"pool":{"ipv4":{"cidrs":["10.0.0.0/8"],"maskSize":24}},"grants":{"n1":["10.0.0.0/24"]},` +
		`"quarantine":[{"cidr":"10.0.1.0/24","node":"n2","at":"2026-01-02T03:04:05Z","seq":7}],` +
		`"rested":["10.0.2.0/24"],"growth":[{"at":"2026-01-02T03:04:05Z","ipv4":2}]}`
	if string(raw) != want {
		t.Errorf("got\n%s, want\n%s", raw, want)
	}
}

// Fault: a marker lost or misspelt: a definition that is not marked as Weft's,
// is namespaced, or keeps an owner for each of 5,000 entries.
func TestCustomResourceDefinitions(t *testing.T) {
	for plural, short := range map[string]string{v1alpha1.ReservedCIDRResource: "rcidr", v1alpha1.PodCIDRLedgerResource: "pcl"} {
		raw, err := os.ReadFile(filepath.Join("..", "..", "..", "install", "helm", "weft", "crds", v1alpha1.Group+"_"+plural+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			Metadata struct {
				Name   string
				Labels map[string]string
			}
			Spec struct {
				Scope    string
				Names    struct{ ShortNames []string }
				Versions []struct {
					Name            string
					Served, Storage bool
					Schema          struct {
						OpenAPIV3Schema struct {
							Properties struct {
								Spec struct {
									Properties map[string]map[string]any
								}
							}
						}
					}
				}
			}
		}
		if err := yaml.Unmarshal(raw, &d); err != nil {
			t.Fatal(err)
		}
		if d.Metadata.Name != plural+"."+v1alpha1.Group || d.Metadata.Labels[v1alpha1.PartOfLabel] != v1alpha1.PartOfValue {
			t.Errorf("%s: metadata %+v", plural, d.Metadata)
		}
		if d.Spec.Scope != "Cluster" || !slices.Equal(d.Spec.Names.ShortNames, []string{short}) || len(d.Spec.Versions) != 1 {
			t.Fatalf("%s: scope %s, names %+v, %d versions", plural, d.Spec.Scope, d.Spec.Names, len(d.Spec.Versions))
		}
		v := d.Spec.Versions[0]
		if v.Name != v1alpha1.Version || !v.Served || !v.Storage {
			t.Errorf("%s: version %s is not the served and stored one", plural, v.Name)
		}
		if g, ok := v.Schema.OpenAPIV3Schema.Properties.Spec.Properties["grants"]; ok && g["x-kubernetes-map-type"] != "atomic" {
			t.Errorf("%s: grants are not atomic", plural)
		}
	}
}
