// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/rpc"
)

func (a *app) ipamCommand() *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "Show who has which addresses, what is free and what comes next", Args: cobra.NoArgs,
		Long: "Show who has which addresses. From a laptop: the pool, each node's ranges, what rests in quarantine,\n" +
			"what keeps ranges from being given out, and how long the pool lasts. On a node, or with --node:\n" +
			"that node's ranges and the address of each pod.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.onNode() || len(a.opts.nodes) > 0 {
				return a.ipamNodes(cmd.Context())
			}
			return a.ipamCluster(cmd.Context())
		},
	}
	return group("ipam", "Addresses of pods and ranges of nodes", show)
}

// ipamNodes prints what agents know of their own addresses.
func (a *app) ipamNodes(ctx context.Context) error {
	l := listing{verb: []string{"ipam", "show"}, path: rpc.PathIPAM}
	replies, merged, err := a.rows(ctx, l)
	if err != nil {
		return err
	}
	if err := a.firstFailure(replies, merged); err != nil {
		return err
	}
	var all []nodeIPAM
	for _, r := range replies {
		if r.err != nil {
			continue
		}
		n := nodeIPAM{Node: r.node}
		if err := json.Unmarshal(r.body, &n.IPAM); err != nil {
			return fmt.Errorf("%sanswer: %w", prefix(r.node), err)
		}
		all = append(all, n)
	}
	if a.opts.output != "table" {
		var v any = all
		if !merged && len(all) == 1 {
			v = all[0].IPAM // as the agent's own CLI passes it on
		}
		if err := printObject(a.Out, a.opts.output, v); err != nil {
			return err
		}
		return a.complain(replies)
	}
	for i, n := range all {
		if i > 0 {
			fmt.Fprintln(a.Out)
		}
		if err := a.printNodeIPAM(n); err != nil {
			return err
		}
	}
	return a.complain(replies)
}

// nodeIPAM is one node's account.
type nodeIPAM struct {
	Node string `json:"node"`
	rpc.IPAM
}

func (a *app) printNodeIPAM(n nodeIPAM) error {
	if n.Node != "" {
		fmt.Fprintln(a.Out, "Node "+n.Node)
	}
	fmt.Fprintf(a.Out, "IPAM mode %s\n\n", n.Mode)
	var ranges [][]string
	for _, r := range n.Ranges {
		ranges = append(ranges, rangeRow(r))
	}
	if err := printTable(a.Out, []string{"RANGE", "IN USE", "RESTING", "ADDRESSES"}, ranges); err != nil {
		return err
	}
	if n.Outside > 0 {
		fmt.Fprintf(a.Out, "\n%d addresses in use are in none of these ranges: delete those pods, so that they get new ones\n", n.Outside)
	}
	for _, p := range n.Problems {
		fmt.Fprintln(a.Out, "\n"+p)
	}
	fmt.Fprintln(a.Out)
	var rows [][]string
	for _, x := range n.Addresses {
		rows = append(rows, []string{x.IP.String(), x.Owner})
	}
	return printTable(a.Out, []string{"ADDRESS", "USED BY"}, rows)
}

func rangeRow(r ipam.RangeStatus) []string {
	return []string{r.Prefix.String(), count(r.Used), count(r.Quarantined), count(r.Total)}
}

func count(n uint64) string {
	if n == math.MaxUint64 {
		return "2^64 or more"
	}
	return strconv.FormatUint(n, 10)
}

// ipamCluster prints what the API server knows of a cluster's ranges.
func (a *app) ipamCluster(ctx context.Context) error {
	api, err := a.connect(a.opts.kubeconfig, a.opts.context)
	if err != nil {
		return err
	}
	v, err := readIPAM(ctx, api, a.opts.namespace, time.Now())
	if err != nil {
		return err
	}
	if a.opts.output != "table" {
		return printObject(a.Out, a.opts.output, v)
	}
	if err := a.printIPAM(v); err != nil {
		return err
	}
	if len(v.Problems) > 0 {
		return &exitError{code: ExitFailing}
	}
	return nil
}

func (a *app) printIPAM(v *ipamView) error {
	fmt.Fprintf(a.Out, "IPAM mode %s\n", v.Mode)
	if len(v.Pools) > 0 {
		fmt.Fprintln(a.Out)
		var rows [][]string
		for _, p := range v.Pools {
			rows = append(rows, []string{
				p.Pool, p.Family, strings.Join(p.CIDRs, ","), "/" + strconv.Itoa(p.MaskSize), count(p.Total), count(p.Held), count(p.Quarantined), count(p.Blocked),
				count(p.Free), p.Next, p.Lasts,
			})
		}
		header := []string{"POOL", "FAMILY", "RANGES", "A NODE", "BLOCKS", "HELD", "QUARANTINED", "BLOCKED", "FREE", "NEXT", "LASTS"}
		if err := printTable(a.Out, header, rows); err != nil {
			return err
		}
	}
	fmt.Fprintln(a.Out)
	var rows [][]string
	for _, n := range v.Nodes {
		rows = append(rows, []string{n.Node, strings.Join(n.Ranges, ","), n.Problem})
	}
	if err := printTable(a.Out, []string{"NODE", "RANGES", "PROBLEM"}, rows); err != nil {
		return err
	}
	if len(v.Quarantine) > 0 {
		fmt.Fprintln(a.Out)
		rows = nil
		for _, q := range v.Quarantine {
			rows = append(rows, []string{q.CIDR, q.Node, q.At.UTC().Format(time.DateTime), q.Waits})
		}
		if err := printTable(a.Out, []string{"IN QUARANTINE", "GIVEN BACK BY", "AT (UTC)", "WAITS FOR"}, rows); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		title string
		lines []string
	}{{"Not given out, or to be looked at:", v.Findings}, {"Problems:", v.Problems}, {"Free ranges, as far as the nodes' routes tell:", v.Proposals}} {
		if len(s.lines) == 0 {
			continue
		}
		fmt.Fprintln(a.Out, "\n"+s.title)
		for _, l := range s.lines {
			fmt.Fprintln(a.Out, "  "+l)
		}
	}
	return nil
}

// forecast is how long a pool lasts, in words.
func forecast(d time.Duration) string {
	switch days := int(d / (24 * time.Hour)); {
	case d <= 0:
		return ""
	case days >= 2:
		return fmt.Sprintf("%d days", days)
	}
	return cmp.Or(d.Round(time.Minute).String(), "")
}
