// SPDX-License-Identifier: Apache-2.0

// Command weft is Weft's command line, for the laptop, the node and the
// agent's container, where it is called cilium as well.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/weft-net/weft/internal/cli"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second ^C ends at once: the first one cleans up.
	context.AfterFunc(ctx, stop)
	return cli.Main(ctx, os.Args[0], os.Args[1:], version, cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
}
