// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/table"
)

// socketNode is a node whose cgroup is the test's own: this process is in it for as
// long as the test runs, so that its sockets are those of the node's processes.
type socketNode struct {
	*datapath.Datapath
	options datapath.Options
}

func newSocketNode(t *testing.T, change ...func(*datapath.Options)) *socketNode {
	t.Helper()
	needRoot(t)
	o := datapath.Options{IPv4: true, IPv6: true, Sizes: testSizes, Root: newRoot(t)}
	o.Sizes.Services, o.Sizes.Backends, o.Sizes.Affinity, o.Sizes.Sockets = 256, 1024, 4096, 4096
	o.SocketLB = datapath.SocketLB{Enabled: true, Cgroup: ownCgroup(t)}
	for _, f := range change {
		f(&o)
	}
	n := &socketNode{open(t, o), o}
	if err := n.SyncSockets(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the cgroup is left
		if err := datapath.Unload(o.Root); err != nil {
			t.Error(err)
		}
	})
	return n
}

// ownCgroup makes a cgroup, and this process one of its members until the test ends.
func ownCgroup(t *testing.T) string {
	t.Helper()
	root := nstest.Mount(t, "cgroup2", "")
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	home := root
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			home = filepath.Join(root, path)
		}
	}
	dir := filepath.Join(home, fmt.Sprintf("weft-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	move := func(to string) {
		if err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			t.Fatal(err)
		}
	}
	move(dir)
	t.Cleanup(func() {
		move(home)
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// backend is the i-th server's address. They are addresses of loopback devices, so
// that no more than the translation is on trial.
func backend(v6 bool, i uint32) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 1, 15: byte(i)}), 8080)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), 8080)
}

func refs(v6 bool, proto int, ids ...uint32) []table.BackendRef {
	var out []table.BackendRef
	for _, id := range ids {
		ref := id // ids of TCP and UDP, IPv4 and IPv6 are apart
		if proto == unix.IPPROTO_UDP {
			ref += 100
		}
		if v6 {
			ref += 200
		}
		out = append(out, table.BackendRef{ID: ref, Addr: backend(v6, id), Proto: uint8(proto)})
	}
	return out
}

// serveBackends has n servers in a namespace ("": this one) that say their own address.
func serveBackends(t *testing.T, netns string, n uint32) {
	t.Helper()
	f := func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		for i := uint32(1); i <= n; i++ {
			for _, v6 := range []bool{false, true} {
				at := backend(v6, i)
				a := &netlink.Addr{IPNet: &net.IPNet{IP: at.Addr().AsSlice(), Mask: net.CIDRMask(at.Addr().BitLen(), at.Addr().BitLen())}, Flags: unix.IFA_F_NODAD}
				if err := netlink.AddrReplace(lo, a); err != nil {
					return err
				}
				if err := answer(t, at); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if netns != "" {
		nstest.Inside(t, netns, f)
	} else if err := f(); err != nil {
		t.Fatal(err)
	}
}

// answer serves TCP and UDP at an address.
func answer(t *testing.T, at netip.AddrPort) error {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	t.Cleanup(func() { _, _ = l.Close(), u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for buf := make([]byte, 16); ; {
					if _, err := c.Read(buf); err != nil {
						return
					}
					_, _ = c.Write([]byte(at.String()))
				}
			}()
		}
	}()
	go func() {
		for buf := make([]byte, 16); ; {
			_, from, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort([]byte(at.String()), from)
		}
	}()
	return nil
}

// clusterIP is a frontend of a client's family and protocol.
func clusterIP(c client, ids ...uint32) table.Frontend {
	a := netip.MustParseAddrPort("10.96.0.1:80")
	if c.is6() {
		a = netip.MustParseAddrPort("[fd00:96::1]:80")
	}
	return table.Frontend{
		Key: table.FrontendKey{Addr: a, Proto: uint8(c.proto)}, Type: table.FrontendClusterIP, ServiceID: 7, Flags: table.FrontendBoth,
		Backends: refs(c.is6(), c.proto, ids...),
	}
}

// sameBackends is another service, which keeps backends that the first one loses.
func sameBackends(f table.Frontend) table.Frontend {
	f.Key.Addr = netip.AddrPortFrom(f.Key.Addr.Addr(), 81)
	f.ServiceID += 1000
	return f
}

func upsert(t *testing.T, n *socketNode, fs ...table.Frontend) {
	t.Helper()
	for _, f := range fs {
		if err := n.Maps().Services.Upsert(f); err != nil {
			t.Fatal(err)
		}
	}
}

// eachClient runs a test for each kind of client, from the node and from a pod, both
// with three servers.
func eachClient(t *testing.T, n *socketNode, f func(t *testing.T, c client, host bool)) {
	t.Helper()
	serveBackends(t, "", 3)
	pod := nstest.Netns(t)
	serveBackends(t, pod, 3)
	for _, c := range clients() {
		t.Run("host/"+c.name, func(t *testing.T) { f(t, c, true) })
		t.Run("pod/"+c.name, func(t *testing.T) {
			nstest.Inside(t, pod, func() error {
				f(t, c, false)
				return nil
			})
		})
		rows, err := n.Maps().Services.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if err := n.Maps().Services.Delete(r.Key); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// wantAnswers asks, each time with a new socket, until each of the servers answered,
// and no other. The chance that one of three is not chosen in 100 is 10^-17.
func wantAnswers(t *testing.T, c client, to netip.AddrPort, ids ...uint32) {
	t.Helper()
	want := map[string]bool{}
	for _, id := range ids {
		want[backend(c.is6(), id).String()] = true
	}
	got := map[string]bool{}
	for range 100 {
		r, err := c.once(to)
		if err != nil {
			t.Errorf("%s: %v", to, err)
			return
		}
		if !want[r.from] {
			t.Errorf("%s: %s answered", to, r.from)
			return
		}
		if r.peer != to {
			t.Errorf("%s: the client is told that it talks to %s", to, r.peer)
			return
		}
		if got[r.from] = true; len(got) == len(want) {
			return
		}
	}
	t.Errorf("%s: only %v answered", to, got)
}

// Guards against a client of any kind that does not reach the backends of a
// service, all of them, or is told of the backend instead of the service, and
// against one that goes on to a backend that the service has lost.
func TestSocketsReachService(t *testing.T) {
	n := newSocketNode(t)
	eachClient(t, n, func(t *testing.T, c client, _ bool) {
		f := clusterIP(c, 1, 2, 3)
		upsert(t, n, f)
		wantAnswers(t, c, f.Key.Addr, 1, 2, 3)
		f.Backends = f.Backends[1:2]
		upsert(t, n, f)
		wantAnswers(t, c, f.Key.Addr, 2)
		wantAnswers(t, c, backend(c.is6(), 3), 3) // no service
	})
}

// Guards against a client that waits for nobody where a service has no backends.
func TestSocketsRefused(t *testing.T) {
	n := newSocketNode(t)
	eachClient(t, n, func(t *testing.T, c client, _ bool) {
		f := clusterIP(c)
		upsert(t, n, f)
		if _, err := c.once(f.Key.Addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("without backends: %v, want %v", err, unix.ECONNREFUSED)
		}
	})
}

// Guards against a service whose backends do not all fit into its row and some of
// which are never chosen, or others in their place.
func TestSocketsReachLargeService(t *testing.T) {
	n := newSocketNode(t)
	eachClient(t, n, func(t *testing.T, c client, _ bool) {
		f := clusterIP(c)
		for i := range uint32(40) { // three servers under many ids, each in a chunk of the set
			b := refs(c.is6(), c.proto, i/16+1)[0]
			b.ID += 300 + 4*i
			f.Backends = append(f.Backends, b)
		}
		upsert(t, n, f)
		wantAnswers(t, c, f.Key.Addr, 1, 2, 3)
		f.Affinity = time.Hour
		upsert(t, n, f)
		wantSticky(t, c, f.Key.Addr)
	})
}

// wantSticky asks with new sockets and wants the same server each time.
func wantSticky(t *testing.T, c client, to netip.AddrPort) string {
	t.Helper()
	first, err := c.once(to)
	if err != nil {
		t.Error(err)
		return ""
	}
	for range 40 {
		r, err := c.once(to)
		if err != nil || r.from != first.from {
			t.Errorf("first %s answered, then %s, %v", first.from, r.from, err)
			return ""
		}
	}
	return first.from
}

// Guards against session affinity that does not hold, that holds beyond its backend,
// or beyond its time.
func TestSocketsAffinity(t *testing.T) {
	n := newSocketNode(t)
	eachClient(t, n, func(t *testing.T, c client, host bool) {
		f := clusterIP(c, 1, 2, 3)
		f.Affinity = time.Hour
		f.ServiceID = uint32(len(t.Name())) << 8 // nobody remembers it
		if host {
			f.ServiceID++
		}
		upsert(t, n, f, sameBackends(f))
		was := wantSticky(t, c, f.Key.Addr)
		for i, b := range f.Backends {
			if b.Addr.String() == was {
				f.Backends = append(f.Backends[:i:i], f.Backends[i+1:]...)
				break
			}
		}
		upsert(t, n, f)
		if now := wantSticky(t, c, f.Key.Addr); now == was {
			t.Errorf("%s still answers, which the service has no more", now)
		}
	})
}

// Guards against an end of session affinity that never comes: what was used for the
// last time before its timeout is forgotten.
func TestSocketsAffinityExpires(t *testing.T) {
	n := newSocketNode(t)
	serveBackends(t, "", 3)
	c := clients()[0]
	f := clusterIP(c, 1, 2, 3)
	f.Affinity = time.Minute
	upsert(t, n, f)
	wantSticky(t, c, f.Key.Addr)
	seen := map[string]bool{}
	for range 100 {
		age(t, n, 2*time.Minute)
		r, err := c.once(f.Key.Addr)
		if err != nil {
			t.Fatal(err)
		}
		seen[r.from] = true
	}
	if len(seen) != 3 {
		t.Errorf("after its time only %v answered", seen)
	}
}

// age makes all that is remembered of clients older.
func age(t *testing.T, n *socketNode, d time.Duration) {
	t.Helper()
	m := n.Maps().Raw("weft_affinity")
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		used := uint32(value[8]) | uint32(value[9])<<8 | uint32(value[10])<<16 | uint32(value[11])<<24
		used -= uint32(d >> 30)
		value[8], value[9], value[10], value[11] = byte(used), byte(used>>8), byte(used>>16), byte(used>>24)
		if err := m.Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
}

// Guards against a conversation by datagrams that is spread over backends: QUIC, for
// one, does not connect its sockets.
func TestSocketsKeepBackendOfDatagrams(t *testing.T) {
	n := newSocketNode(t)
	eachClient(t, n, func(t *testing.T, c client, _ bool) {
		if c.connected {
			return
		}
		f := clusterIP(c, 1, 2, 3)
		upsert(t, n, f, sameBackends(f))
		s, err := c.open()
		if err != nil {
			t.Error(err)
			return
		}
		defer s.close()
		first, err := s.ask(f.Key.Addr)
		if err != nil {
			t.Error(err)
			return
		}
		for range 30 {
			if r, err := s.ask(f.Key.Addr); err != nil || r != first {
				t.Errorf("first %v, then %v, %v", first, r, err)
				return
			}
		}
		for i, b := range f.Backends {
			if b.Addr.String() == first.from {
				f.Backends = append(f.Backends[:i:i], f.Backends[i+1:]...)
				break
			}
		}
		upsert(t, n, f)
		if r, err := s.ask(f.Key.Addr); err != nil || r.from == first.from || r.peer != f.Key.Addr {
			t.Errorf("after %s went: %v, %v", first.from, r, err)
		}
	})
}

// Guards against a NodePort that is not answered at each address of a node, or is at
// addresses that are no node's, or at a pod's own loopback.
func TestSocketsNodePort(t *testing.T) {
	n := newSocketNode(t)
	addrs := map[bool]map[string]netip.Addr{false: {}, true: {}}
	for name, pair := range map[string][2]string{
		"own": {"192.0.2.1", "2001:db8::1"}, "other": {"192.0.2.2", "2001:db8::2"}, "pod": {"192.0.2.3", "2001:db8::3"},
		"loopback": {"127.0.0.1", "::1"}, "any": {"0.0.0.0", "::"},
	} {
		addrs[false][name], addrs[true][name] = netip.MustParseAddr(pair[0]), netip.MustParseAddr(pair[1])
	}
	for _, a := range addrs {
		for name, kind := range map[string]table.HostKind{"own": table.KindHost, "other": table.KindNode, "pod": table.KindRemotePod} {
			if err := n.Maps().IPCache.Upsert(maps.IPCacheRow{Prefix: netip.PrefixFrom(a[name], a[name].BitLen()), Identity: 2, Kind: kind}); err != nil {
				t.Fatal(err)
			}
		}
	}
	eachClient(t, n, func(t *testing.T, c client, host bool) {
		f := clusterIP(c, 1, 2)
		f.Key.Addr = netip.AddrPortFrom(addrs[c.is6()]["any"], 30080)
		f.Type = table.FrontendNodePort
		upsert(t, n, f)
		for name, a := range addrs[c.is6()] {
			at := netip.AddrPortFrom(a, 30080)
			if name == "any" && (!c.connected || c.mapped) {
				continue // means something else
			}
			if name == "own" || name == "other" || (host && name == "loopback") {
				wantAnswers(t, c, at, 1, 2)
				continue
			}
			c := c
			c.patience = 200 * time.Millisecond // for what is not to come
			if r, err := c.once(at); host && name == "any" {
				if err != nil {
					t.Errorf("%s: %v", at, err)
				}
			} else if err == nil {
				t.Errorf("%s: %s answered", at, r.from)
			}
		}
	})
}

// Guards against a server of the node that binds a NodePort's port, which nobody
// could reach, and against a pod's that may not.
func TestSocketsProtectNodePorts(t *testing.T) {
	n := newSocketNode(t)
	eachClient(t, n, func(t *testing.T, c client, host bool) {
		f := clusterIP(c, 1)
		f.Key.Addr = netip.AddrPortFrom(netip.IPv4Unspecified(), 30080)
		if c.is6() {
			f.Key.Addr = netip.AddrPortFrom(netip.IPv6Unspecified(), 30080)
		}
		upsert(t, n, f)
		bind := func(a netip.Addr, port uint16) error {
			s, err := c.open()
			if err != nil {
				return err
			}
			defer s.close()
			return unix.Bind(s.fd, s.sockaddr(netip.AddrPortFrom(a, port)))
		}
		all := f.Key.Addr.Addr()
		if c.v6socket && c.mapped {
			all = netip.IPv6Unspecified() // both families
		}
		err := bind(all, 30080)
		if host && !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("the node binds a NodePort: %v, want %v", err, unix.EADDRINUSE)
		}
		if !host && err != nil {
			t.Errorf("a pod does not bind a port that is a NodePort: %v", err)
		}
		for _, port := range []uint16{30081, 0} {
			if err := bind(all, port); err != nil {
				t.Errorf("port %d: %v", port, err)
			}
		}
	})
}

// Guards against two traffic policies of one frontend that are mixed up: sockets
// are inside the cluster.
func TestSocketsAreInside(t *testing.T) {
	n := newSocketNode(t)
	eachClient(t, n, func(t *testing.T, c client, _ bool) {
		out, in := clusterIP(c, 1), clusterIP(c, 2)
		out.Flags, in.Flags, in.Key.Scope = 0, 0, table.ScopeInternal
		upsert(t, n, out, in)
		wantAnswers(t, c, out.Key.Addr, 2)
	})
}

// Guards against socketLB.hostNamespaceOnly that touches sockets of pods, or leaves
// the node's alone.
func TestSocketsOfHostOnly(t *testing.T) {
	n := newSocketNode(t, func(o *datapath.Options) { o.SocketLB.HostNamespaceOnly = true })
	eachClient(t, n, func(t *testing.T, c client, host bool) {
		f := clusterIP(c, 1)
		upsert(t, n, f)
		if host {
			wantAnswers(t, c, f.Key.Addr, 1)
			return
		}
		c.patience = 200 * time.Millisecond // for what is not to come
		if r, err := c.once(f.Key.Addr); err == nil {
			t.Errorf("a pod's socket was sent to %s", r.from)
		}
	})
}
