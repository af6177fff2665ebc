// SPDX-License-Identifier: Apache-2.0

package v2alpha1_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/api/cilium.io/v2alpha1"
)

// Fault: a manifest written for Cilium that is not read, or read as something
// else.
func TestManifest(t *testing.T) {
	s := runtime.NewScheme()
	if err := v2alpha1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	obj, _, err := serializer.NewCodecFactory(s).UniversalDeserializer().Decode([]byte(`
apiVersion: cilium.io/v2alpha1
kind: CiliumPodIPPool
metadata:
  name: green-pool
spec:
  ipv4:
    cidrs: [10.20.0.0/16, 10.30.0.0/16]
    maskSize: 24
  ipv6:
    cidrs: ["fd00::/104"]
    maskSize: 120
`), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := obj.(*v2alpha1.CiliumPodIPPool)
	if !ok || len(p.Spec.IPv4.CIDRs) != 2 || p.Spec.IPv4.MaskSize != 24 || p.Spec.IPv6.CIDRs[0] != "fd00::/104" || p.Spec.IPv6.MaskSize != 120 {
		raw, _ := json.Marshal(obj)
		t.Errorf("read as %s", raw)
	}
}

// Fault: a definition that is not the one that users know, or not marked as Weft's.
func TestDefinition(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "..", "install", "helm", "weft", "crds", "cilium.io_ciliumpodippools.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Metadata struct{ Labels map[string]string }
		Spec     struct {
			Scope    string
			Names    struct{ ShortNames []string }
			Versions []struct{ Name string }
		}
	}
	if err := yaml.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	if d.Metadata.Labels["app.kubernetes.io/part-of"] != "weft" || d.Spec.Scope != "Cluster" || len(d.Spec.Names.ShortNames) != 1 ||
		d.Spec.Names.ShortNames[0] != "cpip" || len(d.Spec.Versions) != 1 || d.Spec.Versions[0].Name != v2alpha1.Version {
		t.Errorf("%+v", d)
	}
}
