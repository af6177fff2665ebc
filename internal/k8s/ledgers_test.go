// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/k8s"
)

// Guards against ledgers of several pools that are mixed up, and against a range
// that two of them give away being used by either.
func testLedgers(t *testing.T, f *fixture) {
	all := k8s.Ledgers{Client: f.client}
	if _, err := all.Ledger(t.Context(), ""); !errors.Is(err, k8s.ErrNoLedger) {
		t.Errorf("no ledger: %v", err)
	}
	const meta = `{"apiVersion":"weft.dev/v1alpha1","kind":"PodCIDRLedger","metadata":{"labels":{"app.kubernetes.io/part-of":"weft"},"name":`
	f.Do(t, http.MethodPost, ledgersPath, meta+`"default","annotations":{"weft.dev/release-seq":"7"}},"spec":{"seq":7,"grants":{"n1":["10.8.1.0/24"]}}}`, nil)
	f.Do(t, http.MethodPost, ledgersPath, meta+`"blue","annotations":{"weft.dev/release-seq":"2"}},"spec":{"seq":2,"grants":{"n1":["10.9.1.0/28"]},
		"quarantine":[{"cidr":"10.9.1.16/28","node":"n2","at":"2026-01-01T00:00:00Z","seq":2}]}}`, nil)
	l, err := all.Ledger(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Grants["n1"]) != 2 || l.Pools[netip.MustParsePrefix("10.9.1.0/28")] != "blue" || l.Seqs["default"] != 7 || l.Seqs["blue"] != 2 || l.Quarantine[0].Pool != "blue" {
		t.Errorf("%+v", l)
	}
	if m, err := all.LedgerMark(t.Context(), ""); err != nil || m != l.LedgerMark {
		t.Errorf("mark %+v, %v; ledger %+v", m, err, l.LedgerMark)
	}
	f.Do(t, http.MethodPost, ledgersPath, meta+`"red"},"spec":{"grants":{"n2":["10.9.1.0/28"]}}}`, nil)
	if _, err := all.Ledger(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "10.9.1.0/28") {
		t.Errorf("a range of two pools: %v", err)
	}
	for _, name := range []string{"default", "blue", "red"} {
		f.Do(t, http.MethodDelete, ledgersPath+"/"+name, nil, nil)
	}
}

// Guards against a pod that gets addresses of another pool than it, or its
// namespace, chose.
func testPoolChoice(t *testing.T, f *fixture) {
	f.addPod(t, "none", "n1", nil, nil)
	f.addPod(t, "both", "n1", map[string]string{"ipam.cilium.io/ip-pool": "blue"}, nil)
	f.addPod(t, "four", "n1", map[string]string{"ipam.cilium.io/ip-pool": "blue", "ipam.cilium.io/ipv4-pool": "red"}, nil)
	f.addPod(t, "six", "n1", map[string]string{"ipam.cilium.io/ipv6-pool": "red"}, nil)
	check := func(pod, want4, want6 string) {
		t.Helper()
		if v4, v6, err := f.client.PoolChoice(t.Context(), "default", pod); err != nil || v4 != want4 || v6 != want6 {
			t.Errorf("pod %s: %q, %q, %v; want %q, %q", pod, v4, v6, err, want4, want6)
		}
	}
	check("none", "", "")
	check("both", "blue", "blue")
	check("four", "red", "blue")
	check("six", "", "red")
	f.Do(t, http.MethodPatch, "/api/v1/namespaces/default", `{"metadata":{"annotations":{"ipam.cilium.io/ip-pool":"green"}}}`, nil)
	check("none", "green", "green")
	check("both", "blue", "blue")
	check("six", "green", "red")
	check("of-a-file", "green", "green")
	f.Do(t, http.MethodPatch, "/api/v1/namespaces/default", `{"metadata":{"annotations":{"ipam.cilium.io/ip-pool":null}}}`, nil)
}
