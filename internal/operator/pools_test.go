// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	ciliumv2alpha1 "github.com/weft-net/weft/api/cilium.io/v2alpha1"
	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
)

const poolsPath = "/apis/cilium.io/v2alpha1/ciliumpodippools"

func (c *cluster) pool(name, cidr string, mask int) {
	c.t.Helper()
	c.Do(c.t, http.MethodPost, poolsPath, object{
		"apiVersion": "cilium.io/v2alpha1", "kind": "CiliumPodIPPool", "metadata": object{"name": name},
		"spec": object{"ipv4": object{"cidrs": []string{cidr}, "maskSize": mask}},
	}, nil)
}

// ask writes what an agent writes about pools.
func (c *cluster) ask(node string, requested map[string]int, annotations map[string]string) {
	c.t.Helper()
	var list []ciliumv2.IPAMPoolRequest
	for _, name := range []string{"blue", "default", "green", "red"} {
		if n, ok := requested[name]; ok {
			list = append(list, ciliumv2.IPAMPoolRequest{Pool: name, Needed: ciliumv2.IPAMPoolDemand{IPv4Addrs: n}})
		}
	}
	patch := object{"spec": object{"ipam": object{"pools": object{"requested": list}}}}
	if annotations != nil {
		patch["metadata"] = object{"annotations": annotations}
	}
	c.Do(c.t, http.MethodPatch, ciliumNodesPath+"/"+node, patch, nil)
}

// waitPools waits until a node has the ranges of pools.
func (c *cluster) waitPools(node, want string) {
	c.t.Helper()
	got := ""
	defer func() {
		if c.t.Failed() {
			c.t.Logf("node %s has %s", node, got)
		}
	}()
	eventually(c.t, node+" has "+want, 45*time.Second, func() bool {
		var all []string
		for _, a := range c.ciliumNode(node).Spec.IPAM.Pools.Allocated {
			all = append(all, fmt.Sprint(a.Pool, a.CIDRs))
		}
		got = strings.Join(all, "")
		return got == want
	})
}

func (c *cluster) poolLedger(name string) *weftv1.PodCIDRLedger {
	c.t.Helper()
	var l weftv1.PodCIDRLedger
	c.Do(c.t, http.MethodGet, ledgersPath+"/"+name, nil, &l)
	return &l
}

// Faults: a node gets addresses of a pool that it did not ask for, or none of one
// that it did; two pools that overlap give out one range; what is given back stays
// away for ever, or is somebody else's at once; a pool that is not there, or is
// full, is told to nobody.
func TestMultiPool(t *testing.T) {
	s := apiservertest.Start(t)
	s.InstallCRDs("../../install/helm/weft/crds")
	c := &cluster{s, t}
	c.operator(operatorConfig{name: "a", settings: map[string]string{"ipam": "multi-pool", "cluster-pool-quarantine": "1s", "nodes-gc-interval": "1s"}})
	c.join("n1", "192.168.0.1")
	c.ask("n1", map[string]int{"default": 8}, nil)
	c.waitError("n1", "there is no CiliumPodIPPool")
	c.pool("red", "10.10.0.0/28", 30)
	c.pool("blue", "10.20.0.0/27", 28) // two blocks of 13 addresses
	c.pool("default", "10.10.0.0/24", 28)
	// Its first block is red's too, so that nobody gets it.
	c.waitPools("n1", "default[10.10.0.16/28]")
	c.waitError("n1", "")
	c.ask("n1", map[string]int{"default": 16, "blue": 5}, nil)
	c.waitPools("n1", "blue[10.20.0.0/28]default[10.10.0.16/28 10.10.0.32/28]")
	c.ask("n1", map[string]int{"default": 16, "blue": 5, "red": 1, "green": 1}, nil)
	c.waitError("n1", "pool red: no IPv4 range for node n1")
	c.waitError("n1", "pool green: there is no CiliumPodIPPool of that name: make it, or correct the annotation "+ciliumv2alpha1.PoolAnnotation)
	// Less is wanted: nothing is taken until the node gives it back.
	back, err := json.Marshal([]string{"10.20.0.0/28", "10.10.0.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	c.ask("n1", map[string]int{"default": 1}, nil)
	c.ask("n1", map[string]int{"default": 1}, map[string]string{weftv1.GiveBackAnnotation: string(back)})
	c.waitPools("n1", "default[10.10.0.16/28 10.10.0.32/28]")
	if l := c.poolLedger("blue"); l.Spec.Seq != 1 || len(l.Spec.Quarantine) != 1 || len(l.Spec.Grants) != 0 {
		t.Errorf("blue's ledger %+v", l.Spec)
	}
	// It rests until the agents have let go of it.
	c.join("n2", "192.168.0.2")
	c.ask("n2", map[string]int{"blue": 14}, map[string]string{weftv1.ReleaseSeenPoolsAnnotation: `{"blue":1}`})
	c.waitPools("n2", "blue[10.20.0.16/28]")
	c.waitError("n2", "pool blue: no IPv4 range for node n2")
	c.ask("n1", map[string]int{"default": 1}, map[string]string{weftv1.ReleaseSeenPoolsAnnotation: `{"blue":1}`})
	c.waitPools("n2", "blue[10.20.0.16/28 10.20.0.0/28]")
	c.waitError("n2", "")
	// A hand that edits a CiliumNode neither takes nor gives.
	c.Do(t, http.MethodPatch, ciliumNodesPath+"/n2", object{"spec": object{"ipam": object{"pools": object{"allocated": []object{{"pool": "default", "cidrs": []string{"10.10.0.16/28"}}}}}}}, nil)
	c.waitPools("n2", "blue[10.20.0.16/28 10.20.0.0/28]")
	// A lost ledger is made again of what CiliumNodes name.
	c.Do(t, http.MethodDelete, ledgersPath+"/default", nil, nil)
	eventually(t, "the ledger is back", 40*time.Second, func() bool {
		code, b := c.Call(t, http.MethodGet, ledgersPath+"/default", nil)
		var l weftv1.PodCIDRLedger
		return code == http.StatusOK && json.Unmarshal(b, &l) == nil && len(l.Spec.Grants["n1"]) == 2
	})
	c.gone("n2")
	eventually(t, "n2's ranges rest", 30*time.Second, func() bool { return len(c.poolLedger("blue").Spec.Grants) == 0 })
}
