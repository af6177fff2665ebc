// SPDX-License-Identifier: Apache-2.0

package endpoint_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		os.Exit(victim())
	}
	os.Exit(nstest.Main(m.Run))
}

// kernelSide is what the manager drives: the datapath and its maps.
type kernelSide interface {
	endpoint.Datapath
	endpoint.Rows
}

// kernel is the datapath itself.
type kernel struct {
	*datapath.Datapath
	endpoint.MapRows
}

func (r kernel) PurgeAddrs(addrs ...netip.Addr) error {
	_, err := r.Maps().CT.PurgeAddrs(addrs...)
	return err
}

func openReal(root string) (kernel, error) {
	d, err := datapath.Open(datapath.Options{Root: root, IPv4: true, IPv6: true, Log: quiet()})
	if err != nil {
		return kernel{}, err
	}
	return kernel{d, endpoint.MapRows{Endpoints: d.Maps().Endpoints, IPCache: d.Maps().IPCache}}, nil
}

// fake keeps everything in memory. The same tests run over it and over real.
type fake struct {
	mu       sync.Mutex
	attached map[string]int
	rows     map[uint16]table.Endpoint
}

func newFake() *fake { return &fake{attached: map[string]int{}, rows: map[uint16]table.Endpoint{}} }

func (f *fake) AttachEndpoint(ifname string, ifindex int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attached[ifname] = ifindex
	return nil
}

func (f *fake) DetachEndpoint(ifname string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attached, ifname)
	return nil
}

func (f *fake) PurgeAddrs(...netip.Addr) error { return nil }

func (f *fake) WriteEndpoint(ep *table.Endpoint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ep.Generation == 0 || ep.HostIfIndex == 0 || ep.MTU < 68 {
		return fmt.Errorf("endpoint %d: incomplete row", ep.ID)
	}
	f.rows[ep.ID] = *ep
	return nil
}

func (f *fake) RemoveEndpoint(ep *table.Endpoint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.rows, ep.ID)
	return nil
}

func (f *fake) ListEndpoints() ([]*table.Endpoint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*table.Endpoint
	for _, r := range f.rows {
		out = append(out, &table.Endpoint{
			ID: r.ID, Generation: r.Generation, HostIfIndex: r.HostIfIndex, MAC: r.MAC, HostMAC: r.HostMAC,
			IPv4: r.IPv4, IPv6: r.IPv6, MTU: r.MTU, Identity: r.Identity,
		})
	}
	return out, nil
}

// faulty fails where it is told to, and tells what it is asked.
type faulty struct {
	kernelSide
	mu    sync.Mutex
	fail  string // name of the operation
	purge func()
}

var errInjected = errors.New("injected")

func (f *faulty) inject(op string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = op
}

func (f *faulty) now(op string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == op {
		return errInjected
	}
	return nil
}

// An operation that fails may have done half of its work.
func (f *faulty) AttachEndpoint(ifname string, ifindex int) error {
	return errors.Join(f.kernelSide.AttachEndpoint(ifname, ifindex), f.now("attach"))
}

func (f *faulty) WriteEndpoint(ep *table.Endpoint) error {
	return errors.Join(f.kernelSide.WriteEndpoint(ep), f.now("write"))
}

func (f *faulty) RemoveEndpoint(ep *table.Endpoint) error {
	if err := f.now("remove"); err != nil {
		return err
	}
	return f.kernelSide.RemoveEndpoint(ep)
}

func (f *faulty) PurgeAddrs(addrs ...netip.Addr) error {
	if f.purge != nil {
		f.purge()
	}
	if err := f.now("purge"); err != nil {
		return err
	}
	return f.kernelSide.PurgeAddrs(addrs...)
}

var (
	node4 = netip.MustParseAddr("192.0.2.1")
	node6 = netip.MustParseAddr("2001:db8::1")
)

// world is a node: a namespace with a device, a datapath, a state file.
type world struct {
	t      testing.TB
	side   *faulty
	dir    string // of the state file
	mtu    int    // of the node
	big    link.BigTCP
	links  *link.Links
	log    bytes.Buffer
	logMu  sync.Mutex
	clock  time.Time
	ranges []netip.Prefix
}

func (w *world) Write(b []byte) (int, error) {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.Write(b)
}

func (w *world) logged() string {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.String()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// each runs a test over the fake and over the real datapath, and looks that
// nothing stays behind.
func each(t *testing.T, f func(t *testing.T, w *world)) {
	nstest.Require(t)
	t.Run("fake", func(t *testing.T) { within(t, newFake(), f) })
	t.Run("real", func(t *testing.T) {
		root := filepath.Join(nstest.Mount(t, "bpf", ""), "weft")
		r, err := openReal(root)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
		within(t, r, f)
		if pins, err := os.ReadDir(filepath.Join(root, "links")); (err != nil && !errors.Is(err, os.ErrNotExist)) || len(pins) != 0 {
			t.Errorf("pinned links stay: %v, %v", pins, err)
		}
	})
}

func within(t *testing.T, side kernelSide, f func(*testing.T, *world)) {
	t.Helper()
	nstest.Bridge(t, "node0", node4.String()+"/24", node6.String()+"/64")
	w := &world{
		t: t, side: &faulty{kernelSide: side}, dir: t.TempDir(), clock: time.Now(), mtu: 1400,
		ranges: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd09::/64")},
	}
	l, err := link.New("", quiet())
	if err != nil {
		t.Fatal(err)
	}
	w.links = l
	if err := l.EnsureForwarding(true, true); err != nil {
		t.Fatal(err)
	}
	f(t, w)
	if t.Failed() {
		t.Logf("log:\n%s", w.logged())
		_ = l.DeleteAll()
		return
	}
	if rows, err := side.ListEndpoints(); err != nil || len(rows) != 0 {
		t.Errorf("rows stay: %v, %v", rows, err)
	}
	if left, err := l.List(); err != nil || len(left) != 0 {
		t.Errorf("links stay: %v, %v", left, err)
		_ = l.DeleteAll()
	}
}

func (w *world) path() string { return filepath.Join(w.dir, "endpoints.json") }

// bare starts an agent's manager without telling it of ranges.
func (w *world) bare() *endpoint.Manager {
	w.t.Helper()
	db := statedb.New()
	eps, err := table.NewEndpoints(db)
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := endpoint.New(endpoint.Params{
		Node: "n1", Links: w.links, Datapath: w.side, Rows: w.side,
		Settings: endpoint.Settings{
			Families: ipam.Families{V4: true, V6: true}, MTU: func() int { return w.mtu },
			BigTCP: func() link.BigTCP { return w.big },
			Now:    func() time.Time { return w.clock },
		},
		State: endpoint.State{Path: w.path(), DB: db, Endpoints: eps},
		Log:   slog.New(slog.NewTextHandler(w, nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		rows := statedb.Collect(eps.All(db.ReadTxn()))
		if list := m.List(); len(rows) != len(list) {
			w.t.Errorf("the table has %d endpoints, the manager %d", len(rows), len(list))
		}
	})
	if err := m.Restore(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) manager() *endpoint.Manager {
	w.t.Helper()
	m := w.bare()
	if err := errors.Join(m.SetNodeAddrs([]netip.Addr{node4, node6}), m.SetRanges(w.ranges)); err != nil {
		w.t.Fatal(err)
	}
	return m
}

func request(name, netns string) endpoint.AddRequest {
	return endpoint.AddRequest{
		Kind: table.EndpointPod, ContainerID: "c-" + name, IfName: "eth0", Netns: netns,
		Namespace: "default", Pod: name, PodUID: "uid-" + name,
	}
}

func (w *world) add(m *endpoint.Manager, name, netns string) table.Endpoint {
	w.t.Helper()
	ep, err := m.Add(w.t.Context(), request(name, netns))
	if err != nil {
		w.t.Fatalf("add %s: %v", name, err)
	}
	return ep
}

func (w *world) del(m *endpoint.Manager, name string) {
	w.t.Helper()
	if err := m.Delete(w.t.Context(), "c-"+name, "eth0"); err != nil {
		w.t.Fatalf("delete %s: %v", name, err)
	}
}

func (w *world) reap(m *endpoint.Manager) {
	w.t.Helper()
	if err := m.Reap(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

// used counts addresses that are not free in the first range.
func used(m *endpoint.Manager) int { return int(m.IPAM().Ranges[0].Used) }

func contains(t testing.TB, s fmt.Stringer, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(s.String(), p) {
			t.Errorf("%q does not say %q", s, p)
		}
	}
}

type text string

func (s text) String() string { return string(s) }
