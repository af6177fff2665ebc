// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1alpha1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/cli/kube"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/ipam/pool"
)

// ipamView is what `weft ipam show` says of a cluster.
type ipamView struct {
	Mode  string     `json:"mode"`
	Pools []ipamPool `json:"pools,omitempty"` // one for each family
	Nodes []ipamNode `json:"nodes"`
	// Quarantine holds ranges that were given back and rest.
	Quarantine []ipamRelease `json:"quarantine,omitempty"`
	Findings   []string      `json:"findings,omitempty"` // what takes ranges of the pool away
	Problems   []string      `json:"problems,omitempty"`
	Proposals  []string      `json:"proposals,omitempty"` // free ranges, where none is set
}

// ipamPool is one family of a pool, in blocks: ranges of one node.
type ipamPool struct {
	Pool        string   `json:"pool"`
	Family      string   `json:"family"`
	CIDRs       []string `json:"cidrs"`
	MaskSize    int      `json:"maskSize"`
	Total       uint64   `json:"total"`
	Held        uint64   `json:"held"`
	Quarantined uint64   `json:"quarantined"`
	Blocked     uint64   `json:"blocked"`
	Free        uint64   `json:"free"`
	Next        string   `json:"next,omitempty"`  // the block that is given out next
	Lasts       string   `json:"lasts,omitempty"` // until nothing is free, at the growth of the last days
}

type ipamNode struct {
	Node    string   `json:"node"`
	Ranges  []string `json:"ranges"`
	Problem string   `json:"problem,omitempty"`
}

type ipamRelease struct {
	CIDR  string    `json:"cidr"`
	Node  string    `json:"node"`
	At    time.Time `json:"at"`
	Waits string    `json:"waits"`
}

// ipamObjects are the objects that the view is made of.
type ipamObjects struct {
	config   corev1.ConfigMap
	nodes    corev1.NodeList
	cns      ciliumv2.CiliumNodeList
	ledger   weftv1alpha1.PodCIDRLedger
	hasPaper bool // there is a ledger
	reserved weftv1alpha1.ReservedCIDRList
	services networkingv1.ServiceCIDRList
}

func readIPAM(ctx context.Context, api cluster, namespace string, now time.Time) (*ipamView, error) {
	var o ipamObjects
	err := api.Get(ctx, "/api/v1/namespaces/"+namespace+"/configmaps/cilium-config", &o.config)
	if kube.IsNotFound(err) {
		return nil, fmt.Errorf("no ConfigMap cilium-config in namespace %s: Weft is not installed there; give -n NAMESPACE or install it", namespace)
	}
	if err != nil {
		return nil, err
	}
	cfg, err := config.ParseOperator(o.config.Data)
	if err != nil {
		return nil, fmt.Errorf("ConfigMap %s/cilium-config: %w", namespace, err)
	}
	if err := api.Get(ctx, "/api/v1/nodes", &o.nodes); err != nil {
		return nil, err
	}
	if cfg.IPAM == config.IPAMMultiPool {
		return o.readPools(ctx, api, cfg, now)
	}
	if cfg.IPAM != config.IPAMClusterPool {
		return kubernetesView(cfg.IPAM, o.nodes.Items), nil
	}
	if err := api.Get(ctx, "/apis/cilium.io/v2/"+ciliumv2.CiliumNodeResource, &o.cns); err != nil {
		return nil, err
	}
	err = api.Get(ctx, "/apis/weft.dev/v1alpha1/"+weftv1alpha1.PodCIDRLedgerResource+"/"+weftv1alpha1.DefaultPool, &o.ledger)
	o.hasPaper = err == nil
	if err != nil && !kube.IsNotFound(err) {
		return nil, err
	}
	for path, list := range map[string]any{
		"/apis/weft.dev/v1alpha1/" + weftv1alpha1.ReservedCIDRResource: &o.reserved,
		"/apis/networking.k8s.io/v1/servicecidrs":                      &o.services, // since Kubernetes 1.33
	} {
		if err := api.Get(ctx, path, list); err != nil && !kube.IsNotFound(err) {
			return nil, err
		}
	}
	return poolView(cfg, &o, now)
}

// kubernetesView is the view where kube-controller-manager gives out ranges.
func kubernetesView(mode string, nodes []corev1.Node) *ipamView {
	v := &ipamView{Mode: mode}
	for i := range nodes {
		n := ipamNode{Node: nodes[i].Name, Ranges: nodes[i].Spec.PodCIDRs}
		if len(n.Ranges) == 0 {
			n.Problem = "no spec.podCIDRs: start kube-controller-manager with --allocate-node-cidrs and --cluster-cidr"
			v.Problems = append(v.Problems, "node "+n.Node+": "+n.Problem)
		}
		v.Nodes = append(v.Nodes, n)
	}
	return v
}

func poolView(cfg *config.Operator, o *ipamObjects, now time.Time) (*ipamView, error) {
	l, err := pool.Parse(&o.ledger.Spec)
	if err != nil {
		return nil, fmt.Errorf("PodCIDRLedger %s: %w", weftv1alpha1.DefaultPool, err)
	}
	v := &ipamView{Mode: cfg.IPAM}
	if !o.hasPaper {
		v.Problems = append(v.Problems, "no operator has given out a range yet (there is no PodCIDRLedger default): see kubectl -n kube-system get deployment cilium-operator")
	}
	in := pool.Inputs{
		Pool: pool.Pool{Name: weftv1alpha1.DefaultPool}, Hazards: o.hazards(l), Acknowledged: cfg.Pool.Acknowledged,
		Now: now, Quarantine: cfg.Pool.Quarantine,
	}
	in.Seen, in.Lagging = o.seen()
	if cfg.EnableIPv4 {
		in.Pool.V4 = pool.Family{CIDRs: cfg.Pool.IPv4CIDRs, MaskSize: cfg.Pool.IPv4MaskSize}
	}
	if cfg.EnableIPv6 {
		in.Pool.V6 = pool.Family{CIDRs: cfg.Pool.IPv6CIDRs, MaskSize: cfg.Pool.IPv6MaskSize}
	}
	v4, v6 := pool.Forecast(l, in)
	for _, f := range []struct {
		on     bool
		family string
		conf   pool.Family
		use    pool.Usage
	}{{cfg.EnableIPv4, "IPv4", in.Pool.V4, v4}, {cfg.EnableIPv6, "IPv6", in.Pool.V6, v6}} {
		if f.on {
			v.family(f.family, f.conf, f.use, o, l, len(o.nodes.Items))
		}
	}
	for _, f := range pool.Validate(in) {
		v.Findings = append(v.Findings, f.String())
	}
	v.holders(o, l)
	v.resting(l, in)
	return v, nil
}

// family adds one family of the pool; where no range is set, ranges to choose from.
func (v *ipamView) family(name string, f pool.Family, u pool.Usage, o *ipamObjects, l pool.Ledger, nodes int) {
	p := ipamPool{
		Pool: weftv1alpha1.DefaultPool, Family: name, CIDRs: []string{}, MaskSize: f.MaskSize,
		Total: u.Total, Held: u.Held, Quarantined: u.Quarantined, Blocked: u.Blocked, Free: u.Free, Lasts: forecast(u.Exhausted),
	}
	for _, c := range f.CIDRs {
		p.CIDRs = append(p.CIDRs, c.String())
	}
	if u.Next.IsValid() {
		p.Next = u.Next.String()
	}
	v.Pools = append(v.Pools, p)
	setting := "ipam.operator.clusterPool" + name + "PodCIDRList"
	switch {
	case len(f.CIDRs) == 0:
		v.Problems = append(v.Problems, fmt.Sprintf("the pool has no %s range, and there is no default: set %s", name, setting))
		var taken []netip.Prefix
		for _, h := range o.hazards(l) {
			taken = append(taken, h.CIDR)
		}
		// Room for four times the nodes that there are, and for 256 at least.
		spread := 8
		for 1<<spread < 4*nodes {
			spread++
		}
		for _, c := range pool.Free(taken, name == "IPv6", f.MaskSize-spread, 3) {
			v.Proposals = append(v.Proposals, setting+"={"+c.String()+"}")
		}
	case u.Free == 0:
		v.Problems = append(v.Problems, fmt.Sprintf("the pool has no free %s block left for a node that joins: add a range to %s", name, setting))
	}
	if u.Outside > 0 {
		v.Findings = append(v.Findings, fmt.Sprintf("%d %s ranges of nodes are no blocks of the pool any more: they stay with their nodes until those are gone", u.Outside, name))
	}
}

// holders adds the nodes with what the ledger gives to them.
func (v *ipamView) holders(o *ipamObjects, l pool.Ledger) {
	known := map[string]bool{}
	add := func(name, why string, shown []string) {
		n := ipamNode{Node: name, Ranges: []string{}, Problem: why}
		for _, r := range l.Grants[name] {
			n.Ranges = append(n.Ranges, r.String())
		}
		switch {
		case n.Problem != "":
		case len(n.Ranges) == 0:
			n.Problem = "no range yet"
		case len(shown) > 0 && !slices.Equal(slices.Sorted(slices.Values(shown)), slices.Sorted(slices.Values(n.Ranges))):
			n.Problem = "its CiliumNode shows " + strings.Join(shown, ",") + ": the ledger counts"
		}
		if n.Problem != "" {
			v.Problems = append(v.Problems, "node "+name+": "+n.Problem)
		}
		known[name] = true
		v.Nodes = append(v.Nodes, n)
	}
	cns := map[string]*ciliumv2.CiliumNode{}
	for i := range o.cns.Items {
		cns[o.cns.Items[i].Name] = &o.cns.Items[i]
	}
	for i := range o.nodes.Items {
		name := o.nodes.Items[i].Name
		switch cn := cns[name]; {
		case cn == nil:
			add(name, "no CiliumNode: no agent of Weft has spoken there", nil)
		case cn.Status.IPAM.OperatorStatus.Error != "":
			add(name, cn.Status.IPAM.OperatorStatus.Error, nil)
		default:
			add(name, "", cn.Spec.IPAM.PodCIDRs)
		}
	}
	for name := range l.Grants {
		if !known[name] {
			add(name, "the node is gone: its ranges are taken back when its CiliumNode is", nil)
		}
	}
	slices.SortFunc(v.Nodes, func(a, b ipamNode) int { return strings.Compare(a.Node, b.Node) })
	slices.Sort(v.Problems)
}

// resting adds what is in quarantine and what each range waits for.
func (v *ipamView) resting(l pool.Ledger, in pool.Inputs) {
	for _, q := range l.Quarantine {
		r := ipamRelease{CIDR: q.CIDR.String(), Node: q.Node, At: q.At, Waits: "the operator"}
		if left := q.At.Add(in.Quarantine).Sub(in.Now); left > 0 {
			r.Waits = "its rest to end in " + left.Round(time.Second).String()
		} else if in.Seen < q.Seq {
			r.Waits = "the agent of node " + in.Lagging + " (`weft ipam show --node " + in.Lagging + "`)"
		}
		v.Quarantine = append(v.Quarantine, r)
	}
}

// seen is the lowest release that some agent is done with, and whose.
func (o *ipamObjects) seen() (least uint64, node string) {
	least = math.MaxUint64
	for i := range o.cns.Items {
		cn := &o.cns.Items[i]
		if _, told := cn.Annotations[weftv1alpha1.NodeRoutesAnnotation]; !told {
			continue
		}
		n, _ := strconv.ParseUint(cn.Annotations[weftv1alpha1.ReleaseSeenAnnotation], 10, 64)
		if n < least {
			least, node = n, cn.Name
		}
	}
	return least, node
}

// hazards are what of the cluster's objects takes ranges away from the pool.
func (o *ipamObjects) hazards(l pool.Ledger) (out []pool.Hazard) {
	add := func(s string, kind pool.HazardKind, where string) {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, pool.Hazard{CIDR: p.Masked(), Kind: kind, Where: where})
	}
	for _, s := range o.services.Items {
		for _, c := range s.Spec.CIDRs {
			add(c, pool.ServiceCIDR, "ServiceCIDR "+s.Name)
		}
	}
	for _, r := range o.reserved.Items {
		where := r.Name
		if r.Spec.Reason != "" {
			where += " (" + r.Spec.Reason + ")"
		}
		add(string(r.Spec.CIDR), pool.Reserved, where)
	}
	for _, n := range o.nodes.Items {
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				add(a.Address, pool.NodeAddress, "node "+n.Name)
			}
		}
		for _, c := range n.Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(c); err == nil && !slices.Contains(l.Grants[n.Name], p.Masked()) {
				add(c, pool.NodeRange, "node "+n.Name+", spec.podCIDRs")
			}
		}
	}
	for i := range o.cns.Items {
		cn := &o.cns.Items[i]
		var routes []weftv1alpha1.NodeRoute
		if json.Unmarshal([]byte(cn.Annotations[weftv1alpha1.NodeRoutesAnnotation]), &routes) != nil {
			continue
		}
		for _, r := range routes {
			if h, err := pool.RouteHazard(cn.Name, r); err == nil {
				out = append(out, h)
			}
		}
	}
	return out
}
