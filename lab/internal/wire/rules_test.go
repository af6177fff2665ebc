// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/state"
)

func hosts(t *testing.T, nics int) []plan.Host {
	t.Helper()
	o := plan.Defaults()
	o.NICs = nics
	h, err := o.Hosts()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// drops are the verdicts of a ruleset, without the chains around them.
func drops(ruleset string) []string {
	var list []string
	for line := range strings.SplitSeq(ruleset, "\n") {
		if strings.HasSuffix(line, "drop") {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}

// Guards against a cut that takes the wrong direction, misses one, or takes
// neighbour discovery with it when only ICMP was meant.
func TestCutsBecomeRules(t *testing.T) {
	const errors6 = "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, echo-reply } drop"
	for _, c := range []struct {
		cut  state.Cut
		want []string
	}{
		{state.Cut{A: "n1", B: "n2"}, []string{
			`meta mark 17 oifname { "n2", "n2-d" } drop`,
			`meta mark 18 oifname { "n1", "n1-d" } drop`,
		}},
		{state.Cut{A: "n1", B: "n2", OneWay: true}, []string{`meta mark 17 oifname { "n2", "n2-d" } drop`}},
		{state.Cut{A: "n3", B: "cp", Proto: "udp", Port: 8472, OneWay: true}, []string{
			`meta mark 19 oifname { "cp", "cp-d" } meta l4proto udp th dport 8472 drop`,
			`meta mark 19 oifname { "cp", "cp-d" } meta l4proto udp th sport 8472 drop`,
		}},
		{state.Cut{A: "n1", B: All, Proto: "tcp"}, []string{
			`meta mark 17 meta l4proto tcp drop`,
			`oifname { "n1", "n1-d" } meta l4proto tcp drop`,
		}},
		{state.Cut{A: "n1", B: "n2", Proto: "icmp", OneWay: true}, []string{
			`meta mark 17 oifname { "n2", "n2-d" } ether type ip ip protocol icmp drop`,
			`meta mark 17 oifname { "n2", "n2-d" } ether type ip6 ` + errors6,
		}},
	} {
		got := drops(Ruleset(hosts(t, 1), []state.Cut{c.cut}, nil))
		if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%s:\n%s\nwant\n%s", c.cut, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

func TestSecondDeviceIsCutToo(t *testing.T) {
	got := drops(Ruleset(hosts(t, 2), []state.Cut{{A: "cp", B: "n1", OneWay: true}}, nil))
	want := `meta mark 1 oifname { "n1", "n1-d", "n1-1", "n1-1-d" } drop`
	if len(got) != 1 || got[0] != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestBadLinksBecomeRules(t *testing.T) {
	links := map[string]state.Impairments{"n2": {Loss: 0.5, WireMTU: 1400}, "n1": {DelayMS: 5, MTU: 1400}}
	got := strings.Join(drops(Ruleset(hosts(t, 1), nil, links)), "\n")
	want := `iifname { "n2", "n2-d" } meta length > 1400 drop
iifname { "n2", "n2-d" } numgen random mod 100000 < 500 drop
oifname { "n2", "n2-d" } meta length > 1400 drop
oifname { "n2", "n2-d" } numgen random mod 100000 < 500 drop`
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestImpossibleCutsAreRefused(t *testing.T) {
	for _, c := range []state.Cut{
		{A: "n1", B: "n1"},
		{A: All, B: "n1"},
		{A: "n1", B: "n2", Proto: "tpc"},
		{A: "n1", B: "n2", Port: 80},
		{A: "n1", B: "n2", Proto: "icmp", Port: 80},
		{A: "n1", B: "n2", Proto: "tcp", Port: 70000},
	} {
		if err := CheckCut(c); err == nil {
			t.Errorf("%+v was not refused", c)
		}
	}
}

// Guards against rules that read well but that the kernel does not take.
func TestKernelTakesEveryRule(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	if err := os.MkdirAll(NetnsDir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(NetnsDir, "weft-lab-rules-test")
	if err := CreateNetns(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := DeleteNetns(path); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var cuts []state.Cut
	for _, proto := range append(protocols(), "") {
		cuts = append(cuts, state.Cut{A: "n1", B: "n2", Proto: proto}, state.Cut{A: "n3", B: All, Proto: proto, OneWay: true})
	}
	cuts = append(cuts, state.Cut{A: "n1", B: "client", Proto: "sctp", Port: 9})
	links := map[string]state.Impairments{"n1": {Loss: 1, WireMTU: 1300}}
	for _, ruleset := range []string{NoRules, Ruleset(hosts(t, 2), cuts, links), NoRules} {
		if err := ApplyRules(ctx, path, ruleset); err != nil {
			t.Fatalf("%v\n%s", err, ruleset)
		}
	}
	out, err := runIn(ctx, path, "", "nft", "list", "tables")
	if err != nil || out != "" {
		t.Errorf("tables left: %q %v", out, err)
	}
}
