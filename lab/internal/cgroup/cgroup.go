// SPDX-License-Identifier: Apache-2.0

// Package cgroup makes and removes the control groups of a lab. It knows the
// three layouts that are in use: pure cgroup2, cgroup v1 with a cgroup2
// hierarchy beside it (hybrid), and the latter inside somebody's own group.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Hierarchy is one mounted cgroup hierarchy.
type Hierarchy struct {
	Mount   string // where the machine has it
	V2      bool
	Pure    bool   // cgroup2 and nothing beside it: it has the controllers
	Options string // v1: what to give to mount(2), e.g. "cpu,cpuacct" or "none,name=systemd"
	own     string // this process' group in it
}

// Detect reads the machine's layout. A cgroup2 hierarchy must be mounted: the
// lab ends processes through it.
func Detect() ([]Hierarchy, error) {
	list, err := mounted()
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(list, func(h Hierarchy) bool { return h.V2 }) {
		return nil, errors.New("cgroup2: not mounted; mount it with: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
	}
	own, err := ownGroups()
	if err != nil {
		return nil, err
	}
	for i, h := range list {
		switch {
		case h.V2 && len(list) == 1:
			list[i].Pure = true
			list[i].own = "/" // groups with processes cannot hand controllers down, so not below a login session
		case h.V2:
			list[i].own = own[""]
		default:
			for c := range strings.SplitSeq(h.Options, ",") {
				if p, ok := own[c]; ok {
					list[i].own = p
				}
			}
		}
	}
	return list, nil
}

func mounted() ([]Hierarchy, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	var list []Hierarchy
	seen := map[string]bool{}
	for line := range strings.SplitSeq(string(b), "\n") {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		h := Hierarchy{Mount: f[4], V2: g[0] == "cgroup2"}
		if !h.V2 {
			if g[0] != "cgroup" {
				continue
			}
			h.Options = v1Options(g[2])
		}
		if !seen[h.Options] {
			seen[h.Options] = true
			list = append(list, h)
		}
	}
	return list, nil
}

// v1Options keeps the controllers and the name of the superblock's options.
func v1Options(super string) string {
	var keep []string
	for o := range strings.SplitSeq(super, ",") {
		switch {
		case o == "rw" || o == "ro" || o == "xattr" || o == "clone_children" || strings.HasPrefix(o, "release_agent="):
		case strings.HasPrefix(o, "name="):
			keep = append(keep, "none", o)
		default:
			keep = append(keep, o)
		}
	}
	return strings.Join(keep, ",")
}

// ownGroups maps controller (or "name=x", or "" for cgroup2) to this process' group.
func ownGroups() (map[string]string, error) {
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	defer f.Close()
	own := map[string]string{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		parts := strings.SplitN(s.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for c := range strings.SplitSeq(parts[1], ",") {
			own[c] = parts[2]
		}
	}
	return own, s.Err()
}

// Has says whether the hierarchy holds a v1 controller.
func (h Hierarchy) Has(controller string) bool {
	return slices.Contains(strings.Split(h.Options, ","), controller)
}

// Path is the group with this name below the own one.
func (h Hierarchy) Path(name string) string {
	return filepath.Join(h.Mount, h.own, name)
}

// Limits bound a host of the lab.
type Limits struct {
	MemoryBytes int64
	Pids        int
}

// Make creates a group and prepares it for processes and children. The folder
// above must exist.
func (h Hierarchy) Make(dir string, l *Limits) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	var set []setting
	if h.Pure {
		if err := handDown(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	if h.Has("cpuset") {
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), f))
			if err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
			set = append(set, setting{f, strings.TrimSpace(string(b))})
		}
		set = append(set, setting{"cgroup.clone_children", "1"})
	}
	if l != nil {
		memory, pids := strconv.FormatInt(l.MemoryBytes, 10), strconv.Itoa(l.Pids)
		switch {
		case h.Has("memory"):
			set = append(set, setting{"memory.limit_in_bytes", memory})
		case h.Has("pids"):
			set = append(set, setting{"pids.max", pids})
		case h.Pure:
			set = append(set, setting{"memory.max", memory}, setting{"pids.max", pids})
		}
	}
	for _, s := range set {
		if err := s.write(dir); err != nil {
			return err
		}
	}
	return nil
}

type setting struct{ file, value string }

func (s setting) write(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, s.file), []byte(s.value), 0); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

// Withheld are the controllers that a group has and does not hand down to its
// children.
func Withheld(dir string) ([]string, error) {
	has, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	gives, err := os.ReadFile(filepath.Join(dir, subtreeControl))
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	given := strings.Fields(string(gives))
	return slices.DeleteFunc(strings.Fields(string(has)), func(c string) bool { return slices.Contains(given, c) }), nil
}

const subtreeControl = "cgroup.subtree_control"

// handDown lets the children of a group use the controllers that it has.
func handDown(dir string) error {
	list, err := Withheld(dir)
	if err != nil {
		return err
	}
	for _, c := range list {
		err := os.WriteFile(filepath.Join(dir, subtreeControl), []byte("+"+c), 0)
		if err != nil && (c == "memory" || c == "pids" || c == "cpu" || c == "cpuset") {
			return fmt.Errorf("cgroup %s: controller %s cannot be handed down: %w", dir, c, err)
		}
	}
	return nil
}

// TakeBack stops a group from handing a controller down. Where a child uses
// it, the kernel refuses, and it stays.
func TakeBack(dir, controller string) {
	_ = os.WriteFile(filepath.Join(dir, subtreeControl), []byte("-"+controller), 0)
}

// Kill ends all processes in a cgroup2 group and below, and waits for them.
func Kill(ctx context.Context, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
			return fmt.Errorf("cgroup %s: kill: %w", dir, err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if strings.Contains(string(b), "populated 0") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s: processes %v do not end", dir, Pids(dir))
		case <-t.C:
		}
	}
}

// Pids lists the processes in a group and below.
func Pids(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // a group that vanishes has no processes
		}
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// Remove deletes a group and all below it, deepest first. Groups whose last
// process is just ending are tried again.
func Remove(ctx context.Context, dir string) error {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		var dirs []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if len(dirs) == 0 {
			return nil
		}
		slices.Reverse(dirs)
		for _, d := range dirs {
			if rerr := os.Remove(d); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = rerr
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s: still in use by processes %v: %w", dir, Pids(dir), err)
		case <-t.C:
		}
	}
}
