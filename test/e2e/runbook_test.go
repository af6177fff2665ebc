// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
)

// step is one line of a runbook as a user types it, and what must come of it.
//
//	$ LINE      run in bash, with kubectl, and must succeed
//	! LINE      likewise, and must fail
//	< TEXT      typed into it, a line of standard input
//	> REGEXP    must match some line of what it prints
//	- REGEXP    must match no line of it
//	# TEXT      a remark
//
// Names that runbooks leave open stand for an agent's pod: cilium-xxxxx,
// <cilium-pod-name>.
type step struct {
	line  string
	fails bool
	input []string
	want  []string
	deny  []string
}

func parseRunbook(lines []string) ([]step, error) {
	var steps []step
	for n, l := range lines {
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		mark, rest, ok := strings.Cut(l, " ")
		if !ok {
			return nil, fmt.Errorf("line %d: %q is a mark without text", n+1, l)
		}
		if mark == "$" || mark == "!" {
			steps = append(steps, step{line: rest, fails: mark == "!"})
			continue
		}
		if len(steps) == 0 {
			return nil, fmt.Errorf("line %d: %q stands before any command", n+1, l)
		}
		s := &steps[len(steps)-1]
		switch mark {
		case "<":
			s.input = append(s.input, rest)
			continue
		case ">":
			s.want = append(s.want, rest)
		case "-":
			s.deny = append(s.deny, rest)
		default:
			return nil, fmt.Errorf("line %d: unknown mark %q", n+1, mark)
		}
		if _, err := regexp.Compile(rest); err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	return steps, nil
}

// check says what is wrong with the outcome of a step, nothing if all is well.
func (s step) check(output string, failed bool) []string {
	var wrong []string
	if failed != s.fails {
		wrong = append(wrong, fmt.Sprintf("failed: %v, want %v", failed, s.fails))
	}
	for _, w := range s.want {
		if !regexp.MustCompile("(?m)" + w).MatchString(output) {
			wrong = append(wrong, fmt.Sprintf("no line matches %q", w))
		}
	}
	for _, d := range s.deny {
		if m := regexp.MustCompile("(?m)" + d).FindString(output); m != "" {
			wrong = append(wrong, fmt.Sprintf("%q matches %q", d, m))
		}
	}
	return wrong
}

func (s *scripts) runbook(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: runbook FILE...")
	}
	for _, name := range args {
		steps, err := parseRunbook(read(ts, name))
		ts.Check(err)
		wrong := 0
		for _, st := range steps {
			out, failed, err := s.typed(st)
			ts.Check(err)
			ts.Logf("$ %s\n%s", st.line, out)
			for _, w := range st.check(out, failed) {
				ts.Logf("WRONG: %s: %s", st.line, w)
				wrong++
			}
		}
		if wrong > 0 {
			ts.Fatalf("%s: %d things are not as they should be", name, wrong)
		}
	}
}

// typed runs a line where the API server can be reached. Output and errors come
// together, as on a screen.
func (s *scripts) typed(st step) (output string, failed bool, err error) {
	line := st.line
	if strings.Contains(line, "cilium-xxxxx") || strings.Contains(line, "<cilium-pod-name>") {
		pod, err := s.lab.TryKubectl("-n", "kube-system", "get", "pods", "-l", "k8s-app=cilium",
			"--field-selector", "status.phase=Running", "-o", "jsonpath={.items[0].metadata.name}")
		if err != nil {
			return "", false, err
		}
		line = strings.NewReplacer("cilium-xxxxx", pod, "<cilium-pod-name>", pod).Replace(line)
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	r, err := s.lab.Do(ctx, strings.NewReader(strings.Join(st.input, "\n")+"\n"),
		"run", "--", "bash", "-o", "pipefail", "-c", line+" 2>&1")
	return r.Stdout + r.Stderr, r.Code != 0, err
}

// Fault: a runbook that is read wrongly asserts nothing.
func TestParseRunbook(t *testing.T) {
	steps, err := parseRunbook(strings.Split(`# remark
$ kubectl get pods | grep x
< typed
> ^NAME
- Error
! false`, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []step{
		{line: "kubectl get pods | grep x", input: []string{"typed"}, want: []string{"^NAME"}, deny: []string{"Error"}},
		{line: "false", fails: true},
	}
	if diff := cmp.Diff(want, steps, cmp.AllowUnexported(step{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, bad := range []string{"> before", "$", "? what", "$ x\n> ("} {
		if _, err := parseRunbook(strings.Split(bad, "\n")); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for output, n := range map[string]int{"NAME\nx": 0, "x": 1, "NAME\nan Error": 1, "Error": 2} {
		if wrong := steps[0].check(output, false); len(wrong) != n {
			t.Errorf("output %q: %d things wrong, want %d: %v", output, len(wrong), n, wrong)
		}
	}
	if wrong := steps[1].check("", false); len(wrong) != 1 {
		t.Errorf("a line that must fail and did not: %v", wrong)
	}
}
