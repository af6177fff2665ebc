// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// HostPackages are the Debian packages that must be installed on the machine:
// what nodes call (iptables, nft, mount), and the tools that the test images
// are made of. Each stands beside a file that shows it is there.
func HostPackages() map[string]string {
	return map[string]string{
		"iproute2":        "/usr/sbin/tc",
		"iptables":        "/usr/sbin/iptables",
		"nftables":        "/usr/sbin/nft",
		"conntrack":       "/usr/sbin/conntrack",
		"util-linux":      "/usr/bin/nsenter",
		"mount":           "/usr/bin/mount",
		"iputils-ping":    "/usr/bin/ping",
		"ethtool":         "/usr/sbin/ethtool",
		"tcpdump":         "/usr/bin/tcpdump",
		"bind9-dnsutils":  "/usr/bin/dig",
		"netcat-openbsd":  "/usr/bin/nc.openbsd",
		"iperf":           "/usr/bin/iperf",
		"curl":            "/usr/bin/curl",
		"wget":            "/usr/bin/wget",
		"ca-certificates": "/usr/sbin/update-ca-certificates",
	}
}

// installHostPackages installs what is missing, and only that.
func installHostPackages(ctx context.Context, p *progress) error {
	var missing []string
	for name, file := range HostPackages() {
		if !exists(file) && !exists(strings.Replace(file, "/usr/", "/", 1)) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	p.line("debian", "installing %s", strings.Join(missing, " "))
	out := p.begin("debian")
	defer p.end("debian")
	err := apt(ctx, "", out, append([]string{"install", "-y", "--no-install-recommends"}, missing...)...)
	if err != nil {
		return fmt.Errorf("install %s: %w\n%s", strings.Join(missing, " "), err, out.Tail())
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// apt runs apt-get, and once more after an update: a new machine has no lists.
func apt(ctx context.Context, dir string, out io.Writer, args ...string) error {
	err := aptOnce(ctx, dir, out, args...)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if err := aptOnce(ctx, "", out, "update"); err != nil {
		return err
	}
	return aptOnce(ctx, dir, out, args...)
}

func aptOnce(ctx context.Context, dir string, out io.Writer, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-qq", "-o", "DPkg::Lock::Timeout=120", "-o", "APT::Sandbox::User=root"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // let dpkg finish its package
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return errors.New("apt-get not found: the lab takes runc and some tools from Debian packages")
		}
		return fmt.Errorf("apt-get %s: %w", args[0], err)
	}
	return nil
}

// unpackDebs puts programs of packages into dir without installing them: a
// machine with Docker would lose its own containerd to Debian's runc package.
func unpackDebs(ctx context.Context, names []string, dir string, out io.Writer) error {
	work, err := os.MkdirTemp(dir, ".deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := apt(ctx, work, out, append([]string{"download"}, names...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	if len(files) != len(names) {
		return fmt.Errorf("apt-get download %s gave %d files", strings.Join(names, " "), len(files))
	}
	root := filepath.Join(work, "root")
	for _, f := range files {
		cmd := exec.CommandContext(ctx, "dpkg-deb", "-x", f, root)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w", filepath.Base(f), err)
		}
	}
	for from, to := range map[string]string{"usr/sbin/runc": "runc", "bin/busybox": "busybox", "usr/lib/cni": "cni"} {
		if err := os.Rename(filepath.Join(root, from), filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	return nil
}
