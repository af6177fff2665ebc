// SPDX-License-Identifier: Apache-2.0

//go:build linux

package kubeproxy_test

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/kubeproxy"
)

// answer serves one path of a kube-proxy.
func answer(t *testing.T, addr, path string, code int, body string) (stop func()) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	stop = func() { _ = srv.Close() }
	t.Cleanup(stop)
	return stop
}

// TestAnswers guards against a kube-proxy that runs unheard, an unhealthy one too.
func TestAnswers(t *testing.T) {
	nstest.Require(t)
	ctx := context.Background()
	if l, ok := kubeproxy.Running(ctx); ok {
		t.Fatalf("nothing runs, but %+v", l)
	}
	stop := answer(t, "127.0.0.1:10256", "/healthz", http.StatusServiceUnavailable, "")
	if l, ok := kubeproxy.Running(ctx); !ok || l.Mode != "" || !strings.Contains(l.Trouble, "503") {
		t.Errorf("an unhealthy one: %+v, %v", l, ok)
	}
	answer(t, "127.0.0.1:10249", "/proxyMode", http.StatusOK, "nftables\n")
	if l, ok := kubeproxy.Running(ctx); !ok || l.Mode != "nftables" || l.Trouble != "" {
		t.Errorf("got %+v, %v", l, ok)
	}
	stop()
}

// pretend runs a process named kube-proxy that does nothing, in the network
// namespace of the calling thread, until the test ends.
func pretend(t *testing.T) {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "kube-proxy")
	if err := os.WriteFile(bin, b, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "600")
	runtime.LockOSThread() // its namespace is the process's
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	runtime.UnlockOSThread()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "comm")); err != nil || !bytes.Equal(b, []byte("kube-proxy\n")) {
		t.Fatalf("the process is named %q: %v", b, err)
	}
}

// TestProcess guards against a kube-proxy that answers elsewhere, and against that
// of another node on the same machine.
func TestProcess(t *testing.T) {
	nstest.Require(t)
	nstest.Inside(t, nstest.Netns(t), func() error { pretend(t); return nil })
	if l, ok := kubeproxy.Running(context.Background()); ok {
		t.Errorf("one in another namespace is taken for this node's: %+v", l)
	}
	pretend(t)
	if l, ok := kubeproxy.Running(context.Background()); !ok || !strings.HasPrefix(l.Sign, "process ") {
		t.Errorf("got %+v, %v", l, ok)
	}
}
