// SPDX-License-Identifier: Apache-2.0

// The weft-lab program brings up real multi-node Kubernetes clusters on one
// Linux machine.
package main

import (
	"os"

	"github.com/weft-net/weft/lab/internal/cli"
)

var version = "dev" // the Makefile sets it

func main() { os.Exit(cli.Main(version)) }
