// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/weft-net/weft/lab/internal/cgroup"
	"github.com/weft-net/weft/lab/internal/state"
	"github.com/weft-net/weft/lab/internal/wire"
)

// downLimit bounds each step of down.
const downLimit = 60 * time.Second

// Down takes a lab away, whatever state it is in: what the journal names, and
// nothing else. A lab that is not there is no error.
func Down(ctx context.Context, name string, out io.Writer) error {
	dir := state.ForLab(name)
	if !dir.Exists() && !fileExists(string(dir)+".lock") {
		fmt.Fprintf(out, "lab %s is not there\n", name)
		return nil
	}
	lock, err := dir.Lock(ctx, lockLimit)
	if err != nil {
		return fmt.Errorf("%w; end it first, then run down again", err)
	}
	if err := takeDown(ctx, dir, newReporter(out)); err != nil {
		lock.Unlock()
		return err
	}
	return errors.Join(lock.Remove(), state.RestoreMachine(ctx))
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// takeDown does the work, under the lab's lock. It goes on past errors, and
// keeps the journal until everything is gone.
func takeDown(ctx context.Context, dir state.Dir, report *reporter) error {
	entries, err := dir.Entries()
	if err != nil {
		return err
	}
	var errs []error
	step := func(kind string, fn func(context.Context, string) error) {
		for _, e := range entries {
			if e.Kind != kind {
				continue
			}
			sctx, cancel := context.WithTimeout(ctx, downLimit)
			errs = append(errs, fn(sctx, e.Value))
			cancel()
		}
	}
	step(state.KindCgroup, func(ctx context.Context, path string) error {
		if !fileExists(filepath.Join(path, "cgroup.kill")) {
			return nil // v1: its processes are in the cgroup2 group as well
		}
		return cgroup.Kill(ctx, path)
	})
	step(state.KindNetns, func(_ context.Context, path string) error { return wire.DeleteNetns(path) })
	step(state.KindCgroup, cgroup.Remove)
	step(state.KindController, func(_ context.Context, value string) error {
		if dir, controller, ok := strings.Cut(value, " "); ok {
			cgroup.TakeBack(dir, controller)
		}
		return nil
	})
	step(state.KindDir, func(_ context.Context, path string) error {
		_ = os.Remove(path) // only if nobody else uses it
		return nil
	})
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab %s is not gone entirely: %w; run down again", dir.Name(), err)
	}
	if err := removeState(dir); err != nil {
		return err
	}
	report.line("lab %s is gone", dir.Name())
	return nil
}

// removeState deletes the lab's folder, unless something is mounted in it:
// then deleting would reach into somebody else's files.
func removeState(dir state.Dir) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], string(dir)+"/") {
			return fmt.Errorf("state: %s is mounted: unmount it and run down again", f[4])
		}
	}
	if err := os.RemoveAll(string(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}
