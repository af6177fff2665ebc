// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of weft-lab.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/lab/internal/build"
	"github.com/weft-net/weft/lab/internal/host"
	"github.com/weft-net/weft/lab/internal/lab"
	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/relay"
	"github.com/weft-net/weft/lab/internal/state"
)

// app carries what all commands share.
type app struct {
	name string
	out  io.Writer
}

// Main runs the command line and returns the process' exit code.
func Main(version string) int {
	if len(os.Args) > 3 && os.Args[1] == host.Verb {
		fmt.Fprintln(os.Stderr, host.Init(os.Args[2], os.Args[3]))
		return 1
	}
	if len(os.Args) == 5 && os.Args[1] == relay.Verb {
		fmt.Fprintln(os.Stderr, lab.RunRelay(context.Background(), os.Args[2], os.Args[3], os.Args[4]))
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := root(os.Stdout, version).ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code) // the command said itself what is wrong
	}
	fmt.Fprintln(os.Stderr, "weft-lab:", err)
	return 1
}

func root(out io.Writer, version string) *cobra.Command {
	a := &app{out: out}
	c := &cobra.Command{
		Use:           "weft-lab",
		Short:         "Real multi-node Kubernetes clusters on one Linux machine",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		// so that --name may stand before verbs that pass their flags on
		TraverseChildren: true,
	}
	name := os.Getenv("WEFT_LAB_NAME")
	if name == "" {
		name = plan.Defaults().Name
	}
	c.PersistentFlags().StringVar(&a.name, "name", name, "name of the lab (or $WEFT_LAB_NAME)")
	c.AddCommand(a.build(), a.images(), a.up(), a.down(), a.status(), a.list(), a.exec(), a.run(), a.kubectl(), a.kubeconfig(), a.node(), a.cut(), a.heal(), a.link(), a.e2e())
	return c
}

func (a *app) build() *cobra.Command {
	var o build.Options
	c := &cobra.Command{
		Use:   "build",
		Short: "Compile Kubernetes, etcd, containerd and CoreDNS and pack the images (8 minutes cold, a second warm)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = a.out
			_, err := build.Run(cmd.Context(), o)
			return err
		},
	}
	c.Flags().BoolVar(&o.E2E, "with-e2e", false, "the upstream end-to-end tests too (2 minutes more)")
	c.Flags().IntVar(&o.Jobs, "jobs", 2, "components to build at once")
	return c
}

func (a *app) images() *cobra.Command {
	c := &cobra.Command{Use: "images", Short: "Images in the lab's nodes", TraverseChildren: true}
	c.AddCommand(&cobra.Command{
		Use:   "load FILE.tar...",
		Short: "Import image archives (OCI layout or docker save) into all nodes",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return lab.LoadImages(cmd.Context(), a.name, args, a.out)
		},
	})
	return c
}

func (a *app) up() *cobra.Command {
	o := plan.Defaults()
	u := lab.UpOptions{Out: a.out}
	var nodeCIDRs bool
	c := &cobra.Command{
		Use:   "up",
		Short: "Bring a lab up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Name, o.NoNodeCIDRs = a.name, !nodeCIDRs
			return lab.Up(cmd.Context(), o, u)
		},
	}
	f := c.Flags()
	f.IntVar(&o.Nodes, "nodes", o.Nodes, "number of nodes")
	f.IntVar(&o.Subnets, "subnets", o.Subnets, "node subnets behind the router: 1 or 2")
	f.IntVar(&o.NICs, "nics", o.NICs, "network devices of a node: 1 or 2")
	f.IntVar(&o.MTU, "mtu", o.MTU, "MTU of every link")
	f.StringVar(&o.CNI, "cni", o.CNI, "network: ptp (stand-in), weft (left empty for the chart) or none")
	f.StringVar(&o.Proxy, "kube-proxy", o.Proxy, "kube-proxy mode: iptables, nftables or none")
	f.BoolVar(&nodeCIDRs, "node-cidrs", true, "have kube-controller-manager give each node pod ranges; without, nothing routes pods either")
	f.BoolVar(&o.RoutePods, "route-pods", o.RoutePods, "routes to pod ranges in the router and the nodes")
	f.BoolVar(&o.DNS, "dns", o.DNS, "install CoreDNS")
	f.StringArrayVar(&o.Taints, "taint", nil, "taint KEY[=VALUE]:EFFECT that nodes register with (repeatable)")
	f.BoolVar(&u.Replace, "replace", false, "take a lab of this name down first")
	return c
}

func (a *app) down() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Take a lab away, whatever state it is in",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !all {
				return lab.Down(cmd.Context(), a.name, a.out)
			}
			names, err := state.List()
			for _, n := range names {
				err = errors.Join(err, lab.Down(cmd.Context(), n, a.out))
			}
			return err
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all labs")
	return c
}

func (a *app) open() (*lab.Lab, error) { return lab.Open(a.name, a.out) }

func (a *app) status() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the lab's hosts, addresses and cuts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			s := l.Status(cmd.Context())
			if output == "json" {
				e := json.NewEncoder(a.out)
				e.SetIndent("", "  ")
				return e.Encode(s)
			}
			return s.Print(a.out)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

func (a *app) list() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Name all labs on this machine",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			names, err := state.List()
			for _, n := range names {
				fmt.Fprintln(a.out, n)
			}
			return err
		},
	}
}

// exitError is how a command of the user's ended.
type exitError int

func (c exitError) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// afterDash drops the -- that may stand before a command.
func afterDash(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

func (a *app) exec() *cobra.Command {
	c := &cobra.Command{
		Use:     "exec HOST [--] COMMAND [ARG...]",
		Short:   "Run a command in a node, cp, client, firewall or the router",
		Example: "  weft-lab exec n1 -- ip route\n  weft-lab exec client -- curl -s http://172.18.1.11:30080",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			argv := afterDash(args[1:])
			if len(argv) == 0 {
				return errors.New("exec: no command given")
			}
			err = l.Exec(cmd.Context(), args[0], argv)
			if code, ok := host.ExitCode(err); ok {
				return exitError(code)
			}
			return err
		},
	}
	c.Flags().SetInterspersed(false)
	return c
}

func (a *app) run() *cobra.Command {
	c := &cobra.Command{
		Use:     "run [--] COMMAND [ARG...]",
		Short:   "Run a command of this machine where the API server can be reached, with KUBECONFIG and kubectl",
		Example: "  weft-lab run -- helm list -A",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			return l.Run(afterDash(args))
		},
	}
	c.Flags().SetInterspersed(false)
	return c
}

func (a *app) kubectl() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl [ARG...]",
		Short:              "kubectl for this lab; --name stands before the verb",
		Example:            "  weft-lab --name t1 kubectl get pods -A",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 && strings.HasPrefix(args[0], "--name=") {
				a.name, args = strings.TrimPrefix(args[0], "--name="), args[1:]
			}
			args = afterDash(args)
			l, err := a.open()
			if err != nil {
				return err
			}
			return l.Kubectl(args)
		},
	}
}

func (a *app) kubeconfig() *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the path of the admin's kubeconfig (for use inside `weft-lab run`)",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, l.Kubeconfig())
			return nil
		},
	}
}

func (a *app) node() *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "Add and remove nodes", TraverseChildren: true}
	var subnet string
	add := &cobra.Command{
		Use:   "add [nK]",
		Short: "Add a node",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return lab.AddNode(cmd.Context(), a.name, strings.Join(args, ""), subnet, a.out)
		},
	}
	add.Flags().StringVar(&subnet, "subnet", "", "a or b (default: by the node's number)")
	rm := &cobra.Command{
		Use:   "rm nK",
		Short: "End a node and delete its Node object",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return lab.RemoveNode(cmd.Context(), a.name, args[0], a.out)
		},
	}
	c.AddCommand(add, rm)
	return c
}
