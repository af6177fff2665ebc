// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/link"
)

func tunnel() link.Tunnel {
	return link.Tunnel{
		Port: 8472, MTU: 1450, MAC: net.HardwareAddr{2, 0, 0, 0, 0x5e, 0xf7},
		Addrs: []netip.Addr{node4, node6},
	}
}

// ensure makes the device and brings it up, as the agent does.
func ensure(t *testing.T, l *link.Links, tn link.Tunnel) int {
	t.Helper()
	index, err := l.EnsureTunnel(tn)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.TunnelUp(index, tn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = l.RemoveTunnel() })
	return index
}

// checkTunnel compares the kernel's device with what is wanted.
func checkTunnel(t *testing.T, tn link.Tunnel) {
	t.Helper()
	k, err := netlink.LinkByName(link.TunnelDevice)
	if err != nil {
		t.Fatal(err)
	}
	v, ok := k.(*netlink.Vxlan)
	if !ok {
		t.Fatalf("it is a %s", k.Type())
	}
	if !v.FlowBased || v.Learning || v.Port != tn.Port || !v.UDP6ZeroCSumRx || v.MTU != tn.MTU || v.HardwareAddr.String() != tn.MAC.String() ||
		v.RawFlags&unix.IFF_NOARP == 0 || v.RawFlags&unix.IFF_UP == 0 {
		t.Errorf("%+v, want %+v", v, tn)
	}
	addrs, err := netlink.AddrList(k, unix.AF_UNSPEC)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, a := range addrs {
		got[a.IPNet.String()] = true
	}
	if len(got) != 2 || !got[node4.String()+"/32"] || !got[node6.String()+"/128"] {
		t.Errorf("addresses %v, want the node's two", got)
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + link.TunnelDevice + "/rp_filter"); err != nil || strings.TrimSpace(string(b)) != "2" {
		t.Errorf("rp_filter %q %v, want 2: nodes' own addresses come by the overlay and are reached without it", b, err)
	}
}

// Guards against a tunnel device that is made anew, with another index, MAC or
// routes, at each start of the agent, or that stays as somebody else changed it.
func TestTunnelMended(t *testing.T) {
	l := links(t)
	node(t)
	tn := tunnel()
	index := ensure(t, l, tn)
	checkTunnel(t, tn)
	if again := ensure(t, l, tn); again != index {
		t.Errorf("made anew: index %d, then %d", index, again)
	}
	for _, harm := range []string{
		"link set weft_vxlan down", "link set weft_vxlan mtu 9000", "link set weft_vxlan arp on",
		"addr flush dev weft_vxlan", "addr add 192.0.2.99/24 dev weft_vxlan",
		"link set weft_vxlan address 02:00:00:00:00:77", "link set weft_vxlan type vxlan learning",
		"link del weft_vxlan",
	} {
		if err := ip(strings.Fields(harm)...); err != nil {
			t.Fatal(err)
		}
		ensure(t, l, tn)
		checkTunnel(t, tn)
		if t.Failed() {
			t.Fatalf("after ip %s", harm)
		}
	}
	// Another port needs another device.
	tn.Port = 4789
	ensure(t, l, tn)
	checkTunnel(t, tn)
	for i := range 2 {
		if removed, err := l.RemoveTunnel(); err != nil || removed != (i == 0) {
			t.Errorf("removal %d: %v %v", i+1, removed, err)
		}
	}
	if at, _, err := l.FindTunnel(); at != 0 || err != nil {
		t.Errorf("still there: %d %v", at, err)
	}
}

// Guards against taking the port away from another network, or against an error
// that leaves the reader to find out whose it is.
func TestTunnelPortTaken(t *testing.T) {
	l := links(t)
	if err := ip("link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.EnsureTunnel(tunnel()); err == nil || !strings.Contains(err.Error(), "flannel.1") {
		t.Errorf("beside another's device on the port: %v", err)
	}
	if err := ip("link", "del", "flannel.1"); err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp4", "0.0.0.0:8472")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	index, err := l.EnsureTunnel(tunnel())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = l.RemoveTunnel() }()
	if err := l.TunnelUp(index, tunnel()); err == nil || !strings.Contains(err.Error(), "UDP port 8472 is in use") {
		t.Errorf("beside a socket on the port: %v", err)
	}
}

// Guards against deleting somebody's device because it has the name.
func TestTunnelNameTaken(t *testing.T) {
	l := links(t)
	if err := ip("link", "add", "weft_vxlan", "type", "bridge"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ip("link", "del", "weft_vxlan") }()
	if _, err := l.EnsureTunnel(tunnel()); err == nil || !strings.Contains(err.Error(), "is a bridge") {
		t.Errorf("got %v", err)
	}
	if removed, err := l.RemoveTunnel(); removed || err != nil {
		t.Errorf("removed another's device: %v %v", removed, err)
	}
}
