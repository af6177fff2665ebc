// SPDX-License-Identifier: Apache-2.0

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command weft-cni is Weft's CNI plugin. The container runtime executes it.
//
// It lives for a few milliseconds, once for each pod, and all pods of a node may
// start together: the Go runtime need not read through all mounts of a node, of
// which there are thousands, to find out how many CPUs its cgroup has.
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
