// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Verb is the hidden command that becomes PID 1 of a host.
const Verb = "node-init"

// Init runs as PID 1 in fresh mount, PID, UTS and IPC namespaces, inside the
// host's network namespace. It sets the host up, replaces itself so that no
// thread is left outside the cgroup namespace, and supervises.
func Init(specPath, stage string) error {
	s, err := readSpec(specPath)
	if err != nil {
		return err
	}
	if stage == "2" {
		return supervise(s)
	}
	runtime.LockOSThread()
	if os.Getpid() != 1 {
		return errors.New(Verb + " is run by weft-lab up, as process 1 of a host")
	}
	if err := setUp(s); err != nil {
		return fmt.Errorf("host %s: %w", s.Hostname, err)
	}
	// The kernel follows this link even where the file itself is out of sight.
	return unix.Exec("/proc/self/exe", []string{"weft-lab", Verb, specPath, "2"}, os.Environ())
}

func setUp(s *Spec) error {
	for _, c := range s.Cgroups {
		if err := os.WriteFile(filepath.Join(c.Dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("cgroup namespace: %w", err)
	}
	if err := leafGroups(s); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	root, err := newRoot(s)
	if err != nil {
		return err
	}
	if err := fillRoot(s, root); err != nil {
		return err
	}
	return enterRoot(s, root)
}

// leafName is the group of PID 1 and its programs below a host's group, where
// that must stay without processes.
const leafName = "system"

// leafGroups moves PID 1 out of the way where the group must hand controllers
// down to kubelet's pods: a group with processes cannot.
func leafGroups(s *Spec) error {
	for _, c := range s.Cgroups {
		if !c.Pure {
			continue
		}
		leaf := filepath.Join(c.Dir, leafName)
		if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cgroup: %w", err)
		}
		if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
		b, err := os.ReadFile(filepath.Join(c.Dir, "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		for name := range strings.FieldsSeq(string(b)) {
			_ = os.WriteFile(filepath.Join(c.Dir, "cgroup.subtree_control"), []byte("+"+name), 0)
		}
	}
	return nil
}

// newRoot lays a writable layer in memory over the machine's root. What the
// host writes outside of its binds ends with it, and the machine's files
// cannot change. A fresh root also leaves behind the mounts of everybody else,
// network namespaces in the first place, which would live as long as the host.
func newRoot(s *Spec) (string, error) {
	work := filepath.Join(s.Dir, "root")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount("tmpfs", work, "tmpfs", 0, "mode=755,size=256m"); err != nil {
		return "", fmt.Errorf("root: tmpfs: %w", err)
	}
	for _, d := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(work, d), 0o755); err != nil {
			return "", fmt.Errorf("root: %w", err)
		}
	}
	merged := filepath.Join(work, "merged")
	opts := fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", work, work)
	if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
		return "", fmt.Errorf("root: overlay: %w", err)
	}
	return merged, nil
}

func fillRoot(s *Spec, root string) error {
	if err := bindDisks(root); err != nil {
		return err
	}
	in := func(p string) string { return filepath.Join(root, p) }
	mounts := []struct{ source, target, fstype, opts string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"bpf", "/sys/fs/bpf", "bpf", "mode=700"},
		{"tmpfs", "/sys/fs/cgroup", "tmpfs", "mode=755,size=1m"},
		{"tmpfs", "/run", "tmpfs", "mode=755,size=512m"},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777,size=256m"},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(in(m.target), 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, in(m.target), m.fstype, 0, m.opts); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for _, d := range []string{"/run/netns", "/run/lock", "/run/containerd"} {
		if err := os.MkdirAll(in(d), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("/dev", in("/dev"), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	if err := unix.Mount("tmpfs", in("/dev/shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=64m"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	for _, c := range s.Cgroups {
		if err := mountCgroup(c, root); err != nil {
			return err
		}
	}
	for _, b := range s.Binds {
		if err := bind(b, root); err != nil {
			return err
		}
	}
	for name, content := range s.Files {
		if err := os.MkdirAll(filepath.Dir(in(name)), 0o755); err != nil {
			return err
		}
		_ = os.Remove(in(name)) // it may be a link to somewhere outside
		if err := os.WriteFile(in(name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// bindDisks shows the machine's other file systems on disks (a separate /usr
// or /home), read-only: an overlay does not cross mounts.
func bindDisks(root string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 2 || f[4] == "/" || !strings.HasPrefix(g[1], "/dev/") {
			continue
		}
		if strings.ContainsAny(f[4], `\`) || strings.HasPrefix(f[4], "/run/") || strings.HasPrefix(f[4], "/dev/") {
			continue
		}
		if st, err := os.Stat(f[4]); err != nil || !st.IsDir() {
			continue // a container's /etc/hosts and the like
		}
		if err := bind(Bind{From: f[4], To: f[4], ReadOnly: true}, root); err != nil {
			return err
		}
	}
	return nil
}

func bind(b Bind, root string) error {
	target := filepath.Join(root, b.To)
	st, err := os.Stat(b.From)
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if st.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else {
		err = os.MkdirAll(filepath.Dir(target), 0o755)
		if err == nil {
			err = os.WriteFile(target, nil, 0o644)
		}
	}
	if err != nil {
		return fmt.Errorf("bind %s: %w", b.To, err)
	}
	if err := unix.Mount(b.From, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", b.To, err)
	}
	if !b.ReadOnly {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("bind %s read-only: %w", b.To, err)
	}
	return nil
}

// mountCgroup shows a hierarchy from the host's group down: this thread's
// cgroup namespace has its root there.
func mountCgroup(c CgroupSpec, root string) error {
	target := filepath.Join(root, c.Mount)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	fstype, opts := "cgroup", c.Options
	if c.V2 {
		fstype, opts = "cgroup2", ""
	}
	if err := unix.Mount(fstype, target, fstype, 0, opts); err != nil {
		return fmt.Errorf("mount %s %s: %w", c.Mount, c.Options, err)
	}
	return nil
}

func enterRoot(s *Spec, root string) error {
	old := filepath.Join(root, "run/old-root")
	if err := os.Mkdir(old, 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/run/old-root", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("old root: %w", err)
	}
	if err := os.Remove("/run/old-root"); err != nil {
		return err
	}
	for name, value := range s.Fakes {
		if err := fake(name, value); err != nil {
			return err
		}
	}
	// Pods' mounts with Bidirectional propagation must reach the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("shared mounts: %w", err)
	}
	return nil
}

// fake covers a setting of the whole machine that kubelet insists on writing
// with a file that holds the value it wants.
func fake(name, value string) error {
	cover := filepath.Join("/run/weft-lab-sysctl", strings.ReplaceAll(name, "/", "."))
	if err := os.MkdirAll(filepath.Dir(cover), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(cover, []byte(value+"\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(cover, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cover /proc/sys/%s: %w", name, err)
	}
	return nil
}
