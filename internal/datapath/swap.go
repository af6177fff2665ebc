// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/weft-net/weft/internal/datapath/reason"
)

// site is a place where programs of an earlier agent run: a pinned link, or the
// filters of a device.
type site struct {
	name    string
	running map[string]ebpf.ProgramID
	old     programs // what runs, held open, so that it can come back
	set     func(programs) error
	close   func() error
}

// takeover is what there is to switch when an agent starts.
type takeover struct {
	sites []site // those of the node's devices first
	held  map[ebpf.ProgramID]*ebpf.Program
	dead  []string // pins of links whose device is gone
}

// findSites lists where an earlier agent's programs run, in the order in which
// they are switched, and holds those programs. The two ends of a translation come
// next to each other, what goes out first: see decision 0009.
func findSites(root string) (*takeover, error) {
	t := &takeover{held: map[ebpf.ProgramID]*ebpf.Program{}}
	if err := t.find(root); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *takeover) find(root string) error {
	if err := t.findLinks(root); err != nil {
		return err
	}
	if err := t.findSockets(root); err != nil {
		return err
	}
	fs, err := filterSites()
	if err != nil {
		return err
	}
	var ready []site
	for _, s := range append(t.sites, fs...) {
		var err error
		s.old = programs{}
		for name, id := range s.running {
			if s.old[name], err = t.hold(id); err != nil {
				break
			}
		}
		// A program that nobody runs any more went with its device.
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err == nil {
			ready = append(ready, s)
		}
	}
	slices.SortStableFunc(ready, func(a, b site) int { return cmp.Compare(a.rank(), b.rank()) })
	t.sites = ready
	return nil
}

// rank tells devices of the node, which translate, from pods, and those from the
// sockets' cgroup.
func (s site) rank() int {
	if s.running[reason.FromPod.String()] != 0 || s.running[reason.ToPod.String()] != 0 {
		return 1
	}
	if s.running[reason.ToNet.String()]+s.running[reason.FromNet.String()]+s.running[reason.ToOverlay.String()]+s.running[reason.FromOverlay.String()] == 0 {
		return 2
	}
	return 0
}

func (t *takeover) hold(id ebpf.ProgramID) (*ebpf.Program, error) {
	if p, ok := t.held[id]; ok {
		return p, nil
	}
	p, err := ebpf.NewProgramFromID(id)
	if err == nil {
		t.held[id] = p
	}
	return p, err
}

func (t *takeover) findLinks(root string) error {
	files, err := os.ReadDir(filepath.Join(root, linksDir))
	if err != nil {
		return err
	}
	order := []reason.Hook{reason.ToNet, reason.FromNet, reason.ToOverlay, reason.FromOverlay, reason.FromPod, reason.ToPod}
	for _, want := range order {
		for _, f := range files {
			if _, h, ok := parseLinkName(f.Name()); ok && h == want {
				if err := t.findLink(filepath.Join(root, linksDir, f.Name()), h); err != nil {
					return fmt.Errorf("link %s: %w", f.Name(), err)
				}
			}
		}
	}
	return nil
}

func (t *takeover) findLink(path string, h reason.Hook) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return err
	}
	at, err := linkTarget(l)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	if at.ifindex == 0 {
		t.dead = append(t.dead, path)
		return l.Close()
	}
	info, err := l.Info()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	t.sites = append(t.sites, site{
		name: "link " + filepath.Base(path), running: map[string]ebpf.ProgramID{h.String(): info.Program},
		set:   func(p programs) error { return updateLink(l, p.of(h)) },
		close: l.Close,
	})
	return nil
}

func (t *takeover) close() error {
	var errs []error
	for _, s := range t.sites {
		if s.close != nil {
			errs = append(errs, s.close())
		}
	}
	for _, p := range t.held {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// swap puts programs into all sites, or into none: when one refuses, the old
// programs come back into those that were switched. between is called when the
// devices of the node are done, before the pods.
func (t *takeover) swap(fresh programs, fault func(string) error, between func() error) error {
	for i, s := range t.sites {
		if s.rank() >= 1 && between != nil {
			if err := between(); err != nil {
				return errors.Join(err, t.back(i))
			}
			between = nil
		}
		err := fault("switch " + s.name)
		if err == nil {
			err = s.set(fresh)
		}
		if err == nil || vanished(err) {
			continue
		}
		err = fmt.Errorf("%s: %w", s.name, err)
		if back := t.back(i + 1); back != nil {
			return fmt.Errorf("%w; and some new programs stay in place: %w", err, back)
		}
		return fmt.Errorf("%w; the old programs are back in place", err)
	}
	return nil
}

// back puts the old programs into the first n sites.
func (t *takeover) back(n int) error {
	var errs []error
	for _, s := range slices.Backward(t.sites[:n]) {
		if err := s.set(s.old); err != nil && !vanished(err) {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	return errors.Join(errs...)
}

// bury unpins links whose device is gone.
func (t *takeover) bury() error {
	var errs []error
	for _, path := range t.dead {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// vanished says whether a device went before its programs could be switched:
// pods are deleted at any time.
func vanished(err error) bool {
	return errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOLINK)
}

// flowMaps are maps by name.
type flowMaps map[string][]*ebpf.Map

// writtenMaps opens the maps that running programs write flows to. They are the
// pinned ones, unless an upgrade was killed half-way.
func (t *takeover) writtenMaps() (flowMaps, error) {
	out, seen := flowMaps{}, map[ebpf.MapID]bool{}
	for _, p := range t.held {
		info, err := p.Info()
		if err != nil {
			return nil, errors.Join(err, out.close())
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			if seen[id] {
				continue
			}
			seen[id] = true
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("map %d: %w", id, err), out.close())
			}
			info, err := m.Info()
			if err != nil || m.Type() != ebpf.LRUHash {
				err = errors.Join(err, m.Close())
			} else {
				out[info.Name] = append(out[info.Name], m)
			}
			if err != nil {
				return nil, errors.Join(err, out.close())
			}
		}
	}
	return out, nil
}

func (f flowMaps) close() error {
	var errs []error
	for _, ms := range f {
		for _, m := range ms {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
