// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
)

// release returns the object of another release: "previous", or "otherlayout",
// whose maps are laid out in another way.
func release(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".o.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	code, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// talks are conversations that must not notice what happens to the datapath.
type talks struct {
	t    *testing.T
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup
}

func newTalks(t *testing.T) *talks { return &talks{t: t, stop: make(chan struct{})} }

// start has a stream and numbered datagrams, one in flight, go on between two
// spaces, over both families.
func (f *talks) start(from, to *space, at host, port uint16) {
	f.t.Helper()
	for _, fam := range families {
		dst := ap(at.of(fam), port)
		echoTCP(f.t, to, dst)
		echoUDP(f.t, to, dst)
		stream, err := dial(f.t, from, "tcp", dst)
		if err != nil {
			f.t.Fatal(err)
		}
		datagrams, err := dial(f.t, from, "udp", dst)
		if err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(f.end) // before the sockets are closed
		for name, run := range map[string]func() error{
			"stream":    func() error { return streamUntil(stream, f.stop) },
			"datagrams": func() error { return countUntil(datagrams, f.stop) },
		} {
			f.wg.Go(func() { // ends with stop
				if err := run(); err != nil {
					f.t.Errorf("ipv%d %s from %s to %s: %v", fam, name, from.name, to.name, err)
				}
			})
		}
	}
}

// end wants all of them to have gone well so far.
func (f *talks) end() {
	f.once.Do(func() { close(f.stop) })
	f.wg.Wait()
}

// between is a while under traffic.
func between() { <-time.After(100 * time.Millisecond) }

// opens tries that new flows come about between two spaces, where echoTCP and
// echoUDP serve.
func opens(t *testing.T, from *space, at host, port uint16) {
	t.Helper()
	for _, fam := range families {
		for _, network := range []string{"tcp", "udp"} {
			for range 2 {
				if err := roundTrip(t, from, network, ap(at.of(fam), port), 1000); err != nil {
					t.Errorf("ipv%d: a new flow: %v", fam, err)
				}
			}
		}
	}
}

// errKilled is what a fault raises to end an upgrade where it stands, as SIGKILL would.
var errKilled = errors.New("killed")

// carry is the first step of a swap; what switches a hook follows, those of the
// node's devices first, and at last "commit".
const carry = "carry over"

// steps are those before the last of a swap on a machine of a test, in order:
// with tcx each hook of the node's device has a link of its own.
func steps() []string {
	pods := []string{"filters of a pod", "filters of the other pod"}
	if datapath.HaveTCX() == nil {
		return append([]string{carry, "link eth0_to_net", "link eth0_from_net"}, pods...)
	}
	return append([]string{carry, "filters of eth0"}, pods...)
}

// openWith opens the datapath of a machine as another release or with other
// settings would. kill names a step of the swap before which the agent is killed.
func openWith(t *testing.T, m *machine, change func(datapath.Options) datapath.Options, kill int) {
	t.Helper()
	o := datapath.Options{Root: m.root, IPv4: true, IPv6: true, Masquerade: true, Sizes: testSizes}
	if change != nil {
		o = change(o)
	}
	done := 0
	o = o.Untested().WithFault(func(string) error {
		if done++; done > kill && kill >= 0 {
			panic(errKilled)
		}
		return nil
	})
	m.in(t, func() {
		defer func() {
			if r := recover(); r != nil && r != errKilled { //nolint:errorlint // what was thrown itself
				panic(r)
			}
		}()
		d, err := datapath.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if kill >= 0 {
			t.Errorf("a swap of %d steps was not interrupted at step %d", done, kill)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// otherRelease says in which way an upgrade differs from a restart.
type otherRelease struct {
	name string
	// maps says whether there are other maps too.
	maps   bool
	change func(datapath.Options) datapath.Options
}

func otherReleases(t *testing.T) []otherRelease {
	object := func(name string) func(datapath.Options) datapath.Options {
		code := release(t, name)
		return func(o datapath.Options) datapath.Options { return o.WithObject(code) }
	}
	out := []otherRelease{
		{"previous", true, object("previous")},
		{"otherlayout", true, object("otherlayout")},
	}
	if testing.Short() { // an emulated processor needs minutes for each
		return out
	}
	return append(out, otherRelease{"othersizes", true, func(o datapath.Options) datapath.Options {
		o.Sizes = maps.Sizes{CT: 8192, CTNew: 2048, Fragments: 512, NAT: 8192, NATNew: 2048, IPCache: 1024, Networks: 1024, Events: 1 << 16}
		return o
	}})
}

// TestUpgradeUnderTraffic guards against an upgrade, or the way back from it, that
// loses a packet or resets a connection: between pods of a node and across nodes.
func TestUpgradeUnderTraffic(t *testing.T) {
	for _, r := range otherReleases(t) {
		t.Run(r.name, func(t *testing.T) {
			c := newCluster(t)
			n1, far := c.nodes[0], c.nodes[1].pods[0]
			f := newTalks(t)
			f.start(n1.pods[0].space, far.space, far.addr, 8080)
			f.start(far.space, n1.pods[0].space, n1.pods[0].addr, 8081)
			f.start(n1.pods[0].space, n1.pods[1].space, n1.pods[1].addr, 8082)
			f.start(n1.space, n1.pods[0].space, n1.pods[0].addr, 8083)
			for _, change := range []func(datapath.Options) datapath.Options{r.change, nil, r.change} {
				between()
				openWith(t, n1, change, -1)
				opens(t, n1.pods[0].space, far.addr, 8080)
				opens(t, far.space, n1.pods[0].addr, 8081)
			}
			f.end()
			c.noDrops()
			if !r.maps {
				wantNoNotes(t, n1)
			}
		})
	}
}

// wantNoNotes wants no connection to have been forgotten, or moved to the stack:
// it would go on, but not as it was meant to.
func wantNoNotes(t *testing.T, m *machine) {
	t.Helper()
	for name, n := range m.metrics(t) {
		if strings.HasSuffix(name, " ct-picked-up") || strings.HasSuffix(name, " ct-to-stack") {
			t.Errorf("%s: %s: %d", m.name, name, n)
		}
	}
}

// TestUpgradeOfMasquerade is TestUpgradeUnderTraffic for flows to the outside: what
// comes in for a translation that was forgotten would be answered by the node
// itself, with a reset.
func TestUpgradeOfMasquerade(t *testing.T) {
	for _, r := range otherReleases(t) {
		t.Run(r.name, func(t *testing.T) {
			o := newOutside(t)
			f := newTalks(t)
			f.start(o.pods[0].space, o.server, o.at, 8080)
			f.start(o.pods[1].space, o.server, o.at, 8081)
			for range 2 {
				for _, change := range []func(datapath.Options) datapath.Options{r.change, nil} {
					between()
					openWith(t, o.machine, change, -1)
					opens(t, o.pods[0].space, o.at, 8080)
				}
			}
			// Killed before the new maps were pinned: what is opened now is in
			// maps that only the programs know.
			openWith(t, o.machine, r.change, len(steps()))
			f.start(o.pods[0].space, o.server, o.at, 8082)
			for _, change := range []func(datapath.Options) datapath.Options{nil, r.change} {
				between()
				openWith(t, o.machine, change, -1)
			}
			between()
			f.end()
		})
	}
}

// TestHalfSwapped guards against releases that do not understand each other while
// some hooks run one and some the other (DATAPATH rule 13): here an agent is
// killed before each step of its swap, in both directions, and everything has to
// go on and come about in that state. Each release is tried at every second step and in
// one direction; all of them at all steps and in both with WEFT_ALL_STEPS.
func TestHalfSwapped(t *testing.T) {
	all := os.Getenv("WEFT_ALL_STEPS") != ""
	for i, r := range otherReleases(t) {
		for _, back := range []bool{false, true} {
			if !all && back != (i%2 == 1) {
				continue // each way goes back and forth
			}
			t.Run(fmt.Sprintf("%s/back=%t", r.name, back), func(t *testing.T) {
				c := newCluster(t)
				n1, far := c.nodes[0], c.nodes[1].pods[0]
				first, second := r.change, (func(datapath.Options) datapath.Options)(nil)
				if back {
					first, second = second, first
				}
				f := newTalks(t)
				f.start(n1.pods[0].space, far.space, far.addr, 8080)
				f.start(far.space, n1.pods[0].space, n1.pods[0].addr, 8081)
				f.start(n1.pods[0].space, n1.pods[1].space, n1.pods[1].addr, 8082)
				f.start(n1.space, n1.pods[0].space, n1.pods[0].addr, 8083)
				for done := 2; done <= len(steps()); done++ { // the last time before the new maps are pinned
					if !all && (done%2 == 0) == back {
						continue
					}
					openWith(t, n1, first, -1)
					between()
					openWith(t, n1, second, done)
					between()
					opens(t, n1.pods[0].space, far.addr, 8080)
					opens(t, far.space, n1.pods[0].addr, 8081)
					opens(t, n1.pods[0].space, n1.pods[1].addr, 8082)
					opens(t, n1.space, n1.pods[0].addr, 8083)
				}
				openWith(t, n1, second, -1)
				opens(t, n1.pods[0].space, far.addr, 8080)
				f.end()
				c.noDrops()
				if !r.maps {
					wantNoNotes(t, n1)
				}
			})
		}
	}
}

// TestCarriedOverTwice guards against a connection that opens or changes while
// new maps are being filled, and is not in them: before the first hook is switched,
// and after it.
func TestCarriedOverTwice(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	const name = "weft_ct4"
	old := m.d.Maps().Raw(name)
	entry := func(n byte) []byte { k := make([]byte, old.KeySize()); k[0] = n; return k }
	value := func(n byte) []byte { v := make([]byte, old.ValueSize()); v[0] = n; return v }
	put := func(k, v byte) {
		if err := old.Put(entry(k), value(v)); err != nil {
			t.Error(err)
		}
	}
	put(1, 1)
	m.in(t, func() {
		o := datapath.Options{Root: m.root, IPv4: true, IPv6: true, Masquerade: true, Sizes: testSizes}
		o.Sizes.CT *= 2
		switched := false
		d, err := datapath.Open(o.Untested().WithFault(func(step string) error {
			switch {
			case step == carry:
				put(1, 2)
				put(2, 1)
			case !switched:
				switched = true
				put(3, 1)
			}
			return nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for k, want := range map[byte]byte{1: 2, 2: 1, 3: 1} {
			var v []byte
			if err := d.Maps().Raw(name).Lookup(entry(k), &v); err != nil || v[0] != want {
				t.Errorf("entry %d: % x %v, want %d", k, v, err, want)
			}
		}
	})
}

// TestDeviceGoesDuringSwap guards against an agent that cannot start, or an upgrade
// that is taken back, because a pod or a device went at that moment.
func TestDeviceGoesDuringSwap(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	m.in(t, func() {
		d, err := datapath.Open(datapath.Options{Root: m.root, IPv4: true, IPv6: true, Masquerade: true, Sizes: testSizes}.Untested().
			WithFault(func(step string) error {
				if step == carry {
					ip(t, "link del eth0")
					ip(t, "link del "+m.pods[1].dev)
				}
				return nil
			}))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		info, err := d.Program(reason.FromPod).Info()
		if err != nil {
			t.Fatal(err)
		}
		want, _ := info.ID()
		if now := filtered(t, link(t, m.pods[0].dev), netlink.HANDLE_MIN_INGRESS); len(now) != 1 || now[0] != want {
			t.Errorf("the other pod runs %v, want %d", now, want)
		}
	})
}
