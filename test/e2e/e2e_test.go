// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weft-net/weft/test/fault/labtest"
)

// commandLimit bounds one command of a script.
const commandLimit = 5 * time.Minute

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	runScripts(t, files...)
}

// The seeds' runbooks, as typed.
func TestRunbooks(t *testing.T) {
	runScripts(t, "../runbooks.txtar")
}

func runScripts(t *testing.T, files ...string) {
	t.Helper()
	l := labtest.Open(t)
	tools, err := filepath.Abs("../../build/tools")
	if err != nil {
		t.Fatal(err)
	}
	// For lines as typed.
	t.Setenv("PATH", tools+":"+l.Build+":"+os.Getenv("PATH"))
	s := &scripts{lab: l, helm: filepath.Join(tools, "helm")}
	testscript.Run(t, testscript.Params{
		Files:               files,
		Cmds:                s.commands(),
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("LAB", l.Name)
			chart, err := filepath.Abs("../../install/helm/weft")
			e.Setenv("CHART", chart)
			return errors.Join(err, s.namespace(e))
		},
	})
}

// namespace makes a namespace for a script, $NS, which goes with the script.
func (s *scripts) namespace(e *testscript.Env) error {
	name := fmt.Sprintf("e2e-%x", time.Now().UnixNano())
	e.Setenv("NS", name)
	_, err := s.lab.TryKubectl("create", "namespace", name)
	e.Defer(func() {
		_, _ = s.lab.TryKubectl("delete", "namespace", name, "--wait=false")
	})
	return err
}

// scripts are the commands that scripts have.
type scripts struct {
	lab  *labtest.Lab
	helm string
}

type command = func(ts *testscript.TestScript, neg bool, args []string)

func (s *scripts) commands() map[string]command {
	prefixes := s.prefixes()
	cmds := map[string]command{
		"runbook":    s.runbook,
		"eventually": s.eventually,
	}
	for name, prefix := range prefixes {
		cmds[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			r, err := s.do(ts, prefix, args)
			ts.Check(err)
			show(ts, r)
			if (r.Code != 0) != neg {
				ts.Fatalf("%s: exit code %d", name, r.Code)
			}
		}
	}
	return cmds
}

// prefixes are weft-lab's arguments for each command.
func (s *scripts) prefixes() map[string][]string {
	return map[string][]string{
		"kubectl": {"kubectl"},
		"helm":    {"run", "--", s.helm},
		"weft":    {"run", "--", filepath.Join(s.lab.Build, "weft")},
		"node":    {"exec"},
		"lab":     {},
	}
}

// do runs weft-lab in the script's current folder. The error is nil whenever the
// command ran to its end, whatever its exit code.
func (s *scripts) do(ts *testscript.TestScript, prefix, args []string) (labtest.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := s.lab.Command(ctx, append(slices.Clone(prefix), args...)...)
	cmd.Dir = ts.MkAbs(".")
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	r := labtest.Result{Args: cmd.Args, Stdout: out.String(), Stderr: errOut.String(), Code: cmd.ProcessState.ExitCode()}
	if exit := new(exec.ExitError); errors.As(err, &exit) && ctx.Err() == nil {
		err = nil
	}
	return r, err
}

// show makes the output available to stdout and stderr of the script.
func show(ts *testscript.TestScript, r labtest.Result) {
	_, _ = io.WriteString(ts.Stdout(), r.Stdout)
	_, _ = io.WriteString(ts.Stderr(), r.Stderr)
}

func (s *scripts) eventually(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: eventually TIME COMMAND [ARG...]")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	prefix, ok := s.prefixes()[args[1]]
	if !ok {
		ts.Fatalf("eventually: %s is not one of this package's commands", args[1])
	}
	var last labtest.Result
	err = labtest.Retry(limit, func() error {
		r, err := s.do(ts, prefix, args[2:])
		last = r
		if err == nil && (r.Code != 0) != neg {
			err = fmt.Errorf("%s", r)
		}
		return err
	})
	if err != nil {
		ts.Fatalf("not within %s: %v", limit, err)
	}
	show(ts, last)
}

// read returns the lines of a file of the script.
func read(ts *testscript.TestScript, name string) []string {
	raw, err := os.ReadFile(ts.MkAbs(name))
	ts.Check(err)
	return strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
}
