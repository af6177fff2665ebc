// SPDX-License-Identifier: Apache-2.0

package oci_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/oci"
)

// archive packs the same image each time it is called, with files in the
// given order.
func archive(t *testing.T, source string, swap bool) []byte {
	t.Helper()
	dir := t.TempDir()
	files := []oci.File{
		{Path: "/usr/bin/prog", Mode: 0o755, Source: source},
		{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "bin/sh", Link: "/usr/bin/prog"},
		{Path: "etc/passwd", Mode: 0o644, Content: []byte("root:x:0:0::/:/bin/sh\n")},
	}
	if swap {
		files[0], files[3] = files[3], files[0]
	}
	base, err := oci.NewLayer(dir, files)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Remove()
	top, err := oci.NewLayer(dir, []oci.File{{Path: "a", Mode: 0o600, Content: []byte("a")}})
	if err != nil {
		t.Fatal(err)
	}
	defer top.Remove()
	var b bytes.Buffer
	err = oci.Write(&b,
		oci.Image{Names: []string{"example.org/one:1", "example.org/one:2"}, Architecture: "amd64", Config: oci.Config{Entrypoint: []string{"/bin/sh"}}, Layers: []*oci.Layer{base}},
		oci.Image{Names: []string{"example.org/two:1"}, Architecture: "amd64", Layers: []*oci.Layer{base, top}})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func entries(t *testing.T, b []byte) (map[string]*tar.Header, map[string][]byte) {
	t.Helper()
	headers, content := map[string]*tar.Header{}, map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers, content
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := headers[h.Name]; ok {
			t.Errorf("%s is there twice", h.Name)
		}
		headers[h.Name] = h
		if content[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func program(t *testing.T) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "prog")
	if err := os.WriteFile(p, []byte("#!/bin/true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// Guards against images that differ from build to build: by time, by the
// order of files, or by the machine's owners and modes.
func TestSameFilesGiveSameBytes(t *testing.T) {
	p := program(t)
	first := archive(t, p, false)
	if err := os.Chtimes(p, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, archive(t, p, true)) {
		t.Error("the same files in another order and with another time give other bytes")
	}
}

// Guards against a layout that containerd would refuse: blobs under other
// names than their digests, descriptors of what is not there.
func TestLayoutIsWhole(t *testing.T) {
	_, blobs := entries(t, archive(t, program(t), false))
	for name, b := range blobs {
		if path.Dir(name) != "blobs/sha256" {
			continue
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != path.Base(name) {
			t.Errorf("%s has digest %x", name, sum)
		}
	}
	type descriptor struct {
		Digest      string
		Size        int
		Annotations map[string]string
	}
	get := func(d descriptor, v any) {
		t.Helper()
		b, ok := blobs["blobs/sha256/"+d.Digest[len("sha256:"):]]
		if !ok || len(b) != d.Size {
			t.Fatalf("blob %s: %d bytes, want %d", d.Digest, len(b), d.Size)
		}
		if v == nil {
			return
		}
		if err := json.Unmarshal(b, v); err != nil {
			t.Fatal(err)
		}
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(blobs["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range index.Manifests {
		names = append(names, d.Annotations["io.containerd.image.name"])
		var m struct {
			Config descriptor
			Layers []descriptor
		}
		get(d, &m)
		var cfg struct {
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			} `json:"rootfs"`
		}
		get(m.Config, &cfg)
		if len(cfg.RootFS.DiffIDs) != len(m.Layers) {
			t.Fatalf("%s: %d diff ids for %d layers", names[len(names)-1], len(cfg.RootFS.DiffIDs), len(m.Layers))
		}
		for i, l := range m.Layers {
			get(l, nil)
			if cfg.RootFS.DiffIDs[i] != l.Digest {
				t.Errorf("layer %d: diff id %s, digest %s", i, cfg.RootFS.DiffIDs[i], l.Digest)
			}
		}
	}
	if got := len(names); got != 3 || names[1] != "example.org/one:2" {
		t.Errorf("names %v", names)
	}
}

// Guards against lost modes, links and parents in a layer.
func TestLayerHoldsFilesAsAsked(t *testing.T) {
	_, blobs := entries(t, archive(t, program(t), false))
	for name, b := range blobs {
		if path.Dir(name) != "blobs/sha256" || !bytes.Contains(b, []byte("usr/bin/prog")) || b[0] == '{' {
			continue
		}
		h, content := entries(t, b)
		for want, mode := range map[string]int64{"usr/": 0o755, "usr/bin/": 0o755, "usr/bin/prog": 0o755, "tmp/": 0o1777, "etc/passwd": 0o644} {
			if h[want] == nil || h[want].Mode != mode || h[want].Uid != 0 || !h[want].ModTime.Equal(time.Unix(0, 0)) {
				t.Errorf("%s: %+v, want mode %o, root's, time zero", want, h[want], mode)
			}
		}
		if h["bin/sh"] == nil || h["bin/sh"].Linkname != "/usr/bin/prog" {
			t.Errorf("bin/sh: %+v", h["bin/sh"])
		}
		if string(content["usr/bin/prog"]) != "#!/bin/true\n" {
			t.Errorf("content %q", content["usr/bin/prog"])
		}
		return
	}
	t.Error("no layer holds usr/bin/prog")
}
