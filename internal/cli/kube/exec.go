// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// ExecRequest is a command to run in a container. Nil streams are not opened.
type ExecRequest struct {
	Namespace, Pod, Container string
	Command                   []string
	Stdin                     io.Reader
	Stdout, Stderr            io.Writer
}

// ExitError says that the command ran and ended with a code other than 0.
type ExitError struct {
	Code int
}

// Error names the code.
func (e *ExitError) Error() string { return fmt.Sprintf("command ended with exit code %d", e.Code) }

// Exec runs the command and returns when it has ended or the context has.
// A command that ended with another code than 0 returns an *ExitError.
func (c *Client) Exec(ctx context.Context, r ExecRequest) error {
	q := url.Values{"container": {r.Container}, "command": r.Command}
	for name, open := range map[string]bool{"stdin": r.Stdin != nil, "stdout": r.Stdout != nil, "stderr": r.Stderr != nil} {
		if open {
			q.Set(name, "true")
		}
	}
	target, err := url.Parse(c.url(fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/exec", r.Namespace, r.Pod)))
	if err != nil {
		return fmt.Errorf("exec %s/%s: %w", r.Namespace, r.Pod, err)
	}
	target.RawQuery = q.Encode()
	ex, err := c.executor(target)
	if err != nil {
		return fmt.Errorf("exec %s/%s: %w", r.Namespace, r.Pod, err)
	}
	err = stream(ctx, ex, r)
	var code utilexec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &code) && code.Exited():
		return &ExitError{Code: code.ExitStatus()}
	case ended(ctx):
		return context.Cause(ctx)
	}
	return fmt.Errorf("exec %s/%s: %w", r.Namespace, r.Pod, err)
}

// stream runs the executor and returns with the context. The executor itself
// may not: its handshake listens to deadlines only, and after that its copying
// goes on in the background. So it runs beside, and what it has to write is
// written here: never after the return.
func stream(ctx context.Context, ex remotecommand.Executor, r ExecRequest) error {
	writes := make(chan write)
	returned := make(chan struct{})
	defer close(returned)
	opts := remotecommand.StreamOptions{Stdin: r.Stdin}
	if r.Stdout != nil {
		opts.Stdout = &relay{to: r.Stdout, writes: writes, returned: returned}
	}
	if r.Stderr != nil {
		opts.Stderr = &relay{to: r.Stderr, writes: writes, returned: returned}
	}
	ended := make(chan error, 1)
	go func() { ended <- ex.StreamWithContext(ctx, opts) }()
	for {
		select {
		case w := <-writes:
			n, err := w.to.Write(w.p)
			w.done <- written{n, err}
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// write is one write that waits to be done.
type write struct {
	to   io.Writer
	p    []byte
	done chan written
}

type written struct {
	n   int
	err error
}

// relay hands writes to the goroutine that runs stream.
type relay struct {
	to       io.Writer
	writes   chan<- write
	returned <-chan struct{}
}

func (r *relay) Write(p []byte) (int, error) {
	w := write{to: r.to, p: p, done: make(chan written, 1)}
	select {
	case r.writes <- w:
		res := <-w.done
		return res.n, res.err
	case <-r.returned:
		return 0, io.ErrClosedPipe
	}
}

// ended says whether the context has ended. A connection that was given its
// deadline may notice a moment earlier.
func ended(ctx context.Context) bool {
	if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
		<-ctx.Done()
	}
	return ctx.Err() != nil
}

// executor prefers WebSockets and falls back to SPDY, which API servers before
// 1.30 and some proxies need.
func (c *Client) executor(target *url.URL) (remotecommand.Executor, error) {
	ws, err := remotecommand.NewWebSocketExecutor(c.cfg, http.MethodGet, target.String())
	if err != nil {
		return nil, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.cfg, http.MethodPost, target)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(ws, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}
