// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	var client bool
	c := &cobra.Command{
		Use: "version", Short: "Show the version of this program and of the agents", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.showVersion(cmd.Context(), client) },
	}
	c.Flags().BoolVar(&client, "client", false, "only this program; asks nobody")
	return c
}

// versions is what `version -o json` prints.
type versions struct {
	Client string            `json:"client"`
	Go     string            `json:"go"`
	Agents map[string]string `json:"agents,omitempty"` // by node
}

func (a *app) showVersion(ctx context.Context, clientOnly bool) error {
	v := versions{Client: a.version, Go: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH}
	var replies []reply
	if !clientOnly {
		rep, err := a.report(ctx)
		if err != nil {
			replies = append(replies, reply{err: err})
			rep = &report{}
		}
		v.Agents = map[string]string{}
		for _, n := range rep.Nodes {
			if n.Error != "" {
				replies = append(replies, reply{node: n.Node, err: fmt.Errorf("%s", n.Error)})
				continue
			}
			v.Agents[n.Node] = n.Version
		}
	}
	if a.opts.output != "table" {
		if err := printObject(a.Out, a.opts.output, v); err != nil {
			return err
		}
		return a.complain(replies)
	}
	fmt.Fprintf(a.Out, "weft %s (%s)\n", v.Client, v.Go)
	for _, n := range sortedKeys(v.Agents) {
		fmt.Fprintf(a.Out, "agent on %s: %s\n", n, v.Agents[n])
	}
	return a.complain(replies)
}
