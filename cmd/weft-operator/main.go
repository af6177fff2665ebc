// SPDX-License-Identifier: Apache-2.0

// Command weft-operator is Weft's operator: it gives nodes their ranges of pod
// addresses and removes what nodes that are gone left behind.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/operator"
	"github.com/weft-net/weft/internal/operator/kube"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = "dev"

// gcPercent is how much the heap may grow before it is collected, unless GOGC
// says otherwise: the operator has little to do, and memory costs more than that.
const gcPercent = 50

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "weft-operator:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	o := operator.Options{Version: version, Level: new(slog.LevelVar), Terms: kube.DefaultTerms()}
	logFormat := "text"
	c := &cobra.Command{
		Use: "weft-operator", Short: "Weft's operator: gives nodes their ranges of pod addresses", Args: cobra.NoArgs,
		Version: version, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(logFormat, o.Level)
			if err != nil {
				return err
			}
			o.Log = log
			kube.RouteLogs(log)
			if o.Identity == "" {
				if o.Identity, err = os.Hostname(); err != nil {
					return fmt.Errorf("identity: %w: name this process with --identity", err)
				}
			}
			// Two processes on one machine are two.
			o.Identity = fmt.Sprintf("%s_%d", o.Identity, os.Getpid())
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(gcPercent)
			}
			return operator.Run(cmd.Context(), o)
		},
	}
	fs := c.Flags()
	fs.StringVar(&o.Identity, "identity", os.Getenv("K8S_POD_NAME"), "name of this process in the Lease (K8S_POD_NAME)")
	fs.StringVar(&o.Namespace, "namespace", orDefault(os.Getenv("K8S_NAMESPACE"), "kube-system"), "namespace of the Lease (K8S_NAMESPACE)")
	fs.StringVar(&o.ConfigDir, "config-dir", "/etc/weft/config", "directory with one file a setting")
	fs.StringVar(&o.CredentialsDir, "credentials-dir", kube.CredentialsDir, "directory with ca.crt and token for the API server")
	fs.StringVar(&logFormat, "log-format", logFormat, "text or json")
	return c
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// logger makes the one logger of this process.
func logger(format string, level *slog.LevelVar) (*slog.Logger, error) {
	ho := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, ho)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, ho)), nil
	}
	return nil, fmt.Errorf("--log-format %q is unknown: use text or json", format)
}
