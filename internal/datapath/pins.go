// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/layout"
	weftmaps "github.com/weft-net/weft/internal/datapath/maps"
)

const (
	mapsDir  = "maps"
	linksDir = "links"
	newDir   = "new"
)

// mapFiles is the maps of one Open: all by name, and which of them are not pinned yet.
type mapFiles struct {
	all     map[string]*ebpf.Map
	created map[string]bool
	carries []*carry
	log     *slog.Logger
}

func (f *mapFiles) close() error {
	errs := []error{f.closeCarries()}
	for _, m := range f.all {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// openMaps takes over pinned maps that fit and makes the others, without
// pinning them: nothing changes for programs in use before commit. inUse are the
// maps of programs that run: other than the pinned ones after an upgrade that did
// not come to its end.
func openMaps(o Options, spec *ebpf.CollectionSpec, inUse map[string][]*ebpf.Map) (*mapFiles, error) {
	f := &mapFiles{all: map[string]*ebpf.Map{}, created: map[string]bool{}, log: o.Log}
	for _, name := range weftmaps.Names() {
		if err := f.open(o, spec.Maps[name], inUse[name]); err != nil {
			return nil, errors.Join(fmt.Errorf("map %s: %w", name, err), f.close())
		}
	}
	return f, nil
}

func (f *mapFiles) open(o Options, spec *ebpf.MapSpec, inUse []*ebpf.Map) error {
	want, err := specLayout(spec)
	if err != nil {
		return err
	}
	path := filepath.Join(o.Root, mapsDir, spec.Name)
	old, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin %s: %w; remove the file if it is not Weft's", path, err)
	}
	if old != nil {
		fits, err := f.fits(spec, want, old)
		if err == nil {
			inUse, err = others(inUse, old)
		}
		if err != nil {
			return errors.Join(err, old.Close())
		}
		if fits {
			f.all[spec.Name] = old
			return f.carryFrom(spec.Name, want, inUse...)
		}
		defer old.Close()
	}
	m, err := ebpf.NewMap(spec)
	if errors.Is(err, syscall.ENOMEM) {
		return fmt.Errorf("%w: %d entries do not fit into the memory limit; raise it or choose smaller maps", err, spec.MaxEntries)
	}
	if err != nil {
		return err
	}
	f.all[spec.Name], f.created[spec.Name] = m, true
	if old != nil { // the oldest first: what comes later is newer
		inUse = append([]*ebpf.Map{old}, inUse...)
	}
	return f.carryFrom(spec.Name, want, inUse...)
}

// others returns the maps that are not this one.
func others(ms []*ebpf.Map, than *ebpf.Map) ([]*ebpf.Map, error) {
	info, err := than.Info()
	if err != nil {
		return nil, err
	}
	id, _ := info.ID()
	var out []*ebpf.Map
	for _, m := range ms {
		info, err := m.Info()
		if err != nil {
			return nil, err
		}
		if other, _ := info.ID(); other != id {
			out = append(out, m)
		}
	}
	return out, nil
}

// fits says whether a pinned map is what the programs want, entry by entry.
func (f *mapFiles) fits(spec *ebpf.MapSpec, want layout.Layout, old *ebpf.Map) (bool, error) {
	if err := spec.Compatible(old); err != nil {
		f.log.Info("replacing a map", "map", spec.Name, "reason", err)
		return false, nil
	}
	has, known, err := layoutOf(old)
	if err != nil {
		return false, err
	}
	if known && !has.Shares(want) {
		f.log.Info("replacing a map of another layout", "map", spec.Name, "was", has.Version(), "is", want.Version())
		return false, nil
	}
	return true, nil
}

// stage pins the maps that were made under new/, where nobody looks.
func (f *mapFiles) stage(root string) error {
	for name, made := range f.created {
		if !made {
			continue
		}
		if err := pinNew(f.all[name], root, name); err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
	}
	return nil
}

// commit puts what was staged into place by renaming, so that a reader never finds a gap.
func (f *mapFiles) commit(root string) error {
	var errs []error
	for name, made := range f.created {
		if made {
			errs = append(errs, os.Rename(filepath.Join(root, newDir, name), filepath.Join(root, mapsDir, name)))
		}
	}
	return errors.Join(errs...)
}

// discard takes back what stage did.
func (f *mapFiles) discard(root string) error {
	var errs []error
	for name, made := range f.created {
		if !made {
			continue
		}
		if err := os.Remove(filepath.Join(root, newDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

type pinner interface{ Pin(string) error }

// pinAtomic pins x at root/rel, replacing what is there.
func pinAtomic(x pinner, root, rel string) error {
	if err := pinNew(x, root, filepath.Base(rel)); err != nil {
		return err
	}
	tmp := filepath.Join(root, newDir, filepath.Base(rel))
	if err := os.Rename(tmp, filepath.Join(root, rel)); err != nil {
		return errors.Join(fmt.Errorf("pin %s: %w", rel, err), os.Remove(tmp))
	}
	return nil
}

// pinNew pins x at root/new/name, replacing what a killed agent left there.
func pinNew(x pinner, root, name string) error {
	tmp := filepath.Join(root, newDir, name)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := x.Pin(tmp); err != nil {
		return fmt.Errorf("pin %s: %w", tmp, err)
	}
	return nil
}

// lockRoot makes the directories and locks the root against other agents. The
// lock ends with the process, however that comes.
func lockRoot(root string) (unlock func(), err error) {
	for _, d := range []string{mapsDir, linksDir, newDir} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			return nil, fmt.Errorf("%w; is a bpffs mounted, and writable?", err)
		}
	}
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	if err := flock(int(dir.Fd())); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", root, err), dir.Close())
	}
	return func() { _ = dir.Close() }, nil // closing releases the lock
}

// OpenMaps opens the pinned maps for reading, without an agent.
func OpenMaps(root string) (*weftmaps.Set, error) {
	return openPinned(root, &ebpf.LoadPinOptions{ReadOnly: true})
}

// OpenMapsToWrite opens the pinned maps, without an agent.
func OpenMapsToWrite(root string) (*weftmaps.Set, error) { return openPinned(root, nil) }

func openPinned(root string, o *ebpf.LoadPinOptions) (*weftmaps.Set, error) {
	if root == "" {
		root = DefaultRoot
	}
	all := &mapFiles{all: map[string]*ebpf.Map{}}
	for _, name := range weftmaps.Names() {
		m, err := ebpf.LoadPinnedMap(filepath.Join(root, mapsDir, name), o)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("not pinned under %s: no agent has run on this node since it booted, or Weft was uninstalled", root)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("map %s: %w", name, err), all.close())
		}
		all.all[name] = m
	}
	return weftmaps.NewSet(all.all)
}
