// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

// listing is a verb that prints rows.
type listing struct {
	use, short string
	verb       []string // how the CLI asks itself on a node
	path       string   // of the local API
	// offline reads the rows where no agent answers; nil where only an agent knows.
	offline func(ctx context.Context) (any, error)
	// local takes the agent's place on the node; nil for what the agent is asked.
	local func(ctx context.Context) (any, error)
	args  cobra.PositionalArgs
	// none is said beside a table without rows; empty: it speaks for itself.
	none string
}

func listCommand[T any, P row[T]](a *app, l listing) *cobra.Command {
	if l.args == nil {
		l.args = cobra.NoArgs
	}
	return &cobra.Command{
		Use: l.use, Short: l.short, Args: l.args,
		RunE: func(cmd *cobra.Command, _ []string) error {
			replies, merged, err := a.rows(cmd.Context(), l)
			if err != nil {
				return err
			}
			if err := a.firstFailure(replies, merged); err != nil {
				return err
			}
			n, err := printRows[T, P](a.Out, a.opts.output, replies, merged)
			if err != nil {
				return err
			}
			if n == 0 && l.none != "" {
				fmt.Fprintln(a.Err, l.none)
			}
			return a.complain(replies)
		},
	}
}

// firstFailure ends a verb that has nothing to print: this node did not answer.
func (a *app) firstFailure(replies []reply, merged bool) error {
	if !merged && len(replies) == 1 {
		return replies[0].err
	}
	return nil
}

// rows fetches the listing from wherever it is to be had. merged says that the
// replies are of several nodes.
func (a *app) rows(ctx context.Context, l listing) (replies []reply, merged bool, err error) {
	if a.onNode() {
		b, err := a.localRows(ctx, l)
		return []reply{{body: b, err: err}}, false, nil
	}
	f, err := a.fleet(ctx)
	if err != nil {
		return nil, false, err
	}
	return f.ask(ctx, append(l.verb, "-o", "json")...), true, nil
}

func (a *app) localRows(ctx context.Context, l listing) ([]byte, error) {
	if l.local != nil {
		rows, err := l.local(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(l.verb, " "), err)
		}
		return json.Marshal(rows)
	}
	c := rpc.NewClient(a.paths.socket)
	defer c.Close()
	b, err := c.Get(ctx, l.path)
	if !errors.Is(err, rpc.ErrNoAgent) {
		return b, err
	}
	if l.offline == nil {
		return nil, fmt.Errorf("%s: %w; start the agent, or use `weft bpf` which reads the pinned maps without one", strings.Join(l.verb, " "), err)
	}
	rows, oerr := l.offline(ctx)
	if oerr != nil {
		return nil, fmt.Errorf("%w, and without it: %w", err, oerr)
	}
	fmt.Fprintln(a.Err, "No agent answers; this is what it left behind.")
	return json.Marshal(rows)
}

func (a *app) nodeCommand() *cobra.Command {
	return group("node", "Nodes of the cluster as the agents see them",
		listCommand[table.Node](a, listing{
			use: "list", short: "List the nodes that an agent knows",
			verb: []string{"node", "list"}, path: rpc.PathNodes,
		}))
}

func (a *app) serviceCommand() *cobra.Command {
	return group("service", "Services and their backends as connections find them",
		listCommand[table.Frontend](a, listing{
			use: "list", short: "List what connections to Services go to, and which backends may answer",
			verb: []string{"service", "list"}, path: rpc.PathServices,
			none: "No frontends. Without kubeProxyReplacement=true or socketLB.enabled=true Services are kube-proxy's alone; `weft status` says more.",
		}))
}

func (a *app) endpoints() listing {
	return listing{
		use: "list", short: "List the pods' attachments to the network",
		verb: []string{"endpoint", "list"}, path: rpc.PathEndpoints,
		offline: a.endpointsFromState,
	}
}

func (a *app) endpointCommand() *cobra.Command {
	get := &cobra.Command{
		Use: "get ID", Short: "Show one endpoint, by number or namespace/pod", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.endpointGet(cmd.Context(), args[0]) },
	}
	return group("endpoint", "The pods' attachments to the network", listCommand[table.Endpoint](a, a.endpoints()), get)
}

// endpointsFromState reads the state file that the agent writes.
func (a *app) endpointsFromState(context.Context) (any, error) {
	b, err := os.ReadFile(a.paths.endpoints)
	if err != nil {
		return nil, err
	}
	return parseState(b)
}

// parseState accepts the rows alone and the rows under "endpoints".
func parseState(b []byte) ([]table.Endpoint, error) {
	var rows []table.Endpoint
	if json.Unmarshal(b, &rows) == nil {
		return rows, nil
	}
	var doc struct {
		Endpoints []table.Endpoint `json:"endpoints"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("state file: %w", err)
	}
	return doc.Endpoints, nil
}

// endpointGet prints the endpoints with the number or name. Numbers are each
// node's own, so that several nodes may have one.
func (a *app) endpointGet(ctx context.Context, key string) error {
	replies, merged, err := a.rows(ctx, a.endpoints())
	if err != nil {
		return err
	}
	if err := a.firstFailure(replies, merged); err != nil {
		return err
	}
	found := 0
	for i := range replies {
		if replies[i].err != nil {
			continue
		}
		kept, err := selectEndpoints(replies[i].body, key)
		if err != nil {
			return fmt.Errorf("%s%w", prefix(replies[i].node), err)
		}
		found += len(kept)
		if replies[i].body, err = json.Marshal(kept); err != nil {
			return err
		}
	}
	output := a.opts.output
	if output == "table" {
		output = "yaml" // one object is read top to bottom
	}
	if found > 0 {
		if err := printRaw(a.Out, output, replies, merged); err != nil {
			return err
		}
	}
	if err := a.complain(replies); err != nil {
		return err
	}
	if found == 0 {
		return &exitError{code: ExitFailing, err: fmt.Errorf("endpoint %s: not found; `weft endpoint list` shows all", key)}
	}
	return nil
}

func selectEndpoints(body []byte, key string) ([]json.RawMessage, error) {
	var objs []json.RawMessage
	if err := json.Unmarshal(body, &objs); err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	kept := []json.RawMessage{}
	for _, o := range objs {
		var e table.Endpoint
		if err := json.Unmarshal(o, &e); err != nil {
			return nil, fmt.Errorf("answer: %w", err)
		}
		if strconv.Itoa(int(e.ID)) == key || e.Name() == key || e.Pod == key {
			kept = append(kept, o)
		}
	}
	return kept, nil
}
