// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weft-net/weft/test/fault/labtest"
)

// Incidents that were told in public: first without what guards against them, so
// that the outage is seen, then with it.
func TestIncidents(t *testing.T) {
	for _, name := range []string{"unguarded", "guarded"} {
		t.Run(name, func(t *testing.T) { runInOwnLab(t, "-i", "../incidents/*.txtar", name) })
	}
}

// The connectivity test in every way in which a cluster can be set up.
func TestModes(t *testing.T) { runInOwnLab(t, "-m", "../modes.txtar", "") }

// runInOwnLab runs scripts that bring up their lab themselves (lab up) and see to
// it that it is gone afterwards. One condition holds in them.
func runInOwnLab(t *testing.T, suffix, pattern, condition string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	other := labtest.Open(t)
	l := other.Named(other.Name + suffix)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if r, err := l.Do(ctx, nil, "down"); err != nil || r.Code != 0 {
			t.Errorf("lab %s stays: %v %s", l.Name, err, r)
		}
	})
	s := &scripts{lab: l}
	cmds := s.commands()
	cmds["install"], cmds["capture"], cmds["outside"] = s.install, capture, s.outside
	testscript.Run(t, testscript.Params{
		Files:               files,
		Cmds:                cmds,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("IMAGE", filepath.Join(filepath.Dir(l.Build), "image", "weft.tar"))
			return nil
		},
		Condition: func(cond string) (bool, error) { return cond == condition, nil },
	})
}

// outside runs Weft's CLI on the lab's host outside of the cluster.
func (s *scripts) outside(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	r, err := s.lab.WeftAt(ctx, "client", args...)
	ts.Check(err)
	show(ts, r)
	if (r.Code != 0) != neg {
		ts.Fatalf("outside: exit code %d", r.Code)
	}
}

// install runs the repository's own script for it in the script's lab.
func (s *scripts) install(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	root := filepath.Dir(filepath.Dir(s.lab.Build))
	cmd := exec.CommandContext(ctx, filepath.Join(root, "test", "install.sh"), append([]string{s.lab.Name}, args...)...)
	cmd.Dir, cmd.WaitDelay = ts.MkAbs("."), 5*time.Second
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	if err := cmd.Run(); (err != nil) != neg {
		ts.Fatalf("install: %v", err)
	}
}

// capture sets variables to the words of the last command's output.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	words := strings.Fields(ts.ReadFile("stdout"))
	if neg || len(words) != len(args) {
		ts.Fatalf("capture: %d words for %d variables: %q", len(words), len(args), words)
	}
	for i, name := range args {
		ts.Setenv(name, words[i])
	}
}
