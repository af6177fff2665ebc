// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FileLock is an advisory lock. The kernel lets go of it when its holder dies.
type FileLock struct {
	f    *os.File
	path string
}

const lockPoll = 200 * time.Millisecond

// Lock takes the lock at path. When another process holds it, waiting is
// called once with its description and Lock tries until the limit.
func Lock(ctx context.Context, path string, limit time.Duration, waiting func(holder string)) (*FileLock, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := time.NewTicker(lockPoll)
	defer t.Stop()
	for told := false; ; told = true {
		l, err := tryLock(path)
		if l != nil || err != nil {
			return l, err
		}
		if !told && waiting != nil {
			waiting(holder(path))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: still held by %s", path, holder(path))
		case <-t.C:
		}
	}
}

// tryLock returns nil without an error when the lock is taken.
func tryLock(path string) (*FileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The holder before us may have removed the file that we opened.
	if !sameFile(f, path) {
		f.Close()
		return nil, nil
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt(fmt.Appendf(nil, "pid %d: %s", os.Getpid(), strings.Join(os.Args, " ")), 0)
	return &FileLock{f: f, path: path}, nil
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

func holder(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return "another process"
	}
	return string(b)
}

// Unlock lets go.
func (l *FileLock) Unlock() { l.f.Close() }

// Remove deletes the file and lets go.
func (l *FileLock) Remove() error {
	defer l.f.Close()
	if err := os.Remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lock: %w", err)
	}
	return nil
}
