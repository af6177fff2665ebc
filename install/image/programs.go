// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// addPrograms puts Weft's programs under /usr/bin, compiled here or before.
func addPrograms(ctx context.Context, t *tree, o options, dir string) error {
	for _, name := range []string{"weft-agent", "weft-operator", "weft", "weft-cni"} {
		from := filepath.Join(o.bin, name)
		if o.bin == "" {
			from = filepath.Join(dir, name)
			if err := compile(ctx, o, "./cmd/"+name, from); err != nil {
				return err
			}
		}
		if err := t.copy("/usr/bin/"+name, from, 0o755); err != nil {
			return err
		}
	}
	// The runbooks of Cilium's users call the CLI by that name.
	t.symlink("/usr/bin/cilium", "weft")
	return nil
}

// compile builds a static program that does not depend on where it was built.
func compile(ctx context.Context, o options, pkg, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -buildid= -X main.version="+o.version, "-o", out, pkg)
	cmd.Dir = o.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: go build: %w", pkg, err)
	}
	return nil
}
