// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const (
	module = "github.com/weft-net/weft"
	root   = "../.."
)

// pkg is what `go list` says of one package.
type pkg struct {
	ImportPath string
	Doc        string
	GoFiles    []string
	Imports    []string
	Deps       []string
	Standard   bool
	Module     *struct{ Path string }
}

// name is the package's path within the repository.
func (p *pkg) name() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

// list runs `go list` once for all tests.
var list = sync.OnceValues(func() (map[string]*pkg, error) {
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Doc,GoFiles,Imports,Deps,Standard,Module", "./...")
	cmd.Dir = root
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(errOut.String()))
	}
	pkgs := map[string]*pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs, nil
		}
		if err != nil {
			return nil, err
		}
		pkgs[p.ImportPath] = &p
	}
})

// packages returns all packages, dependencies included, by import path.
func packages(t *testing.T) map[string]*pkg {
	t.Helper()
	pkgs, err := list()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return pkgs
}

// ours returns the repository's own packages, by path within it.
func ours(t *testing.T) map[string]*pkg {
	t.Helper()
	out := map[string]*pkg{}
	for path, p := range packages(t) {
		if path == module || strings.HasPrefix(path, module+"/") {
			out[p.name()] = p
		}
	}
	if len(out) < 10 {
		t.Fatalf("go list found %d packages only", len(out))
	}
	return out
}

// source is one Go file of the repository.
type source struct {
	name      string // within the repository
	text      []byte
	file      *ast.File
	fset      *token.FileSet
	test      bool
	generated bool
}

// sources parses all Go files, those of the lab and of tests included.
func sources(t *testing.T) []*source {
	t.Helper()
	var out []*source
	for _, name := range files(t, ".go") {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		out = append(out, &source{
			name: name, text: text, file: f, fset: fset,
			test: strings.HasSuffix(name, "_test.go"), generated: ast.IsGenerated(f),
		})
	}
	if len(out) < 30 {
		t.Fatalf("found %d Go files only", len(out))
	}
	return out
}

// files lists the files of the repository whose name ends so, built ones excepted.
func files(t *testing.T, suffix string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() && (name == "build" || (name != "." && strings.HasPrefix(d.Name(), "."))) {
			return filepath.SkipDir
		}
		if !d.IsDir() && strings.HasSuffix(name, suffix) {
			out = append(out, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
