// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/connectivity"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

const mtuLong = `Measures, from each node to each other and in both families, the largest packet that
arrives in one piece and is answered: to the node's own address, and to its health
endpoint by the way that pods' packets take (kind "pods"), by the overlay where there
is one. It compares that with what the node's routes and devices say.

"larger packets vanish" is a path MTU black hole: connections open and stall as soon
as data flows. Find the device between the two that has a smaller MTU and the filter
that drops its ICMP errors, or set MTU (Helm) to what passes between the nodes: Weft takes
the overlay's headers off itself. "senders are told" costs the first packets of each
connection and is mended in the same way. Ends with exit code 1 unless every path is ok.`

func (a *app) connectivityMTU() *cobra.Command {
	l := listing{
		verb: []string{"connectivity", "mtu"},
		local: func(ctx context.Context) (any, error) {
			c := rpc.NewClient(a.paths.socket)
			defer c.Close()
			nodes, err := rpc.Fetch[[]table.Node](ctx, c, rpc.PathNodes)
			if err != nil {
				return nil, fmt.Errorf("nodes to measure: %w; start this node's agent", err)
			}
			return connectivity.PathMTUs(ctx, nodes), nil
		},
	}
	return &cobra.Command{
		Use: "mtu", Short: "Measure the largest packet between nodes and between their pods", Long: mtuLong, Args: cobra.NoArgs,
		Example: "  weft connectivity mtu\n  weft connectivity mtu --node n1 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			replies, merged, err := a.rows(cmd.Context(), l)
			if err != nil {
				return err
			}
			if err := a.firstFailure(replies, merged); err != nil {
				return err
			}
			if _, err := printRows[connectivity.PathMTU](a.Out, a.opts.output, replies, merged); err != nil {
				return err
			}
			if err := a.complain(replies); err != nil {
				return err
			}
			return narrow(replies)
		},
	}
}

// narrow ends with the exit code of what fails unless every path is as wide as
// its route says.
func narrow(replies []reply) error {
	for _, r := range replies {
		var rows []connectivity.PathMTU
		if err := json.Unmarshal(r.body, &rows); err != nil {
			return fmt.Errorf("%sanswer: %w", prefix(r.node), err)
		}
		for i := range rows {
			if rows[i].Verdict != connectivity.PathFits {
				return &exitError{code: ExitFailing}
			}
		}
	}
	return nil
}
