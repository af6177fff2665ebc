// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m.Run)) }

var (
	pod4  = netip.MustParseAddr("10.9.0.2")
	pod6  = netip.MustParseAddr("fd09::2")
	node4 = netip.MustParseAddr("192.0.2.1")
	node6 = netip.MustParseAddr("2001:db8::1")
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func links(t testing.TB) *link.Links {
	t.Helper()
	nstest.Require(t)
	l, err := link.New("", quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.EnsureForwarding(true, true); err != nil {
		t.Fatal(err)
	}
	return l
}

func mac(t testing.TB, s string) net.HardwareAddr {
	t.Helper()
	m, err := net.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func testVeth(t testing.TB, netns string) link.Veth {
	return link.Veth{
		HostIfName: "lxc0123456789a", Alias: "weft:id=1 name=default/web", Netns: netns, IfName: "eth0", MTU: 1400,
		HostMAC: mac(t, "02:00:00:00:00:01"), MAC: mac(t, "02:00:00:00:00:02"),
	}
}

func both() link.Addressing {
	return link.Addressing{IPs: []netip.Addr{pod4, pod6}, Src: []netip.Addr{node4, node6}}
}

// pod makes a pod with both families and returns its pair.
func pod(t testing.TB, l *link.Links) (link.Veth, int) {
	t.Helper()
	v := testVeth(t, nstest.Netns(t))
	index, err := l.Create(v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Retire(v.HostIfName), l.DeleteRetired()); err != nil {
			t.Error(err)
		}
	})
	if err := l.Up(v, index, both(), nil); err != nil {
		t.Fatal(err)
	}
	return v, index
}

func node(t testing.TB) { nstest.Bridge(t, "node0", node4.String()+"/24", node6.String()+"/64") }

// talk sends a datagram from inside a namespace and returns the source that
// the other end saw.
func talk(t *testing.T, fromNs, toNs string, to netip.Addr) (netip.Addr, time.Duration) {
	t.Helper()
	within := func(ns string, f func() error) {
		if ns == "" {
			if err := f(); err != nil {
				t.Fatal(err)
			}
			return
		}
		nstest.Inside(t, ns, f)
	}
	var server net.PacketConn
	within(toNs, func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(to, 0).String())
		return err
	})
	defer server.Close()
	start := time.Now()
	within(fromNs, func() error {
		c, err := net.Dial("udp", server.LocalAddr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	})
	if err := server.SetReadDeadline(start.Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, from, err := server.ReadFrom(make([]byte, 8))
	if err != nil {
		t.Fatalf("to %s: %v", to, err)
	}
	return from.(*net.UDPAddr).AddrPort().Addr().Unmap(), time.Since(start)
}

// A pod must be able to talk the moment that Up returns: duplicate address
// detection, a tentative address or an unresolved neighbour each cost a second.
func TestPodTalksAtOnce(t *testing.T) {
	l := links(t)
	node(t)
	v, _ := pod(t, l)
	for _, c := range []struct {
		name, from, to string
		dst, src       netip.Addr
	}{
		{"pod to node, v4", v.Netns, "", node4, pod4},
		{"pod to node, v6", v.Netns, "", node6, pod6},
		{"node to pod, v4", "", v.Netns, pod4, node4},
		{"node to pod, v6", "", v.Netns, pod6, node6},
		{"pod to itself, v4", v.Netns, v.Netns, pod4, pod4},
		{"pod's loopback", v.Netns, v.Netns, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1")},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, took := talk(t, c.from, c.to, c.dst)
			if src != c.src {
				t.Errorf("source %s, want %s", src, c.src)
			}
			if took > 500*time.Millisecond {
				t.Errorf("took %s", took)
			}
		})
	}
}

// Settings that the kernel would choose otherwise, each of which has hurt: see
// DATAPATH rule 19.
func TestDeviceSettings(t *testing.T) {
	l := links(t)
	node(t)
	v, _ := pod(t, l)
	read := func(name string) string {
		b, err := os.ReadFile("/proc/sys/net/" + name)
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(b))
	}
	for name, want := range map[string]string{
		"ipv4/conf/" + v.HostIfName + "/rp_filter":     "0",
		"ipv4/conf/" + v.HostIfName + "/forwarding":    "1",
		"ipv6/conf/" + v.HostIfName + "/forwarding":    "1",
		"ipv6/conf/" + v.HostIfName + "/accept_ra":     "0",
		"ipv6/conf/" + v.HostIfName + "/addr_gen_mode": "1",
	} {
		if got := read(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	host, err := netlink.LinkByName(v.HostIfName)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := netlink.AddrList(host, unix.AF_UNSPEC); err != nil || len(got) != 0 {
		t.Errorf("host's end has addresses %v, %v", got, err)
	}
	if a := host.Attrs(); a.Alias != v.Alias || a.MTU != v.MTU || a.HardwareAddr.String() != v.HostMAC.String() {
		t.Errorf("alias %q, MTU %d, MAC %s", a.Alias, a.MTU, a.HardwareAddr)
	}
	nstest.Inside(t, v.Netns, func() error {
		if got := read("ipv6/conf/eth0/accept_ra"); got != "0" {
			t.Errorf("accept_ra in the pod is %s", got)
		}
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(dev, unix.AF_UNSPEC)
		var got []string
		for _, a := range addrs {
			got = append(got, a.IPNet.String())
			if a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
				t.Errorf("%s is tentative", a.IPNet)
			}
		}
		if want := "10.9.0.2/32 fd09::2/128 fe80::ff:fe00:2/64"; strings.Join(got, " ") != want {
			t.Errorf("addresses %v, want %s", got, want)
		}
		return err
	})
}

// The host's route says whose it is and which address the node speaks from.
func TestHostRoute(t *testing.T) {
	l := links(t)
	node(t)
	v, index := pod(t, l)
	for _, c := range []struct {
		fam  int
		want string
	}{{unix.AF_INET, "10.9.0.2/32 192.0.2.1 87"}, {unix.AF_INET6, "fd09::2/128 2001:db8::1 87"}} {
		rs, err := netlink.RouteListFiltered(c.fam, &netlink.Route{LinkIndex: index, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
		if err != nil || len(rs) != 1 {
			t.Fatalf("routes %v, %v", rs, err)
		}
		if got := fmt.Sprint(rs[0].Dst, " ", rs[0].Src, " ", int(rs[0].Protocol)); got != c.want {
			t.Errorf("route %s, want %s", got, c.want)
		}
	}
	if rs, err := l.ListRoutes(); err != nil || len(rs) != 0 {
		t.Errorf("a pod's route is listed as one to a node: %v, %v", rs, err)
	}
	// An InternalIP that is on no device (behind NAT) must not keep pods from starting.
	a := both()
	a.Src = []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:ffff::9")}
	if err := l.UpHost(v, index, a); err != nil {
		t.Error(err)
	}
	talk(t, "", v.Netns, pod4)
}

// CHECK must see each thing that can go missing, name it, and Up must mend it.
func TestCheckSeesAndUpMends(t *testing.T) {
	l := links(t)
	node(t)
	v, index := pod(t, l)
	if err := l.Check(v, index, both()); err != nil {
		t.Fatalf("nothing is wrong, but: %v", err)
	}
	inPod := func(args ...string) func() error {
		return func() error {
			var err error
			nstest.Inside(t, v.Netns, func() error { err = ip(args...); return nil })
			return err
		}
	}
	onHost := func(args ...string) func() error { return func() error { return ip(args...) } }
	h := v.HostIfName
	for _, c := range []struct {
		name  string
		fault func() error
		want  string
	}{
		{"host down", onHost("link", "set", h, "down"), h + ": is down"},
		{"host MTU", onHost("link", "set", h, "mtu", "1300"), "has MTU 1300, want 1400"},
		{"host MAC", onHost("link", "set", h, "address", "02:00:00:00:00:99"), "has MAC 02:00:00:00:00:99"},
		{"host route v4", onHost("route", "del", "10.9.0.2/32"), "route 10.9.0.2/32 is missing"},
		{"host route v6", onHost("-6", "route", "del", "fd09::2/128"), "route fd09::2/128 is missing"},
		{"host neighbour", onHost("neigh", "del", "10.9.0.2", "dev", h), "neighbour 10.9.0.2 is missing"},
		{"host neighbour v6 wrong", onHost("neigh", "replace", "fd09::2", "dev", h, "lladdr", "02:00:00:00:00:99", "nud", "permanent"), "neighbour fd09::2 is 02:00:00:00:00:99"},
		{"pod down", inPod("link", "set", "eth0", "down"), "eth0 in " + v.Netns + ": is down"},
		{"pod address", inPod("addr", "del", "10.9.0.2/32", "dev", "eth0"), "address 10.9.0.2 is missing"},
		{"pod address v6", inPod("addr", "del", "fd09::2/128", "dev", "eth0"), "address fd09::2 is missing"},
		{"pod default route", inPod("route", "del", "default"), "route 0.0.0.0/0 through 169.254.1.1 is missing"},
		{"pod default route v6", inPod("-6", "route", "del", "default"), "route ::/0 through fe80::1 is missing"},
		{"pod neighbour", inPod("neigh", "del", "169.254.1.1", "dev", "eth0"), "neighbour 169.254.1.1 is missing"},
		{"pod neighbour v6", inPod("neigh", "del", "fe80::1", "dev", "eth0"), "neighbour fe80::1 is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.fault(); err != nil {
				t.Fatal(err)
			}
			if err := l.Check(v, index, both()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("check says %v, want %q", err, c.want)
			}
			if strings.HasPrefix(c.name, "host M") {
				if err := ip("link", "set", h, "mtu", "1400", "address", v.HostMAC.String()); err != nil { // what Create sets, Up leaves
					t.Fatal(err)
				}
			}
			if err := l.Up(v, index, both(), nil); err != nil {
				t.Fatalf("up: %v", err)
			}
		})
		if err := l.Check(v, index, both()); err != nil {
			t.Fatalf("after %s was mended: %v", c.name, err)
		}
	}
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// A namespace that is none, is gone, or is the node's own must be refused
// before anything is made: the last would turn the node into a pod.
func TestBadNetns(t *testing.T) {
	l := links(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/proc/self/ns/net", "/nonexistent", file} {
		v := testVeth(t, path)
		_, err := l.Create(v)
		var bad *link.NetnsError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v", path, err)
		}
		if index, err := l.ByName(v.HostIfName); index != 0 || err != nil {
			t.Errorf("%s: link %d stays, %v", path, index, err)
		}
	}
}

// After a SIGKILL in the middle of an ADD, the next one of the same name must work.
func TestCreateReplacesLeftover(t *testing.T) {
	l := links(t)
	v := testVeth(t, nstest.Netns(t))
	first, err := l.Create(v)
	if err != nil {
		t.Fatal(err)
	}
	second, err := l.Create(v)
	if err != nil || second == first {
		t.Fatalf("index %d then %d, %v", first, second, err)
	}
	if err := errors.Join(l.Retire(v.HostIfName), l.DeleteRetired()); err != nil {
		t.Error(err)
	}
}

// Somebody else's interface in the pod must be named, not replaced.
func TestForeignInterfaceInPod(t *testing.T) {
	l := links(t)
	v := testVeth(t, nstest.Netns(t))
	nstest.Inside(t, v.Netns, func() error { return ip("link", "add", "eth0", "type", "bridge") })
	if _, err := l.Create(v); !errors.Is(err, link.ErrIfNameTaken) || !strings.Contains(err.Error(), v.Netns) {
		t.Errorf("got %v", err)
	}
	if index, err := l.ByName(v.HostIfName); index != 0 || err != nil {
		t.Errorf("link %d stays, %v", index, err)
	}
}

// A device of the name that is no veth is not Weft's and must stay.
func TestForeignDeviceOnHost(t *testing.T) {
	l := links(t)
	v := testVeth(t, nstest.Netns(t))
	nstest.Bridge(t, v.HostIfName)
	if _, err := l.Create(v); err == nil || !strings.Contains(err.Error(), "is a bridge") {
		t.Errorf("got %v", err)
	}
}

// A retired link carries nothing, is still known, and goes with the others; one
// that is not retired stays.
func TestRetire(t *testing.T) {
	l := links(t)
	node(t)
	v, _ := pod(t, l)
	other := testVeth(t, nstest.Netns(t))
	other.HostIfName = "lxcba9876543210"
	other.HostIfName = other.HostIfName[:14]
	if _, err := l.Create(other); err != nil {
		t.Fatal(err)
	}
	for range 2 { // idempotent
		if err := l.Retire(v.HostIfName); err != nil {
			t.Fatal(err)
		}
	}
	ours, err := l.List()
	if err != nil || len(ours) != 2 {
		t.Fatalf("links %v, %v", ours, err)
	}
	for _, k := range ours {
		if k.Retired != (k.Name == v.HostIfName) {
			t.Errorf("%s: retired %v", k.Name, k.Retired)
		}
	}
	if rs, err := netlink.RouteGet(pod4.AsSlice()); err == nil {
		t.Errorf("a retired pod is still routed to: %v", rs)
	}
	for range 2 {
		if err := l.DeleteRetired(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Retire(v.HostIfName); err != nil {
		t.Errorf("a link that is gone: %v", err)
	}
	if ours, err := l.List(); err != nil || len(ours) != 1 || ours[0].Name != other.HostIfName {
		t.Errorf("links %v, %v", ours, err)
	}
	if err := l.DeleteAll(); err != nil {
		t.Error(err)
	}
	if ours, err := l.List(); err != nil || len(ours) != 0 {
		t.Errorf("links %v, %v", ours, err)
	}
}

// In the agent's container sysctls are written through a bind mount of the
// host's /proc/sys/net; that must reach the pod's namespace, too.
func TestProcRootElsewhere(t *testing.T) {
	nstest.Require(t)
	root := t.TempDir()
	if err := unix.Mount("/proc/sys/net", root, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nstest.Unmount(t, root) })
	l, err := link.New(root, quiet())
	if err != nil {
		t.Fatal(err)
	}
	node(t)
	v := testVeth(t, nstest.Netns(t))
	// Docker and others switch IPv6 off in namespaces that they make.
	nstest.Inside(t, v.Netns, func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0))
	})
	index, err := l.Create(v)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(l.Retire(v.HostIfName), l.DeleteRetired()); err != nil {
			t.Error(err)
		}
	}()
	if err := l.Up(v, index, both(), nil); err != nil {
		t.Fatal(err)
	}
	if src, _ := talk(t, v.Netns, "", node6); src != pod6 {
		t.Errorf("source %s", src)
	}
	nstest.Inside(t, v.Netns, func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/accept_ra")
		if strings.TrimSpace(string(b)) != "0" {
			t.Errorf("accept_ra in the pod is %s", b)
		}
		return err
	})
}

// A sysctl that cannot be set must be named together with the command.
func TestForwardingCannotBeSet(t *testing.T) {
	nstest.Require(t)
	root := t.TempDir()
	if err := unix.Mount("/proc/sys/net", root, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nstest.Unmount(t, root) })
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	l, err := link.New(root, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	err = l.EnsureForwarding(false, true)
	if err == nil || !strings.Contains(err.Error(), "sysctl net.ipv6.conf.all.forwarding") || !strings.Contains(err.Error(), "sysctl -w net.ipv6.conf.all.forwarding=1") {
		t.Fatalf("got %v", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := l.EnsureForwarding(false, true); err != nil {
		t.Errorf("it has the value already, but: %v", err)
	}
}
