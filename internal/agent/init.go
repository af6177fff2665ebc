// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/k8s"
)

// InitOptions of a preparation of the node.
type InitOptions struct {
	Options
	MountCgroup bool   // mount cgroup2 at the setting cgroup-root where it is missing
	BPFFS       string // mount point of the BPF file system
	Plugin      string // the CNI plugin to install
}

// Init prepares the node for the agent: it mounts what is missing, makes the
// namespace of the health endpoint and installs the plugin. It may run at any
// time and any number of times, beside a running agent too.
func Init(ctx context.Context, o InitOptions) error {
	cfg, err := config.Load(o.Paths.Config)
	if err != nil {
		return err
	}
	if err := refuseCilium(ctx, o, cfg); err != nil {
		return err
	}
	if err := mountOnce(o.Log, o.BPFFS, "bpf", unix.BPF_FS_MAGIC, 0); err != nil {
		return err
	}
	if o.MountCgroup {
		if err := mountOnce(o.Log, cfg.CgroupRoot, "cgroup2", unix.CGROUP2_SUPER_MAGIC, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
			return err
		}
	}
	if err := keepNetns(o.Log, o.Paths.HealthNetns); err != nil {
		return err
	}
	return installPlugin(o.Log, o.Plugin, o.Paths.plugin())
}

// refuseCilium ends the preparation if a running Cilium is found. An API server
// that does not answer is no obstacle: the agent asks it again before pods come.
func refuseCilium(ctx context.Context, o InitOptions, cfg *config.Config) error {
	client, err := k8s.NewClient(k8s.Config{
		NodeName: o.NodeName, Server: cfg.K8sAPIServer, CredentialsDir: o.Paths.Credentials,
		UserAgent: "weft-agent/" + o.Version, Log: o.Log,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, firstCheck)
	defer cancel()
	found, err := client.FindCilium(ctx)
	if err != nil {
		o.Log.Info("API server does not answer yet, going on without it", "error", err)
		return nil
	}
	if found != "" {
		return errors.New(found)
	}
	return nil
}

// mountOnce mounts a file system unless one of its kind is there.
func mountOnce(log *slog.Logger, path, kind string, magic int64, flags uintptr) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("mount point %s: %w", path, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("mount point %s: %w", path, err)
	}
	if st.Type == magic {
		return nil
	}
	if err := unix.Mount(kind, path, kind, flags, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w: mount it on the node (mount -t %s %s %s), or run this container privileged with a Bidirectional mount of %s",
			kind, path, err, kind, kind, path, path)
	}
	log.Info("mounted", "kind", kind, "path", path)
	return nil
}

// isNetns tells whether path leads to a namespace.
func isNetns(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// keepNetns makes a network namespace that stays as long as path is mounted,
// the way `ip netns add` does.
func keepNetns(log *slog.Logger, path string) error {
	if isNetns(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	_ = f.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in there
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("network namespace %s: %w: this container must be privileged", path, err)
	}
	log.Info("network namespace of the health endpoint is made", "path", path)
	return nil
}

// installPlugin puts the plugin into place in one step: the runtime may execute
// it at any moment.
func installPlugin(log *slog.Logger, from, to string) error {
	want, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("CNI plugin %s: %w: the image is incomplete", from, err)
	}
	if have, err := os.ReadFile(to); err == nil && bytes.Equal(have, want) {
		if fi, err := os.Stat(to); err == nil && fi.Mode().Perm() == 0o755 {
			return nil
		}
	}
	if err := renameio.WriteFile(to, want, 0o755, renameio.WithTempDir(filepath.Dir(to))); err != nil {
		return fmt.Errorf("CNI plugin %s: %w: free space, or fix the mount of %s", to, err, filepath.Dir(to))
	}
	log.Info("CNI plugin is installed", "path", to, "bytes", len(want))
	return nil
}

// mounted tells whether something is mounted at exactly path.
func mounted(path string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == path {
			return true
		}
	}
	return false
}
