// SPDX-License-Identifier: Apache-2.0

package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// addELF puts programs and libraries, given by their place under root, into the
// image, and with them everything that they are linked with.
func addELF(t *tree, root string, paths []string) error {
	seen := map[string]bool{}
	for len(paths) > 0 {
		name := paths[0]
		paths = paths[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		file, err := resolve(root, name)
		if err != nil {
			return fmt.Errorf("%s: %w: add its package to packages()", name, err)
		}
		needs, interp, err := links(file)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := t.copy(merged(name), file, 0o755); err != nil {
			return err
		}
		if interp != "" {
			paths = append(paths, interp)
		}
		for _, lib := range needs {
			found, err := findLibrary(root, lib)
			if err != nil {
				return fmt.Errorf("%s needs %s: %w: add its package to packages()", name, lib, err)
			}
			paths = append(paths, found)
		}
	}
	return nil
}

// merged returns where a file lies once /bin, /sbin and /lib are links into /usr.
func merged(name string) string {
	for _, d := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(name, d) {
			return "/usr" + name
		}
	}
	return name
}

// links returns the libraries that an ELF file names, and its loader.
func links(file string) (needs []string, interp string, err error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		raw, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, "", err
		}
		interp = strings.TrimRight(string(raw), "\x00")
	}
	needs, err = f.ImportedLibraries()
	// A static program has no dynamic section.
	if errors.Is(err, elf.ErrNoSymbols) {
		err = nil
	}
	return needs, interp, err
}

// findLibrary returns the place of a shared library under root.
func findLibrary(root, lib string) (string, error) {
	for _, pattern := range []string{"lib/*/", "usr/lib/*/", "lib64/"} {
		hits, err := filepath.Glob(filepath.Join(root, pattern, lib))
		if err != nil {
			return "", err
		}
		if len(hits) > 0 {
			return strings.TrimPrefix(hits[0], root), nil
		}
	}
	return "", os.ErrNotExist
}

// resolve follows links within root and returns the file's place on this machine.
func resolve(root, name string) (string, error) {
	for range 8 {
		file := filepath.Join(root, name)
		target, err := os.Readlink(file)
		if err != nil {
			_, err := os.Stat(file)
			return file, err
		}
		if path.IsAbs(target) {
			name = target
		} else {
			name = path.Join(path.Dir(name), target)
		}
	}
	return "", errors.New("too many links")
}
