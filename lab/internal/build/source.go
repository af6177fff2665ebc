// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// CacheDir is where everything that is built stays.
func CacheDir() (string, error) {
	if d := os.Getenv("WEFT_LAB_CACHE"); d != "" {
		return filepath.Abs(d)
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache directory: %w; set WEFT_LAB_CACHE", err)
	}
	return filepath.Join(d, "weft-lab"), nil
}

// sourceDir finds lab/build, the folder of module files. They cannot be
// embedded in the binary: go:embed leaves nested modules out.
func sourceDir() (string, error) {
	var candidates []string
	if d := os.Getenv("WEFT_LAB_SOURCE"); d != "" {
		candidates = append(candidates, d)
	}
	if _, file, _, ok := runtime.Caller(0); ok {
		candidates = append(candidates, filepath.Join(filepath.Dir(file), "../../build"))
	}
	// A binary built with -trimpath does not know where it came from: look
	// beside it and beside the working directory, and above both.
	if exe, err := os.Executable(); err == nil {
		candidates = append(candidates, above(filepath.Dir(exe))...)
	}
	if wd, err := os.Getwd(); err == nil {
		candidates = append(candidates, filepath.Join(wd, "build"))
		candidates = append(candidates, above(wd)...)
	}
	for _, c := range candidates {
		if _, err := os.Stat(filepath.Join(c, "k8s/go.mod")); err == nil {
			return filepath.Abs(c)
		}
	}
	return "", errors.New("module files lab/build/k8s/go.mod not found: run inside the repository or set WEFT_LAB_SOURCE to its lab/build")
}

func above(dir string) []string {
	var list []string
	for ; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		list = append(list, filepath.Join(dir, "lab/build"))
	}
	return list
}
