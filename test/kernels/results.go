// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// outcome is how a test ended on one kernel.
type outcome struct {
	Action string // pass, fail, skip or unfinished
	Reason string // of a skip: what the test said
}

// results holds the outcomes by package and test, parted by a space. Subtests
// count with the test that they belong to: it is skipped if all of them are.
type results map[string]outcome

// part is what one test binary wrote.
type part struct {
	pkg    string
	output []byte
	exit   int
	ended  bool // it said so itself; else its tests are not finished
}

// split takes apart what came out of a machine. done tells whether its plan was
// finished: a machine may die at any moment.
func split(r io.Reader) (parts []part, done bool, err error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		line := strings.TrimSuffix(s.Text(), "\r")
		said, ours := strings.CutPrefix(line, mark)
		word := strings.Fields(said)
		switch {
		case ours && word[0] == "begin":
			parts = append(parts, part{pkg: word[1]})
		case ours && word[0] == "end":
			p := &parts[len(parts)-1]
			p.exit, err = strconv.Atoi(word[2])
			if err != nil {
				return nil, false, fmt.Errorf("%q: %w", line, err)
			}
			p.ended = true
		case ours:
			done = word[0] == "done"
		case len(parts) > 0 && !parts[len(parts)-1].ended:
			p := &parts[len(parts)-1]
			p.output = append(append(p.output, line...), '\n')
		}
	}
	return parts, done, s.Err()
}

// records turns what test binaries wrote into what `go test -json` prints, with
// the kernel before the package's name.
func records(ctx context.Context, kernel string, parts []part) ([]byte, error) {
	var all bytes.Buffer
	for _, p := range parts {
		if p.exit != 0 {
			p.output = fmt.Appendf(p.output, "exit status %d\nFAIL\n", p.exit)
		}
		cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "-p", kernel+"/"+p.pkg)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(p.output), &all, os.Stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%s on %s: test2json: %w", p.pkg, kernel, err)
		}
	}
	return all.Bytes(), nil
}

// read takes outcomes from records. The last word on a test counts.
func read(raw []byte) (results, error) {
	out := results{}
	said := map[string]string{}
	parts := map[string]*subtests{}
	for line := range bytes.Lines(raw) {
		var e struct{ Action, Package, Test, Output string }
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("not a record of go test -json: %w", err)
		}
		_, pkg, _ := strings.Cut(e.Package, "/")
		whole, _, isPart := strings.Cut(e.Test, "/")
		name := pkg + " " + e.Test
		switch {
		case e.Action == "output":
			if _, text, ok := strings.Cut(e.Output, "_test.go:"); ok { // file:line: text
				_, text, _ = strings.Cut(text, ": ")
				said[name] = strings.TrimSpace(text)
			}
		case isPart:
			if p := parts[pkg+" "+whole]; p != nil {
				p.add(e.Action, said[name])
			}
		case e.Action == "run":
			out[name], parts[name] = outcome{Action: "unfinished"}, &subtests{}
		case e.Test == "" && (e.Action == "pass" || e.Action == "skip"): // the package was run again
			delete(out, name)
		case e.Action == "pass" && parts[name] != nil && parts[name].none():
			out[name] = outcome{Action: "skip", Reason: parts[name].reason}
		case e.Action == "pass", e.Action == "fail", e.Action == "skip":
			out[name] = outcome{Action: e.Action, Reason: said[name]}
		}
	}
	return out, nil
}

// subtests counts those of a test that ended, in whichever depth.
type subtests struct {
	passed, skipped int
	reason          string // of the last skip
}

func (s *subtests) add(action, said string) {
	switch action {
	case "pass":
		s.passed++
	case "skip":
		s.skipped++
		s.reason = said
	}
}

// none tells whether there were subtests and nothing was tested by them.
func (s *subtests) none() bool { return s.skipped > 0 && s.passed == 0 }
