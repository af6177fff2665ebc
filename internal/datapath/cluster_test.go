// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// space is a network namespace that lives as long as the test.
type space struct {
	name string
	h    netns.NsHandle
}

func newSpace(t *testing.T, name string) *space {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	h, err := netns.NewNamed(name)
	if err != nil {
		t.Fatalf("namespace %s: %v", name, err)
	}
	if err := netns.Set(old); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = h.Close()
		_ = netns.DeleteNamed(name)
	})
	s := &space{name, h}
	s.in(t, func() {
		sysctl(t, "ipv6/conf/all/accept_dad", "0")
		sysctl(t, "ipv6/conf/default/accept_dad", "0")
		sysctl(t, "ipv6/conf/all/accept_ra", "0")
		sysctl(t, "ipv6/conf/default/accept_ra", "0")
		up(t, "lo")
	})
	return s
}

// in runs f on a thread that is in the namespace; sockets made in f stay there.
func (s *space) in(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := netns.Set(s.h); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(old); err != nil {
			panic(err) // the thread must not go back to the pool like this
		}
	}()
	f()
}

func sysctl(t testing.TB, key, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

func link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("device %s: %v", name, err)
	}
	return l
}

func up(t testing.TB, name string) {
	t.Helper()
	if err := netlink.LinkSetUp(link(t, name)); err != nil {
		t.Fatalf("device %s: %v", name, err)
	}
}

func ip(t testing.TB, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

func nft(t testing.TB, rules string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s\n%s", err, out, rules)
	}
}

// machine is a node with a datapath of its own.
type machine struct {
	*space
	root string
	d    *datapath.Datapath
	addr host
	nets []netip.Prefix // of its pods
	pods []*pod
}

type pod struct {
	*space
	addr host
	row  maps.EndpointRow
	dev  string
}

// cluster is two machines on one wire, with two pods each.
type cluster struct {
	t     *testing.T
	nodes [2]*machine
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	needRoot(t)
	c := &cluster{t: t}
	for i := range c.nodes {
		c.nodes[i] = c.newMachine(i + 1)
	}
	a, b := c.nodes[0], c.nodes[1]
	ip(t, fmt.Sprintf("link add %s-eth type veth peer name %s-eth", a.name, b.name))
	for _, m := range c.nodes {
		ip(t, fmt.Sprintf("link set %s-eth netns %s name eth0", m.name, m.name))
	}
	for i, m := range c.nodes {
		other := c.nodes[1-i]
		m.in(t, func() {
			up(t, "eth0")
			ip(t, "addr add "+m.addr.v4.String()+"/24 dev eth0")
			ip(t, "addr add "+m.addr.v6.String()+"/64 dev eth0 nodad")
			for f, p := range other.nets {
				via := other.addr.of([]int{4, 6}[f])
				ip(t, fmt.Sprintf("route add %s via %s", p, via))
				ip(t, fmt.Sprintf("route add default via %s", via)) // of services, as any node has one
			}
			if err := m.d.SyncDevices([]datapath.Device{{Name: "eth0", Index: link(t, "eth0").Attrs().Index}}); err != nil {
				t.Fatal(err)
			}
		})
		for n := range 2 {
			c.addPod(m, n+1)
		}
		c.fillIPCache(m, other)
	}
	return c
}

func (c *cluster) newMachine(i int) *machine {
	m := &machine{
		space: newSpace(c.t, fmt.Sprintf("n%d", i)), root: newRoot(c.t),
		addr: newHost(fmt.Sprintf("10.9.0.%d", i), fmt.Sprintf("fd00:9::%d", i)),
		nets: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:%d::/64", i))},
	}
	m.d = open(c.t, datapath.Options{Root: m.root, IPv4: true, IPv6: true, Masquerade: true, Outside: true})
	cfg := maps.DefaultConfig()
	cfg.NodeIPv4, cfg.NodeIPv6, cfg.Trace = m.addr.v4, m.addr.v6, maps.TraceNew
	if err := m.d.SetConfig(cfg); err != nil {
		c.t.Fatal(err)
	}
	m.in(c.t, func() {
		for _, s := range []string{"ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"} {
			sysctl(c.t, s, "1")
		}
		sysctl(c.t, "ipv4/conf/all/rp_filter", "1")
	})
	return m
}

// addPod wires a pod as the agent does: /32 and /128, gateways that only exist
// as permanent neighbours.
func (c *cluster) addPod(m *machine, i int) {
	t := c.t
	p := &pod{space: newSpace(t, fmt.Sprintf("%sp%d", m.name, i)), dev: fmt.Sprintf("lxc%d", i)}
	p.addr = host{m.nets[0].Addr().Next(), m.nets[1].Addr().Next()}
	for range 9 + i {
		p.addr = host{p.addr.v4.Next(), p.addr.v6.Next()}
	}
	mac, hostMAC := fmt.Sprintf("02:00:00:00:aa:%02x", i), fmt.Sprintf("02:00:00:00:ff:%02x", i)
	m.in(t, func() {
		ip(t, fmt.Sprintf("link add %s address %s type veth peer name eth0 address %s netns %s", p.dev, hostMAC, mac, p.name))
		index := link(t, p.dev).Attrs().Index
		p.row = maps.EndpointRow{ID: uint16(i), IfIndex: index, MAC: mac, HostMAC: hostMAC, IPv4: p.addr.v4, IPv6: p.addr.v6, MTU: 1500, Generation: 1, Identity: table.IdentityInit}
		if err := m.d.Maps().Endpoints.Upsert(p.row); err != nil {
			t.Fatal(err)
		}
		if err := m.d.AttachEndpoint(p.dev, index); err != nil {
			t.Fatal(err)
		}
		up(t, p.dev)
		for _, f := range families {
			a := p.addr.of(f)
			ip(t, fmt.Sprintf("route add %s/%d dev %s src %s", a, a.BitLen(), p.dev, m.addr.of(f)))
			ip(t, fmt.Sprintf("neigh replace %s lladdr %s dev %s nud permanent", a, mac, p.dev))
		}
	})
	p.in(t, func() {
		up(t, "eth0")
		ip(t, "addr add "+p.addr.v4.String()+"/32 dev eth0")
		ip(t, "addr add "+p.addr.v6.String()+"/128 dev eth0 nodad")
		for gw, def := range map[string]string{"169.254.1.1": "-4", "fe80::1": "-6"} {
			ip(t, fmt.Sprintf("neigh replace %s lladdr %s dev eth0 nud permanent", gw, hostMAC))
			ip(t, fmt.Sprintf("%s route add default via %s dev eth0 onlink", def, gw))
		}
	})
	m.pods = append(m.pods, p)
}

func (c *cluster) fillIPCache(m, other *machine) {
	upsert := func(p netip.Prefix, id table.Identity, k table.HostKind, ep uint16) {
		if err := m.d.Maps().IPCache.Upsert(maps.IPCacheRow{Prefix: p, Identity: id, Kind: k, EndpointID: ep}); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, f := range families {
		bits := m.addr.of(f).BitLen()
		upsert(netip.PrefixFrom(m.addr.of(f), bits), table.IdentityHost, table.KindHost, 0)
		upsert(netip.PrefixFrom(other.addr.of(f), bits), table.IdentityRemoteNode, table.KindNode, 0)
		for _, p := range m.pods {
			upsert(netip.PrefixFrom(p.addr.of(f), bits), table.IdentityInit, table.KindLocalPod, p.row.ID)
		}
	}
	for _, p := range other.nets {
		upsert(p, table.IdentityInit, table.KindRemotePod, 0)
	}
}

// metrics returns packets by "hook reason", summed over the machine.
func (m *machine) metrics(t testing.TB) map[string]uint64 {
	t.Helper()
	rows, err := m.d.Maps().Metrics.List()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for _, r := range rows {
		out[r.Hook+" "+r.Reason] = r.Packets
	}
	return out
}

// noDrops fails the test if a packet was dropped on any machine.
func (c *cluster) noDrops(except ...string) {
	c.t.Helper()
	for _, m := range c.nodes {
		rows, err := m.d.Maps().Metrics.List()
		if err != nil {
			c.t.Fatal(err)
		}
	next:
		for _, r := range rows {
			for _, e := range except {
				if r.Reason == e {
					continue next
				}
			}
			if r.Class == "drop" {
				c.t.Errorf("%s: %s dropped %d packets: %s", m.name, r.Hook, r.Packets, r.Reason)
			}
		}
	}
}
