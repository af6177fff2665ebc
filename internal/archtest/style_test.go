// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"bytes"
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Limits of size, in lines (STYLE, rule 1). A function's comments count: one
// that needs so many of them is doing several things.
const (
	maxFunc = 80
	maxFile = 600
)

// Fault: a package of which nobody can say what it is for.
func TestPackageDocs(t *testing.T) {
	for name, p := range ours(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("package %s has no package comment", name)
		}
	}
}

// Fault: a file under no licence, or BPF code under one that the kernel refuses.
func TestLicenceHeaders(t *testing.T) {
	for _, s := range sources(t) {
		want := "// SPDX-License-Identifier: Apache-2.0\n"
		text := s.text
		if s.generated {
			continue // of their tools; the sources they come from are checked
		}
		if !bytes.HasPrefix(text, []byte(want)) {
			t.Errorf("%s does not begin with %q", s.name, strings.TrimSpace(want))
		}
	}
	want := "// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)\n"
	for _, suffix := range []string{".c", ".h"} {
		for _, name := range files(t, suffix) {
			text, err := os.ReadFile(filepath.Join(root, name))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(text, []byte(want)) && !bytes.HasPrefix(text, []byte("/* "+want[3:len(want)-1]+" */\n")) {
				t.Errorf("%s does not begin with %q", name, strings.TrimSpace(want))
			}
		}
	}
	for _, name := range files(t, ".sh") {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text[:min(len(text), 120)], []byte("# SPDX-License-Identifier: Apache-2.0\n")) {
			t.Errorf("%s has no SPDX header", name)
		}
	}
}

// Fault: files and functions grow until nobody reads them to their end.
func TestSizes(t *testing.T) {
	for _, s := range sources(t) {
		if s.generated {
			continue
		}
		if n := bytes.Count(s.text, []byte("\n")); n > maxFile {
			t.Errorf("%s: %d lines, more than %d", s.name, n, maxFile)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil || s.test {
				continue
			}
			if n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1; n > maxFunc {
				t.Errorf("%s: func %s has %d lines, more than %d", s.name, f.Name.Name, n, maxFunc)
			}
		}
	}
}

// Fault: hidden state that tests and second instances share, or work that
// happens because something was imported.
func TestNoPackageState(t *testing.T) {
	for _, s := range sources(t) {
		// What lab/build holds are recipes for programs of others, CoreDNS' list of
		// plugins for one.
		if s.generated || s.test || strings.HasPrefix(s.name, "lab/build/") {
			continue
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.Name == "init" {
					t.Errorf("%s: init function: let the caller do it", s.name)
				}
			case *ast.GenDecl:
				if d.Tok == token.VAR {
					packageVars(t, s, d)
				}
			}
		}
		assigned(t, s)
	}
}

// mutable are the types whose package-level variables are state by nature.
var mutable = regexp.MustCompile(`^\*?(sync\.(Mutex|RWMutex|Map|Pool|WaitGroup|Once)|atomic\.\w+|chan)`)

func packageVars(t *testing.T, s *source, d *ast.GenDecl) {
	t.Helper()
	if d.Doc != nil && strings.Contains(s.snippet(d.Doc), "//go:embed") {
		return // the build sets it
	}
	for _, spec := range d.Specs {
		v := spec.(*ast.ValueSpec)
		for i, n := range v.Names {
			text := ""
			if v.Type != nil {
				text = s.snippet(v.Type)
			}
			var value string
			if i < len(v.Values) {
				value = s.snippet(v.Values[i])
			}
			if mutable.MatchString(text) || strings.HasPrefix(value, "make(chan") || mutable.MatchString(strings.TrimPrefix(value, "&")) {
				t.Errorf("%s: package variable %s is state: pass it in", s.name, n.Name)
			}
			// A variable without a value is there to be assigned.
			if v.Type != nil && len(v.Values) == 0 && !mutable.MatchString(text) {
				t.Errorf("%s: package variable %s %s has no value, so something assigns it: pass it in", s.name, n.Name, text)
			}
		}
	}
}

// snippet is the source text of a node.
func (s *source) snippet(n ast.Node) string {
	return string(s.text[s.fset.Position(n.Pos()).Offset:s.fset.Position(n.End()).Offset])
}

// assigned reports functions that assign to a package variable of their file.
func assigned(t *testing.T, s *source) {
	t.Helper()
	vars := map[string]bool{}
	for _, d := range s.file.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
			for _, spec := range g.Specs {
				for _, n := range spec.(*ast.ValueSpec).Names {
					vars[n.Name] = n.Name != "_"
				}
			}
		}
	}
	for _, d := range s.file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Body == nil {
			continue
		}
		local := locals(f)
		ast.Inspect(f.Body, func(n ast.Node) bool {
			a, ok := n.(*ast.AssignStmt)
			if !ok || a.Tok == token.DEFINE {
				return true
			}
			for _, l := range a.Lhs {
				if id, ok := l.(*ast.Ident); ok && vars[id.Name] && !local[id.Name] {
					t.Errorf("%s: func %s assigns to package variable %s", s.name, f.Name.Name, id.Name)
				}
			}
			return true
		})
	}
}

// locals are the names that a function declares itself.
func locals(f *ast.FuncDecl) map[string]bool {
	out := map[string]bool{}
	add := func(l *ast.FieldList) {
		if l == nil {
			return
		}
		for _, p := range l.List {
			for _, n := range p.Names {
				out[n.Name] = true
			}
		}
	}
	add(f.Recv)
	add(f.Type.Params)
	add(f.Type.Results)
	ast.Inspect(f.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, l := range n.Lhs {
					if id, ok := l.(*ast.Ident); ok {
						out[id.Name] = true
					}
				}
			}
		case *ast.ValueSpec:
			for _, id := range n.Names {
				out[id.Name] = true
			}
		case *ast.FuncLit:
			add(n.Type.Params)
		}
		return true
	})
	return out
}

// Fault: work that was put off is forgotten in a comment, or a path of
// somebody's machine ends up in a public repository.
func TestNoLeftovers(t *testing.T) {
	bad := regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b|/root/|/home/[a-z]+/|/work/`)
	for _, suffix := range []string{".go", ".c", ".h", ".sh", ".yaml", ".md", ".txtar", ".tpl", "Makefile"} {
		for _, name := range files(t, suffix) {
			if name == "internal/archtest/style_test.go" || strings.HasSuffix(name, "go.sum") {
				continue
			}
			text, err := os.ReadFile(filepath.Join(root, name))
			if err != nil {
				t.Fatal(err)
			}
			for i, line := range strings.Split(string(text), "\n") {
				if m := bad.FindString(line); m != "" {
					t.Errorf("%s:%d: %q", name, i+1, m)
				}
			}
		}
	}
}
