// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/rpc"
)

// poolObjects are a cluster of three nodes in mode cluster-pool, of which one has
// a subnet in the middle of the pool and one has left.
func poolObjects() map[string]any {
	return map[string]any{
		"/api/v1/namespaces/kube-system/configmaps/cilium-config": `{"data":{"ipam":"cluster-pool","enable-ipv6":"true","mtu":"1500",
			"cluster-pool-ipv4-cidr":"10.10.0.0/21","cluster-pool-ipv6-cidr":""}}`,
		"/api/v1/nodes": `{"items":[
			{"metadata":{"name":"n1"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}},
			{"metadata":{"name":"n2"},"spec":{"podCIDRs":["10.10.7.0/24"]}},{"metadata":{"name":"n3"}}]}`,
		"/apis/cilium.io/v2/ciliumnodes": `{"items":[
			{"metadata":{"name":"n1","annotations":{"weft.dev/node-routes":"[{\"cidr\":\"10.10.5.0/24\",\"dev\":\"eth1\"}]","weft.dev/release-seen":"6"}},"spec":{"ipam":{"podCIDRs":["10.10.0.0/24"]}}},
			{"metadata":{"name":"n2","annotations":{"weft.dev/node-routes":"[]","weft.dev/release-seen":"7"}},"spec":{"ipam":{"podCIDRs":["10.0.0.0/8"]}}},
			{"metadata":{"name":"n3"},"status":{"ipam":{"operator-status":{"error":"pool default: no IPv6 range"}}}}]}`,
		"/apis/weft.dev/v1alpha1/podcidrledgers/default": `{"spec":{"seq":7,"grants":{"n1":["10.10.0.0/24"],"n2":["10.10.1.0/24"],"n9":["10.10.2.0/24"]},
			"quarantine":[{"cidr":"10.10.3.0/24","node":"n8","at":"2026-01-01T00:00:00Z","seq":7}],"rested":["10.10.4.0/24"]}}`,
		"/apis/weft.dev/v1alpha1/reservedcidrs":   `{"items":[{"metadata":{"name":"vpn"},"spec":{"cidr":"10.10.6.0/24","reason":"the VPN"}}]}`,
		"/apis/networking.k8s.io/v1/servicecidrs": `{"items":[{"metadata":{"name":"kubernetes"},"spec":{"cidrs":["10.96.0.0/16"]}}]}`,
	}
}

// Guards against a picture of the pool that leaves out what an operator of the
// cluster must act on: who holds what, what rests and why, what is blocked by
// what, and free ranges where none is set.
func TestIPAMShow(t *testing.T) {
	f := newCluster()
	maps.Copy(f.objects, poolObjects())
	r := laptop(t, f, "ipam", "show")
	if r.code != ExitFailing {
		t.Errorf("exit code %d, stderr %s", r.code, r.err)
	}
	golden(t, "ipam.txt", r.out)

	var v ipamView
	if r = laptop(t, f, "ipam", "show", "-o", "json"); r.code != 0 || json.Unmarshal([]byte(r.out), &v) != nil {
		t.Fatalf("%+v", r)
	}
	if len(v.Pools) != 2 || v.Pools[0].Next != "10.10.4.0/24" || len(v.Nodes) != 4 || len(v.Proposals) != 3 {
		t.Errorf("%+v", v)
	}
	delete(f.objects, "/apis/weft.dev/v1alpha1/podcidrledgers/default")
	if r = laptop(t, f, "ipam", "show"); r.code != ExitFailing || !strings.Contains(r.out, "no operator has given out a range yet") {
		t.Errorf("without a ledger: %+v", r)
	}

	f.objects["/api/v1/namespaces/kube-system/configmaps/cilium-config"] = `{"data":{"ipam":"multi-pool"}}`
	f.objects["/apis/weft.dev/v1alpha1/podcidrledgers"] = `{"items":[{"metadata":{"name":"blue"},"spec":{"pool":{"ipv4":{"cidrs":["10.11.0.0/24"],"maskSize":28}},
		"grants":{"n1":["10.11.0.0/28"]},"quarantine":[{"cidr":"10.11.0.16/28","node":"n2","at":"2026-01-01T00:00:00Z","seq":3}]}}]}`
	if r = laptop(t, f, "ipam", "show"); r.code != ExitFailing || !strings.Contains(r.out, "10.11.0.0/28 (blue)") || !strings.Contains(r.out, "release 3 of pool blue") || !strings.Contains(r.out, "10.11.0.32/28") {
		t.Errorf("mode multi-pool: %+v", r)
	}
	f.objects["/api/v1/namespaces/kube-system/configmaps/cilium-config"] = `{"data":{"ipam":"kubernetes"}}`
	if r = laptop(t, f, "ipam", "show"); r.code != ExitFailing || !strings.Contains(r.out, "n2     10.10.7.0/24   -") || !strings.Contains(r.out, "--allocate-node-cidrs") {
		t.Errorf("mode kubernetes: %+v", r)
	}
	delete(f.objects, "/api/v1/namespaces/kube-system/configmaps/cilium-config")
	if r = laptop(t, f, "ipam", "show"); r.code != ExitUsage || !strings.Contains(r.err, "Weft is not installed there") {
		t.Errorf("without Weft: %+v", r)
	}
}

// Guards against a node's account that differs by where it is asked for.
func TestIPAMOfNode(t *testing.T) {
	n := newNode(t, map[string]any{rpc.PathIPAM: rpc.IPAM{
		Mode:      "cluster-pool",
		Ranges:    []ipam.RangeStatus{{Prefix: netip.MustParsePrefix("10.10.0.0/24"), Used: 1, Quarantined: 2, Total: 253}},
		Addresses: []rpc.IPAMAddress{{IP: netip.MustParseAddr("10.10.0.2"), Owner: "default/web"}},
		Problems:  []string{"something waits"}, Outside: 3,
	}})
	here := n.run(t, "ipam", "show")
	there := laptop(t, newCluster(n), "ipam", "show", "--node", "n1")
	if there.out != "Node n1\n"+here.out {
		t.Errorf("from a laptop\n%s\non the node\n%s", there.out, here.out)
	}
	for _, want := range []string{"10.10.0.0/24   1        2         253", "10.10.0.2   default/web", "something waits", "3 addresses in use are in none"} {
		if !strings.Contains(here.out, want) {
			t.Errorf("%q is missing:\n%s", want, here.out)
		}
	}
}
