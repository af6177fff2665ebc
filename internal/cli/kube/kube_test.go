// SPDX-License-Identifier: Apache-2.0

package kube_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/cli/kube"
)

func client(t *testing.T, h http.HandlerFunc) *kube.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := kube.New(&rest.Config{Host: srv.URL + "/prefix", BearerToken: "t"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Channels of v5.channel.k8s.io, in front of each message.
const (
	chanStdin, chanStdout, chanStderr, chanError, chanClose = 0, 1, 2, 3, 255
)

// execServer echoes the standard input to the output, writes "oops" to the
// error stream and ends with the status.
func execServer(t *testing.T, status string) http.HandlerFunc {
	t.Helper()
	return func(w http.ResponseWriter, r *http.Request) {
		want := "/prefix/api/v1/namespaces/ns/pods/p/exec?command=cat&command=-x&container=c&stderr=true&stdin=true&stdout=true"
		if r.URL.String() != want || r.Header.Get("Authorization") != "Bearer t" {
			t.Errorf("asked for %s with %q", r.URL, r.Header.Get("Authorization"))
		}
		up := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
		c, err := up.Upgrade(w, r, nil)
		if err != nil {
			t.Errorf("upgrade: %v", err)
			return
		}
		defer c.Close()
		for {
			_, m, err := c.ReadMessage()
			if err != nil || len(m) == 0 || m[0] == chanClose {
				break
			}
			if m[0] == chanStdin {
				_ = c.WriteMessage(websocket.BinaryMessage, append([]byte{chanStdout}, m[1:]...))
			}
		}
		_ = c.WriteMessage(websocket.BinaryMessage, append([]byte{chanStderr}, "oops"...))
		_ = c.WriteMessage(websocket.BinaryMessage, append([]byte{chanError}, status...))
		_ = c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
	}
}

// TestExec guards against streams that are mixed up and exit codes that get lost.
func TestExec(t *testing.T) {
	for name, tc := range map[string]struct {
		status string
		code   int
	}{
		"ended well": {`{"status":"Success"}`, 0},
		"exit code":  {`{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}`, 3},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var out, errOut bytes.Buffer
			err := client(t, execServer(t, tc.status)).Exec(ctx, kube.ExecRequest{
				Namespace: "ns", Pod: "p", Container: "c", Command: []string{"cat", "-x"},
				Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut,
			})
			var exit *kube.ExitError
			if tc.code == 0 && err != nil || tc.code != 0 && (!errors.As(err, &exit) || exit.Code != tc.code) {
				t.Errorf("got %v, want exit code %d", err, tc.code)
			}
			if out.String() != "hello" || errOut.String() != "oops" {
				t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
			}
		})
	}
}

// TestExecEndsWithContext guards against a node that never answers holding up
// the others.
func TestExecEndsWithContext(t *testing.T) {
	hold := make(chan struct{})
	c := client(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	})
	defer close(hold)
	why := errors.New("took too long")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, why)
	defer cancel()
	err := c.Exec(ctx, kube.ExecRequest{Namespace: "ns", Pod: "p", Container: "c", Command: []string{"x"}, Stdout: io.Discard})
	if !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}

	// ^C has no deadline.
	ctx, stop := context.WithCancelCause(t.Context())
	time.AfterFunc(100*time.Millisecond, func() { stop(why) })
	got := make(chan error, 1)
	go func() {
		got <- c.Exec(ctx, kube.ExecRequest{Namespace: "ns", Pod: "p", Container: "c", Command: []string{"x"}, Stdout: io.Discard})
	}()
	select {
	case err := <-got:
		if !errors.Is(err, why) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("still there 10 s after ^C")
	}
}

// TestErrors guards against refusals that cannot be told apart.
func TestErrors(t *testing.T) {
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/gone"):
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","message":"pods \"gone\" not found","reason":"NotFound"}`)
		case strings.HasSuffix(r.URL.Path, "/denied"):
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, "<html>")
		case r.Header.Get("Accept") != "application/json":
			w.WriteHeader(http.StatusOK)
			fmt.Fprint(w, `{"items":[{"metadata":{"name":"only-metadata"}}]}`)
		default:
			fmt.Fprint(w, `{"metadata":{"name":"whole"}}`)
		}
	})
	if err := c.Get(t.Context(), "/gone", new(corev1.Pod)); !kube.IsNotFound(err) || err.Error() != `pods "gone" not found` {
		t.Errorf("got %v", err)
	}
	if err := c.Get(t.Context(), "/denied", new(corev1.Pod)); !kube.IsForbidden(err) || !strings.Contains(err.Error(), "GET /denied: 403") {
		t.Errorf("got %v", err)
	}
	var pod corev1.Pod
	if err := c.Get(t.Context(), "/x", &pod); err != nil || pod.Name != "whole" {
		t.Errorf("got %q, %v", pod.Name, err)
	}
	var list metav1.PartialObjectMetadataList
	if err := c.Get(t.Context(), "/secrets", &list); err != nil || len(list.Items) != 1 {
		t.Errorf("a list of metadata was asked for whole: %v, %v", list.Items, err)
	}
}
