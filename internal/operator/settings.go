// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/config"
)

// settingsEvery is how often the mounted ConfigMap is looked at. The kubelet
// itself takes up to a minute and a half to bring a change.
const settingsEvery = 2 * time.Second

// settings are the operator's settings as they stand on disk. A set that cannot
// be read leaves the one before it in force.
type settings struct {
	dir     string
	log     *slog.Logger
	changed chan struct{}

	mu   sync.Mutex
	cur  *config.Operator // the last good one, nil if there was none
	err  error            // why the present one is not in force
	mark string           // what the directory looked like when it was read
}

func newSettings(dir string, log *slog.Logger) *settings {
	s := &settings{dir: dir, log: log, changed: make(chan struct{}, 1)}
	s.look()
	return s
}

// get returns the settings in force, nil if there are none, and what is wrong
// with those on disk.
func (s *settings) get() (*config.Operator, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur, s.err
}

// run follows the directory until ctx ends.
func (s *settings) run(ctx context.Context) error {
	tick := time.NewTicker(settingsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.look()
		}
	}
}

// look reads the settings if the directory changed. Settings that were bad are
// read again each time: files that are not a ConfigMap's change one by one.
func (s *settings) look() {
	mark := markOf(s.dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	if mark == s.mark && s.err == nil {
		return
	}
	first := s.cur == nil && s.err == nil
	s.mark = mark
	next, err := config.LoadOperator(s.dir)
	switch {
	case err != nil:
		if s.err == nil || s.err.Error() != err.Error() {
			s.log.Error("settings are refused; those before stay in force", "error", err)
		}
		s.err = err
	case s.err == nil && reflect.DeepEqual(s.cur, next):
		return
	default:
		if !first {
			s.log.Info("settings changed", "pool", next.Pool.CIDRs(), "quarantine", next.Pool.Quarantine)
		}
		s.cur, s.err = next, nil
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// markOf changes whenever the kubelet has replaced a mounted ConfigMap, which it
// does by turning the link "..data"; in a plain directory, whenever a file changed.
func markOf(dir string) string {
	if target, err := os.Readlink(filepath.Join(dir, "..data")); err == nil {
		return target
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	var mark strings.Builder
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			fmt.Fprintln(&mark, e.Name(), fi.ModTime())
		}
	}
	return mark.String()
}
