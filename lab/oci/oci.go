// SPDX-License-Identifier: Apache-2.0

// Package oci writes container images as OCI image layout archives, without a
// daemon and reproducibly: the same files give the same bytes. Formats follow
// the OCI image specification 1.1.
package oci

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"
	"strings"
)

// File is one entry of a layer. Exactly one of Source, Content and Link is
// used; with none of them and fs.ModeDir in Mode it is a directory.
type File struct {
	Path    string      // without a leading slash
	Mode    fs.FileMode // permission bits, fs.ModeDir, fs.ModeSticky
	Source  string      // a file on this machine
	Content []byte
	Link    string // target of a symbolic link
}

// Layer is an uncompressed layer in a temporary file.
type Layer struct {
	digest string
	size   int64
	file   string
}

// Config is how the container runs.
type Config struct {
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	Env        []string `json:"Env,omitempty"`
	User       string   `json:"User,omitempty"`
	WorkingDir string   `json:"WorkingDir,omitempty"`
}

// Image is a set of layers with a configuration and one or more full names
// ("registry.k8s.io/pause:3.10").
type Image struct {
	Names        []string
	Architecture string // as in GOARCH
	Config       Config
	Layers       []*Layer
}

// NewLayer packs files, sorted by path, owned by root and with time zero. Parent
// directories that are not listed are added. The caller removes the layer.
func NewLayer(tempDir string, files []File) (*Layer, error) {
	out, err := os.CreateTemp(tempDir, "layer-")
	if err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	sum := sha256.New()
	size := &counter{}
	tw := tar.NewWriter(io.MultiWriter(out, sum, size))
	err = writeFiles(tw, withParents(files))
	err = errors.Join(err, tw.Close(), out.Close())
	if err != nil {
		os.Remove(out.Name())
		return nil, fmt.Errorf("layer: %w", err)
	}
	return &Layer{digest: hex.EncodeToString(sum.Sum(nil)), size: size.n, file: out.Name()}, nil
}

// Remove deletes the temporary file.
func (l *Layer) Remove() { os.Remove(l.file) }

type counter struct{ n int64 }

func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return len(b), nil
}

func withParents(files []File) []File {
	byPath := map[string]File{}
	for _, f := range files {
		f.Path = path.Clean(strings.TrimPrefix(f.Path, "/"))
		byPath[f.Path] = f
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if _, ok := byPath[dir]; !ok {
				byPath[dir] = File{Path: dir, Mode: fs.ModeDir | 0o755}
			}
		}
	}
	list := make([]File, 0, len(byPath))
	for _, f := range byPath {
		list = append(list, f)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Path < list[j].Path })
	return list
}

func writeFiles(tw *tar.Writer, files []File) error {
	for _, f := range files {
		if err := writeFile(tw, f); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return nil
}

func writeFile(tw *tar.Writer, f File) error {
	h := &tar.Header{Name: f.Path, Mode: int64(f.Mode.Perm()), Format: tar.FormatPAX}
	if f.Mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	switch {
	case f.Mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, f.Path+"/"
		return tw.WriteHeader(h)
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		return tw.WriteHeader(h)
	case f.Source == "":
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Content))
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		_, err := tw.Write(f.Content)
		return err
	}
	in, err := os.Open(f.Source)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(tw, in)
	return err
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type imageConfig struct {
	platform
	Config Config `json:"config"`
	RootFS rootFS `json:"rootfs"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	Manifests     []descriptor `json:"manifests"`
}

const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// archive collects the blobs of an image layout.
type archive struct {
	tw   *tar.Writer
	seen map[string]bool
}

// Write writes an archive of images that `ctr images import` takes. A layer
// that several images share is written once.
func Write(w io.Writer, images ...Image) error {
	a := &archive{tw: tar.NewWriter(w), seen: map[string]bool{}}
	if err := a.put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	idx := index{SchemaVersion: 2}
	for _, img := range images {
		d, err := a.image(img)
		if err != nil {
			return fmt.Errorf("image %s: %w", strings.Join(img.Names, " "), err)
		}
		for _, name := range img.Names {
			d.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
			idx.Manifests = append(idx.Manifests, d)
		}
	}
	b, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	if err := a.put("index.json", b); err != nil {
		return err
	}
	return a.tw.Close()
}

func (a *archive) image(img Image) (descriptor, error) {
	p := platform{Architecture: img.Architecture, OS: "linux"}
	cfg := imageConfig{platform: p, Config: img.Config, RootFS: rootFS{Type: "layers"}}
	m := manifest{SchemaVersion: 2, MediaType: typeManifest}
	for _, l := range img.Layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, "sha256:"+l.digest)
		m.Layers = append(m.Layers, descriptor{MediaType: typeLayer, Digest: "sha256:" + l.digest, Size: l.size})
		if err := a.layer(l); err != nil {
			return descriptor{}, err
		}
	}
	var err error
	if m.Config, err = a.json(typeConfig, cfg); err != nil {
		return descriptor{}, err
	}
	d, err := a.json(typeManifest, m)
	d.Platform = &p
	return d, err
}

func (a *archive) layer(l *Layer) error {
	name := "blobs/sha256/" + l.digest
	if a.seen[name] {
		return nil
	}
	a.seen[name] = true
	f, err := os.Open(l.file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: l.size, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = io.Copy(a.tw, f)
	return err
}

func (a *archive) json(mediaType string, v any) (descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(b)
	digest := hex.EncodeToString(sum[:])
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: int64(len(b))}, a.put("blobs/sha256/"+digest, b)
}

func (a *archive) put(name string, b []byte) error {
	if a.seen[name] {
		return nil
	}
	a.seen[name] = true
	if err := a.tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := a.tw.Write(b)
	return err
}
