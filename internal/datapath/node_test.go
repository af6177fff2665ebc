// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/datapath/selftest"
	"github.com/weft-net/weft/internal/flow"
	"github.com/weft-net/weft/internal/table"
)

// What the kernel is told to do with a packet.
const (
	actNext     = 0xffffffff // TCX_NEXT
	actShot     = 2
	actRedirect = 7
)

var (
	hostMAC = frame.MAC{2, 0, 0, 0, 0, 1} // of every device of the node
	peerMAC = frame.MAC{2, 0, 0, 0, 9, 9} // of the neighbour on the net
)

// host is one address of each family.
type host struct{ v4, v6 netip.Addr }

func (h host) of(family int) netip.Addr {
	if family == 4 {
		return h.v4
	}
	return h.v6
}

func newHost(v4, v6 string) host { return host{netip.MustParseAddr(v4), netip.MustParseAddr(v6)} }

// The small world in which packets are judged.
var (
	podA      = newHost("10.1.0.10", "fd00:1::10")
	podB      = newHost("10.1.0.11", "fd00:1::11")
	remotePod = newHost("10.2.0.20", "fd00:2::20")
	ownNode   = newHost("10.9.0.1", "fd00:9::1")
	otherNode = newHost("10.9.0.2", "fd00:9::2")
	world     = newHost("192.0.2.9", "2001:db8:9::9")
	// A pod of a node that is reached through a device without from_net.
	unhookedPod = newHost("10.3.0.30", "fd00:3::30")
	service     = newHost("10.96.0.1", "fd00:96::1")
	linkLocal   = netip.MustParseAddr("fe80::10")
	gateway4    = netip.MustParseAddr("169.254.1.1")
	gateway6    = netip.MustParseAddr("fe80::1")
	allNodes6   = netip.MustParseAddr("ff02::1")
	remoteNets  = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("fd00:2::/64")}
	otherNets   = []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24"), netip.MustParsePrefix("fd00:3::/64")}
)

var families = []int{4, 6}

// node is a loaded datapath with two local pods, in the test's namespace.
type node struct {
	t          testing.TB
	d          *datapath.Datapath
	events     *ringbuf.Reader
	a, b, eth  netlink.Link
	endpointsA maps.EndpointRow
	endpointsB maps.EndpointRow

	overlay netlink.Link // nil: the node takes no part
	tunnel  *selftest.Tunnelled
}

func newNode(t testing.TB, o datapath.Options) *node {
	t.Helper()
	if !o.IPv4 && !o.IPv6 {
		o.IPv4, o.IPv6 = true, true
	}
	n := &node{t: t, d: open(t, o)}
	n.a, n.b, n.eth = newVeth(t, "lxca"), newVeth(t, "lxcb"), newVeth(t, "eth0")
	n.endpointsA = maps.EndpointRow{
		ID: 1, IfIndex: n.a.Attrs().Index, MAC: "02:00:00:00:aa:aa", HostMAC: net.HardwareAddr(hostMAC[:]).String(),
		IPv4: podA.v4, IPv6: podA.v6, MTU: 1500, Generation: 7, Identity: table.IdentityInit,
	}
	n.endpointsB = n.endpointsA
	n.endpointsB.ID, n.endpointsB.IfIndex, n.endpointsB.MAC = 2, n.b.Attrs().Index, "02:00:00:00:bb:bb"
	n.endpointsB.IPv4, n.endpointsB.IPv6, n.endpointsB.Generation = podB.v4, podB.v6, 8
	n.must(n.d.Maps().Endpoints.Upsert(n.endpointsA))
	n.must(n.d.Maps().Endpoints.Upsert(n.endpointsB))
	n.must(n.d.Maps().Endpoints.SetNetDevices([]int{n.eth.Attrs().Index}))
	n.fillIPCache()
	n.route()
	n.config(func(*maps.Config) {})
	r, err := ringbuf.NewReader(n.d.Maps().Raw("weft_events"))
	n.must(err)
	t.Cleanup(func() { _ = r.Close() })
	n.events = r
	return n
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// config sets what tests need, with every packet traced, and lets f change it.
func (n *node) config(f func(*maps.Config)) {
	c := maps.DefaultConfig()
	c.Trace, c.EventRate, c.ICMPRate = maps.TraceAll, 1<<20, 1<<20
	c.NodeIPv4, c.NodeIPv6 = ownNode.v4, ownNode.v6
	f(&c)
	n.must(n.d.SetConfig(c))
}

func (n *node) fillIPCache() {
	for _, r := range []struct {
		h    host
		id   table.Identity
		kind table.HostKind
		ep   uint16
	}{
		{podA, table.IdentityInit, table.KindLocalPod, 1},
		{podB, table.IdentityInit, table.KindLocalPod, 2},
		{ownNode, table.IdentityHost, table.KindHost, 0},
		{otherNode, table.IdentityRemoteNode, table.KindNode, 0},
	} {
		for _, f := range families {
			a := r.h.of(f)
			n.must(n.d.Maps().IPCache.Upsert(maps.IPCacheRow{Prefix: netip.PrefixFrom(a, a.BitLen()), Identity: r.id, Kind: r.kind, EndpointID: r.ep}))
		}
	}
	for _, p := range append(remoteNets, otherNets...) {
		n.must(n.d.Maps().IPCache.Upsert(maps.IPCacheRow{Prefix: p, Identity: table.IdentityInit, Kind: table.KindRemotePod}))
	}
}

// route gives the namespace a way to the other node.
func (n *node) route() {
	for _, f := range families {
		bits := map[int]int{4: 24, 6: 64}[f]
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ownNode.of(f).AsSlice(), Mask: net.CIDRMask(bits, ownNode.of(f).BitLen())}, Flags: 0x02} // NODAD
		n.must(netlink.AddrReplace(n.eth, addr))
		i := map[int]int{4: 0, 6: 1}[f]
		_, near, _ := net.ParseCIDR(remoteNets[i].String())
		n.must(netlink.RouteReplace(&netlink.Route{Dst: near, Gw: otherNode.of(f).AsSlice(), LinkIndex: n.eth.Attrs().Index}))
		_, far, _ := net.ParseCIDR(otherNets[i].String())
		n.must(netlink.RouteReplace(&netlink.Route{Dst: far, LinkIndex: n.b.Attrs().Index, Scope: netlink.SCOPE_LINK}))
	}
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		n.must(os.WriteFile("/proc/sys/net/"+s, []byte("1"), 0o644))
	}
}

// skb is struct __sk_buff, as far as tests fill it in.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto, Priority uint32
	IngressIfindex, Ifindex                                                               uint32
	TCIndex                                                                               uint32
	CB                                                                                    [5]uint32
	Hash, TCClassid, Data, DataEnd, NAPIID                                                uint32
	Family, RemoteIP4, LocalIP4                                                           uint32
	RemoteIP6, LocalIP6                                                                   [4]uint32
	RemotePort, LocalPort, DataMeta                                                       uint32
	FlowKeys, Tstamp                                                                      uint64
	WireLen, GSOSegs                                                                      uint32
	SK                                                                                    uint64
	GSOSize, TstampType                                                                   uint32
	HWTstamp                                                                              uint64
}

// result is all that running a program showed.
type result struct {
	action uint32
	out    []byte
	mark   uint32
	counts map[string]uint64 // "hook class/reason", what was added
	event  flow.Event
}

type runOpt func(*skb)

func withMark(m uint32) runOpt   { return func(s *skb) { s.Mark = m } }
func withGSO(size uint32) runOpt { return func(s *skb) { s.GSOSize, s.GSOSegs = size, 2 } }
func from(l netlink.Link) runOpt { return func(s *skb) { s.IngressIfindex = uint32(l.Attrs().Index) } }

func (n *node) counts() map[string]uint64 {
	n.t.Helper()
	rows, err := n.d.Maps().Metrics.List()
	n.must(err)
	m := map[string]uint64{}
	for _, r := range rows {
		m[r.Hook+" "+string(r.Class)+"/"+r.Reason] = r.Packets
	}
	return m
}

// run sends a frame through a hook's program at a device.
func (n *node) run(h reason.Hook, dev netlink.Link, data []byte, opts ...runOpt) result {
	n.t.Helper()
	r, err := n.tryRun(h, dev, data, opts...)
	n.must(err)
	return r
}

// tryRun is run for what the kernel may not take for a frame, which is the error.
func (n *node) tryRun(h reason.Hook, dev netlink.Link, data []byte, opts ...runOpt) (result, error) {
	n.t.Helper()
	ctx := skb{Ifindex: uint32(dev.Attrs().Index)}
	for _, o := range opts {
		o(&ctx)
	}
	before := n.counts()
	var after skb
	ro := ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)+256), Context: ctx, ContextOut: &after, Repeat: 1}
	prog := n.d.Program(h)
	if h == reason.FromOverlay {
		prog = n.tunnel.Program
	}
	act, err := prog.Run(&ro)
	if err != nil {
		return result{}, err
	}
	r := result{action: act, out: ro.DataOut, mark: after.Mark, counts: map[string]uint64{}}
	for k, v := range n.counts() {
		if d := v - before[k]; d != 0 {
			r.counts[k] = d
		}
	}
	if n.events.AvailableBytes() > 0 {
		rec, err := n.events.Read()
		n.must(err)
		e, ok := datapath.DecodeEvent(rec.RawSample, time.Now())
		if !ok {
			n.t.Fatalf("cannot decode the record % x", rec.RawSample)
		}
		r.event = e
	}
	return r, nil
}

// packet runs an IP packet, with the MACs that it would have at that hook.
func (n *node) packet(h reason.Hook, dev netlink.Link, p frame.Packet, opts ...runOpt) result {
	n.t.Helper()
	if p.DstMAC == (frame.MAC{}) {
		p.DstMAC = hostMAC
	}
	if p.SrcMAC == (frame.MAC{}) {
		p.SrcMAC = peerMAC
	}
	return n.run(h, dev, p.Bytes(), opts...)
}

// want checks the verdict, the action that follows from it, that the record says
// the same, and that nothing was counted but it and the notes.
func (n *node) want(r result, h reason.Hook, code reason.Code, notes ...reason.Code) {
	n.t.Helper()
	counts := map[string]uint64{fmt.Sprintf("%s %s/%s", h, code.Class(), code): 1}
	for _, c := range notes {
		counts[fmt.Sprintf("%s %s/%s", h, c.Class(), c)]++
	}
	if d := cmp.Diff(counts, r.counts); d != "" {
		n.t.Errorf("counters (-want +got):\n%s", d)
	}
	action := map[reason.Code]uint32{
		reason.Tunnel: actRedirect, reason.Ignored: actShot,
		reason.Stack: actNext, reason.Marked: actNext, reason.Peer: actRedirect, reason.Neigh: actRedirect, reason.Answer: actRedirect,
	}[code]
	if code.Class() == reason.ClassDrop {
		action = actShot
		for _, c := range notes {
			if c == reason.ICMPSent {
				action = actRedirect
			}
		}
	}
	if r.action != action {
		n.t.Errorf("action %#x, want %#x", r.action, action)
	}
	got, verdict := r.event.Verdict, code.String()
	if code.Class() == reason.ClassDrop {
		verdict = "drop"
		if r.event.Reason != code.String() {
			n.t.Errorf("record gives reason %q, want %q", r.event.Reason, code)
		}
	}
	if got != verdict || r.event.Hook != h.String() {
		n.t.Errorf("record says %s %s, want %s %s", r.event.Hook, got, h, verdict)
	}
	if n.t.Failed() {
		n.t.Fatalf("record: %+v", r.event)
	}
}

// ct returns the only conntrack entry.
func (n *node) ct() maps.CTRow {
	n.t.Helper()
	rows, err := n.d.Maps().CT.List(0)
	n.must(err)
	if len(rows) != 1 {
		n.t.Fatalf("%d conntrack entries, want 1: %+v", len(rows), rows)
	}
	return rows[0]
}

func (n *node) noCT() {
	n.t.Helper()
	rows, err := n.d.Maps().CT.List(0)
	n.must(err)
	if len(rows) != 0 {
		n.t.Errorf("conntrack entries where none should be: %+v", rows)
	}
}

func (n *node) flush() {
	n.t.Helper()
	_, err := n.d.Maps().CT.Flush()
	n.must(err)
}

func ap(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// quiet runs a frame without looking at anything that it leaves behind.
func (n *node) quiet(h reason.Hook, dev netlink.Link, data []byte) uint32 {
	n.t.Helper()
	act, err := n.d.Program(h).Run(&ebpf.RunOptions{Data: data, Context: skb{Ifindex: uint32(dev.Attrs().Index)}})
	n.must(err)
	return act
}

// drain throws away the records that quiet left.
func (n *node) drain() {
	n.t.Helper()
	for n.events.AvailableBytes() > 0 {
		_, err := n.events.Read()
		n.must(err)
	}
}
