// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/renameio/v2"
)

// result says what was written.
type result struct {
	digest      string // of the image's manifest
	archiveSize int64  // bytes
}

// writeImage puts the layers and their description into an archive, which
// appears whole or not at all.
func writeImage(o options, layers ...[]byte) (*result, error) {
	ref, err := name.NewTag(o.name)
	if err != nil {
		return nil, fmt.Errorf("name %q: %w", o.name, err)
	}
	img, err := assemble(o.version, layers)
	if err != nil {
		return nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return nil, err
	}
	f, err := renameio.NewPendingFile(o.out, renameio.WithPermissions(0o644))
	if err != nil {
		return nil, err
	}
	defer f.Cleanup()
	if err := tarball.Write(ref, img, f); err != nil {
		return nil, fmt.Errorf("%s: %w", o.out, err)
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return nil, err
	}
	return &result{digest: digest.String(), archiveSize: size}, nil
}

func assemble(version string, layers [][]byte) (v1.Image, error) {
	img := empty.Image
	for _, raw := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil })
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return nil, err
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	cf.Created = v1.Time{Time: epoch()}
	cf.History = nil
	cf.Config = v1.Config{
		Env:        []string{"PATH=/usr/bin:/usr/sbin", "HOME=/root"},
		Cmd:        []string{"/usr/bin/weft-agent"},
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":    "Weft",
			"org.opencontainers.image.source":   "https://github.com/weft-net/weft",
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.version":  version,
		},
	}
	return mutate.ConfigFile(img, cf)
}
