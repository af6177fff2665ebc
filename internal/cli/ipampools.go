// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1alpha1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
	"github.com/weft-net/weft/internal/cli/kube"
	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/ipam/pool"
)

// readPools makes the view of mode multi-pool: each pool as its ledger has it,
// and what nodes have of all of them.
func (o *ipamObjects) readPools(ctx context.Context, api cluster, cfg *config.Operator, now time.Time) (*ipamView, error) {
	if err := api.Get(ctx, "/apis/cilium.io/v2/"+ciliumv2.CiliumNodeResource, &o.cns); err != nil {
		return nil, err
	}
	var ledgers weftv1alpha1.PodCIDRLedgerList
	if err := api.Get(ctx, "/apis/weft.dev/v1alpha1/"+weftv1alpha1.PodCIDRLedgerResource, &ledgers); err != nil && !kube.IsNotFound(err) {
		return nil, err
	}
	v := &ipamView{Mode: cfg.IPAM}
	if len(ledgers.Items) == 0 {
		v.Problems = append(v.Problems, "no operator has given out a range yet (there is no PodCIDRLedger): see kubectl get ciliumpodippools, and kubectl -n kube-system get deployment cilium-operator")
	}
	has := map[string][]string{}
	for i := range ledgers.Items {
		name := ledgers.Items[i].Name
		l, err := pool.Parse(&ledgers.Items[i].Spec)
		if err != nil {
			return nil, fmt.Errorf("PodCIDRLedger %s: %w", name, err)
		}
		in := pool.Inputs{Pool: l.Pool, Hazards: o.hazards(l), Acknowledged: cfg.Pool.Acknowledged, Now: now, Quarantine: cfg.Pool.Quarantine}
		in.Pool.Name, in.Pool.Object = name, "CiliumPodIPPool "+name
		v.named(in, l)
		for node, ranges := range l.Grants {
			for _, r := range ranges {
				has[node] = append(has[node], r.String()+" ("+name+")")
			}
		}
	}
	for i := range o.cns.Items {
		cn := &o.cns.Items[i]
		n := ipamNode{Node: cn.Name, Ranges: has[cn.Name], Problem: cn.Status.IPAM.OperatorStatus.Error}
		delete(has, cn.Name)
		v.add(n)
	}
	for node, ranges := range has {
		v.add(ipamNode{Node: node, Ranges: ranges, Problem: "the node is gone: its ranges are taken back when its CiliumNode is"})
	}
	slices.SortFunc(v.Nodes, func(a, b ipamNode) int { return strings.Compare(a.Node, b.Node) })
	slices.Sort(v.Problems)
	return v, nil
}

func (v *ipamView) add(n ipamNode) {
	slices.Sort(n.Ranges)
	if n.Problem == "" && len(n.Ranges) == 0 {
		n.Problem = "no range yet"
	}
	if n.Problem != "" {
		v.Problems = append(v.Problems, "node "+n.Node+": "+n.Problem)
	}
	v.Nodes = append(v.Nodes, n)
}

// named adds one pool.
func (v *ipamView) named(in pool.Inputs, l pool.Ledger) {
	v4, v6 := pool.Forecast(l, in)
	for _, f := range []struct {
		family string
		conf   pool.Family
		use    pool.Usage
	}{{"IPv4", in.Pool.V4, v4}, {"IPv6", in.Pool.V6, v6}} {
		if len(f.conf.CIDRs) == 0 {
			continue
		}
		p := ipamPool{
			Pool: in.Pool.Name, Family: f.family, MaskSize: f.conf.MaskSize, Total: f.use.Total, Held: f.use.Held,
			Quarantined: f.use.Quarantined, Blocked: f.use.Blocked, Free: f.use.Free, Lasts: forecast(f.use.Exhausted),
		}
		for _, c := range f.conf.CIDRs {
			p.CIDRs = append(p.CIDRs, c.String())
		}
		if f.use.Next.IsValid() {
			p.Next = f.use.Next.String()
		}
		v.Pools = append(v.Pools, p)
	}
	for _, f := range pool.Validate(in) {
		v.Findings = append(v.Findings, f.String())
	}
	for _, q := range l.Quarantine {
		r := ipamRelease{CIDR: q.CIDR.String(), Node: q.Node, At: q.At, Waits: "agents that have not verified release " + strconv.FormatUint(q.Seq, 10) + " of pool " + in.Pool.Name}
		if left := q.At.Add(in.Quarantine).Sub(in.Now); left > 0 {
			r.Waits = "its rest to end in " + left.Round(time.Second).String()
		}
		v.Quarantine = append(v.Quarantine, r)
	}
}
