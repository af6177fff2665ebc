// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"errors"
	"net/http"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/k8s"
)

const ledgersPath = "/apis/weft.dev/v1alpha1/podcidrledgers"

// Guards against a ledger that is misread: a range of another node taken for
// this one's, or a ledger without news read as a whole.
func testLedger(t *testing.T, f *fixture) {
	ctx := t.Context()
	if _, err := f.client.Ledger(ctx, "default"); !errors.Is(err, k8s.ErrNoLedger) {
		t.Errorf("no ledger: %v", err)
	}
	if _, err := f.client.LedgerMark(ctx, "default"); !errors.Is(err, k8s.ErrNoLedger) {
		t.Errorf("no ledger: %v", err)
	}
	f.Do(t, http.MethodPost, ledgersPath, `{"apiVersion":"weft.dev/v1alpha1","kind":"PodCIDRLedger",
		"metadata":{"name":"default","annotations":{"weft.dev/release-seq":"7"}},
		"spec":{"seq":7,"grants":{"n1":["10.8.1.0/24","fd00:1::/64"],"n2":["10.8.2.0/24"]},
			"quarantine":[{"cidr":"10.8.3.0/24","node":"n3","at":"2026-01-01T00:00:00Z","seq":6}]}}`, nil)
	l, err := f.client.Ledger(ctx, "default")
	if err != nil {
		t.Fatal(err)
	}
	if l.Seq != 7 || len(l.Grants["n1"]) != 2 || len(l.Quarantine) != 1 || l.Quarantine[0].Seq != 6 || l.Quarantine[0].Node != "n3" {
		t.Errorf("%+v", l)
	}
	for s, want := range map[string]string{"10.8.2.0/24": "n2", "10.8.2.128/25": "n2", "fd00:1::/64": "n1", "10.8.3.0/24": ""} {
		if got := l.Holder(netip.MustParsePrefix(s)); got != want {
			t.Errorf("%s is %q's, want %q", s, got, want)
		}
	}
	m, err := f.client.LedgerMark(ctx, "default")
	if err != nil || m != l.LedgerMark {
		t.Errorf("mark %+v, %v; ledger %+v", m, err, l.LedgerMark)
	}
	f.Do(t, http.MethodDelete, ledgersPath+"/default", nil, nil)
}

// Guards against a pod that lives being taken for gone.
func testPodGone(t *testing.T, f *fixture) {
	uid := f.addPod(t, "here", "n1", nil, nil)
	mirror := f.addPod(t, "mirror", "n1", map[string]string{"kubernetes.io/config.mirror": "x"}, nil)
	for _, tc := range []struct {
		name, uid string
		want      bool
	}{{"here", uid, false}, {"here", "", false}, {"here", "other", true}, {"mirror", mirror, false}, {"mirror", "of-the-file", false}, {"none", uid, true}} {
		if got, err := f.client.PodGone(t.Context(), "default", tc.name, tc.uid); err != nil || got != tc.want {
			t.Errorf("pod %s, uid %q: %v, %v; want %v", tc.name, tc.uid, got, err, tc.want)
		}
	}
	f.Stop() // for good
	if gone, err := f.client.PodGone(t.Context(), "default", "here", uid); err == nil || gone {
		t.Errorf("without API server: %v, %v", gone, err)
	}
}
