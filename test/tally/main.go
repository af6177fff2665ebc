// SPDX-License-Identifier: Apache-2.0

// Command tally reads the records of `go test -json` and prints which tests
// failed and how many passed, failed and were skipped. It fails if a test failed
// or none ran.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
)

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
}

// tally holds the last word on each test, by package and name.
type tally map[string]string

func run(w io.Writer, files []string) error {
	t := tally{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = t.read(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return t.report(w)
}

func (t tally) read(r io.Reader) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var e struct {
			Action, Package, Test string
		}
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			return fmt.Errorf("not a record of go test -json: %w", err)
		}
		name := e.Package
		switch {
		case e.Test != "":
			name += " " + e.Test
		case e.Action != "fail":
			continue // a package counts only where it failed without naming a test
		}
		switch e.Action {
		case "run":
			t[name] = "unfinished"
		case "pass", "fail", "skip":
			t[name] = e.Action
		}
	}
	return s.Err()
}

func (t tally) report(w io.Writer) error {
	count := map[string]int{}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		verdict := t[name]
		if verdict == "unfinished" {
			verdict = "fail"
		}
		if verdict == "fail" {
			fmt.Fprintln(w, "FAIL", name)
		}
		count[verdict]++
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
	switch {
	case count["fail"] > 0:
		return fmt.Errorf("%d tests failed", count["fail"])
	case count["pass"] == 0:
		return errors.New("no test passed: none ran")
	}
	return nil
}
