// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"strings"
	"testing"
)

func TestHostsOfDefaultLab(t *testing.T) {
	o := Defaults()
	hosts, err := o.Hosts()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][2]string{
		"cp":       {"172.18.0.2", "fd00:18::2"},
		"client":   {"172.18.9.10", "fd00:18:9::10"},
		"firewall": {"172.18.9.20", "fd00:18:9::20"},
		"n1":       {"172.18.1.11", "fd00:18:1::11"},
		"n2":       {"172.18.1.12", "fd00:18:1::12"},
		"n3":       {"172.18.2.13", "fd00:18:2::13"},
	}
	if len(hosts) != len(want) {
		t.Fatalf("%d hosts, want %d", len(hosts), len(want))
	}
	for _, h := range hosts {
		if got := [2]string{h.Addr4().String(), h.Addr6().String()}; got != want[h.Name] {
			t.Errorf("%s: %v, want %v", h.Name, got, want[h.Name])
		}
	}
}

// Guards against two hosts of the largest lab sharing an address, a MAC, a
// mark or a device name, and against names the kernel would refuse.
func TestNothingIsSharedInTheLargestLab(t *testing.T) {
	o := Defaults()
	o.Nodes, o.NICs = MaxNode, 2
	hosts, err := o.Hosts()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	once := func(host, kind, v string) {
		t.Helper()
		if other, ok := seen[kind+v]; ok {
			t.Errorf("%s and %s share %s %s", other, host, kind, v)
		}
		seen[kind+v] = host
	}
	for _, s := range o.AllSubnets() {
		once("router", "device", s.Bridge)
		once("router", "mac", s.MAC)
		once("router", "address", s.GW4.String())
		once("router", "address", s.GW6.String())
	}
	for _, h := range hosts {
		once(h.Name, "name", h.Name)
		once(h.Name, "mark", string(rune(h.Mark)))
		for _, p := range h.Ports {
			once(h.Name, "address", p.V4.Addr().String())
			once(h.Name, "address", p.V6.Addr().String())
			once(h.Name, "mac", p.MAC)
			once(h.Name, "device", p.Peer)
			if len(p.Peer) > 15 {
				t.Errorf("device %s is longer than 15 characters", p.Peer)
			}
			s, err := o.Subnet(p.Subnet)
			if err != nil {
				t.Fatal(err)
			}
			if !s.V4.Contains(p.V4.Addr()) || !s.V6.Contains(p.V6.Addr()) {
				t.Errorf("%s %s: %s and %s are not in subnet %s", h.Name, p.Dev, p.V4, p.V6, p.Subnet)
			}
		}
	}
}

func TestNodesAlternateBetweenSubnets(t *testing.T) {
	two := Defaults()
	one := Defaults()
	one.Subnets = 1
	for name, want := range map[string]string{"n1": "a", "n2": "a", "n3": "b", "n4": "a", "n5": "b", "n6": "a"} {
		h, err := two.NewNode(name, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := h.Ports[0].Subnet; got != want {
			t.Errorf("%s is on %s, want %s", name, got, want)
		}
		if h, err = one.NewNode(name, ""); err != nil || h.Ports[0].Subnet != "a" {
			t.Errorf("%s with one subnet: %v %v, want a", name, h.Ports, err)
		}
	}
	if h, err := two.NewNode("n1", "b"); err != nil || h.Addr4().String() != "172.18.2.11" {
		t.Errorf("n1 on b: %v %v", h, err)
	}
	if _, err := one.NewNode("n1", "b"); err == nil {
		t.Error("n1 on b in a lab with one subnet was not refused")
	}
}

func TestImpossibleOptionsAreRefusedByName(t *testing.T) {
	for what, change := range map[string]func(*Options){
		"lab name":        func(o *Options) { o.Name = "Has Space" },
		"lab name \"":     func(o *Options) { o.Name = strings.Repeat("a", 21) },
		"lab name \"../x": func(o *Options) { o.Name = "../x" },
		"nodes":           func(o *Options) { o.Nodes = 100 },
		"subnets":         func(o *Options) { o.Subnets = 3 },
		"nics":            func(o *Options) { o.NICs = 0 },
		"mtu":             func(o *Options) { o.MTU = 576 },
		"cni":             func(o *Options) { o.CNI = "calico" },
		"kube-proxy":      func(o *Options) { o.Proxy = "ipvs" },
		"cni ptp":         func(o *Options) { o.NoNodeCIDRs = true },
		"taint":           func(o *Options) { o.Taints = []string{"a=b"} },
	} {
		o := Defaults()
		change(&o)
		if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), what) {
			t.Errorf("%s: got error %v", what, err)
		}
	}
	for _, name := range []string{"n0", "n100", "n01", "x1", "n", "n-1"} {
		if _, err := NodeNumber(name); err == nil {
			t.Errorf("node name %q was not refused", name)
		}
	}
}
