// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of Weft: commands, the choice of where their
// answers come from (the agent's socket, pins and netlink alone, or every
// agent of a cluster through pods/exec) and their rendering.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/weft-net/weft/internal/cli/kube"
	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/rpc"
)

// Exit codes of every verb.
const (
	ExitOK      = 0
	ExitFailing = 1 // asked and answered: something is wrong
	ExitUsage   = 2 // not understood, or (part of) the cluster did not answer
)

// Streams are where the commands read and write.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Main runs the command line args (without the program's name) and returns the
// exit code. name is how the program was called: weft, cilium (its name in the
// runbooks) or kubectl-weft behave alike. version is what `weft version` shows.
func Main(ctx context.Context, name string, args []string, version string, s Streams) int {
	// The Kubernetes libraries log each stream that ^C or a timeout cut; what
	// matters comes back as an error.
	klog.SetLogger(logr.Discard())
	return newApp(s, version).run(ctx, filepath.Base(name), args)
}

// run runs one command line and returns the exit code.
func (a *app) run(ctx context.Context, name string, args []string) int {
	root := a.root(name)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{code: ExitUsage, err: err}
	}
	if exit.err != nil {
		fmt.Fprintf(a.Err, "Error: %s\n", exit.err)
	}
	return exit.code
}

// exitError carries an exit code; err is nil where all has been said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// cluster is what the commands need of a Kubernetes API server.
type cluster interface {
	Get(ctx context.Context, path string, out any) error
	Raw(ctx context.Context, path string, limit int64) ([]byte, error)
	Do(ctx context.Context, method, path string, in, out any) error
	Exec(ctx context.Context, r kube.ExecRequest) error
}

// app is one run of the command line: its flags and the outside world.
type app struct {
	Streams
	version string
	opts    options
	connect func(kubeconfig, kubecontext string) (cluster, error)
	paths   paths
	env     func(string) string
	proxy   nodeProxy
}

// options are the global flags.
type options struct {
	output      string
	kubeconfig  string
	context     string
	namespace   string
	nodes       []string
	nodeTimeout time.Duration
	local       bool
}

// paths are the places on a node that decide where answers come from.
type paths struct {
	socket    string
	pins      string // datapath.DefaultRoot: pinned maps and links
	endpoints string // state file
	cniConf   string
}

func newApp(s Streams, version string) *app {
	return &app{
		Streams: s,
		version: version,
		env:     os.Getenv,
		proxy:   thisNode{},
		connect: func(kubeconfig, kubecontext string) (cluster, error) {
			return kube.Load(kubeconfig, kubecontext)
		},
		paths: paths{
			socket:    rpc.SocketPath,
			pins:      datapath.DefaultRoot,
			endpoints: "/var/run/weft/endpoints.json",
			cniConf:   "/etc/cni/net.d",
		},
	}
}

const rootLong = `Weft's command line: what the network of a Kubernetes cluster does, and whether it works.

On a node and in the agent's container it asks the agent there through its unix
socket; where no agent runs, the pinned maps. Everywhere else it finds the cluster
through your kubeconfig and asks every agent at once through pods/exec.

Exit codes: 0 all well, 1 something is wrong, 2 wrong usage or somebody did not answer.`

func (a *app) root(name string) *cobra.Command {
	root := &cobra.Command{
		Use:           "weft",
		Short:         "See and test the network of a Kubernetes cluster",
		Long:          rootLong,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	switch name {
	case "cilium":
		root.Use = "cilium"
	case "kubectl-weft":
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl weft"}
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.CompletionOptions.DisableDefaultCmd = false

	f := root.PersistentFlags()
	f.StringVarP(&a.opts.output, "output", "o", "table", "how to print: table, json or yaml")
	f.StringVar(&a.opts.kubeconfig, "kubeconfig", "", "kubeconfig file; asks the cluster even on a node")
	f.StringVar(&a.opts.context, "context", "", "context in the kubeconfig; asks the cluster even on a node")
	f.StringVarP(&a.opts.namespace, "namespace", "n", "kube-system", "namespace of the agents")
	f.StringSliceVar(&a.opts.nodes, "node", nil, "only these nodes (repeat, or separate by commas); asks the cluster even on a node")
	f.DurationVar(&a.opts.nodeTimeout, "node-timeout", 15*time.Second, "how long one node may take to answer")
	f.BoolVar(&a.opts.local, "local", false, "ask this node only")
	_ = f.MarkHidden("local") // how the CLI calls itself inside an agent's container
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		switch a.opts.output {
		case "table", "json", "yaml":
			return nil
		}
		return fmt.Errorf("--output %q: give table, json or yaml", a.opts.output)
	}
	root.AddCommand(
		a.statusCommand(), a.endpointCommand(), a.nodeCommand(), a.serviceCommand(), a.ipamCommand(), a.bpfCommand(), a.monitorCommand(),
		a.connectivityCommand(), a.sysdumpCommand(), a.kubeProxyCommand(), a.uninstallCommand(), a.holdCommand(), a.sweepCommand(), a.versionCommand(),
	)
	return root
}

// wantsCluster says whether the flags name a cluster, so that the node that
// this happens to run on does not matter.
func (a *app) wantsCluster() bool {
	return !a.opts.local && (a.opts.kubeconfig != "" || a.opts.context != "" || len(a.opts.nodes) > 0)
}

// onNode says whether answers come from this node.
func (a *app) onNode() bool {
	if a.opts.local {
		return true
	}
	if a.wantsCluster() {
		return false
	}
	return exists(a.paths.socket) || exists(filepath.Join(a.paths.pins, "maps"))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names := make([]string, 0, len(subs))
			for _, s := range subs {
				if !s.Hidden {
					names = append(names, s.Name())
				}
			}
			return fmt.Errorf("%s: give one of: %s", cmd.CommandPath(), strings.Join(names, ", "))
		},
	}
	c.AddCommand(subs...)
	return c
}
