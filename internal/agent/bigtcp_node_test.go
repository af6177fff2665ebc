// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/rpc"
)

// bounds are those of a device of this node.
func bounds(t *testing.T, s *started, name string) link.SizedDevice {
	t.Helper()
	l, err := link.New("", s.o.Log)
	if err != nil {
		t.Fatal(err)
	}
	all, err := l.SizedDevices()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if d.Name == name {
			return d
		}
	}
	return link.SizedDevice{}
}

// Guards against BIG TCP that is on where a device of the node does not take it,
// that running pods, new devices or a change of the setting do not follow, or that
// stays on a node's devices when Weft is gone.
func TestBigTCPOnNode(t *testing.T) {
	if !node(t) {
		return
	}
	o, _ := newNode(t, map[string]string{"enable-ipv4-big-tcp": "true", "enable-ipv6-big-tcp": "true"})
	api := serveAPI(t, &o)
	addNode(t, api, "n1", 1)
	api.Do(t, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"default"}}`, nil)
	if err := Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	if bounds(t, s, "eth0").GSO4 == 0 {
		t.Skip("this kernel has no BIG TCP of IPv4, which came with Linux 6.3")
	}
	before := link.Sizes{GSO4: link.LegacySize, GRO4: link.LegacySize, GSO6: link.LegacySize, GRO6: link.LegacySize}
	are := func(what string, want link.Sizes, state rpc.State, says string, devs ...string) {
		t.Helper()
		eventually(t, what, func() (bool, any) {
			c := s.component("BIG TCP")
			got := []any{c}
			ok := c.State == state && strings.Contains(c.Message, says)
			for _, name := range devs {
				d := bounds(t, s, name)
				want := want
				if name != "lxc_health" {
					want.GRO6 = before.GRO6 // see raised
				}
				ok = ok && d.Sizes == want
				got = append(got, d)
			}
			return ok, got
		})
	}
	eventually(t, "proven", func() (bool, any) { c := s.component("Node proof"); return c.State == rpc.StateOK, c })
	on := link.BigTCP{IPv4: bigSize, IPv6: bigSize}.Sizes()
	are("on", on, rpc.StateOK, "IPv4 up to 196608 bytes; IPv6 up to 196608 bytes", "eth0", "lxc_health")
	pod := addPod(t, s, api, "one")
	ping(t, pod)

	// A device that takes no more than 64 KiB, and one that does.
	run(t, "ip", "tuntap", "add", "tap0", "mode", "tap")
	for _, dev := range []string{"tap0"} {
		run(t, "ip", "link", "set", dev, "up")
		run(t, "ip", "route", "add", "default", "dev", dev, "metric", "900")
	}
	if most := bounds(t, s, "tap0").Most; most > link.LegacySize {
		t.Fatalf("this kernel's tap takes %d bytes: the test needs another device", most)
	}
	are("a device without", before, rpc.StateWarning, "tap0", "eth0", "lxc_health", "tap0")
	run(t, "ip", "link", "del", "tap0")
	are("on again", on, rpc.StateOK, "196608", "eth0", "lxc_health")
	run(t, "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "wire1")
	run(t, "ip", "addr", "add", "10.77.0.1/24", "dev", "eth1")
	run(t, "ip", "link", "set", "wire1", "up")
	run(t, "ip", "link", "set", "eth1", "up")
	run(t, "ip", "route", "add", "default", "via", "10.77.0.2", "metric", "900")
	are("a new device", on, rpc.StateOK, "196608", "eth1")
	s.end()

	set(t, o, "enable-ipv4-big-tcp", "false")
	s = start(t, o)
	are("IPv6 alone", link.BigTCP{IPv6: bigSize}.Sizes(), rpc.StateOK, "IPv4 off; IPv6 up to", "eth0", "eth1", "lxc_health")
	s.end()
	set(t, o, "enable-ipv6-big-tcp", "false")
	s = start(t, o)
	are("off", before, rpc.StateDisabled, "", "eth0", "eth1", "lxc_health")
	if _, err := os.Stat(o.Paths.bounds()); !os.IsNotExist(err) {
		t.Errorf("notes stay: %v", err)
	}
	s.end()
	set(t, o, "enable-ipv4-big-tcp", "true")
	s = start(t, o)
	are("running pods follow", link.BigTCP{IPv4: bigSize}.Sizes(), rpc.StateOK, "IPv4 up to", "eth0", "lxc_health")
	ping(t, pod)
	s.end()

	var out strings.Builder
	if err := UninstallNode(t.Context(), o.Options, &out); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"eth0", "eth1"} {
		if got := bounds(t, s, name).Sizes; got != before {
			t.Errorf("%s after uninstall: %+v\n%s", name, got, &out)
		}
	}
}

// tunnelBounds expects of BIG TCP in mode tunnel what this kernel's VXLAN allows.
func tunnelBounds(t *testing.T, s *started) {
	t.Helper()
	eventually(t, "BIG TCP in mode tunnel", func() (bool, any) {
		c, tunnel, eth := s.component("BIG TCP"), bounds(t, s, link.TunnelDevice), bounds(t, s, "eth0")
		got := fmt.Sprintf("%+v %+v %+v", c, tunnel, eth)
		if eth.GSO4 == 0 {
			return c.State == rpc.StateWarning && strings.Contains(c.Message, "this kernel has no BIG TCP of IPv4"), got
		}
		if tunnel.Most > link.LegacySize {
			return c.State == rpc.StateOK && tunnel.GSO4 > link.LegacySize && eth.GSO4 == tunnel.GSO4, got
		}
		return c.State == rpc.StateWarning && strings.Contains(c.Message, "this kernel's VXLAN carries no larger ones") && eth.GSO4 == link.LegacySize, got
	})
}
