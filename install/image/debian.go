// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// packages are Debian's packages that files are taken from: tools, and the
// libraries that they need. A missing library is an error that names it.
func packages() []string {
	return []string{
		"bash", "bpftool", "busybox-static", "iproute2", "iptables", "nftables",
		"libbpf1", "libbsd0", "libc6", "libcap2", "libedit2", "libelf1", "libgmp10", "libip4tc2", "libip6tc2",
		"libjansson4", "libmd0", "libmnl0", "libnetfilter-conntrack3", "libnfnetlink0", "libnftables1", "libnftnl11",
		"libtinfo6", "libxtables12", "zlib1g",
	}
}

// tools are the programs that are taken from the packages, by their place there.
func tools() []string {
	return []string{
		"/bin/bash", "/bin/busybox", "/bin/ip", "/sbin/bridge", "/sbin/tc",
		"/usr/sbin/bpftool", "/usr/sbin/nft", "/usr/sbin/xtables-legacy-multi", "/usr/sbin/xtables-nft-multi",
	}
}

// applets are the commands that busybox stands in for.
func applets() []string {
	return strings.Fields(`arping awk base64 basename cat chmod clear cmp cp cut date dd df diff dirname dmesg du echo env
		expr false find free grep gzip head hexdump hostname id kill less ln ls md5sum mkdir mktemp more mount mv nc
		netstat nproc nslookup od pgrep pidof ping ping6 printf ps pwd readlink realpath rm rmdir sed seq sh sha256sum
		sleep sort stat strings sync sysctl tail tar tee telnet test time timeout top touch tr traceroute true umount
		uname uniq uptime vi watch wc wget which whoami xargs zcat`)
}

// addSkeleton makes what every system has: folders, users, the links of a
// merged /usr.
func addSkeleton(t *tree) error {
	for _, d := range []string{
		"/dev", "/etc", "/etc/cni/net.d", "/etc/weft/config", "/host/proc/sys/net", "/opt/cni/bin", "/proc", "/root",
		"/run/cilium/cgroupv2", "/run/netns", "/run/weft", "/sys", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/sbin", "/var/log",
	} {
		t.parents(d)
		t.dir(d, 0o755)
	}
	t.dir("/tmp", 0o777|fs.ModeSticky)
	for _, l := range [][2]string{
		{"/bin", "usr/bin"},
		{"/sbin", "usr/sbin"},
		{"/lib", "usr/lib"},
		{"/lib64", "usr/lib64"},
		{"/var/run", "../run"},
	} {
		t.symlink(l[0], l[1])
	}
	// The kubelet binds the node's lock over it.
	t.file("/run/xtables.lock", 0o600, nil)
	t.file("/etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/usr/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/bin/false\n"))
	t.file("/etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	t.file("/etc/protocols", 0o644, []byte("icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n"))
	return nil
}

// addDebian fetches and unpacks the packages and takes from them the tools, the
// libraries that the tools are linked with, and the copyright notices.
func addDebian(ctx context.Context, t *tree, cache, dir string) error {
	debs, err := fetch(ctx, cache)
	if err != nil {
		return err
	}
	for _, d := range debs {
		if out, err := exec.CommandContext(ctx, "dpkg", "-x", filepath.Join(cache, d.file), dir).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: dpkg -x: %w: %s", d.file, err, bytes.TrimSpace(out))
		}
	}
	paths := slices.Clone(tools())
	plugins, err := filepath.Glob(filepath.Join(dir, "usr/lib/*/xtables/*.so"))
	if err != nil || len(plugins) == 0 {
		return fmt.Errorf("package iptables holds no extensions (usr/lib/*/xtables): %w", errors.Join(err, fs.ErrNotExist))
	}
	for _, p := range plugins {
		paths = append(paths, strings.TrimPrefix(p, dir))
	}
	if err := addELF(t, dir, paths); err != nil {
		return err
	}
	addLinks(t)
	var list strings.Builder
	for _, d := range debs {
		fmt.Fprintf(&list, "%s %s\n", d.file, d.sha256)
		notice := filepath.Join("/usr/share/doc", d.name, "copyright")
		if err := t.copy(notice, filepath.Join(dir, notice), 0o644); err != nil {
			return fmt.Errorf("package %s: no copyright notice: %w", d.name, err)
		}
	}
	t.file("/usr/share/weft/debian-packages", 0o644, []byte(list.String()))
	return nil
}

func addLinks(t *tree) {
	for _, a := range applets() {
		t.symlink("/usr/bin/"+a, "busybox")
	}
	for _, variant := range []string{"legacy", "nft"} {
		for _, family := range []string{"iptables", "ip6tables"} {
			for _, verb := range []string{"", "-save", "-restore"} {
				t.symlink("/usr/sbin/"+family+"-"+variant+verb, "xtables-"+variant+"-multi")
			}
		}
	}
	// Debian's default. Whoever must write where kube-proxy does asks for a
	// variant by name.
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			t.symlink("/usr/sbin/"+family+verb, "xtables-nft-multi")
		}
	}
}

// deb is one package as the archive offers it.
type deb struct {
	name, file, sha256 string
}

// fetch makes sure that the cache holds what the archive offers now.
func fetch(ctx context.Context, cache string) ([]deb, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	debs, err := offered(ctx)
	if err != nil {
		// The package lists may be missing or older than the archive.
		if out, uerr := aptGet(ctx, cache, "update"); uerr != nil {
			return nil, fmt.Errorf("package lists: %w: %s", uerr, out)
		}
		if debs, err = offered(ctx); err != nil {
			return nil, err
		}
	}
	for _, d := range debs {
		file := filepath.Join(cache, d.file)
		if sum(file) == d.sha256 {
			continue
		}
		if out, err := aptGet(ctx, cache, "download", d.name); err != nil {
			return nil, fmt.Errorf("package %s: %w: %s", d.name, err, out)
		}
		if got := sum(file); got != d.sha256 {
			return nil, fmt.Errorf("package %s: downloaded file has SHA-256 %s, the archive promises %s: run apt-get update and try again", d.name, got, d.sha256)
		}
	}
	return debs, nil
}

// offered asks apt which file each package would be, without downloading.
func offered(ctx context.Context) ([]deb, error) {
	out, err := exec.CommandContext(ctx, "apt-get", append([]string{"download", "--print-uris"}, packages()...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("apt-get download --print-uris: %w: is this Debian, and are its package lists there?", err)
	}
	var debs []deb
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 4 {
			return nil, fmt.Errorf("apt-get download --print-uris: %q is not uri, file, size and hash", line)
		}
		hash, ok := strings.CutPrefix(f[3], "SHA256:")
		if !ok {
			return nil, fmt.Errorf("apt-get download --print-uris: %q has no SHA-256", line)
		}
		name, _, _ := strings.Cut(f[1], "_")
		debs = append(debs, deb{name: name, file: path.Base(f[1]), sha256: hash})
	}
	if len(debs) != len(packages()) {
		return nil, fmt.Errorf("apt-get download --print-uris: %d packages of %d", len(debs), len(packages()))
	}
	slices.SortFunc(debs, func(a, b deb) int { return strings.Compare(a.name, b.name) })
	return debs, nil
}

func aptGet(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-qq", "-o", "Acquire::Retries=3"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// sum returns the SHA-256 of a file, empty if it cannot be read.
func sum(file string) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	h := sha256.Sum256(raw)
	return hex.EncodeToString(h[:])
}
