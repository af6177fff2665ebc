// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// inotifyPath is the one setting of the machine that labs change. The kernel
// counts the inotify instances of a user over all namespaces, and allows 128:
// a control plane takes 12, a node 10, so that two labs are one too many, and
// kubelet's error would not say why.
const (
	inotifyPath = "/proc/sys/fs/inotify/max_user_instances"
	inotifyWant = 4096
)

// machineFile holds the value that was there before the first lab.
const machineFile = ".inotify-instances"

const machineLimit = 10 * time.Second

// PrepareMachine raises the limit if it is too low. RestoreMachine puts it back.
func PrepareMachine(ctx context.Context) error {
	return underMachineLock(ctx, func(file string) error {
		have, err := readInt(inotifyPath)
		if err != nil || have >= inotifyWant {
			return err
		}
		if err := WriteFile(file, []byte(strconv.Itoa(have)), 0o600); err != nil {
			return err
		}
		return writeInt(inotifyPath, inotifyWant)
	})
}

// RestoreMachine puts the machine's limit back when no lab is left, unless
// somebody else has changed it since.
func RestoreMachine(ctx context.Context) error {
	err := underMachineLock(ctx, func(file string) error {
		entries, err := os.ReadDir(Root())
		if err != nil {
			return fmt.Errorf("state: %w", err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") {
				return nil // a lab, or one that is beginning: its lock is there first
			}
		}
		before, err := readInt(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if now, err := readInt(inotifyPath); err == nil && now == inotifyWant {
			if err := writeInt(inotifyPath, before); err != nil {
				return err
			}
		}
		return os.Remove(file)
	})
	if err != nil {
		return err
	}
	_ = os.Remove(Root()) // only when it is empty
	return nil
}

func underMachineLock(ctx context.Context, fn func(file string) error) error {
	if err := os.MkdirAll(Root(), 0o755); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	l, err := Lock(ctx, filepath.Join(Root(), ".machine.lock"), machineLimit, nil)
	if err != nil {
		return err
	}
	err = fn(filepath.Join(Root(), machineFile))
	return errors.Join(err, l.Remove())
}

func readInt(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

func writeInt(path string, n int) error {
	if err := os.WriteFile(path, []byte(strconv.Itoa(n)), 0); err != nil {
		return fmt.Errorf("raise the machine's limit: %w", err)
	}
	return nil
}
