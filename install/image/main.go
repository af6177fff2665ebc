// SPDX-License-Identifier: Apache-2.0

// Command image builds Weft's container image without a container engine: Go
// programs from this repository, and a few tools of Debian with the libraries
// that they need, put into one archive that `ctr images import`, `docker load`
// and `skopeo` read. The same inputs give the same bytes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
)

// options are the flags.
type options struct {
	name    string // reference that the image is loaded under
	version string // of the programs, as `weft version` shows it
	out     string // the archive
	source  string // root of the repository
	bin     string // programs compiled already; empty: compile them
	cache   string // of Debian's packages
}

func main() {
	var o options
	flag.StringVar(&o.name, "name", "weft-net.local/weft:dev", "reference of the image")
	flag.StringVar(&o.version, "version", "dev", "version of the programs")
	flag.StringVar(&o.out, "out", "build/image/weft.tar", "archive to write")
	flag.StringVar(&o.source, "source", ".", "root of the repository")
	flag.StringVar(&o.bin, "programs", "", "folder of compiled programs; without it they are compiled")
	flag.StringVar(&o.cache, "cache", "build/image/debs", "folder that keeps Debian's packages")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if runtime.GOOS != "linux" {
		return errors.New("the image holds Debian's tools: build it on a Debian machine")
	}
	work, err := os.MkdirTemp("", "weft-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	t := newTree()
	if err := addSkeleton(t); err != nil {
		return err
	}
	if err := addDebian(ctx, t, o.cache, filepath.Join(work, "debian")); err != nil {
		return err
	}
	base, err := t.layer()
	if err != nil {
		return err
	}
	p := newTree()
	if err := addPrograms(ctx, p, o, filepath.Join(work, "bin")); err != nil {
		return err
	}
	programs, err := p.layer()
	if err != nil {
		return err
	}
	res, err := writeImage(o, base, programs)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s, %.1f MB of files (%.1f Debian's, %.1f Weft's), %.1f MB as archive, %s\n", o.out, o.name,
		mb(t.size()+p.size()), mb(t.size()), mb(p.size()), mb(res.archiveSize), res.digest)
	return nil
}

func mb(n int64) float64 { return float64(n) / 1e6 }
