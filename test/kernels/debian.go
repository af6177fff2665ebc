// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// archive is an apt of its own: it knows the suites that kernels come from, and
// neither its lists nor its packages touch those of the machine.
type archive struct {
	dir    string
	mirror string
}

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// mirror returns the archive from which this machine's apt has Debian 12.
func mirror(ctx context.Context) (string, error) {
	out, err := output(ctx, ".", "apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Codename: bookworm")
	if err != nil {
		return "", err
	}
	site, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if site == "" {
		return "", errors.New("this machine's apt has no archive of bookworm: run apt-get update, or name one with -mirror")
	}
	return site, nil
}

// open fetches the lists of packages of the suites.
func (a archive) open(ctx context.Context, suites []string) error {
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return err
		}
	}
	var list strings.Builder
	for _, s := range suites {
		fmt.Fprintf(&list, "deb [signed-by=%s] %s %s main\n", keyring, a.mirror, s)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(list.String()), 0o644); err != nil {
		return err
	}
	_, err := a.apt(ctx, "apt-get", "update")
	return err
}

// kernel makes sure that the image that a suite offers now is unpacked, and
// returns where.
func (a archive) kernel(ctx context.Context, suite string) (image, error) {
	out, err := a.apt(ctx, "apt-cache", "show", "linux-image-amd64/"+suite)
	if err != nil {
		return image{}, err
	}
	name, version := "", ""
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, "Depends: "); ok && name == "" {
			name, _, _ = strings.Cut(strings.TrimSpace(v), " ")
		}
		if v, ok := strings.CutPrefix(line, "Version: "); ok && version == "" {
			version = strings.TrimSpace(v)
		}
	}
	release, ok := strings.CutPrefix(name, "linux-image-")
	if !ok {
		return image{}, fmt.Errorf("linux-image-amd64 of %s depends on %q, which names no kernel", suite, name)
	}
	im := image{suite: suite, release: release, version: version, dir: filepath.Join(a.dir, release+"_"+version)}
	if _, err := os.Stat(im.dir); err == nil {
		return im, nil
	}
	if _, err := a.apt(ctx, "apt-get", "download", name+"="+version); err != nil {
		return image{}, err
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, name+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return image{}, fmt.Errorf("package %s: want one file, have %v: remove them and try again", name, debs)
	}
	return im, im.unpack(ctx, debs[0])
}

func (a archive) apt(ctx context.Context, name string, args ...string) (string, error) {
	dir, err := filepath.Abs(a.dir)
	if err != nil {
		return "", err
	}
	args = append([]string{
		"-qq", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root",
		"-o", "Dir::Etc::SourceList=" + dir + "/sources.list", "-o", "Dir::Etc::SourceParts=-",
		"-o", "Dir::State::Lists=" + dir + "/lists", "-o", "Dir::Cache=" + dir + "/cache",
	}, args...)
	return output(ctx, dir, name, args...)
}

// output runs a command and returns what it prints.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, args[len(args)-1], err, strings.TrimSpace(errs.String()))
	}
	return string(out), nil
}

// image is an unpacked kernel package. Nothing of it is installed.
type image struct {
	suite, release, version string
	dir                     string
}

func (im image) vmlinuz() string { return filepath.Join(im.dir, "boot/vmlinuz-"+im.release) }
func (im image) modules() string { return filepath.Join(im.dir, "lib/modules", im.release) }

// minor is the version without what is the distributor's, as people name kernels.
func (im image) minor() string {
	v := strings.SplitN(im.release, ".", 3)
	return strings.Join(v[:min(2, len(v))], ".")
}

// unpack takes the package apart, does what its installation would do for
// modprobe, and deletes the package.
func (im image) unpack(ctx context.Context, deb string) error {
	tmp := im.dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if _, err := output(ctx, "", "dpkg-deb", "-x", deb, tmp); err != nil {
		return err
	}
	modules := filepath.Join(tmp, "lib/modules")
	// Since the merge of /usr packages have no /lib.
	if _, err := os.Stat(modules); err != nil {
		if err := os.Symlink("usr/lib", filepath.Join(tmp, "lib")); err != nil {
			return err
		}
	}
	if _, err := output(ctx, "", "depmod", "-b", tmp, im.release); err != nil {
		return err
	}
	return os.Rename(tmp, im.dir)
}
