// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/weft-net/weft/internal/connectivity"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/rpc"
)

// counters returns the packets that each hook has counted, by node. A node that
// does not answer is left out: its status will say why.
func (f *fleet) counters(ctx context.Context) map[string]map[string]uint64 {
	out := map[string]map[string]uint64{}
	for _, r := range f.ask(ctx, "bpf", "metrics", "list", "-o", "json") {
		var rows []maps.MetricRow
		if r.err != nil || json.Unmarshal(r.body, &rows) != nil {
			continue
		}
		hooks := map[string]uint64{}
		for _, row := range rows {
			if row.Class != reason.ClassNote { // notes come on top of a verdict
				hooks[row.Hook] += row.Packets
			}
		}
		out[r.node] = hooks
	}
	return out
}

// judgeAgents adds two cells a node. Packets can arrive although something is
// wrong: the kernel's own routing carries them where a program is missing.
func (f *fleet) judgeAgents(ctx context.Context, rep *connectivity.Report, before map[string]map[string]uint64) {
	for _, r := range f.ask(ctx, "status", "-o", "json") {
		row := agentRow(connectivity.AgentStatus, r.node)
		if why := failing(nodeStatusOf(r)); why != "" {
			row.Outcome, row.Error = connectivity.Failed, why
		}
		rep.Add(row)
	}
	after := f.counters(ctx)
	for _, ag := range f.agents {
		row := agentRow(connectivity.Programs, ag.node)
		switch {
		case before[ag.node] == nil || after[ag.node] == nil:
			row.Outcome, row.Skip = connectivity.Skipped, "the agent did not answer with its counters"
		case len(f.agents) < 2:
			row.Outcome, row.Skip = connectivity.Skipped, "there is only one node: not every hook has packets to count"
		default:
			if idle := idleHooks(rep.Network, before[ag.node], after[ag.node]); len(idle) > 0 {
				row.Outcome = connectivity.Failed
				row.Error = fmt.Sprintf("%s counted no packet during the test: not attached? see `weft status --verbose --node %s`", strings.Join(idle, " and "), ag.node)
			}
		}
		rep.Add(row)
	}
}

// idleHooks names the hooks that should have counted packets and did not. Those
// of the tunnel's device have none to count where there is no tunnel.
func idleHooks(n *connectivity.Network, before, after map[string]uint64) []string {
	var idle []string
	for _, h := range reason.Hooks() {
		if (h == reason.FromOverlay || h == reason.ToOverlay) && (n == nil || !n.Tunnels()) {
			continue
		}
		if after[h.String()] <= before[h.String()] {
			idle = append(idle, h.String())
		}
	}
	return idle
}

func agentRow(path connectivity.Path, node string) connectivity.Row {
	p := connectivity.Party{Kind: connectivity.KindNode, Node: node}
	return connectivity.Row{Cell: connectivity.Cell{Path: path, From: p, To: p}, Outcome: connectivity.Passed}
}

// failing says what an agent finds wrong, "" for nothing.
func failing(n nodeStatus) string {
	if n.Error != "" {
		return n.Error
	}
	var out []string
	for _, c := range n.Components {
		if c.State == rpc.StateFailing {
			out = append(out, c.Name+": "+c.Message)
		}
	}
	return strings.Join(out, "; ")
}
