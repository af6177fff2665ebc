// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// charged is what the kernel charges to the agent's container: its own memory
// and that of the BPF maps which it made.
type charged struct {
	used  uint64 // as the kubelet counts: without file pages that can go at once
	limit uint64 // 0: none
}

// memoryOf reads the account of the process whose /proc directory it is given.
// There is none without cgroup2, or outside of any cgroup.
func memoryOf(proc, cgroupRoot string) (charged, error) {
	b, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		return charged{}, fmt.Errorf("memory of the agent: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return readCharged(filepath.Join(cgroupRoot, path))
		}
	}
	return charged{}, errors.New("memory of the agent: no cgroup2")
}

func readCharged(dir string) (c charged, err error) {
	current, err := os.ReadFile(filepath.Join(dir, "memory.current"))
	if err != nil {
		return c, fmt.Errorf("memory of the agent: %w", err)
	}
	if c.used, err = strconv.ParseUint(strings.TrimSpace(string(current)), 10, 64); err != nil {
		return c, fmt.Errorf("memory of the agent: %s: %w", dir, err)
	}
	stat, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return c, fmt.Errorf("memory of the agent: %w", err)
	}
	for s := bufio.NewScanner(bytes.NewReader(stat)); s.Scan(); {
		if n, ok := strings.CutPrefix(s.Text(), "inactive_file "); ok {
			pages, err := strconv.ParseUint(n, 10, 64)
			if err != nil {
				return c, fmt.Errorf("memory of the agent: %s: %w", dir, err)
			}
			c.used -= min(pages, c.used)
		}
	}
	limit, err := os.ReadFile(filepath.Join(dir, "memory.max"))
	if err != nil {
		return c, fmt.Errorf("memory of the agent: %w", err)
	}
	if s := strings.TrimSpace(string(limit)); s != "max" {
		if c.limit, err = strconv.ParseUint(s, 10, 64); err != nil {
			return c, fmt.Errorf("memory of the agent: %s: %w", dir, err)
		}
	}
	return c, nil
}
