// SPDX-License-Identifier: Apache-2.0

package masquerade_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-net/weft/internal/masquerade"
)

// Guards against settings that masquerade what must not be, without a word.
func TestParseAgentConfig(t *testing.T) {
	contains := func(c masquerade.AgentConfig, p string) bool {
		return slices.Contains(c.Exclusions(), netip.MustParsePrefix(p))
	}
	for _, empty := range []string{"", " \n"} {
		c, err := masquerade.ParseAgentConfig([]byte(empty))
		if err != nil || !contains(c, "10.0.0.0/8") || !contains(c, "169.254.0.0/16") || !contains(c, "fe80::/10") {
			t.Errorf("empty file: %+v %v", c, err)
		}
	}
	c, err := masquerade.ParseAgentConfig([]byte("nonMasqueradeCIDRs:\n- 10.1.2.3/16\n- fd00::/8\nmasqLinkLocal: true\nresyncInterval: 60s\n"))
	if err != nil || !contains(c, "10.1.0.0/16") || !contains(c, "fd00::/8") || contains(c, "169.254.0.0/16") || !contains(c, "fe80::/10") || contains(c, "10.0.0.0/8") {
		t.Errorf("%v %v", c.Exclusions(), err)
	}
	if c, err := masquerade.ParseAgentConfig([]byte(`{"masqLinkLocalIPv6":true,"nonMasqueradeCIDRs":[]}`)); err != nil || len(c.Exclusions()) != 1 {
		t.Errorf("%v %v", c.Exclusions(), err)
	}
	for text, want := range map[string]string{
		`{"nonMasqueradeCIDR":["10.0.0.0/8"]}`:          "nonMasqueradeCIDR",
		`{"nonMasqueradeCIDRs":["10.0.0.0"]}`:           `"10.0.0.0" is not a range`,
		`{"nonMasqueradeCIDRs":"10.0.0.0/8"}`:           "not understood",
		`{"masqLinkLocal":"yes"}`:                       "not understood",
		"\tx":                                           "not understood",
		strings.Repeat(" ", 300<<10):                    "bytes long",
		`{"nonMasqueradeCIDRs":["::ffff:1.2.3.4/128"]}`: "is not a range",
	} {
		if _, err := masquerade.ParseAgentConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want it to contain %q", text, err, want)
		}
	}
}

func FuzzParseAgentConfig(f *testing.F) {
	f.Add([]byte(`{"nonMasqueradeCIDRs":["10.0.0.0/8"],"masqLinkLocal":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := masquerade.ParseAgentConfig(b)
		if err != nil {
			return
		}
		for _, p := range c.Exclusions() {
			if !p.IsValid() || p != p.Masked() {
				t.Errorf("range %s", p)
			}
		}
	})
}

// Guards against flows that leave with an address to which no answer comes.
func TestDeviceAddr(t *testing.T) {
	prefixes := func(ss ...string) (out []netip.Prefix) {
		for _, s := range ss {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	node := []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")}
	for _, tc := range []struct {
		device []netip.Prefix
		v6     bool
		want   string
	}{
		{prefixes("10.0.0.4/24", "10.0.0.5/24"), false, "10.0.0.5"},                      // the node's
		{prefixes("10.1.0.9/24", "203.0.113.9/24", "10.1.0.1/24"), false, "203.0.113.9"}, // public first
		{prefixes("10.1.0.9/24", "10.1.0.1/24"), false, "10.1.0.1"},
		{prefixes("169.254.3.4/16"), false, "10.0.0.5"}, // nothing to be answered at
		{nil, false, "10.0.0.5"},
		{prefixes("fe80::1/64", "fd00:1::9/64", "2001:db8::9/64"), true, "2001:db8::9"},
		{prefixes("fe80::1/64"), true, "fd00::5"},
	} {
		if got := masquerade.DeviceAddr(tc.device, node, tc.v6); got.String() != tc.want {
			t.Errorf("%v: %s, want %s", tc.device, got, tc.want)
		}
	}
	if got := masquerade.DeviceAddr(nil, nil, false); got.IsValid() {
		t.Errorf("an address out of nothing: %s", got)
	}
}

// Guards against ports that come back as others than the kernel's list had.
func TestPortSets(t *testing.T) {
	for _, s := range []string{"", "1", "8080,9148-9150", "1,3,5-65535", "0-65535"} {
		set, err := masquerade.ParseSet(s + "\n")
		if err != nil || set.String() != s {
			t.Errorf("%q became %q, %v", s, set, err)
		}
	}
	for _, s := range []string{"x", "5-3", "70000", "1-"} {
		if _, err := masquerade.ParseSet(s); err == nil {
			t.Errorf("took %q", s)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func() *masquerade.Set {
			s := &masquerade.Set{}
			for range rapid.IntRange(0, 4).Draw(t, "ranges") {
				a, b := rapid.Uint16().Draw(t, "a"), rapid.Uint16().Draw(t, "b")
				s.Add(min(a, b), max(a, b))
			}
			return s
		}
		x, y := draw(), draw()
		again, err := masquerade.ParseSet(x.String())
		if err != nil || !again.Equal(x) {
			t.Errorf("%s became %v, %v", x, again, err)
		}
		if !x.Minus(y).Plus(y).Equal(x.Plus(y)) {
			t.Errorf("%s without %s and with it again", x, y)
		}
	})
}
