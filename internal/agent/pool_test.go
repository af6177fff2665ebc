// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1alpha1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

// paper is a ledger on paper.
type paper struct {
	l     *k8s.Ledger
	err   error
	reads int // of the whole
}

func (p *paper) Ledger(context.Context, string) (*k8s.Ledger, error) {
	p.reads++
	return p.l, p.err
}

func (p *paper) LedgerMark(context.Context, string) (k8s.LedgerMark, error) {
	if p.err != nil {
		return k8s.LedgerMark{}, p.err
	}
	return p.l.LedgerMark, nil
}

func ledgerOf(version string, seq uint64, grants map[string][]netip.Prefix, q ...k8s.LedgerRelease) *k8s.Ledger {
	return &k8s.Ledger{LedgerMark: k8s.LedgerMark{Version: version, Seq: seq}, Grants: grants, Quarantine: q}
}

func poolOn(p *paper) (*poolNode, *[]string) {
	var events []string
	report := func(_, message string) { events = append(events, message) }
	conf := config.ClusterPool{IPv4CIDRs: []netip.Prefix{cidr("10.8.0.0/16")}, IPv4MaskSize: 24}
	return newPoolNode("n1", conf, families{v4: true}, p, report, slog.New(slog.DiscardHandler)), &events
}

// Guards against a range that is used although the ledger does not give it to
// this node, or one that is dropped because somebody edited a CiliumNode.
func TestPoolRanges(t *testing.T) {
	mine, other, third := cidr("10.8.1.0/24"), cidr("10.8.2.0/24"), cidr("10.8.3.0/24")
	grants := map[string][]netip.Prefix{"n1": {mine}, "n2": {other}}
	down := errors.New("no route to host")
	for name, tc := range map[string]struct {
		ledger           *k8s.Ledger
		err              error
		operator         string
		claimed, current []netip.Prefix
		want             []netip.Prefix
		says             string // in the error, or in a note
	}{
		"granted and shown":          {ledger: ledgerOf("1", 0, grants), claimed: []netip.Prefix{mine}, want: []netip.Prefix{mine}},
		"granted, not shown yet":     {ledger: ledgerOf("1", 0, grants), says: "has no pod range yet"},
		"granted to another":         {ledger: ledgerOf("1", 0, grants), claimed: []netip.Prefix{other}, says: "gives to node n2: it is not used"},
		"granted to nobody":          {ledger: ledgerOf("1", 0, grants), claimed: []netip.Prefix{third}, says: "gives to nobody: it is not used"},
		"one of two":                 {ledger: ledgerOf("1", 0, grants), claimed: []netip.Prefix{other, mine}, want: []netip.Prefix{mine}, says: "it is not used"},
		"wider than granted":         {ledger: ledgerOf("1", 0, grants), claimed: []netip.Prefix{cidr("10.0.0.0/8")}, says: "it is not used"},
		"in use, edited away":        {ledger: ledgerOf("1", 0, grants), claimed: []netip.Prefix{third}, current: []netip.Prefix{mine}, want: []netip.Prefix{mine}, says: "it stays in use"},
		"in use, CiliumNode deleted": {ledger: ledgerOf("1", 0, grants), current: []netip.Prefix{mine}, want: []netip.Prefix{mine}},
		"in use, taken back":         {ledger: ledgerOf("1", 0, grants), current: []netip.Prefix{third}, says: "no longer to this node but to nobody"},
		"in use, API away":           {err: down, claimed: []netip.Prefix{mine}, current: []netip.Prefix{mine}, want: []netip.Prefix{mine}, says: "stay in use"},
		"in use, ledger deleted":     {err: k8s.ErrNoLedger, claimed: []netip.Prefix{mine}, current: []netip.Prefix{mine}, want: []netip.Prefix{mine}, says: "stay in use"},
		"new, API away":              {err: down, claimed: []netip.Prefix{mine}, says: "no route to host"},
		"new, no operator":           {err: k8s.ErrNoLedger, says: "no operator has given out any"},
		"refused":                    {ledger: ledgerOf("1", 0, nil), operator: "pool default is full", says: "the operator says: pool default is full"},
	} {
		t.Run(name, func(t *testing.T) {
			p, events := poolOn(&paper{l: tc.ledger, err: tc.err})
			got, err := p.Ranges(t.Context(), &table.Node{Name: "n1", PodCIDRs: tc.claimed, PoolError: tc.operator}, tc.current)
			if !slices.Equal(got, tc.want) || (err == nil) != (len(tc.want) > 0) {
				t.Errorf("got %v, %v; want %v", got, err, tc.want)
			}
			notes, _ := p.Problems()
			if said := fmt.Sprint(err, notes); !strings.Contains(said, tc.says) {
				t.Errorf("nothing says %q: %s", tc.says, said)
			}
			if !slices.Equal(notes, *events) {
				t.Errorf("status says %q, events %q", notes, *events)
			}
		})
	}
}

// Guards against a release that is confirmed while the kernel still has routes
// or entries of the range, and against a ledger that is read as a whole for
// every node that joins.
func TestReleaseSeen(t *testing.T) {
	q1, q2 := cidr("10.8.7.0/24"), cidr("10.8.8.0/24")
	paper := &paper{l: ledgerOf("1", 5, nil, k8s.LedgerRelease{CIDR: q1, Node: "n7", Seq: 4}, k8s.LedgerRelease{CIDR: q2, Node: "n8", Seq: 5})}
	p, _ := poolOn(paper)
	kernel := map[netip.Prefix]string{q1: "route", q2: "ipcache entry"}
	seen := func() string {
		p.Look(t.Context(), func() (holder, error) { return func(r netip.Prefix) string { return kernel[r] }, nil })
		return p.Annotations()[weftv1alpha1.ReleaseSeenAnnotation]
	}
	if got := seen(); got != "3" {
		t.Errorf("with both held: %q, want 3", got)
	}
	if _, holds := p.Problems(); len(holds) != 2 || !strings.Contains(holds[0], "node n7 gave back") {
		t.Errorf("holds %q", holds)
	}
	delete(kernel, q1)
	if got := seen(); got != "4" {
		t.Errorf("with the later one held: %q, want 4", got)
	}
	// Given to a peer without a release in between: a route to it is right.
	paper.l = ledgerOf("2", 5, map[string][]netip.Prefix{"n9": {q2}})
	if got := seen(); got != "5" {
		t.Errorf("with the range granted anew: %q, want 5", got)
	}
	reads := paper.reads
	paper.l = ledgerOf("3", 5, map[string][]netip.Prefix{"n9": {q2}, "n10": {q1}})
	for range 3 {
		seen()
	}
	if paper.reads > reads+1 {
		t.Errorf("the whole ledger was read %d times for a node that joined", paper.reads-reads)
	}
	// A kernel that cannot be read confirms nothing.
	paper.l = ledgerOf("4", 6, nil, k8s.LedgerRelease{CIDR: q2, Node: "n9", Seq: 6})
	p.Look(t.Context(), func() (holder, error) { return nil, errors.New("no memory") })
	if got := p.Annotations()[weftv1alpha1.ReleaseSeenAnnotation]; got != "5" {
		t.Errorf("with an unreadable kernel: %q, want 5", got)
	}
}

// Guards against another node's ranges being taken over in the datapath by one
// whose CiliumNode was edited.
func TestPoolView(t *testing.T) {
	grants := map[string][]netip.Prefix{"n2": {cidr("10.8.2.0/24")}}
	p, _ := poolOn(&paper{l: ledgerOf("1", 1, grants)})
	p.Look(t.Context(), nil)
	for _, tc := range []struct {
		node string
		in   []string
		want []string
	}{
		{"n2", []string{"10.8.2.0/24"}, []string{"10.8.2.0/24"}},
		{"n3", []string{"10.8.2.0/24", "10.8.3.0/24"}, []string{"10.8.3.0/24"}}, // the latter may be younger than our look
		{"n3", []string{"10.0.0.0/8"}, nil},
		{"n3", []string{"10.8.2.128/25"}, nil},
	} {
		var in, want []netip.Prefix
		for _, s := range tc.in {
			in = append(in, cidr(s))
		}
		for _, s := range tc.want {
			want = append(want, cidr(s))
		}
		if got := p.View(&table.Node{Name: tc.node, PodCIDRs: in}, nil); !slices.Equal(got.PodCIDRs, want) {
			t.Errorf("%s with %v: %v, want %v", tc.node, tc.in, got.PodCIDRs, want)
		}
	}
	if got := p.View(&table.Node{Name: "n1", Local: true, PodCIDRs: []netip.Prefix{cidr("10.0.0.0/8")}}, []netip.Prefix{cidr("10.8.1.0/24")}); !slices.Equal(got.PodCIDRs, []netip.Prefix{cidr("10.8.1.0/24")}) {
		t.Errorf("this node: %v", got.PodCIDRs)
	}
}

// Guards against a subnet that the operator does not hear of, and against pod
// routes that would block the very ranges that they lead to.
func TestNodeRoutes(t *testing.T) {
	const kernel, static, bgp = unix.RTPROT_KERNEL, unix.RTPROT_STATIC, unix.RTPROT_BGP
	route := func(dst, dev, via string, table, typ, proto int) kernelRoute {
		k := kernelRoute{dst: cidr(dst), dev: dev, table: table, typ: typ, protocol: proto}
		if via != "" {
			k.via = ip(via)
		}
		return k
	}
	routes := []kernelRoute{
		route("0.0.0.0/0", "eth0", "192.0.2.1", 254, unix.RTN_UNICAST, static),
		route("192.0.2.0/24", "eth0", "", 254, unix.RTN_UNICAST, kernel),
		route("10.8.200.0/24", "eth1", "192.0.2.9", 254, unix.RTN_UNICAST, static),
		route("10.8.201.0/24", "", "", 254, unix.RTN_BLACKHOLE, static),
		route("172.20.0.0/16", "eth1", "192.0.2.9", 100, unix.RTN_UNICAST, static), // another table
		route("10.8.2.0/24", "eth0", "192.0.2.2", 254, unix.RTN_UNICAST, bgp),      // a peer's pods
		route("10.8.3.0/24", "eth0", "192.0.2.3", 254, unix.RTN_UNICAST, link.Protocol),
		route("169.254.0.0/16", "eth0", "", 254, unix.RTN_UNICAST, kernel),
		route("127.0.0.0/8", "lo", "", 255, unix.RTN_LOCAL, kernel),
		route("192.0.2.5/32", "eth0", "", 255, unix.RTN_LOCAL, kernel), // in a connected subnet
		route("192.0.2.255/32", "eth0", "", 255, unix.RTN_BROADCAST, kernel),
		route("198.51.100.7/32", "dummy0", "", 255, unix.RTN_LOCAL, kernel),
		route("10.96.0.1/32", "kube-ipvs0", "", 255, unix.RTN_LOCAL, kernel),
		route("10.8.1.9/32", "lxc123", "", 254, unix.RTN_UNICAST, link.Protocol),
		route("fd09::/64", "eth0", "", 254, unix.RTN_UNICAST, kernel),
		route("fe80::/64", "eth0", "", 254, unix.RTN_UNICAST, kernel),
		route("ff00::/8", "eth0", "", 255, unix.RTN_MULTICAST, kernel),
		route("192.0.2.0/24", "eth0", "", 254, unix.RTN_UNICAST, kernel), // with another metric
	}
	pods, pool := []netip.Prefix{cidr("10.8.1.0/24"), cidr("10.8.2.0/24")}, []netip.Prefix{cidr("10.8.0.0/16")}
	want := []weftv1alpha1.NodeRoute{
		{CIDR: "10.8.200.0/24", Dev: "eth1", Via: "192.0.2.9"},
		{CIDR: "10.8.201.0/24"},
		{CIDR: "172.20.0.0/16", Dev: "eth1", Via: "192.0.2.9"},
		{CIDR: "192.0.2.0/24", Dev: "eth0"},
		{CIDR: "198.51.100.7/32", Dev: "dummy0"},
		{CIDR: "fd09::/64", Dev: "eth0"},
	}
	if got, more := nodeRoutes(routes, pods, pool); !slices.Equal(got, want) || more != 0 {
		t.Errorf("got %+v and %d more, want %+v", got, more, want)
	}

	var many []kernelRoute
	for i := range 700 {
		many = append(many, route(fmt.Sprintf("100.%d.%d.0/24", 64+i/256, i%256), "eth0", "", 254, unix.RTN_UNICAST, static))
	}
	many = append(many, routes[2])
	got, more := nodeRoutes(many, pods, pool)
	if len(got) != weftv1alpha1.MaxNodeRoutes || more != 701-len(got) || got[0].CIDR != "10.8.200.0/24" {
		t.Errorf("%d routes, %d more, first %v", len(got), more, got[0])
	}
}

// Guards against a life of a node of a pool that goes wrong anywhere: it tells
// its routes first, uses no range that the ledger does not give it, is not
// misled by a CiliumNode that somebody edited, and serves pods after a restart
// without API server.
func TestClusterPool(t *testing.T) {
	if !node(t) {
		return
	}
	o, _ := newNode(t, map[string]string{
		"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.244.0.0/16", "cluster-pool-ipv6-cidr": "fd00::/32", "cluster-pool-ipv6-mask-size": "64",
	})
	run(t, "ip", "route", "add", "10.244.200.0/24", "via", "10.9.0.77")
	api := apiservertest.Start(t)
	api.InstallCRDs("../../install/helm/weft/crds")
	o.Paths.Credentials = api.CredentialsDir
	if err := os.WriteFile(o.Paths.Config+"/k8s-api-server", []byte(api.URL), 0o644); err != nil {
		t.Fatal(err)
	}
	api.Do(t, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"default"}}`, nil)
	c := &poolCluster{t: t, api: api}
	c.node("n1", 1)
	c.node("n2", 2)
	if err := Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	c.says(s, "no operator has given out any")
	eventually(t, "CiliumNode with routes and without ranges", func() (bool, any) {
		cn, ok := c.ciliumNode("n1")
		routes := cn.Annotations[weftv1alpha1.NodeRoutesAnnotation]
		return ok && len(cn.Spec.IPAM.PodCIDRs) == 0 && len(cn.Spec.Addresses) == 2 &&
			strings.Contains(routes, `{"cidr":"10.244.200.0/24","dev":"eth0","via":"10.9.0.77"}`) && strings.Contains(routes, `{"cidr":"10.9.0.0/24","dev":"eth0"}`), cn
	})
	c.refuse("pool default (10.244.0.0/16) has no free /24")
	c.says(s, "the operator says: pool default (10.244.0.0/16) has no free /24")
	if r := s.ask(cni.Request{Command: "ADD", ContainerID: "c", IfName: "eth0", Netns: o.Paths.HealthNetns, Args: "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b"}); r.Error == nil || !strings.Contains(r.Error.Msg, "has no free /24") {
		t.Errorf("ADD before a grant: %+v", r.Error)
	}
	c.refuse("")

	// A range in the CiliumNode is a claim until the ledger confirms it.
	c.show("n1", "10.244.1.0/24", "fd00:0:0:1::/64")
	c.says(s, "no operator has given out any")
	if got := run(t, "ip", "route", "show", "10.244.1.0/24"); got != "" {
		t.Errorf("a range that nobody granted has a route: %s", got)
	}
	c.grant(0, "n1", "10.244.1.0/24", "fd00:0:0:1::/64")
	c.grant(3, "n2", "10.244.2.0/24", "fd00:0:0:2::/64")
	eventually(t, "proven", func() (bool, any) {
		return s.component("Node proof").State == rpc.StateOK, fetch[rpc.Status](s, rpc.PathStatus).Components
	})
	eventually(t, "ranges are shown as they were", func() (bool, any) {
		cn, _ := c.ciliumNode("n1")
		return cn.Spec.HealthAddressing.IPv4 == "10.244.1.1" && slices.Equal(cn.Spec.IPAM.PodCIDRs, []string{"10.244.1.0/24", "fd00:0:0:1::/64"}) &&
			cn.Annotations[weftv1alpha1.ReleaseSeenAnnotation] == "3", cn
	})
	c.show("n2", "10.244.2.0/24", "fd00:0:0:2::/64")
	eventually(t, "route to n2", func() (bool, any) {
		r := run(t, "ip", "route", "show", "10.244.2.0/24")
		return strings.Contains(r, "via 10.9.0.2 dev eth0 proto 87 src 10.9.0.1"), r
	})
	first := addPod(t, s, api, "one")
	if !cidr("10.244.1.0/24").Contains(first) {
		t.Errorf("pod has %s", first)
	}

	// A hand that edits adds nothing and takes nothing away.
	c.show("n1", "10.0.0.0/8")
	eventually(t, "the edit is named", func() (bool, any) {
		x := s.component("IPAM")
		return x.State == rpc.StateWarning && strings.Contains(fmt.Sprint(x), "10.0.0.0/8, which the ledger gives to node n"), x
	})
	if got := run(t, "ip", "route", "show", "10.0.0.0/8"); got != "" {
		t.Errorf("a range that nobody granted has a route: %s", got)
	}
	if second := addPod(t, s, nil, "two"); !cidr("10.244.1.0/24").Contains(second) {
		t.Errorf("pod has %s", second)
	}
	run(t, "ip", "route", "add", "10.244.201.0/24", "via", "10.9.0.77")
	eventually(t, "a new route is told", func() (bool, any) {
		cn, _ := c.ciliumNode("n1")
		return strings.Contains(cn.Annotations[weftv1alpha1.NodeRoutesAnnotation], "10.244.201.0/24"), cn.Annotations
	})
	s.end()

	api.Stop()
	s = start(t, o)
	if r := s.ask(cni.Request{Command: "STATUS"}); r.Error != nil {
		t.Errorf("STATUS after a restart without API server: %+v", r.Error)
	}
	ping(t, first)
	if third := addPod(t, s, nil, "three"); !cidr("10.244.1.0/24").Contains(third) {
		t.Errorf("pod has %s", third)
	}
	s.end()
}

// poolCluster plays the operator.
type poolCluster struct {
	t   *testing.T
	api *apiservertest.Server
}

const ciliumNodes = "/apis/cilium.io/v2/ciliumnodes"

func (c *poolCluster) node(name string, i int) {
	addNode(c.t, c.api, name, i)
	// The ranges of another allocator must not matter.
	if i == 1 {
		return
	}
	c.api.Do(c.t, http.MethodPost, ciliumNodes, ciliumv2.CiliumNode{
		TypeMeta:   metav1.TypeMeta{APIVersion: "cilium.io/v2", Kind: "CiliumNode"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{ciliumv2.PartOfLabel: ciliumv2.PartOfValue}},
	}, nil)
}

func (c *poolCluster) ciliumNode(name string) (cn ciliumv2.CiliumNode, ok bool) {
	code, b := c.api.Call(c.t, http.MethodGet, ciliumNodes+"/"+name, nil)
	return cn, code == http.StatusOK && json.Unmarshal(b, &cn) == nil
}

// show writes ranges into a CiliumNode.
func (c *poolCluster) show(name string, ranges ...string) {
	c.t.Helper()
	eventually(c.t, "CiliumNode "+name+" is written", func() (bool, any) {
		cn, _ := c.ciliumNode(name)
		cn.Spec.IPAM.PodCIDRs = ranges
		code, b := c.api.Call(c.t, http.MethodPut, ciliumNodes+"/"+name, cn)
		return code == http.StatusOK, string(b)
	})
}

func (c *poolCluster) refuse(why string) {
	c.t.Helper()
	eventually(c.t, "status is written", func() (bool, any) {
		cn, _ := c.ciliumNode("n1")
		cn.Status.IPAM.OperatorStatus.Error = why
		code, b := c.api.Call(c.t, http.MethodPut, ciliumNodes+"/n1/status", cn)
		return code == http.StatusOK, string(b)
	})
}

// grant writes a node's ranges into the ledger.
func (c *poolCluster) grant(seq int64, name string, ranges ...weftv1alpha1.CIDR) {
	c.t.Helper()
	const path = "/apis/weft.dev/v1alpha1/podcidrledgers"
	l := weftv1alpha1.PodCIDRLedger{
		TypeMeta:   metav1.TypeMeta{APIVersion: "weft.dev/v1alpha1", Kind: "PodCIDRLedger"},
		ObjectMeta: metav1.ObjectMeta{Name: weftv1alpha1.DefaultPool, Labels: map[string]string{ciliumv2.PartOfLabel: ciliumv2.PartOfValue}},
	}
	code, b := c.api.Call(c.t, http.MethodGet, path+"/"+weftv1alpha1.DefaultPool, nil)
	method, at := http.MethodPost, path
	if code == http.StatusOK {
		if err := json.Unmarshal(b, &l); err != nil {
			c.t.Fatal(err)
		}
		method, at = http.MethodPut, path+"/"+weftv1alpha1.DefaultPool
	}
	if l.Spec.Grants == nil {
		l.Spec.Grants = map[string][]weftv1alpha1.CIDR{}
	}
	l.Spec.Seq, l.Spec.Grants[name] = seq, ranges
	l.Annotations = map[string]string{weftv1alpha1.ReleaseSeqAnnotation: strconv.FormatInt(seq, 10)}
	c.api.Do(c.t, method, at, l, nil)
}

// says waits for what the status says of IPAM.
func (c *poolCluster) says(s *started, what string) {
	c.t.Helper()
	eventually(c.t, "IPAM says "+what, func() (bool, any) {
		x := s.component("IPAM")
		return x.State == rpc.StateFailing && strings.Contains(x.Message, what), x
	})
}
