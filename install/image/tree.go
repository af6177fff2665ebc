// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// entry is a file, a link or a folder of the image.
type entry struct {
	mode    fs.FileMode // permissions and type
	content []byte
	link    string
}

// tree is what goes into one layer, by absolute path. Everything belongs to
// root and has the same time: nothing of the machine that builds gets in.
type tree struct {
	entries map[string]entry
}

func newTree() *tree { return &tree{entries: map[string]entry{}} }

// epoch is the time of all files. Zero would make some tools complain.
func epoch() time.Time { return time.Unix(1, 0).UTC() }

func (t *tree) dir(name string, perm fs.FileMode) {
	t.entries[path.Clean(name)] = entry{mode: fs.ModeDir | perm}
}

func (t *tree) file(name string, perm fs.FileMode, content []byte) {
	t.parents(name)
	t.entries[path.Clean(name)] = entry{mode: perm, content: content}
}

func (t *tree) symlink(name, target string) {
	t.parents(name)
	t.entries[path.Clean(name)] = entry{mode: fs.ModeSymlink | 0o777, link: target}
}

// copy takes a file from this machine, without its times and owner.
func (t *tree) copy(name, from string, perm fs.FileMode) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	t.file(name, perm, raw)
	return nil
}

func (t *tree) parents(name string) {
	for d := path.Dir(path.Clean(name)); d != "/"; d = path.Dir(d) {
		if _, ok := t.entries[d]; !ok {
			t.dir(d, 0o755)
		}
	}
}

// size is the sum of all files' lengths in bytes.
func (t *tree) size() int64 {
	var n int64
	for _, e := range t.entries {
		n += int64(len(e.content))
	}
	return n
}

// layer returns the tree as a tar archive, sorted by name.
func (t *tree) layer() ([]byte, error) {
	names := make([]string, 0, len(t.entries))
	for n := range t.entries {
		names = append(names, n)
	}
	slices.Sort(names)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, n := range names {
		e := t.entries[n]
		h := &tar.Header{
			Name: strings.TrimPrefix(n, "/"), Mode: int64(e.mode.Perm()), ModTime: epoch(), Format: tar.FormatUSTAR,
		}
		switch {
		case e.mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
			if e.mode&fs.ModeSticky != 0 {
				h.Mode |= 0o1000
			}
		case e.mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.content))
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		if _, err := w.Write(e.content); err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
