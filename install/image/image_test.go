// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// repository and its package cache, as `make image` uses them.
const (
	repository = "../.."
	debCache   = "../../build/image/debs"
)

func needDebian(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("downloads Debian's packages; not in -short")
	}
	for _, tool := range []string{"apt-get", "dpkg"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is needed: %v", tool, err)
		}
	}
}

func debianLayer(t *testing.T) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	tr := newTree()
	if err := addSkeleton(tr); err != nil {
		t.Fatal(err)
	}
	if err := addDebian(ctx, tr, debCache, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	raw, err := tr.layer()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Fault: an order of maps, a time or a temporary path of this machine gets into
// the image, so that nobody can check which sources an image came from.
func TestSameInputsSameBytes(t *testing.T) {
	build := func(at time.Time, names ...string) string {
		dir := t.TempDir()
		tr := newTree()
		for _, n := range names {
			file := filepath.Join(dir, n)
			if err := os.WriteFile(file, []byte("content of "+n), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(file, at, at); err != nil {
				t.Fatal(err)
			}
			if err := tr.copy("/usr/bin/"+n, file, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		tr.symlink("/bin", "usr/bin")
		layer, err := tr.layer()
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(dir, "image.tar")
		if _, err := writeImage(options{name: "weft-net.local/weft:dev", version: "v1", out: out}, layer); err != nil {
			t.Fatal(err)
		}
		if sum(out) == "" {
			t.Fatal("no archive written")
		}
		return sum(out)
	}
	a := build(time.Unix(1e9, 0), "a", "b", "c")
	if b := build(time.Unix(2e9, 0), "c", "a", "b"); a != b {
		t.Errorf("other times and another order give another archive: %s and %s", a, b)
	}
	if c := build(time.Unix(1e9, 0), "a", "b", "d"); a == c {
		t.Errorf("another file gives the same archive %s", a)
	}
}

// Fault: the whole image differs from build to build, or grows past what a node
// should have to pull (60 MB compressed; DESIGN).
func TestWholeImageTwice(t *testing.T) {
	needDebian(t)
	for _, p := range []string{"weft-agent", "weft", "weft-cni"} {
		if _, err := os.Stat(filepath.Join(repository, "cmd", p, "main.go")); errors.Is(err, os.ErrNotExist) {
			t.Skipf("cmd/%s is not there yet", p)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var sums []string
	for range 2 {
		out := filepath.Join(t.TempDir(), "weft.tar")
		if err := run(ctx, options{name: "weft-net.local/weft:dev", version: "test", out: out, source: repository, cache: debCache}); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(out)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() > 60e6 {
			t.Errorf("archive is %.1f MB, more than 60", mb(fi.Size()))
		}
		sums = append(sums, sum(out))
	}
	if sums[0] != sums[1] {
		t.Errorf("two builds of the same tree differ: %s and %s", sums[0], sums[1])
	}
}

// Fault: a tool lacks a library, or a link points to nothing, which would show
// only when somebody needs the tool in a container.
func TestToolsRun(t *testing.T) {
	needDebian(t)
	if os.Geteuid() != 0 {
		t.Skip("chroot needs root")
	}
	root := t.TempDir()
	unpack(t, debianLayer(t), root)
	for _, c := range [][]string{
		{"/usr/bin/bash", "-c", "echo ok from bash | grep ok | sed s/ok/OK/"},
		{"/bin/sh", "-c", "ls -l /usr/bin | less | head -1"},
		{"/usr/bin/ps"},
		{"/usr/bin/ip", "-V"},
		{"/usr/sbin/tc", "-V"},
		{"/usr/sbin/bridge", "-V"},
		{"/usr/sbin/bpftool", "version"},
		{"/usr/sbin/nft", "--version"},
		{"/usr/sbin/iptables", "--version"},
		{"/usr/sbin/ip6tables-nft", "--version"},
		{"/usr/sbin/iptables-legacy-save", "--version"},
		{"/usr/sbin/iptables-nft", "-m", "mark", "-j", "MARK", "--help"},
		{"/usr/sbin/ip6tables-legacy", "-m", "conntrack", "-m", "comment", "--help"},
	} {
		t.Run(strings.Join(c, " "), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, c[0], c[1:]...)
			cmd.Env = []string{"PATH=/usr/bin:/usr/sbin"}
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
			out, err := cmd.CombinedOutput()
			if err != nil || len(bytes.TrimSpace(out)) == 0 {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func unpack(t *testing.T, layer []byte, root string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(epoch()) {
			t.Errorf("%s: owner %d:%d, time %s", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		p := filepath.Join(root, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(p, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, p)
		default:
			var raw []byte
			if raw, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(p, raw, h.FileInfo().Mode().Perm())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
