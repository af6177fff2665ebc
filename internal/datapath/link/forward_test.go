// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/datapath/link"
)

// iptablesRules returns the filter rules of a backend.
func iptablesRules(t *testing.T, bin string) []string {
	t.Helper()
	out, err := exec.Command(bin, "-S").Output()
	if err != nil {
		t.Fatalf("%s -S: %v", bin, err)
	}
	var rules []string
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "#") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules
}

func iptables(t *testing.T, bin string, args ...string) {
	t.Helper()
	if out, err := exec.Command(bin, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", bin, args, err, out)
	}
}

func forwardOf(rules []string) []string {
	return slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return !strings.HasPrefix(r, "-A FORWARD") })
}

// Docker and firewalld drop what FORWARD does not accept; kube-proxy rejects
// there what leads to no endpoint. Ours must come before the former and after
// the latter, however often it is ensured and whoever comes later.
func TestForwardRules(t *testing.T) {
	l := links(t)
	ctx := context.Background()
	for _, bin := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy"} {
		t.Run(bin, func(t *testing.T) {
			if _, err := exec.LookPath(bin); err != nil {
				t.Skipf("%s is not installed", bin)
			}
			if strings.HasSuffix(bin, "legacy") {
				iptables(t, bin, "-S") // loads the table, as a node that uses it has done
			}
			accept := link.Forwarded{IPv4: true, IPv6: true}
			ensure := func() {
				t.Helper()
				if err := l.EnsureForward(ctx, accept); err != nil {
					t.Fatal(err)
				}
			}
			want := func(rules ...string) {
				t.Helper()
				if got := forwardOf(iptablesRules(t, bin)); !slices.Equal(got, rules) {
					t.Errorf("FORWARD is %q, want %q", got, rules)
				}
			}
			const ours, drop, kube = "-A FORWARD -j WEFT-FORWARD", "-A FORWARD -j DROP", "-A FORWARD -j KUBE-SERVICES"
			before := iptablesRules(t, bin)
			ensure()
			want(ours)
			for _, r := range []string{"-N WEFT-FORWARD", "-A WEFT-FORWARD -i lxc+ -j ACCEPT", "-A WEFT-FORWARD -o lxc+ -j ACCEPT"} {
				if !slices.Contains(iptablesRules(t, bin), r) {
					t.Errorf("%s is missing", r)
				}
			}
			once := iptablesRules(t, bin)
			ensure()
			if again := iptablesRules(t, bin); !slices.Equal(again, once) {
				t.Errorf("a second time makes %q of %q", again, once)
			}
			iptables(t, bin, "-I", "FORWARD", "1", "-j", "DROP") // Docker starts
			ensure()
			want(ours, drop)
			iptables(t, bin, "-N", "KUBE-SERVICES")
			iptables(t, bin, "-I", "FORWARD", "1", "-j", "KUBE-SERVICES") // kube-proxy starts
			ensure()
			want(kube, ours, drop)
			iptables(t, bin, "-A", "FORWARD", "-j", "WEFT-FORWARD") // a copy, from a restored dump
			iptables(t, bin, "-I", "FORWARD", "1", "-j", "DROP")
			ensure()
			want(ours, drop, kube, drop)
			iptables(t, bin, "-F", "WEFT-FORWARD")
			ensure()
			if r := "-A WEFT-FORWARD -i lxc+ -j ACCEPT"; !slices.Contains(iptablesRules(t, bin), r) {
				t.Errorf("%s was not put back", r)
			}
			const service = "-A WEFT-FORWARD -m mark --mark 0x5ef70002 -j ACCEPT"
			for _, on := range []bool{true, false} {
				accept.Services = on
				ensure()
				if slices.Contains(iptablesRules(t, bin), service) != on {
					t.Errorf("services from outside are switched to %v, and FORWARD does not follow", on)
				}
			}
			iptables(t, bin, "-F", "FORWARD")
			iptables(t, bin, "-X", "KUBE-SERVICES")
			ensure()
			for range 2 {
				if err := l.RemoveForward(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if after := iptablesRules(t, bin); !slices.Equal(after, before) {
				t.Errorf("removed: %q, before: %q", after, before)
			}
		})
	}
}

// Without the binaries the agent must go on and say what that means.
func TestForwardWithoutIptables(t *testing.T) {
	l := links(t)
	t.Setenv("PATH", t.TempDir())
	err := l.EnsureForward(context.Background(), link.Forwarded{IPv4: true, IPv6: true})
	var missing *link.MissingError
	if !errors.As(err, &missing) || !slices.Contains(missing.Binaries, "iptables-nft") || !slices.Contains(missing.Binaries, "ip6tables-nft") {
		t.Errorf("got %v", err)
	}
}
