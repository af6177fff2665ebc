// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/link"
)

// UninstallNode removes everything of Weft from this node and tells out what it
// removed. Pods that still run lose their network. It goes on after an error, and
// may be repeated.
//
// Forwarding stays switched on and bpffs stays mounted: others may need them.
func UninstallNode(ctx context.Context, o Options, out io.Writer) error {
	lock, err := lockRun(o.Paths)
	if err != nil {
		return fmt.Errorf("%w: delete the DaemonSet first", err)
	}
	defer lock.Close()
	u := uninstaller{o: o, out: out}
	// In the order in which the agent would make things, reversed: the runtime
	// must not find a plugin whose programs are gone.
	u.file("CNI configuration", o.Paths.conflist())
	u.file("CNI plugin", o.Paths.plugin())
	u.network(ctx)
	u.pins()
	u.netns()
	u.runDir()
	if len(u.errs) == 0 && u.removed == 0 {
		fmt.Fprintln(out, "nothing of Weft was found on this node")
	}
	return errors.Join(u.errs...)
}

type uninstaller struct {
	o       Options
	out     io.Writer
	removed int
	errs    []error
}

func (u *uninstaller) told(what, which string) {
	u.removed++
	fmt.Fprintf(u.out, "removed %s %s\n", what, which)
}

func (u *uninstaller) failed(err error) { u.errs = append(u.errs, err) }

func (u *uninstaller) file(what, path string) {
	err := os.Remove(path)
	switch {
	case err == nil:
		u.told(what, path)
	case !errors.Is(err, os.ErrNotExist):
		u.failed(fmt.Errorf("%s: %w", what, err))
	}
}

// network removes routes, links and accept rules.
func (u *uninstaller) network(ctx context.Context) {
	links, err := link.New(u.o.Paths.Sysctl, u.o.Log)
	if err != nil {
		u.failed(err)
		return
	}
	r := reservation{links, u.o.Paths.reserved()}
	if _, err := os.Stat(r.file); err == nil {
		if err := r.ensure(false, 0, 0); err != nil {
			u.failed(err)
		} else {
			u.told("reserved ports", "of masqueraded flows")
		}
	}
	u.bounds(links)
	routes, err := links.ListRoutes()
	if err != nil {
		u.failed(err)
	}
	if err := links.DeleteAllRoutes(); err != nil {
		u.failed(err)
	} else {
		for _, r := range routes {
			if r.Type != "" {
				u.told("route", fmt.Sprintf("%s %s", r.Type, r.Prefix))
				continue
			}
			u.told("route", fmt.Sprintf("%s via %s dev %s", r.Prefix, r.Via, r.Device))
		}
	}
	if removed, err := links.RemoveTunnel(); err != nil {
		u.failed(err)
	} else if removed {
		u.told("device", link.TunnelDevice)
	}
	have, err := links.List()
	if err != nil {
		u.failed(err)
	}
	if err := links.DeleteAll(); err != nil {
		u.failed(err)
	} else {
		for _, l := range have {
			u.told("device", l.Name)
		}
	}
	missing := new(link.MissingError)
	if err := links.RemoveForward(ctx); err != nil && !errors.As(err, &missing) {
		u.failed(err)
	} else if err == nil {
		fmt.Fprintf(u.out, "chain %s is gone\n", link.ForwardChain)
	}
}

// bounds gives the node's devices back what BIG TCP changed.
func (u *uninstaller) bounds(links *link.Links) {
	b := newBigTCP(&config.Config{}, links, u.o.Paths.bounds(), u.o.Log)
	if _, err := os.Stat(b.notes.file); err != nil {
		return
	}
	if err := b.apply(nil); err != nil {
		u.failed(err)
		return
	}
	u.told("bounds of super-packets", "on the node's devices")
}

func (u *uninstaller) pins() {
	root := u.o.Paths.BPF
	var pins []string
	for _, dir := range []string{"links", "maps"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			u.failed(fmt.Errorf("pins: %w", err))
		}
		for _, e := range entries {
			pins = append(pins, filepath.Join(root, dir, e.Name()))
		}
	}
	if err := datapath.Unload(root); err != nil {
		u.failed(err)
		return
	}
	for _, p := range pins {
		u.told("pin", p)
	}
}

func (u *uninstaller) netns() {
	path := u.o.Paths.HealthNetns
	if mounted(path) || isNetns(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			u.failed(fmt.Errorf("network namespace %s: %w", path, err))
			return
		}
	}
	u.file("network namespace", path)
}

// runDir empties the run directory; the directory itself may be a mount.
func (u *uninstaller) runDir() {
	entries, err := os.ReadDir(u.o.Paths.Run)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			u.failed(fmt.Errorf("run directory: %w", err))
		}
		return
	}
	for _, e := range entries {
		path := filepath.Join(u.o.Paths.Run, e.Name())
		if err := os.RemoveAll(path); err != nil {
			u.failed(fmt.Errorf("run directory: %w", err))
			continue
		}
		if path != u.o.Paths.lock() {
			u.told("file", path)
		}
	}
	if err := os.Remove(u.o.Paths.Run); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
		u.failed(fmt.Errorf("run directory: %w", err))
	}
}
