// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/table"
)

// elsewhere is why cells that need pods are skipped on a node.
const elsewhere = "no pods can be made from here: run `weft connectivity test` where kubectl works"

// LocalTopology is what a node knows without the API server's help.
type LocalTopology struct {
	Nodes     []table.Node // one of them is Local
	APIServer Service
	DNS       Service
}

// LocalPlan lists the cells that can be run from a node itself, and those that
// cannot with what to do instead. It is pure.
func LocalPlan(t LocalTopology, f Filter) []Cell {
	p := &planner{filter: f}
	var own *table.Node
	for i := range t.Nodes {
		if t.Nodes[i].Local {
			own = &t.Nodes[i]
		}
	}
	if own == nil {
		return nil
	}
	from := Party{Kind: KindNode, Node: own.Name}
	p.health(HostToOwnPod, from, own)
	for i := range t.Nodes {
		if n := &t.Nodes[i]; !n.Local {
			p.health(HostToOtherPod, from, n)
		}
	}
	for _, fam := range allFamilies {
		p.hostService(HostToAPIServer, from, fam, t.APIServer, Handshake, TCP)
		p.hostService(HostToDNS, from, fam, t.DNS, Query, UDP, TCP)
	}
	for _, path := range []Path{PodToPodSameNode, PodToPodOtherNode, PodToOwnHost, PodToOtherHost, Hairpin, PodToAPIServer, PodToDNS} {
		for _, fam := range allFamilies {
			for _, proto := range allProtos {
				p.add(Cell{Path: path, Family: fam, Proto: proto, From: from, To: from, Skip: elsewhere})
			}
		}
	}
	return p.cells
}

// health adds the cells to a node's health endpoint, which the kernel answers
// for: it speaks ICMP only.
func (p *planner) health(path Path, from Party, n *table.Node) {
	for _, f := range allFamilies {
		ranged := false
		for _, c := range n.PodCIDRs {
			ranged = ranged || f.Is(c.Addr())
		}
		for _, proto := range allProtos {
			for _, size := range allSizes {
				c := Cell{
					Path: path, Family: f, Proto: proto, Size: size, From: from,
					To: Party{Kind: KindHealth, Node: n.Name}, Addr: f.Of(n.HealthIPs),
				}
				switch {
				case proto != ICMP:
					c.Skip = "a health endpoint answers ICMP only; " + elsewhere
				case !ranged:
					c.Skip = fmt.Sprintf("node %s has no %s pod range", n.Name, f)
				case !c.Addr.IsValid():
					c.Fail = fmt.Sprintf("node %s has an %s pod range but has published no health address: is its agent running?", n.Name, f)
				}
				p.add(c)
			}
		}
	}
}

func (p *planner) hostService(path Path, from Party, f Family, s Service, size Size, protos ...Proto) {
	for _, proto := range protos {
		c := Cell{
			Path: path, Family: f, Proto: proto, Size: size, From: from,
			To: Party{Kind: KindService, Name: s.Name}, Addr: f.Of(s.Addrs), Port: s.Port,
		}
		switch {
		case s.Why != "":
			c.Skip = s.Why
		case !c.Addr.IsValid():
			c.Skip = fmt.Sprintf("%s has no %s address here", s.Name, f)
		}
		p.add(c)
	}
}

// RunLocal tests from this node and process, without making anything.
func RunLocal(ctx context.Context, t LocalTopology, opts Options, say Progress) (*Report, error) {
	start := time.Now()
	cells := LocalPlan(t, opts.Filter)
	plan := ProbePlan{Token: NewToken().String(), Timeout: opts.CellTimeout, Retries: opts.Retries, Concurrency: concurrency}
	for _, c := range cells {
		if c.Runs() {
			plan.Cells = append(plan.Cells, c)
		}
	}
	say.Stage(fmt.Sprintf("running %d cells from this node", len(plan.Cells)))
	limit := opts.Timeout
	tctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the test's --timeout of %s is over", limit))
	defer cancel()
	results := map[int]Result{}
	failed := 0
	err := Probe(tctx, &plan, func(r Result) error {
		results[r.ID] = r
		if r.Error != "" {
			failed++
		}
		say.Cells(len(results), failed, len(plan.Cells))
		return nil
	})
	if ctx.Err() != nil {
		return nil, fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	if err != nil && tctx.Err() == nil {
		return nil, err
	}
	return NewReport("local", "node", cells, results, time.Since(start)), nil
}

// ClusterDNS finds the cluster's DNS servers in a resolv.conf that kubelet
// wrote. Without the cluster's search domains the file is the node's own.
func ClusterDNS(resolvConf string) Service {
	out := Service{Name: "kube-dns", Port: 53}
	out.Why = fmt.Sprintf("%s does not name the cluster's DNS; %s", resolvConf, elsewhere)
	f, err := os.Open(resolvConf)
	if err != nil {
		return out
	}
	defer f.Close()
	cluster := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		words := strings.Fields(sc.Text())
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil {
				out.Addrs = append(out.Addrs, a)
			}
		case "search":
			for _, w := range words[1:] {
				cluster = cluster || strings.HasPrefix(w, "svc.")
			}
		}
	}
	if cluster && len(out.Addrs) > 0 {
		out.Why = ""
	}
	return out
}
