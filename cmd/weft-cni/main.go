// SPDX-License-Identifier: Apache-2.0

// Command weft-cni is Weft's CNI plugin. The container runtime executes it.
package main

import (
	"context"
	"os"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/cni/plugin"
)

func main() {
	os.Exit(plugin.Run(context.Background(), plugin.Env{
		Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Socket: cni.SocketPath, Queue: cni.Queue{Dir: cni.QueueDir}, UnreachableFile: cni.UnreachableFile,
	}))
}
