// SPDX-License-Identifier: Apache-2.0

package connectivity_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-net/weft/internal/connectivity"
	"github.com/weft-net/weft/internal/table"
)

func v4(a, b byte) netip.Addr { return netip.AddrFrom4([4]byte{10, a, b, 5}) }
func v6(a, b byte) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd77:%x:%x::5", a, b))
}

// topology makes n nodes with all families and probes.
func topology(n int) connectivity.Topology {
	t := connectivity.Topology{
		Port:      4747,
		APIServer: connectivity.Service{Name: "kubernetes", Addrs: []netip.Addr{v4(96, 1), v6(96, 1)}, Port: 443},
		DNS:       connectivity.Service{Name: "kube-dns", Addrs: []netip.Addr{v4(96, 2), v6(96, 2)}, Port: 53},
		Outside: connectivity.Outside{
			Targets: []netip.AddrPort{netip.AddrPortFrom(v4(200, 1), 4747), netip.AddrPortFrom(v6(200, 1), 4747)}, Echo: true, Here: true,
		},
		Network: connectivity.NetworkOf(map[string]string{"routing-mode": "native"}),
	}
	for i := range n {
		b := byte(i)
		t.Nodes = append(t.Nodes, connectivity.Node{
			Name: fmt.Sprintf("n%d", i+1), Addrs: []netip.Addr{v4(1, b), v6(1, b)}, All: []netip.Addr{v4(1, b), v6(1, b), v4(11, b), v6(11, b)},
			Ranges:  []netip.Prefix{netip.PrefixFrom(v4(2, b), 24).Masked(), netip.PrefixFrom(v6(2, b), 64).Masked()},
			A:       connectivity.Pod{Name: fmt.Sprintf("a%d", i+1), Addrs: []netip.Addr{v4(2, b), v6(2, b)}},
			B:       connectivity.Pod{Name: fmt.Sprintf("b%d", i+1), Addrs: []netip.Addr{v4(3, b), v6(3, b)}},
			Host:    connectivity.Pod{Name: fmt.Sprintf("h%d", i+1), Addrs: []netip.Addr{v4(1, b), v6(1, b)}},
			Hairpin: connectivity.Service{Name: fmt.Sprintf("hairpin-%d", i), Addrs: []netip.Addr{v4(97, b), v6(97, b)}, Port: 4747},
		})
	}
	return t
}

// drawTopology breaks a topology at random places.
func drawTopology(t *rapid.T) connectivity.Topology {
	topo := topology(rapid.IntRange(1, 5).Draw(t, "nodes"))
	half := func(addrs []netip.Addr, label string) []netip.Addr {
		switch rapid.IntRange(0, 5).Draw(t, label) {
		case 0:
			return addrs[:1]
		case 1:
			return addrs[1:]
		case 2:
			return nil
		}
		return addrs
	}
	for i := range topo.Nodes {
		n := &topo.Nodes[i]
		n.Addrs, n.Hairpin.Addrs = half(n.Addrs, "addrs"), half(n.Hairpin.Addrs, "hairpin")
		if rapid.IntRange(0, 3).Draw(t, "one family") == 0 {
			n.Ranges = n.Ranges[:1]
		}
		for _, p := range []*connectivity.Pod{&n.A, &n.B, &n.Host} {
			p.Addrs = half(p.Addrs, "pod")
			if rapid.IntRange(0, 5).Draw(t, "down") == 0 {
				p.Why = "pod does not run"
			}
		}
	}
	topo.DNS.Addrs = half(topo.DNS.Addrs, "dns")
	return topo
}

// TestPlanProperties guards against cells that would be sent to nobody, that
// are silently left out, or that nobody can attribute.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		topo := drawTopology(t)
		cells := connectivity.Plan(topo, connectivity.Filter{})
		whole := connectivity.Plan(topology(len(topo.Nodes)), connectivity.Filter{})
		if len(cells) != len(whole) {
			t.Fatalf("%d cells, %d without breaks: something was left out without a word", len(cells), len(whole))
		}
		for i := range cells {
			c := &cells[i]
			if c.ID != i {
				t.Fatalf("cell %d has id %d", i, c.ID)
			}
			if c.Skip != "" && c.Fail != "" {
				t.Fatalf("%s %s is both skipped and failed", c.Path, c.Name())
			}
			if !c.Runs() {
				continue
			}
			if !c.Family.Is(c.Addr) {
				t.Fatalf("%s %s goes to %s", c.Path, c.Name(), c.Addr)
			}
			if (c.Port == 0) != (c.Proto == connectivity.ICMP) {
				t.Fatalf("%s %s goes to port %d", c.Path, c.Name(), c.Port)
			}
			if c.From.Node+c.From.Name == "" || (c.From.Kind == connectivity.KindPod && c.From.Name == "") {
				t.Fatalf("%s %s has no source", c.Path, c.Name())
			}
		}
		if again := connectivity.Plan(topo, connectivity.Filter{}); !reflect.DeepEqual(again, cells) {
			t.Fatal("the same topology gave two plans")
		}
	})
}

// TestPlanComplete guards against a path, family, protocol or size that is
// forgotten, and against numbers of cells that grow with the nodes' square.
func TestPlanComplete(t *testing.T) {
	count := map[connectivity.Path]int{}
	for _, c := range connectivity.Plan(topology(3), connectivity.Filter{}) {
		count[c.Path]++
		if c.Fail != "" {
			t.Errorf("%s %s: %s", c.Path, c.Name(), c.Fail)
		}
		hairpinICMP := c.Path == connectivity.Hairpin && c.Proto == connectivity.ICMP
		other := c.Path == connectivity.PodToAPIServer && c.Proto != connectivity.TCP || c.Path == connectivity.PodToDNS && c.Proto == connectivity.ICMP
		if (c.Skip != "") != (hairpinICMP || other) {
			t.Errorf("%s %s: skipped: %q", c.Path, c.Name(), c.Skip)
		}
	}
	const matrix = 2 * 3 * 4 // families, protocols, sizes
	want := map[connectivity.Path]int{
		connectivity.PodToPodSameNode: 3 * matrix, connectivity.PodToOwnHost: 3 * matrix, connectivity.HostToOwnPod: 3 * matrix, connectivity.Hairpin: 3 * matrix,
		connectivity.PodToPodOtherNode: 6 * matrix, connectivity.PodToOtherHost: 6 * matrix, connectivity.HostToOtherPod: 6 * matrix,
		connectivity.PodToAPIServer: 3 * 2 * 3, connectivity.PodToDNS: 3 * 2 * 3,
		connectivity.PodToOutside: 3 * matrix, connectivity.OutsideToNode: 3 * matrix,
	}
	if !reflect.DeepEqual(count, want) {
		t.Errorf("got %v\nwant %v", count, want)
	}
	per50 := len(connectivity.Plan(topology(50), connectivity.Filter{})) / 50
	per100 := len(connectivity.Plan(topology(100), connectivity.Filter{})) / 100
	if per50 != per100 {
		t.Errorf("%d cells a node of 50, %d of 100", per50, per100)
	}
}

// TestMissingAddressFails guards against a family that is lost being skipped.
func TestMissingAddressFails(t *testing.T) {
	topo := topology(2)
	topo.Nodes[1].A.Addrs = topo.Nodes[1].A.Addrs[:1] // no IPv6, though the node has a range
	for _, c := range connectivity.Plan(topo, connectivity.Filter{Cells: []string{"pod-to-pod-other-node/IPv6/*/*"}}) {
		if failed := c.Fail != ""; failed != (c.To.Name == "a2") {
			t.Errorf("%s -> %s: %q", c.From, c.To, c.Fail)
		}
	}
}

// TestFilterCells guards against a filter that selects something else.
func TestFilterCells(t *testing.T) {
	for pattern, want := range map[string]int{
		"pod-to-pod-*": 2*24 + 2*24, "HAIRPIN": 2 * 24, "*/ipv6/udp/64kb": 9 * 2, "*/*/*/query": 2 * 6, "nothing": 0,
	} {
		if got := len(connectivity.Plan(topology(2), connectivity.Filter{Cells: []string{pattern}})); got != want {
			t.Errorf("%s: %d cells, want %d", pattern, got, want)
		}
	}
	f := connectivity.Filter{Families: []connectivity.Family{connectivity.IPv6}}
	for _, c := range connectivity.Plan(topology(2), f) {
		if c.Family != connectivity.IPv6 {
			t.Errorf("%s %s selected", c.Path, c.Name())
		}
	}
	if err := (connectivity.Filter{Cells: []string{"[a"}}).Check(); err == nil {
		t.Error("a malformed pattern was accepted")
	}
}

// TestLocalPlan guards against a node that tests nothing, or the wrong family.
func TestLocalPlan(t *testing.T) {
	nodes := []table.Node{
		{Name: "n1", Local: true, PodCIDRs: topology(1).Nodes[0].Ranges, HealthIPs: []netip.Addr{v4(2, 1), v6(2, 1)}},
		{Name: "n2", PodCIDRs: topology(2).Nodes[1].Ranges[:1], HealthIPs: []netip.Addr{v4(2, 2)}},
		{Name: "n3", PodCIDRs: topology(3).Nodes[2].Ranges}, // its agent has not published
	}
	cells := connectivity.LocalPlan(connectivity.LocalTopology{
		Nodes:     nodes,
		APIServer: connectivity.Service{Name: "kubernetes", Addrs: []netip.Addr{v4(96, 1)}, Port: 443},
		DNS:       connectivity.Service{Name: "kube-dns", Why: "not found"},
	}, connectivity.Filter{})
	runs, fails := map[string]int{}, 0
	for _, c := range cells {
		switch {
		case c.Runs():
			runs[c.To.String()]++
		case c.Fail != "":
			fails++
			if c.To.Node != "n3" {
				t.Errorf("%s -> %s: %s", c.From, c.To, c.Fail)
			}
		case c.Skip == "":
			t.Errorf("%s %s: neither run nor skipped", c.Path, c.Name())
		}
	}
	want := map[string]int{"health endpoint (n1)": 8, "health endpoint (n2)": 4, "service kubernetes": 1}
	if !reflect.DeepEqual(runs, want) || fails != 8 {
		t.Errorf("runs %v and %d failed, want %v and 8", runs, fails, want)
	}
}

func sampleReport() *connectivity.Report {
	topo := topology(2)
	cells := connectivity.Plan(topo, connectivity.Filter{Cells: []string{"pod-to-pod-same-node", "hairpin/*/ICMP/*", "pod-to-dns"}})
	results := map[int]connectivity.Result{}
	for _, c := range cells {
		results[c.ID] = connectivity.Result{ID: c.ID, Bytes: 100, MTU: 1500, Took: time.Millisecond}
		if c.From.Node == "n1" && c.Family == connectivity.IPv6 && c.Proto == connectivity.UDP && c.Size == connectivity.MTU {
			results[c.ID] = connectivity.Result{ID: c.ID, Bytes: 1452, MTU: 1500, Error: "receive: no answer within 3s <&\x00\xff"}
		}
		if c.From.Node == "n2" && c.Size == connectivity.Query && c.Proto == connectivity.UDP {
			delete(results, c.ID)
		}
	}
	return connectivity.NewReport("abcd", "cluster", cells, results, 2*time.Second)
}

// TestReport guards against a failed cell that is not named, cells without a
// result that pass, and a summary that counts skipped cells.
func TestReport(t *testing.T) {
	rep := sampleReport()
	var b strings.Builder
	if err := rep.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"pod-to-pod-same-node: pod a1 (n1) -> pod b1 (n1): IPv6 UDP MTU (1452 bytes, MTU 1500) to fd77:3:0::5: receive: no answer within 3s",
		"pod-to-dns: pod a2 (n2) -> service kube-dns: IPv4 UDP query",
		"not run: its probe ended before",
		"a ClusterIP answers no ICMP (16 cells of hairpin)",
		"skipped: 20 cells", "failed: 3 cells",
	} {
		if want = strings.ReplaceAll(want, "fd77:3:0::5", v6(3, 0).String()); !strings.Contains(b.String(), want) {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
	if rep.OK() || rep.Summary() != "connectivity: 53/56 passed" {
		t.Errorf("ok %t, %s", rep.OK(), rep.Summary())
	}
	if none := connectivity.NewReport("x", "cluster", nil, nil, 0); none.OK() {
		t.Error("a test that ran nothing passed")
	}
}

// TestJUnit guards against a report that a CI cannot read, whatever an error holds.
func TestJUnit(t *testing.T) {
	var b bytes.Buffer
	if err := sampleReport().WriteJUnit(&b); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for dec := xml.NewDecoder(&b); ; {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
		if s, ok := tok.(xml.StartElement); ok {
			counts[s.Name.Local]++
		}
	}
	want := map[string]int{"testsuites": 1, "testsuite": 3, "testcase": 76, "failure": 3, "skipped": 20}
	if !reflect.DeepEqual(counts, want) {
		t.Errorf("got %v, want %v", counts, want)
	}
}
