// SPDX-License-Identifier: Apache-2.0

package endpoint_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

// reach sends a datagram to an endpoint's addresses from the node.
func reach(t testing.TB, ep table.Endpoint) {
	t.Helper()
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		var server net.PacketConn
		nstest.Inside(t, ep.Netns, func() (err error) {
			server, err = net.ListenPacket("udp", netip.AddrPortFrom(a, 0).String())
			return err
		})
		c, err := net.Dial("udp", server.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := server.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, from, err := server.ReadFrom(make([]byte, 8)); err != nil {
			t.Errorf("node to %s: %v", a, err)
		} else if got := from.(*net.UDPAddr).AddrPort().Addr().Unmap(); got != node4 && got != node6 {
			t.Errorf("node to %s: source %s", a, got)
		}
		if err := errors.Join(c.Close(), server.Close()); err != nil {
			t.Error(err)
		}
	}
}

// The life of a pod: reachable when ADD returns, unreachable when DEL returns,
// its address free only after that, and not before its rest.
func TestLife(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		ep := w.add(m, "web", nstest.Netns(t))
		if ep.IPv4.String() != "10.9.0.2" || ep.IPv6.String() != "fd09::2" || ep.Identity != table.IdentityInit ||
			ep.Name() != "default/web" || ep.State != table.EndpointReady || !strings.HasPrefix(ep.HostIfName, "lxc") || len(ep.HostIfName) != 14 {
			t.Errorf("got %+v", ep)
		}
		reach(t, ep)
		if err := m.Check(t.Context(), "c-web", "eth0", []netip.Addr{ep.IPv4, ep.IPv6}); err != nil {
			t.Error(err)
		}
		if list := m.List(); len(list) != 1 || list[0] != ep {
			t.Errorf("list %+v", list)
		}
		w.del(m, "web")
		if rows, err := w.side.ListEndpoints(); err != nil || len(rows) != 0 {
			t.Errorf("rows after DEL: %v, %v", rows, err)
		}
		if len(m.List()) != 0 {
			t.Errorf("listed after DEL: %v", m.List())
		}
		if used(m) != 1 {
			t.Error("the address is free before its conntrack entries and link are gone")
		}
		purged := 0
		w.side.purge = func() { purged = used(m) }
		w.reap(m)
		if purged != 1 || used(m) != 0 {
			t.Errorf("in use: %d at the purge, %d after it", purged, used(m))
		}
		again := w.add(m, "next", nstest.Netns(t))
		if again.IPv4 == ep.IPv4 || again.ID == ep.ID || again.Generation <= ep.Generation {
			t.Errorf("the next pod is too much like the last: %+v", again)
		}
		w.del(m, "next")
		w.reap(m)
	})
}

// Runtimes repeat what they are not sure of.
func TestRepeats(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		ns := nstest.Netns(t)
		first := w.add(m, "web", ns)
		if again := w.add(m, "web", ns); again != first {
			t.Errorf("got %+v, then %+v", first, again)
		}
		// Repeating an ADD mends what is missing (fault pod-routes-missing).
		nstest.Inside(t, ns, func() error { return exec.Command("ip", "route", "flush", "table", "main").Run() })
		if err := m.Check(t.Context(), "c-web", "eth0", nil); err == nil {
			t.Error("check does not see a pod without routes")
		}
		w.add(m, "web", ns)
		if err := m.Check(t.Context(), "c-web", "eth0", nil); err != nil {
			t.Error(err)
		}
		other := w.add(m, "web", nstest.Netns(t))
		if other.Generation == first.Generation || other.IPv4 == first.IPv4 {
			t.Errorf("another namespace, but %+v", other)
		}
		reach(t, other)
		for range 2 {
			w.del(m, "web")
		}
		w.del(m, "never-was")
		w.reap(m)
		if used(m) != 0 {
			t.Errorf("%d addresses in use", used(m))
		}
		err := m.Check(t.Context(), "c-web", "eth0", nil)
		if !errors.Is(err, endpoint.ErrUnknown) {
			t.Errorf("check of what is gone: %v", err)
		}
	})
}

// Whatever fails, nothing stays: no link, no row, no address, no id; and the
// next ADD works.
func TestRollback(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		stays := w.add(m, "stays", nstest.Netns(t))
		taken := nstest.Netns(t)
		nstest.Inside(t, taken, func() error { return exec.Command("ip", "link", "add", "eth0", "type", "bridge").Run() })
		for _, c := range []struct {
			name, fault, netns string
			ctx                func() context.Context
		}{
			{name: "namespace is gone", netns: "/nonexistent"},
			{name: "interface is taken", netns: taken},
			{name: "row", fault: "write", netns: nstest.Netns(t)},
			{name: "program", fault: "attach", netns: nstest.Netns(t)},
			{name: "cancelled", netns: nstest.Netns(t), ctx: func() context.Context {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				return ctx
			}},
		} {
			t.Run(c.name, func(t *testing.T) {
				ctx := t.Context()
				if c.ctx != nil {
					ctx = c.ctx()
				}
				w.side.inject(c.fault)
				_, err := m.Add(ctx, request("web", c.netns))
				w.side.inject("")
				if err == nil {
					t.Fatal("no error")
				}
				if used(m) != 1 || len(m.List()) != 1 {
					t.Errorf("%d addresses, %d endpoints", used(m), len(m.List()))
				}
				rows, err := w.side.ListEndpoints()
				if err != nil || len(rows) != 1 {
					t.Errorf("rows %v, %v", rows, err)
				}
				w.reap(m)
				if left, err := w.links.List(); err != nil || len(left) != 1 {
					t.Errorf("links %v, %v", left, err)
				}
			})
		}
		reach(t, stays)
		ep := w.add(m, "web", nstest.Netns(t))
		reach(t, ep)
		if q := m.IPAM().Ranges[0].Quarantined; q != 0 {
			t.Errorf("%d addresses rest, though no pod ever had them", q)
		}
		w.del(m, "web")
		w.del(m, "stays")
		w.reap(m)
	})
}

// A DEL that fails half-way must be repeatable, and not free the address.
func TestDeleteFails(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		w.add(m, "web", nstest.Netns(t))
		w.side.inject("remove")
		if err := m.Delete(t.Context(), "c-web", "eth0"); !errors.Is(err, errInjected) || !strings.Contains(err.Error(), "default/web") {
			t.Errorf("got %v", err)
		}
		if list := m.List(); len(list) != 1 || list[0].State != table.EndpointDisconnecting {
			t.Errorf("list %v", list)
		}
		w.side.inject("")
		w.del(m, "web")
		w.side.inject("purge")
		if err := m.Reap(context.Background()); !errors.Is(err, errInjected) {
			t.Errorf("got %v", err)
		}
		if used(m) != 1 {
			t.Error("the address is free though its conntrack entries are there")
		}
		w.side.inject("")
		w.reap(m)
		if used(m) != 0 {
			t.Error("the address is not free")
		}
	})
}

// A full disk fails ADDs cleanly and names the file; running pods stay, DELs work.
func TestDiskFull(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.dir = nstest.Mount(t, "tmpfs", "size=64k")
		m := w.manager()
		ep := w.add(m, "web", nstest.Netns(t))
		fill := w.dir + "/fill"
		if err := exec.Command("dd", "if=/dev/zero", "of="+fill, "bs=4k").Run(); err == nil {
			t.Fatal("the disk did not fill")
		}
		for range 3 {
			_, err := m.Add(t.Context(), request("more", nstest.Netns(t)))
			var state *endpoint.StateError
			if !errors.As(err, &state) || !strings.Contains(err.Error(), w.path()) || !strings.Contains(err.Error(), "no space left") {
				t.Fatalf("got %v", err)
			}
		}
		reach(t, ep)
		if used(m) != 1 || len(m.List()) != 1 {
			t.Errorf("%d addresses, %d endpoints", used(m), len(m.List()))
		}
		w.del(m, "web")
		w.reap(m)
		if err := os.Remove(fill); err != nil {
			t.Fatal(err)
		}
		w.add(m, "more", nstest.Netns(t))
		w.del(m, "more")
		w.reap(m)
	})
}

// Before the API server told of ranges, the pod's event must say so.
func TestNoPodCIDR(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.bare()
		_, err := m.Add(t.Context(), request("web", nstest.Netns(t)))
		if !errors.Is(err, endpoint.ErrNoPodCIDR) {
			t.Fatalf("got %v", err)
		}
		contains(t, text(err.Error()), "node n1 has no podCIDR yet", "kubectl get node n1", "--allocate-node-cidrs")
		if err := m.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.9.0.0/31")}); err == nil || !strings.Contains(err.Error(), "node n1: pod CIDR 10.9.0.0/31") {
			t.Errorf("got %v", err)
		}
	})
}

// A full pool is named in the pod's event, and so is the node.
func TestPoolExhausted(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.ranges = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/30"), netip.MustParsePrefix("fd09::/64")}
		m := w.manager()
		w.add(m, "only", nstest.Netns(t))
		_, err := m.Add(t.Context(), request("more", nstest.Netns(t)))
		if _, ok := errors.AsType[*ipam.ExhaustedError](err); !ok {
			t.Fatalf("got %v", err)
		}
		contains(t, text(err.Error()), "node n1", "10.9.0.0/30", "1 in use")
		w.del(m, "only")
		w.reap(m)
	})
}

// Health and proof endpoints go the way of pods, with addresses that pods
// cannot get.
func TestFixedAddresses(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		if got := m.HealthAddrs(); len(got) != 2 || got[0].String() != "10.9.0.1" || got[1].String() != "fd09::1" {
			t.Errorf("health addresses %v", got)
		}
		health := endpoint.AddRequest{Kind: table.EndpointHealth, ContainerID: "weft-health", IfName: "eth0", Netns: nstest.Netns(t), IPs: m.HealthAddrs()}
		ep, err := m.Add(t.Context(), health)
		if err != nil {
			t.Fatal(err)
		}
		if ep.HostIfName != "lxc_health" || ep.Identity != table.IdentityHealth || ep.Name() != "health" {
			t.Errorf("got %+v", ep)
		}
		reach(t, ep)
		if used(m) != 0 {
			t.Error("a reserved address counts as a pod's")
		}
		proof := endpoint.AddRequest{
			Kind: table.EndpointProof, ContainerID: "weft-proof", IfName: "eth0", Netns: nstest.Netns(t),
			IPs: []netip.Addr{netip.MustParseAddr("169.254.77.1"), netip.MustParseAddr("fd77:6566:7470::1")},
		}
		for range 2 { // nothing rests: the next proof has the same addresses
			ep, err := m.Add(t.Context(), proof)
			if err != nil {
				t.Fatal(err)
			}
			reach(t, ep)
			if err := m.Delete(t.Context(), "weft-proof", "eth0"); err != nil {
				t.Fatal(err)
			}
		}
		for name, ips := range map[string][]netip.Addr{
			"of the pool":        {netip.MustParseAddr("10.9.0.77")},
			"of another":         {ep.IPv4},
			"two of one family":  {netip.MustParseAddr("169.254.77.1"), netip.MustParseAddr("169.254.77.2")},
			"none at all":        nil,
			"not an address":     {{}},
			"an IPv4-mapped one": {netip.MustParseAddr("::ffff:169.254.77.1")},
		} {
			bad := proof
			bad.IPs = ips
			if _, err := m.Add(t.Context(), bad); err == nil {
				t.Errorf("took %s: %v", name, ips)
				_ = m.Delete(t.Context(), "weft-proof", "eth0")
			}
		}
		// GC is about pods.
		if err := m.GC(t.Context(), nil); err != nil || len(m.List()) != 1 {
			t.Errorf("after GC: %v, %v", m.List(), err)
		}
		if err := m.Delete(t.Context(), "weft-health", "eth0"); err != nil {
			t.Fatal(err)
		}
		w.reap(m)
	})
}

func TestGC(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		for _, n := range []string{"a", "b", "c"} {
			w.add(m, n, nstest.Netns(t))
		}
		if err := m.GC(t.Context(), []endpoint.Attachment{{"c-b", "eth0"}, {"c-c", "net1"}, {"c-x", "eth0"}}); err != nil {
			t.Fatal(err)
		}
		if list := m.List(); len(list) != 1 || list[0].Pod != "b" {
			t.Errorf("left: %v", list)
		}
		w.del(m, "b")
		w.reap(m)
	})
}

// A node whose address changes must speak to pods from the new one.
func TestNodeAddrsChange(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.bare()
		if err := m.SetRanges(w.ranges); err != nil {
			t.Fatal(err)
		}
		ep := w.add(m, "web", nstest.Netns(t))
		if err := m.SetNodeAddrs([]netip.Addr{node4, node6}); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("ip", "route", "show", ep.IPv4.String()).Output()
		if err != nil || !strings.Contains(string(out), "src 192.0.2.1") {
			t.Errorf("route %q, %v", out, err)
		}
		w.del(m, "web")
		w.reap(m)
	})
}

// 40 pods at once, each deleted while others come: every address and id once,
// and nothing left. Run with -race, it guards the locks.
func TestBurst(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- m.Run(ctx) }()
		const n = 40
		names := make([]string, n)
		spaces := make([]string, n)
		for i := range n {
			names[i], spaces[i] = fmt.Sprintf("p%d", i), nstest.Netns(t)
		}
		var mu sync.Mutex
		seen := map[string]string{}
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				ep, err := m.Add(ctx, request(names[i], spaces[i]))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, k := range []string{ep.IPv4.String(), ep.IPv6.String(), fmt.Sprint("id ", ep.ID), ep.HostIfName, ep.MAC} {
					if other := seen[k]; other != "" {
						t.Errorf("%s is %s's and %s's", k, other, ep.Pod)
					}
					seen[k] = ep.Pod
				}
				mu.Unlock()
				if i%2 == 0 {
					if err := m.Delete(ctx, ep.ContainerID, "eth0"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if got := len(m.List()); got != n/2 {
			t.Errorf("%d endpoints, want %d", got, n/2)
		}
		if err := m.GC(ctx, nil); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		w.reap(m)
		if used(m) != 0 {
			t.Errorf("%d addresses in use", used(m))
		}
	})
}

// Run must free what DEL left, without anybody asking.
func TestRunFrees(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		freed := make(chan struct{}, 1)
		w.side.purge = func() { freed <- struct{}{} }
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- m.Run(ctx) }()
		w.add(m, "web", nstest.Netns(t))
		w.del(m, "web")
		select {
		case <-freed:
		case <-time.After(5 * time.Second):
			t.Error("not freed within 5 s")
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		w.side.purge = nil
		w.reap(m)
	})
}

// A request that no endpoint can be made of must be refused before anything is made.
func TestBadRequests(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		good := request("web", nstest.Netns(t))
		for name, spoil := range map[string]func(*endpoint.AddRequest){
			"no container":   func(r *endpoint.AddRequest) { r.ContainerID = "" },
			"no interface":   func(r *endpoint.AddRequest) { r.IfName = "" },
			"long name":      func(r *endpoint.AddRequest) { r.IfName = "0123456789abcdef" },
			"no namespace":   func(r *endpoint.AddRequest) { r.Netns = "" },
			"unknown kind":   func(r *endpoint.AddRequest) { r.Kind = "router" },
			"the node's own": func(r *endpoint.AddRequest) { r.Netns = "/proc/self/ns/net" },
		} {
			bad := good
			spoil(&bad)
			if _, err := m.Add(t.Context(), bad); err == nil {
				t.Errorf("took %s", name)
			}
		}
		var ns *link.NetnsError
		good.Netns = "/proc/self/ns/net"
		if _, err := m.Add(t.Context(), good); !errors.As(err, &ns) {
			t.Errorf("got %v", err)
		}
	})
}
