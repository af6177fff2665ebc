// SPDX-License-Identifier: Apache-2.0

package connectivity_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/connectivity"
)

// TestSourceThatArrives guards against a masquerade that nobody notices, and
// against one that is missed where there is none.
func TestSourceThatArrives(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	token := connectivity.NewToken()
	l.serve(token, "10.77.2.2", "fd77:2::2")
	own := []netip.Addr{netip.MustParseAddr("10.77.1.2"), netip.MustParseAddr("fd77:1::2")}
	router := []netip.Addr{netip.MustParseAddr("10.77.2.1"), netip.MustParseAddr("fd77:2::1")}
	plan := func(source []netip.Addr) connectivity.ProbePlan {
		p := connectivity.ProbePlan{Timeout: testTimeout, Retries: 2, Concurrency: 8}
		addMatrix(&p)
		for i := range p.Cells {
			p.Cells[i].Source, p.Cells[i].SourceIs = source, "where it comes from"
		}
		return p
	}
	check := func(wrong bool, failed map[string]string) {
		t.Helper()
		for _, c := range cellNames() {
			checked := !strings.Contains(c, "ICMP") // the kernel answers, and tells nothing
			if got := strings.Contains(failed[c], "it should come from where it comes from"); got != (wrong && checked) || (failed[c] != "" && !got) {
				t.Errorf("%s: %q", c, failed[c])
			}
		}
	}
	check(false, l.probePlan(token, plan(own)))
	check(true, l.probePlan(token, plan(router)))
	l.do(l.router, "nft add table inet t", "nft add chain inet t p { type nat hook postrouting priority 100 ; }", "nft add rule inet t p oifname s masquerade")
	check(false, l.probePlan(token, plan(router)))
	check(true, l.probePlan(token, plan(own)))
}

// TestFarEndLearnsMTU guards against a sound path that fails because the far end
// did not know it yet, and against passing one that never tells the far end.
func TestFarEndLearnsMTU(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		learns bool
		router []string
		passes bool
	}{
		"first answer lost":     {learns: false},
		"second answer arrives": {learns: true, passes: true},
		"nobody tells": {learns: true, router: []string{
			"nft add table inet t", "nft add chain inet t o { type filter hook output priority 0 ; }",
			"nft add rule inet t o icmp type destination-unreachable drop", "nft add rule inet t o icmpv6 type packet-too-big drop",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLine(t)
			token := connectivity.NewToken()
			l.serve(token, "10.77.2.2", "fd77:2::2")
			l.do(l.router, append([]string{"ip link set c mtu 1400"}, tc.router...)...)
			l.do(l.client, "ip link set eth0 mtu 1400")
			plan := connectivity.ProbePlan{Timeout: testTimeout, Concurrency: 8}
			addMatrix(&plan)
			for i := range plan.Cells {
				c := &plan.Cells[i]
				c.LearnsMTU = tc.learns && c.Proto != connectivity.TCP && c.Size == connectivity.MTUPlus1
			}
			failed := l.probePlan(token, plan)
			if got := failed["IPv4 UDP MTU+1"] == ""; got != tc.passes {
				t.Errorf("IPv4 UDP MTU+1: %q; all: %v", failed["IPv4 UDP MTU+1"], failed)
			}
			if tc.passes && len(failed) > 0 {
				t.Errorf("failed: %v", failed)
			}
		})
	}
}
