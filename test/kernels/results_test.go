// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/datapath"
)

// outputOf is what a machine writes in which a package passes, one has a test
// that fails, and one never ends.
const outputOf = `
weft-kernels: begin internal/datapath/maps
` + "\x16" + `=== RUN   TestEndpoints
` + "\x16" + `--- PASS: TestEndpoints (0.10s)
` + "\x16" + `=== RUN   TestDefaultMemory
    maps_test.go:33: needs what a map takes, Linux 6.4: too little
` + "\x16" + `--- SKIP: TestDefaultMemory (0.10s)
` + "\x16" + `=== RUN   TestBounds
` + "\x16" + `=== RUN   TestBounds/one
    maps_test.go:44: needs a bound, Linux 6.3
` + "\x16" + `--- SKIP: TestBounds/one (0.10s)
` + "\x16" + `--- PASS: TestBounds (0.10s)
` + "\x16" + `=== RUN   TestParts
` + "\x16" + `=== RUN   TestParts/one
    maps_test.go:44: needs a bound, Linux 6.3
` + "\x16" + `--- SKIP: TestParts/one (0.10s)
` + "\x16" + `=== RUN   TestParts/two
` + "\x16" + `--- PASS: TestParts/two (0.10s)
` + "\x16" + `--- PASS: TestParts (0.10s)
` + "\x16" + `=== NAME  
PASS

weft-kernels: end internal/datapath/maps 0

weft-kernels: begin internal/datapath
` + "\x16" + `=== RUN   TestPodsTalk
    traffic_test.go:7: no answer
` + "\x16" + `--- FAIL: TestPodsTalk (0.10s)
` + "\x16" + `=== NAME  
FAIL

weft-kernels: end internal/datapath 1

weft-kernels: begin internal/endpoint
` + "\x16" + `=== RUN   TestLife
`

// Fault: tests of a machine that died, or never began, or skipped all that they
// are made of, count as passed.
func TestOutcomes(t *testing.T) {
	parts, done, err := split(strings.NewReader(outputOf))
	if err != nil || done || len(parts) != 3 {
		t.Fatalf("%d parts, done %v, %v", len(parts), done, err)
	}
	raw, err := records(context.Background(), "linux-6.1", parts)
	if err != nil {
		t.Fatal(err)
	}
	got, err := read(raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"internal/datapath/maps TestEndpoints":     "pass",
		"internal/datapath/maps TestDefaultMemory": "skip",
		"internal/datapath/maps TestBounds":        "skip",
		"internal/datapath/maps TestParts":         "pass",
		"internal/datapath TestPodsTalk":           "fail",
		"internal/endpoint TestLife":               "unfinished",
	} {
		if got[name].Action != want {
			t.Errorf("%s: %+v, want %s", name, got[name], want)
		}
	}
	if why := got["internal/datapath/maps TestBounds"].Reason; why != "needs a bound, Linux 6.3" {
		t.Errorf("reason of subtests' skip: %q", why)
	}
	if why := got["internal/datapath/maps TestDefaultMemory"].Reason; why != "needs what a map takes, Linux 6.4: too little" {
		t.Errorf("reason of a skip: %q", why)
	}
	oldest := "Linux " + datapath.MinimumKernel
	err = check([]column{{name: oldest, results: got}})
	for _, want := range []string{"TestPodsTalk", "moments: **not finished** (0 passed, 1 left)", "forward by VXLAN: not tested"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("check says %v, and nothing of %q", err, want)
		}
	}
	if err := check([]column{{name: "Linux 9.9", results: got}}); err == nil || !strings.Contains(err.Error(), "MinimumKernel") {
		t.Errorf("another minimum than the agent's: %v", err)
	}
	if _, done, err := split(strings.NewReader("\nweft-kernels: begin p\r\nPASS\n\nweft-kernels: end p 0\r\n\nweft-kernels: done\r\n")); !done || err != nil {
		t.Errorf("a machine that ended: %v %v", done, err)
	}
}

// Fault: a page that says something else than what ran.
func TestPage(t *testing.T) {
	cols := []column{
		{name: "Linux 6.1", version: "6.1.1-1", suite: "bookworm", results: results{
			"internal/datapath/maps TestEndpoints": {Action: "pass"},
			"internal/datapath TestVerifyNames":    {Action: "skip", Reason: "needs tcx"},
			"internal/datapath TestOthersFilters":  {Action: "pass"},
			"internal/endpoint TestLife":           {Action: "fail"},
		}},
	}
	var b strings.Builder
	if err := write(&b, os.DirFS("."), cols); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| | Linux 6.1<br>Debian 6.1.1-1 (bookworm) |\n",
		"sizes | passes (1) |\n",
		"verified | passes (1; 1 skipped) |\n",
		"masquerade | not tested |\n",
		"moments | **fails**: TestLife |\n",
		"- Linux 6.1, `internal/datapath TestVerifyNames`: needs tcx\n",
		"**what fails or is not finished below is not promised**",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page does not say %q:\n%s", want, b.String())
		}
	}
	if _, err := tally(aspects(), results{"internal/flow TestRing": {Action: "pass"}}); err == nil {
		t.Error("a test without a row was left out unsaid")
	}
}
