// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/rpc"
)

// pollInterval is how often `status --wait` looks again.
const pollInterval = 2 * time.Second

type statusFlags struct {
	verbose, wait bool
	waitDuration  time.Duration
}

func (a *app) statusCommand() *cobra.Command {
	var f statusFlags
	c := &cobra.Command{
		Use: "status", Short: "Show whether the network works, one line a component", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context(), f) },
	}
	c.Flags().BoolVar(&f.verbose, "verbose", false, "show details of each component and, from a laptop, of each node")
	c.Flags().BoolVar(&f.wait, "wait", false, "wait until every component is OK")
	c.Flags().DurationVar(&f.waitDuration, "wait-duration", 5*time.Minute, "how long --wait waits")
	return c
}

// report is what a status shows: the fleet's own line, and each node's account.
type report struct {
	Agents *rpc.Component `json:"agents,omitempty"` // nil on a node
	Nodes  []nodeStatus   `json:"nodes"`
}

// nodeStatus is one node's account of itself, or why there is none.
type nodeStatus struct {
	rpc.Status
	Error string `json:"error,omitempty"`
}

func (a *app) status(ctx context.Context, f statusFlags) error {
	rep, err := a.report(ctx)
	if f.wait {
		rep, err = a.waitOK(ctx, f.waitDuration, rep, err)
	}
	if err != nil {
		return err
	}
	if err := a.printReport(rep, f.verbose); err != nil {
		return err
	}
	return rep.exit()
}

// ready says whether nothing fails and every node takes pods.
func (r *report) ready() bool {
	for _, n := range r.Nodes {
		if !n.Ready {
			return false
		}
	}
	return r.exit() == nil
}

// waitOK polls until the report is well or the time is over, and returns the
// last report.
func (a *app) waitOK(ctx context.Context, limit time.Duration, rep *report, err error) (*report, error) {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for said := ""; err != nil || !rep.ready(); rep, err = a.report(ctx) {
		if line := waitingFor(rep, err); line != said {
			fmt.Fprintln(a.Err, "waiting: "+line)
			said = line
		}
		select {
		case <-ctx.Done():
			return rep, ctx.Err()
		case <-deadline.C:
			fmt.Fprintf(a.Err, "gave up after %s\n", limit)
			return rep, err
		case <-tick.C:
		}
	}
	return rep, nil
}

func waitingFor(rep *report, err error) string {
	if err != nil {
		return err.Error()
	}
	for _, l := range rep.lines() {
		if !rep.fine(l) {
			return l
		}
	}
	return "some nodes do not take pods yet"
}

// fine tells whether a line is that of a component with which all is well.
func (r *report) fine(l string) bool {
	is := func(c rpc.Component, node string) bool {
		return (c.State == rpc.StateOK || c.State == rpc.StateDisabled) && line(c, node) == l
	}
	if r.Agents != nil && is(*r.Agents, "") {
		return true
	}
	for _, n := range r.Nodes {
		for _, c := range n.Components {
			if is(c, r.nodeName(n)) {
				return true
			}
		}
	}
	return false
}

// report asks this node or all nodes once.
func (a *app) report(ctx context.Context) (*report, error) {
	if a.onNode() {
		return a.localReport(ctx)
	}
	f, err := a.fleet(ctx)
	if err != nil {
		return nil, err
	}
	rep := &report{Agents: &rpc.Component{Name: "Agents", State: rpc.StateOK}}
	d := f.daemon
	rep.Agents.Message = fmt.Sprintf("%d of %d ready", d.NumberReady, d.DesiredNumberScheduled)
	if d.NumberReady < d.DesiredNumberScheduled || d.DesiredNumberScheduled == 0 {
		rep.Agents.State = rpc.StateFailing
		rep.Agents.Message += fmt.Sprintf("; see `kubectl -n %s get pods -l k8s-app=cilium -o wide`", a.opts.namespace)
	}
	for _, r := range f.ask(ctx, "status", "-o", "json") {
		rep.Nodes = append(rep.Nodes, nodeStatusOf(r))
	}
	return rep, nil
}

// nodeStatusOf reads a node's own report, which holds that one node.
func nodeStatusOf(r reply) nodeStatus {
	ns := nodeStatus{}
	ns.Node = r.node
	if r.err != nil {
		ns.Error = r.err.Error()
		return ns
	}
	var own report
	if err := json.Unmarshal(r.body, &own); err != nil || len(own.Nodes) != 1 {
		ns.Error = fmt.Sprintf("answer not understood: %.80q", r.body)
		return ns
	}
	own.Nodes[0].Node = r.node
	return own.Nodes[0]
}

func (a *app) localReport(ctx context.Context) (*report, error) {
	ctx, cancel := context.WithTimeout(ctx, a.opts.nodeTimeout)
	defer cancel()
	c := rpc.NewClient(a.paths.socket)
	defer c.Close()
	st, err := rpc.Fetch[rpc.Status](ctx, c, rpc.PathStatus)
	ns := nodeStatus{Status: st}
	switch {
	case errors.Is(err, rpc.ErrNoAgent):
		ns.Error = err.Error()
		if left := a.leftBehind(ctx); left != nil {
			ns.Components = append(ns.Components, *left)
		}
	case err != nil:
		return nil, err
	default:
		ns.Components = withHubble(ns.Components)
	}
	return &report{Nodes: []nodeStatus{ns}}, nil
}

// withHubble adds the line that runbooks look for (`cilium status | grep
// Hubble`) where the agent has none.
func withHubble(cs []rpc.Component) []rpc.Component {
	for _, c := range cs {
		if c.Name == "Hubble" {
			return cs
		}
	}
	return append(cs, rpc.Component{Name: "Hubble", State: rpc.StateDisabled, Message: "not in this version; use `weft monitor`"})
}

func (a *app) printReport(rep *report, verbose bool) error {
	if a.opts.output != "table" {
		return printObject(a.Out, a.opts.output, rep)
	}
	for _, l := range rep.lines() {
		fmt.Fprintln(a.Out, l)
	}
	if verbose {
		rep.details(a.Out)
	}
	return nil
}

// exit returns the error to end with: unreachable before failing.
func (r *report) exit() error {
	failing := r.Agents != nil && r.Agents.State == rpc.StateFailing
	for _, n := range r.Nodes {
		if n.Error != "" {
			return &exitError{code: ExitUsage}
		}
		for _, c := range n.Components {
			failing = failing || c.State == rpc.StateFailing
		}
	}
	if failing {
		return &exitError{code: ExitFailing}
	}
	return nil
}

// lines renders one line a component, in the order in which the agents name
// them: "Name: OK" where it is so on every node, else a line for each reason.
func (r *report) lines() []string {
	var out []string
	if r.Agents != nil {
		out = append(out, line(*r.Agents, ""))
	}
	for _, n := range r.Nodes {
		if n.Error != "" {
			out = append(out, "Agent: "+prefix(r.nodeName(n))+n.Error)
		}
	}
	var names []string
	seen := map[string][]string{} // component → distinct lines
	for _, n := range r.Nodes {
		for _, c := range n.Components {
			if _, ok := seen[c.Name]; !ok {
				names = append(names, c.Name)
			}
			l := line(c, r.nodeName(n))
			if !slices.Contains(seen[c.Name], l) {
				seen[c.Name] = append(seen[c.Name], l)
			}
		}
	}
	for _, name := range names {
		ok := name + ": OK"
		for _, l := range seen[name] {
			if l != ok || len(seen[name]) == 1 {
				out = append(out, l)
			}
		}
	}
	return out
}

// nodeName is empty on a node, where all lines are its own.
func (r *report) nodeName(n nodeStatus) string {
	if r.Agents == nil {
		return ""
	}
	return n.Node
}

func line(c rpc.Component, node string) string {
	switch c.State {
	case rpc.StateOK:
		if c.Inline {
			return c.Name + ": " + c.Message
		}
		return c.Name + ": OK"
	case rpc.StateDisabled:
		if c.Message == "" {
			return c.Name + ": Disabled"
		}
		return c.Name + ": Disabled: " + c.Message
	case rpc.StateWarning:
		return c.Name + ": " + prefix(node) + "warning: " + c.Message
	}
	msg := c.Message
	if msg == "" {
		msg = string(c.State)
	}
	return c.Name + ": " + prefix(node) + msg
}

// details prints everything that the agents say.
func (r *report) details(w io.Writer) {
	for _, n := range r.Nodes {
		fmt.Fprintln(w)
		if n.Error != "" && n.Version == "" {
			fmt.Fprintf(w, "Node %s: %s\n", n.Node, n.Error)
			continue
		}
		fmt.Fprintf(w, "Node %s: version %s, up since %s, ready: %t\n", n.Node, n.Version, n.StartedAt.UTC().Format(time.RFC3339), n.Ready)
		for _, c := range n.Components {
			fmt.Fprintf(w, "  %s: %s", c.Name, c.State)
			if c.Message != "" {
				fmt.Fprintf(w, ": %s", c.Message)
			}
			fmt.Fprintln(w)
			for _, d := range c.Details {
				fmt.Fprintf(w, "    %s\n", d)
			}
		}
	}
}
