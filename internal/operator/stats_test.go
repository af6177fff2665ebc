// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/ipam/pool"
)

// Fault: an alert asks for a metric that no operator has, or the documentation
// and the operator disagree about what there is.
func TestMetricsInAlertsAndDocs(t *testing.T) {
	yes := func() bool { return true }
	s, err := newStats("v1", yes, yes)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	in := pool.Inputs{Pool: pool.Pool{Name: "default", V4: pool.Family{CIDRs: []netip.Prefix{pfx("10.10.0.0/22")}, MaskSize: 24}}, Now: now}
	var demand []pool.Demand
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		demand = append(demand, pool.Demand{Node: n, V4: 1})
	}
	// Growth, so that there is a forecast, and then more nodes than blocks.
	l, _, _ := pool.Plan(pool.Ledger{}, in, demand[:1])
	in.Now = now.Add(2 * time.Hour)
	l, _, _ = pool.Plan(l, in, demand[:3])
	in.Now = now.Add(4 * time.Hour)
	_, refused, _ := pool.Plan(l, in, demand)
	s.planned(in, l, refused)
	s.round(time.Second, nil)
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "weft_") {
			have[f.GetName()] = true
		}
	}
	read := func(name, pattern string) map[string]bool {
		raw, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]bool{}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(raw), -1) {
			out[m[1]] = true
		}
		return out
	}
	asked := read("install/helm/weft/files/rules.yaml", `\b(weft_operator_\w+)`)
	if len(asked) < 5 {
		t.Errorf("the rules ask for %v only", asked)
	}
	for name := range asked {
		if !have[name] {
			t.Errorf("the rules ask for %s, which no operator has", name)
		}
	}
	documented := read("docs/operations/metrics.md", "(?m)^\\| `(weft_operator_\\w+)` \\|")
	for name := range have {
		if !documented[name] {
			t.Errorf("%s stands in no table of docs/operations/metrics.md", name)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/operations/metrics.md tells of %s, which no operator has", name)
	}
}
