// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/rpc"
)

// Guards against a status that says that kube-proxy is replaced where it is not, or
// does not say what of it is.
func TestReplacementIsTold(t *testing.T) {
	for _, tc := range []struct {
		values  map[string]string
		message string
		details []string // some of them
	}{
		{map[string]string{}, "False", []string{"Socket LB: Disabled", "ClusterIP: Disabled", "HostPort: Disabled"}},
		{map[string]string{"bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "true"}, "False", []string{"Socket LB Coverage: Hostns-only", "ClusterIP: Enabled", "NodePort: Disabled"}},
		{map[string]string{"kube-proxy-replacement": "true"}, "True [eth0, eth1]", []string{
			"Socket LB: Enabled", "Socket LB Coverage: Full", "Mode: SNAT", "ClusterIP: Enabled", "NodePort: Enabled",
			"LoadBalancer: Enabled", "externalIPs: Enabled", "HostPort: Enabled",
		}},
	} {
		cfg, err := config.Parse(tc.values)
		if err != nil {
			t.Fatal(err)
		}
		c := replacement(cfg, []string{"eth0", "eth1"})
		if c.Message != tc.message || !c.Inline || c.State != rpc.StateOK {
			t.Errorf("%v: %+v", tc.values, c)
		}
		for _, d := range tc.details {
			if !slices.Contains(c.Details, d) {
				t.Errorf("%v: %q is not among %q", tc.values, d, c.Details)
			}
		}
	}
}
