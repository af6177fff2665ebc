// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/weft-net/weft/lab/oci"
)

// imagesVersion is part of the images' key: raise it with every change of
// what the images hold.
const imagesVersion = "3"

// PauseImage is the sandbox image that containerd is told to use.
const PauseImage = "registry.k8s.io/pause:3.10.2"

// CoreDNSImage is the image of the cluster's DNS.
const CoreDNSImage = "registry.k8s.io/coredns/coredns:v1.14.7"

const pathEnv = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// tools are the glibc programs in the agnhost image. Upstream tests call them
// in pods; Debian's busybox has no full match for any of them, and its wget ends by a fault at -T.
func tools() []string {
	return []string{"getent", "curl", "wget", "dig", "nslookup", "nc.openbsd", "iperf", "bash", "ss", "ip", "ping"}
}

// images packs what is needed for pods, unless the cache has it already.
func (b *builder) images(ctx context.Context) error {
	if err := installHostPackages(ctx, b.progress); err != nil {
		return err
	}
	h := sha256.New()
	fmt.Fprintln(h, imagesVersion, b.cache.Bins["agnhost"], b.cache.Bins["coredns"], b.cache.Bins["pause"], b.cache.Bins["debian"])
	dir := filepath.Join(b.dir, "bin", "images-"+digest(h))
	b.cache.Bins["images"] = dir
	b.cache.Images = []string{filepath.Join(dir, "base.tar")}
	if exists(dir) {
		b.progress.line("images", "in the cache")
		return nil
	}
	tmp, err := os.MkdirTemp(filepath.Join(b.dir, "bin"), ".tmp-images-")
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	if err := b.packImages(ctx, tmp); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	b.progress.line("images", "packed")
	return nil
}

func (b *builder) packImages(ctx context.Context, dir string) error {
	agnhostFiles, err := b.agnhostFiles(ctx)
	if err != nil {
		return err
	}
	busyboxFiles, err := b.busyboxFiles(ctx)
	if err != nil {
		return err
	}
	toolFiles, err := glibcTools()
	if err != nil {
		return err
	}
	base := slices.Concat(busyboxFiles, toolFiles)
	sets := [][]oci.File{
		{{Path: "pause", Mode: 0o755, Source: b.cache.Bin("pause", "pause")}},
		busyboxFiles,
		base,
		agnhostFiles,
		{{Path: "coredns", Mode: 0o755, Source: b.cache.Bin("coredns", "coredns")}},
	}
	layers := make([]*oci.Layer, len(sets))
	for i, files := range sets {
		if layers[i], err = oci.NewLayer(dir, files); err != nil {
			return err
		}
		defer layers[i].Remove()
	}
	f, err := os.Create(filepath.Join(dir, "base.tar"))
	if err != nil {
		return err
	}
	return errors.Join(oci.Write(f, imageList(layers)...), f.Close())
}

func imageList(l []*oci.Layer) []oci.Image {
	const test = "registry.k8s.io/e2e-test-images/"
	list := []oci.Image{
		{
			Names:  []string{PauseImage, "registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.6"},
			Config: oci.Config{Entrypoint: []string{"/pause"}, User: "65535:65535", Env: []string{"PATH=/"}},
			Layers: l[:1],
		},
		{
			Names:  []string{test + "busybox:1.37.0-1", "docker.io/library/busybox:latest"},
			Config: oci.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}},
			Layers: l[1:2],
		},
		{
			Names:  []string{test + "agnhost:2.63.0", test + "agnhost:2.55"},
			Config: oci.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: []string{pathEnv}},
			Layers: l[2:4],
		},
		{
			Names:  []string{test + "glibc-dns-testing:2.0.0"},
			Config: oci.Config{Cmd: []string{"/bin/bash"}, Env: []string{pathEnv}},
			Layers: l[2:3],
		},
		{
			Names:  []string{CoreDNSImage},
			Config: oci.Config{Entrypoint: []string{"/coredns"}},
			Layers: l[4:5],
		},
	}
	for i := range list {
		list[i].Architecture = runtime.GOARCH
	}
	return list
}

// busyboxFiles is a root with busybox, its applets, and the users that
// upstream tests look for.
func (b *builder) busyboxFiles(ctx context.Context) ([]oci.File, error) {
	bin := b.cache.Bin("debian", "busybox")
	out, err := exec.CommandContext(ctx, bin, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	files := []oci.File{
		{Path: "bin/busybox", Mode: 0o755, Source: bin},
		{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "etc/passwd", Mode: 0o644, Content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\n")},
		{Path: "etc/group", Mode: 0o644, Content: []byte("root:x:0:\nnobody:x:65534:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n")},
	}
	for _, d := range []string{"root", "home", "var", "proc", "sys", "dev", "uploads", "usr/bin", "usr/sbin", "sbin"} {
		files = append(files, oci.File{Path: d, Mode: fs.ModeDir | 0o755})
	}
	for applet := range strings.FieldsSeq(string(out)) {
		if applet != "busybox" {
			files = append(files, oci.File{Path: "bin/" + applet, Link: "busybox"})
		}
	}
	return files, nil
}

// agnhostFiles holds agnhost and the certificate that its porter serves,
// which lies in the Kubernetes module.
func (b *builder) agnhostFiles(ctx context.Context) ([]oci.File, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	cmd.Dir = filepath.Join(b.source, "e2e")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m k8s.io/kubernetes: %w", err)
	}
	porter := filepath.Join(strings.TrimSpace(string(out)), "test/images/agnhost/porter")
	return []oci.File{
		{Path: "agnhost", Mode: 0o755, Source: b.cache.Bin("agnhost", "agnhost")},
		{Path: "agnhost-2", Link: "agnhost"},
		{Path: "localhost.crt", Mode: 0o644, Source: filepath.Join(porter, "localhost.crt")},
		{Path: "localhost.key", Mode: 0o644, Source: filepath.Join(porter, "localhost.key")},
	}, nil
}

// glibcTools are programs of this machine with the libraries they load. They
// come after busybox's applets and take their places.
func glibcTools() ([]oci.File, error) {
	libs := map[string]string{}
	var files []oci.File
	for _, name := range tools() {
		bin, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
		if bin, err = filepath.EvalSymlinks(bin); err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
		if err := needed(bin, libs); err != nil {
			return nil, err
		}
		files = append(files, oci.File{Path: "usr/bin/" + name, Mode: 0o755, Source: bin})
		if name != "nc.openbsd" && name != "bash" {
			files = append(files, oci.File{Path: "bin/" + name, Link: "/usr/bin/" + name})
		}
	}
	for _, soname := range []string{"libnss_dns.so.2", "libnss_files.so.2"} {
		if lib := findLibrary(soname); lib != "" {
			libs[lib] = soname
		}
	}
	for lib := range libs {
		file, err := filepath.EvalSymlinks(lib)
		if err != nil {
			return nil, fmt.Errorf("library %s: %w", lib, err)
		}
		files = append(files, oci.File{Path: lib, Mode: 0o755, Source: file})
	}
	// Debian's busybox shell prefers its own applets to $PATH, and its nc
	// knows no -u: /bin/sh is bash, and nc is the real one.
	return append(files,
		oci.File{Path: "bin/nc", Link: "/usr/bin/nc.openbsd"},
		oci.File{Path: "bin/bash", Link: "/usr/bin/bash"},
		oci.File{Path: "bin/sh", Link: "/usr/bin/bash"}), nil
}

// needed adds the libraries that an ELF file loads, and theirs.
func needed(file string, libs map[string]string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("program %s: %w", file, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return fmt.Errorf("program %s: %w", file, err)
			}
			loader := strings.TrimRight(string(b), "\x00")
			libs[loader] = filepath.Base(loader)
		}
	}
	sonames, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("program %s: %w", file, err)
	}
	for _, soname := range sonames {
		lib := findLibrary(soname)
		if lib == "" {
			return fmt.Errorf("program %s: library %s not found", file, soname)
		}
		if _, ok := libs[lib]; ok {
			continue
		}
		libs[lib] = soname
		if err := needed(lib, libs); err != nil {
			return err
		}
	}
	return nil
}

// findLibrary looks where Debian keeps libraries.
func findLibrary(soname string) string {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	for _, dir := range []string{"/lib/" + triplet, "/usr/lib/" + triplet, "/lib", "/usr/lib", "/lib64"} {
		if p := filepath.Join(dir, soname); exists(p) {
			return p
		}
	}
	return ""
}
