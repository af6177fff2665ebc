// SPDX-License-Identifier: Apache-2.0

package pool_test

import (
	"encoding/json"
	"testing"

	"github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/ipam/pool"
)

// Fault: an entry of the ledger that nobody can read is skipped, and what it
// spoke of is granted to somebody else.
func TestUnreadableLedger(t *testing.T) {
	for raw, want := range map[string]string{
		`{"grants":{"a":["10.0.0.0/24"],"b":["10.0.1.0/33"]}}`:                                 `grants of node b: "10.0.1.0/33" is not a CIDR`,
		`{"grants":{"a":["::ffff:10.0.0.0/120"]}}`:                                             "write it as IPv4",
		`{"quarantine":[{"cidr":"","at":"2026-01-02T03:04:05Z","seq":1}]}`:                     `quarantine: "" is not a CIDR`,
		`{"quarantine":[{"cidr":"10.0.0.0/24","at":"2026-01-02T03:04:05Z","seq":-1}],"seq":1}`: "is negative",
		`{"rested":["x"]}`:                           "rested",
		`{"pool":{"ipv6":{"cidrs":["fd00::/200"]}}}`: "pool.ipv6",
		`{"seq":-1}`:                                 "seq -1",
	} {
		var spec v1alpha1.PodCIDRLedgerSpec
		if err := json.Unmarshal([]byte(raw), &spec); err != nil {
			t.Fatal(err)
		}
		_, err := pool.Parse(&spec)
		if err == nil {
			t.Errorf("%s was read", raw)
			continue
		}
		mustContain(t, err.Error(), want, "kubectl edit podcidrledger")
	}
}

// Fault: a ledger that, read and written again, says something else, so that
// two operators write it in turn for ever; or one that makes Plan fail.
func FuzzLedger(f *testing.F) {
	f.Add([]byte(`{"seq":7,"pool":{"ipv4":{"cidrs":["10.0.0.0/8"],"maskSize":24}},"grants":{"n1":["10.0.0.0/24","fd00::/64"]},` +
		`"quarantine":[{"cidr":"10.0.1.0/24","node":"n2","at":"2026-01-02T03:04:05Z","seq":7}],"rested":["10.0.2.0/24"],"growth":[{"at":"2026-01-02T03:04:05Z","ipv4":2}]}`))
	f.Add([]byte(`{"grants":{"a":["10.0.0.1/24","10.0.0.0/24","0.0.0.0/0","::/0"],"":["255.255.255.255/32"]},"rested":["ffff::/16","ffff::/16"]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var spec v1alpha1.PodCIDRLedgerSpec
		if json.Unmarshal(raw, &spec) != nil {
			return
		}
		l, err := pool.Parse(&spec)
		if err != nil {
			return
		}
		written := l.Spec()
		again, err := pool.Parse(&written)
		if err != nil || !again.Equal(l) {
			t.Fatalf("%s\nbecame %+v, then %+v, %v", raw, l, again, err)
		}
		p := pool.Pool{Name: "p", V4: pool.Family{CIDRs: prefixes("10.0.0.0/8"), MaskSize: 24}, V6: pool.Family{CIDRs: prefixes("fd00::/48"), MaskSize: 64}}
		in := inputs(p)
		in.Now = in.Now.AddDate(1, 0, 0)
		living := wants(p, "a", "n1")
		next, _, _ := pool.Plan(l, in, living)
		stable, _, _ := pool.Plan(next, in, living)
		if third, _, _ := pool.Plan(stable, in, living); !third.Equal(stable) {
			t.Fatalf("%s\nnever comes to rest: %+v, %+v", raw, stable, third)
		}
		for node, ps := range next.Grants {
			for other, qs := range next.Grants {
				for _, p := range ps {
					for _, q := range qs {
						if node < other && p.Overlaps(q) && !overlapped(l, p.String(), q.String()) {
							t.Fatalf("%s\n%s of %s overlaps %s of %s", raw, p, node, q, other)
						}
					}
				}
			}
		}
	})
}

// overlapped says whether the ledger had both ranges already.
func overlapped(l pool.Ledger, a, b string) bool {
	had := map[string]bool{}
	for _, ps := range l.Grants {
		for _, p := range ps {
			had[p.String()] = true
		}
	}
	return had[a] && had[b]
}
