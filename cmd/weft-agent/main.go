// SPDX-License-Identifier: Apache-2.0

// Command weft-agent is Weft's agent: one runs on each node.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/agent"
	"github.com/weft-net/weft/internal/k8s"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = "dev"

// gcPercent is how much the heap may grow before it is collected, unless GOGC
// says otherwise. The live heap is a few MiB, so that collecting at half is
// cheap, and what is not held is not charged to the node.
const gcPercent = 50

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "weft-agent:", err)
		os.Exit(1)
	}
}

// flags are common to all commands.
type flags struct {
	opts      agent.Options
	logFormat string
}

func command() *cobra.Command {
	f := &flags{opts: agent.Options{Version: version, Paths: agent.DefaultPaths(), Level: new(slog.LevelVar)}}
	root := &cobra.Command{
		Use: "weft-agent", Short: "Weft's agent: connects the pods of this node", Args: cobra.NoArgs,
		Version: version, SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return f.logger() },
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(gcPercent)
			}
			return agent.Run(cmd.Context(), f.opts)
		},
	}
	p := &f.opts.Paths
	fs := root.PersistentFlags()
	fs.StringVar(&f.opts.NodeName, "node-name", os.Getenv("K8S_NODE_NAME"), "name of this node's Node object (K8S_NODE_NAME)")
	fs.StringVar(&f.logFormat, "log-format", "text", "text or json")
	fs.StringVar(&p.Config, "config-dir", p.Config, "directory with one file a setting")
	fs.StringVar(&p.Run, "run-dir", p.Run, "directory of sockets and state, on tmpfs")
	fs.StringVar(&p.BPF, "bpf-root", p.BPF, "directory of pins, on bpffs")
	fs.StringVar(&p.CNIConf, "cni-conf-dir", p.CNIConf, "directory of CNI configurations")
	fs.StringVar(&p.CNIBin, "cni-bin-dir", p.CNIBin, "directory of CNI plugins")
	fs.StringVar(&p.HealthNetns, "health-netns", p.HealthNetns, "network namespace of the health endpoint")
	fs.StringVar(&p.Credentials, "credentials-dir", p.Credentials, "directory with ca.crt and token for the API server")
	root.AddCommand(initCommand(f), uninstallCommand(f))
	return root
}

func initCommand(f *flags) *cobra.Command {
	o := agent.InitOptions{BPFFS: "/sys/fs/bpf", Plugin: "/usr/bin/weft-cni"}
	c := &cobra.Command{
		Use: "init", Short: "Prepare this node: mounts, plugin, namespace of the health endpoint", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Options = f.opts
			return agent.Init(cmd.Context(), o)
		},
	}
	c.Flags().BoolVar(&o.MountCgroup, "mount-cgroup", false, "mount cgroup2 at the setting cgroup-root where it is missing")
	c.Flags().StringVar(&o.BPFFS, "bpffs", o.BPFFS, "where the BPF file system is mounted")
	c.Flags().StringVar(&o.Plugin, "plugin", o.Plugin, "the CNI plugin to install")
	return c
}

func uninstallCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "uninstall-node", Short: "Remove everything of Weft from this node", Args: cobra.NoArgs,
		Long: "Remove everything of Weft from this node: programs, maps, devices, routes, rules and files.\nPods that still run lose their network. The agent must have ended.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return agent.UninstallNode(cmd.Context(), f.opts, cmd.OutOrStdout())
		},
	}
}

// logger makes the one logger of this process.
func (f *flags) logger() error {
	ho := &slog.HandlerOptions{Level: f.opts.Level}
	switch f.logFormat {
	case "text":
		f.opts.Log = slog.New(slog.NewTextHandler(os.Stderr, ho))
	case "json":
		f.opts.Log = slog.New(slog.NewJSONHandler(os.Stderr, ho))
	default:
		return fmt.Errorf("--log-format %q is unknown: use text or json", f.logFormat)
	}
	k8s.RouteLogs(f.opts.Log)
	for _, p := range []*string{&f.opts.Paths.Run, &f.opts.Paths.BPF, &f.opts.Paths.HealthNetns} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("path %s: %w", *p, err)
		}
		*p = abs
	}
	return nil
}
