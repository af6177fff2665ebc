// SPDX-License-Identifier: Apache-2.0

// The weft-lab program brings up real multi-node Kubernetes clusters on one
// Linux machine.
package main

import (
	"os"

	"github.com/weft-net/weft/lab/internal/cli"
)

func main() { os.Exit(cli.Main()) }
