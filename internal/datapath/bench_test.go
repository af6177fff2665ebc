// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/frame"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// BenchmarkPacket measures what a program costs for a packet of an established
// TCP connection, without the redirect itself:
//
//	go test -run '^$' -bench Packet -count 5 ./internal/datapath
func BenchmarkPacket(b *testing.B) {
	n := newNode(b, datapath.Options{})
	n.config(func(c *maps.Config) { c.Trace = maps.TraceNone })
	for _, fam := range families {
		for _, bc := range []struct {
			name     string
			hook     reason.Hook
			dev      netlink.Link
			src, dst host
		}{
			{"from_pod-local", reason.FromPod, n.a, podA, podB},
			{"from_pod-remote", reason.FromPod, n.a, podA, remotePod},
			{"from_net-pod", reason.FromNet, n.eth, remotePod, podA},
			{"from_net-host", reason.FromNet, n.eth, otherNode, ownNode},
			{"from_pod-world", reason.FromPod, n.a, podA, world},
			{"to_pod", reason.ToPod, n.a, ownNode, podA},
			{"to_net-host", reason.ToNet, n.eth, ownNode, otherNode},
		} {
			b.Run(fmt.Sprintf("ipv%d/%s", fam, bc.name), func(b *testing.B) {
				n.t = b
				n.flush()
				src, dst := ap(bc.src.of(fam), 4000), ap(bc.dst.of(fam), 80)
				data := establish(n, bc.hook, bc.dev, src, dst)
				var total time.Duration
				runs := 0
				for b.Loop() {
					// The TTL goes down with each repetition.
					const repeat = 200
					start := time.Now()
					_, err := n.d.Program(bc.hook).Run(&ebpf.RunOptions{Data: data, Repeat: repeat, Context: skb{Ifindex: uint32(bc.dev.Attrs().Index)}})
					n.must(err)
					total += time.Since(start)
					runs += repeat
				}
				b.ReportMetric(float64(total.Nanoseconds())/float64(runs), "ns/packet")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// establish brings a connection into the main table and returns one of its packets.
func establish(n *node, hook reason.Hook, dev netlink.Link, src, dst netip.AddrPort) []byte {
	n.t.Helper()
	send := func(a, b netip.AddrPort, flags uint8) []byte {
		p := frame.NewTCP(a, b, flags, make([]byte, 100))
		p.TTL, p.DstMAC = 255, hostMAC
		return p.Bytes()
	}
	back := map[reason.Hook]reason.Hook{reason.FromPod: reason.FromNet, reason.FromNet: reason.FromPod, reason.ToPod: reason.FromPod, reason.ToNet: reason.FromNet}[hook]
	backDev := n.eth
	if back == reason.FromPod {
		backDev = n.a
	}
	if dst.Addr() == podB.of(4) || dst.Addr() == podB.of(6) {
		back, backDev = reason.FromPod, n.b
	}
	n.quiet(hook, dev, send(src, dst, frame.SYN))
	n.quiet(back, backDev, send(dst, src, frame.SYN|frame.ACK))
	n.quiet(hook, dev, send(src, dst, frame.ACK))
	return send(src, dst, frame.ACK)
}

// BenchmarkAttach measures what a CNI ADD pays for the programs of its pod.
func BenchmarkAttach(b *testing.B) {
	o := both
	o.Root = newRoot(b)
	d := open(b, o)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		name := fmt.Sprintf("lxc%d", i)
		l := newVeth(b, name)
		b.StartTimer()
		if err := d.AttachEndpoint(name, l.Attrs().Index); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRestart measures how long an agent that starts on a node with 110 pods
// takes until it has the datapath in hand, with the same programs as before.
func BenchmarkRestart(b *testing.B) {
	o := both
	o.Root, o.Masquerade, o.Sizes = newRoot(b), true, maps.DefaultSizes()
	d := open(b, o)
	eth := newVeth(b, "eth0")
	if err := d.SyncDevices([]datapath.Device{{Name: "eth0", Index: eth.Attrs().Index}}); err != nil {
		b.Fatal(err)
	}
	for i := range 110 {
		name := fmt.Sprintf("lxc%d", i)
		if err := d.AttachEndpoint(name, newVeth(b, name).Attrs().Index); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		again, err := datapath.Open(o)
		if err != nil {
			b.Fatal(err)
		}
		if err := again.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/start")
}

// BenchmarkResize measures a start that carries over 131,072 connections into a map
// of another size, three times: when it is made, before the swap, and after it.
func BenchmarkResize(b *testing.B) {
	o := both
	o.Root, o.Sizes = newRoot(b), maps.DefaultSizes()
	ct := open(b, o).Maps().Raw("weft_ct4")
	key, value := make([]byte, ct.KeySize()), make([]byte, ct.ValueSize())
	for i := range o.Sizes.CT {
		binary.NativeEndian.PutUint32(key, uint32(i))
		if err := ct.Put(key, value); err != nil {
			b.Fatal(err)
		}
	}
	for i := 1; b.Loop(); i++ {
		o.Sizes.CT = 1<<17 + i
		d, err := datapath.Open(o)
		if err != nil {
			b.Fatal(err)
		}
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/start")
}
