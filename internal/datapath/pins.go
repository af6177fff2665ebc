// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cilium/ebpf"

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
}

func (f *mapFiles) close() error {
	var errs []error
	for _, m := range f.all {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// openMaps takes over pinned maps that fit and makes the others, without
// pinning them: nothing changes for programs in use before commit.
func openMaps(o Options, spec *ebpf.CollectionSpec) (*mapFiles, error) {
	f := &mapFiles{all: map[string]*ebpf.Map{}, created: map[string]bool{}}
	for _, name := range weftmaps.Names() {
		m, created, err := openMap(o, spec.Maps[name])
		if err != nil {
			return nil, errors.Join(fmt.Errorf("map %s: %w", name, err), f.close())
		}
		f.all[name], f.created[name] = m, created
	}
	return f, nil
}

func openMap(o Options, spec *ebpf.MapSpec) (m *ebpf.Map, created bool, err error) {
	path := filepath.Join(o.Root, mapsDir, spec.Name)
	old, err := ebpf.LoadPinnedMap(path, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, false, fmt.Errorf("pin %s: %w; remove the file if it is not Weft's", path, err)
	default:
		bad := spec.Compatible(old)
		if bad == nil {
			return old, false, nil
		}
		defer old.Close()
		o.Log.Warn("replacing a map of another layout", "map", spec.Name, "reason", bad)
	}
	m, err = ebpf.NewMap(spec)
	if errors.Is(err, syscall.ENOMEM) {
		return nil, false, fmt.Errorf("%w: %d entries do not fit into the memory limit; raise it or choose smaller maps", err, spec.MaxEntries)
	}
	if err != nil {
		return nil, false, err
	}
	// Values only ever grow, by fields whose zero means what it was without them.
	if old != nil && old.Type() == spec.Type && old.KeySize() == spec.KeySize && old.ValueSize() <= spec.ValueSize {
		n, lost := carryOver(old, m)
		o.Log.Info("carried entries over", "map", spec.Name, "entries", n, "lost", lost)
	}
	return m, true, nil
}

// carryOver copies entries into a map of another capacity or with longer values,
// as far as they fit.
func carryOver(old, m *ebpf.Map) (copied, lost int) {
	if old.Type() == ebpf.RingBuf || old.Type() == ebpf.PerCPUArray {
		return 0, 0
	}
	var k, v []byte
	for it := old.Iterate(); it.Next(&k, &v); {
		grown := make([]byte, m.ValueSize())
		copy(grown, v)
		if err := m.Put(k, grown); err != nil {
			lost++
			continue
		}
		copied++
	}
	return copied, lost
}

// commit pins the maps that were made: each under a name of its own, then
// renamed over the old one, so that a reader never finds a gap.
func (f *mapFiles) commit(root string) error {
	for name := range maps.Keys(f.created) {
		if !f.created[name] {
			continue
		}
		if err := pinAtomic(f.all[name], root, filepath.Join(mapsDir, name)); err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
	}
	return nil
}

type pinner interface{ Pin(string) error }

// pinAtomic pins x at root/rel, replacing what is there.
func pinAtomic(x pinner, root, rel string) error {
	tmp := filepath.Join(root, newDir, filepath.Base(rel))
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := x.Pin(tmp); err != nil {
		return fmt.Errorf("pin %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, filepath.Join(root, rel)); err != nil {
		return errors.Join(fmt.Errorf("pin %s: %w", rel, err), os.Remove(tmp))
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
