// SPDX-License-Identifier: Apache-2.0

// Package labtest lets a test use a lab that runs (weft-lab up): commands in
// its hosts, kubectl, Weft's CLI, and what is needed to wait for things. A test
// that has no lab skips.
package labtest

import (
	"bytes"
	"context"
	"encoding/json"
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
)

// Lab is a running lab. Its methods may be called by many goroutines.
type Lab struct {
	Name  string
	Bin   string // weft-lab
	Build string // folder of the programs that the Makefile builds, absolute
}

// Open finds the lab that WEFT_LAB names, and skips the test if it names none.
// WEFT_LAB_BIN is the weft-lab to use; without it, build/bin/weft-lab of this
// repository.
func Open(t testing.TB) *Lab {
	t.Helper()
	name := os.Getenv("WEFT_LAB")
	if name == "" {
		t.Skip("needs a running lab: build/bin/weft-lab up --name NAME, then WEFT_LAB=NAME go test ./test/fault/")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, as labs do")
	}
	return &Lab{Name: name, Bin: binary(t), Build: buildDir(t)}
}

// Named is the lab of another name with the same programs; it need not run.
func (l *Lab) Named(name string) *Lab { return &Lab{Name: name, Bin: l.Bin, Build: l.Build} }

func binary(t testing.TB) string {
	t.Helper()
	bin := os.Getenv("WEFT_LAB_BIN")
	if bin == "" {
		bin = filepath.Join(buildDir(t), "weft-lab")
	}
	bin, err := filepath.Abs(bin)
	if err == nil {
		_, err = os.Stat(bin)
	}
	if err != nil {
		t.Fatalf("weft-lab: %v; run make lab, or set WEFT_LAB_BIN", err)
	}
	return bin
}

// buildDir is build/bin of the repository that the test runs in.
func buildDir(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return filepath.Join(d, "build", "bin")
		}
		if d == filepath.Dir(d) {
			t.Fatalf("%s: no go.mod above it", dir)
		}
	}
}

// Result of a command.
type Result struct {
	Args   []string
	Stdout string
	Stderr string
	Code   int // exit code
}

// String shows the command and all that it said.
func (r Result) String() string {
	return fmt.Sprintf("%s: exit code %d\nstdout: %s\nstderr: %s",
		strings.Join(r.Args, " "), r.Code, shorten(r.Stdout), shorten(r.Stderr))
}

// shorten keeps a failure readable.
func shorten(s string) string {
	const most = 6000
	if s = strings.TrimSpace(s); len(s) > most {
		return s[:most/2] + "\n[...]\n" + s[len(s)-most/2:]
	}
	return s
}

// Command prepares `weft-lab --name NAME args...`. It ends with ctx.
func (l *Lab) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, l.Bin, append([]string{"--name", l.Name}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Do runs weft-lab with stdin (may be nil). The error is nil whenever the
// command ran to its end, whatever its exit code.
func (l *Lab) Do(ctx context.Context, stdin io.Reader, args ...string) (Result, error) {
	cmd := l.Command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	err := cmd.Run()
	r := Result{Args: cmd.Args, Stdout: out.String(), Stderr: errOut.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return r, fmt.Errorf("%s: %w", r, context.Cause(ctx))
	case err != nil && !errors.As(err, &exit):
		return r, fmt.Errorf("%s: %w", r, err)
	}
	return r, nil
}

// Limit bounds each command of the Must functions.
const Limit = 60 * time.Second

// Must runs weft-lab, fails the test if it fails, and returns its output.
func (l *Lab) Must(t testing.TB, args ...string) string {
	t.Helper()
	return l.MustIn(t, "", args...)
}

// MustIn is Must with stdin.
func (l *Lab) MustIn(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, err := l.Try(stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is MustIn for where a test must go on: the error holds all that the
// command said. It does not depend on the test's context, so that cleanups can
// use it.
func (l *Lab) Try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), Limit, fmt.Errorf("no end within %s", Limit))
	defer cancel()
	r, err := l.Do(ctx, strings.NewReader(stdin), args...)
	if err == nil && r.Code != 0 {
		err = errors.New(r.String())
	}
	return r.Stdout, err
}

// Exec runs a command in a host of the lab: n1, cp, client, ...
func (l *Lab) Exec(t testing.TB, host string, argv ...string) string {
	t.Helper()
	return l.Must(t, execArgs(host, argv)...)
}

// Shell runs a script in a host of the lab. It ends at the first command that
// fails.
func (l *Lab) Shell(t testing.TB, host, script string) string {
	t.Helper()
	return l.Exec(t, host, "sh", "-ec", script)
}

// TryShell is Shell for cleanups.
func (l *Lab) TryShell(host, script string) (string, error) {
	return l.Try("", execArgs(host, []string{"sh", "-ec", script})...)
}

func execArgs(host string, argv []string) []string {
	return append([]string{"exec", host, "--"}, argv...)
}

// Kubectl runs kubectl as the cluster's administrator.
func (l *Lab) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	return l.Must(t, KubectlArgs(args...)...)
}

// TryKubectl is Kubectl for cleanups.
func (l *Lab) TryKubectl(args ...string) (string, error) { return l.Try("", KubectlArgs(args...)...) }

// KubectlArgs are the arguments of weft-lab that run kubectl.
func KubectlArgs(args ...string) []string { return append([]string{"kubectl"}, args...) }

// Get reads API objects as JSON into out.
func (l *Lab) Get(t testing.TB, out any, args ...string) {
	t.Helper()
	if err := l.TryGet(out, args...); err != nil {
		t.Fatal(err)
	}
}

// TryGet is Get that returns its error.
func (l *Lab) TryGet(out any, args ...string) error {
	text, err := l.TryKubectl(append([]string{"get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(text), out); err != nil {
		return fmt.Errorf("kubectl get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Weft runs Weft's CLI as a user of the cluster does, with the administrator's
// kubeconfig. The error is nil whatever the exit code.
func (l *Lab) Weft(ctx context.Context, args ...string) (Result, error) {
	return l.Do(ctx, nil, append([]string{"run", "--", filepath.Join(l.Build, "weft")}, args...)...)
}

// WeftAt is Weft on a host outside of the cluster (client, firewall), with the
// administrator's kubeconfig.
func (l *Lab) WeftAt(ctx context.Context, host string, args ...string) (Result, error) {
	config, err := l.Try("", "kubeconfig")
	if err != nil {
		return Result{}, err
	}
	argv := append([]string{"env", "KUBECONFIG=" + strings.TrimSpace(config), filepath.Join(l.Build, "weft")}, args...)
	return l.Do(ctx, nil, execArgs(host, argv)...)
}

// MustWeft is Weft that has to succeed; it returns what it printed.
func (l *Lab) MustWeft(t testing.TB, args ...string) string {
	t.Helper()
	return l.Must(t, append([]string{"run", "--", filepath.Join(l.Build, "weft")}, args...)...)
}

// NodeWeftPath is Weft's CLI inside a node, once PushWeft has put it there: not
// every folder of this machine is a node's too.
const NodeWeftPath = "/run/weft-fault/weft"

// PushWeft copies Weft's CLI into a node.
func (l *Lab) PushWeft(t testing.TB, node string) {
	t.Helper()
	l.Push(t, node, filepath.Join(l.Build, "weft"), NodeWeftPath)
}

// NodeWeft runs Weft's CLI on a node, where it asks the agent's socket.
func (l *Lab) NodeWeft(t testing.TB, node string, args ...string) string {
	t.Helper()
	l.PushWeft(t, node)
	return l.Exec(t, node, append([]string{NodeWeftPath}, args...)...)
}

// Push copies a file of this machine into a host, unless it is there already
// with the same size and time. Hosts have their own /run in memory.
func (l *Lab) Push(t testing.TB, host, from, to string) {
	t.Helper()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stamp := fmt.Sprintf("%d.%d", st.Size(), st.ModTime().UnixNano())
	if have, err := l.TryShell(host, "cat "+to+".stamp"); err == nil && strings.TrimSpace(have) == stamp {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	script := fmt.Sprintf("mkdir -p %s && cat >%s.new && chmod 755 %s.new && mv %s.new %s && echo %s >%s.stamp",
		filepath.Dir(to), to, to, to, to, stamp, to)
	r, err := l.Do(ctx, f, execArgs(host, []string{"sh", "-ec", script})...)
	if err == nil && r.Code != 0 {
		err = errors.New(r.String())
	}
	if err != nil {
		t.Fatalf("copy %s to %s: %v", from, host, err)
	}
}

// Eventually calls check until it returns nil, and fails the test with its last
// error after limit. Each call waits a little longer than the one before.
func Eventually(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	if err := Retry(limit, check); err != nil {
		t.Fatalf("%s: not within %s: %v", what, limit, err)
	}
}

// Retry is Eventually that returns the error.
func Retry(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for wait := 100 * time.Millisecond; ; wait = min(wait*3/2, 2*time.Second) {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-time.After(wait) // nothing announces what another machine does
	}
}

// Nodes names the lab's Kubernetes nodes in order, and fails the test if there
// are fewer than least.
func (l *Lab) Nodes(t testing.TB, least int) []Node {
	t.Helper()
	var list struct{ Items []Node }
	l.Get(t, &list, "nodes")
	slices.SortFunc(list.Items, func(a, b Node) int { return strings.Compare(a.Metadata.Name, b.Metadata.Name) })
	if len(list.Items) < least {
		t.Skipf("needs a lab of %d nodes; lab %s has %d", least, l.Name, len(list.Items))
	}
	return list.Items
}
