// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/weft-net/weft/lab/internal/wire"
)

// E2EOptions choose among the upstream end-to-end tests.
type E2EOptions struct {
	Focus, Skip string // regular expressions
	Procs       int
	JUnit       string        // folder for junit.xml, or empty
	Limit       time.Duration // for all tests together
}

// E2EResult counts what ran.
type E2EResult struct {
	Passed, Failed int
	Failures       []string
}

// E2E runs Kubernetes' own end-to-end tests against the lab, from the control
// plane's network namespace.
func (l *Lab) E2E(ctx context.Context, o E2EOptions, out io.Writer) (*E2EResult, error) {
	if !l.cluster.Cache.Has("e2e") {
		return nil, errors.New("e2e.test is not built: run `weft-lab build --with-e2e`")
	}
	dir := l.dir.Path("e2e")
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	kubectl := l.cluster.Cache.Bin("kubernetes", "kubectl")
	args := []string{
		fmt.Sprintf("--procs=%d", o.Procs), "--timeout=" + o.Limit.String(), "--poll-progress-after=120s", "--no-color", "--succinct", "--silence-skips",
		"--output-dir=" + dir, "--json-report=report.json", "--junit-report=junit.xml", "--focus=" + o.Focus,
	}
	if o.Skip != "" {
		args = append(args, "--skip="+o.Skip)
	}
	args = append(args, l.cluster.Cache.Bin("e2e", "e2e.test"), "--",
		"--provider=local", "--kubeconfig="+l.Kubeconfig(), "--kubectl-path="+kubectl,
		fmt.Sprintf("--num-nodes=%d", len(l.rec.Nodes())), "--allowed-not-ready-nodes=0", "--disable-log-dump")
	ctx, cancel := context.WithTimeout(ctx, o.Limit+time.Minute)
	defer cancel()
	group, err := l.openRunGroup()
	if err != nil {
		return nil, err
	}
	defer group.Close()
	cmd := exec.CommandContext(ctx, l.cluster.Cache.Bin("e2e", "ginkgo"), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.Env = append(withoutPath(os.Environ()), "KUBECONFIG="+l.Kubeconfig(), "PATH="+filepath.Dir(kubectl)+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // started like this, ginkgo does not hear SIGINT
	cmd.WaitDelay = time.Minute
	runErr := wire.In(l.netns(l.cluster.Control.Name), cmd.Run)
	result, err := readReport(filepath.Join(dir, "report.json"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("e2e: %w", err), runErr)
	}
	if o.JUnit != "" {
		if err := copyFile(filepath.Join(dir, "junit.xml"), filepath.Join(o.JUnit, "junit.xml")); err != nil {
			return result, fmt.Errorf("e2e: %w", err)
		}
	}
	if runErr != nil && result.Failed == 0 {
		return result, fmt.Errorf("e2e: %w", runErr)
	}
	return result, nil
}

func (l *Lab) openRunGroup() (*os.File, error) {
	group, err := l.cgroup2()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(group, runGroup))
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return f, nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// readReport counts the tests of ginkgo's JSON report.
func readReport(path string) (*E2EResult, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeText            string
			LeafNodeType            string
			State                   string
		}
	}
	if err := json.Unmarshal(b, &suites); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r := &E2EResult{}
	for _, s := range suites {
		for _, spec := range s.SpecReports {
			name := strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")
			switch spec.State {
			case "passed":
				if spec.LeafNodeType == "It" {
					r.Passed++
				}
			case "skipped", "pending", "":
			default: // failed, panicked, interrupted, aborted, timedout
				r.Failed++
				r.Failures = append(r.Failures, spec.State+": "+name)
			}
		}
	}
	return r, nil
}
