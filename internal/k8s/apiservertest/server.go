// SPDX-License-Identifier: Apache-2.0

// Package apiservertest runs a real kube-apiserver with its etcd on loopback,
// for tests. It uses binaries that the lab has compiled (weft-lab build), or
// those in the directory that WEFT_TEST_KUBE_BIN names; without any, tests skip.
package apiservertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// Token is accepted by the server for a user who may do everything.
const Token = "apiservertest"

// patient is d, how long a test waits at most, or more on a processor that is
// emulated, for which -short stands.
func patient(d time.Duration) time.Duration {
	if testing.Short() {
		return 6 * d
	}
	return d
}

func startTimeout() time.Duration { return patient(90 * time.Second) }

// Server is a running API server.
type Server struct {
	URL            string
	CredentialsDir string // ca.crt and token, as a pod finds them

	t       testing.TB
	dir     string
	etcdURL string
	binary  string
	port    string
	cmd     *exec.Cmd
	client  *http.Client
}

// Start runs etcd and a server until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	apiserver, etcd := Binary(t, "kube-apiserver"), Binary(t, "etcd")
	s := &Server{t: t, dir: t.TempDir(), binary: apiserver, port: freePort(t)}
	s.URL = "https://127.0.0.1:" + s.port
	s.etcdURL = "http://127.0.0.1:" + freePort(t)
	peer := "http://127.0.0.1:" + freePort(t)
	s.run("etcd", exec.Command(etcd, "--name=t", "--data-dir="+filepath.Join(s.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+s.etcdURL, "--advertise-client-urls="+s.etcdURL,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=t="+peer, "--log-level=error"))
	s.writeKeys()
	s.Restart()
	s.CredentialsDir = filepath.Join(s.dir, "credentials")
	crt, err := os.ReadFile(filepath.Join(s.dir, "certs", "apiserver.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"ca.crt": crt, "token": []byte(Token)} {
		if err := os.MkdirAll(s.CredentialsDir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.CredentialsDir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// Binary returns the path of a program of Kubernetes, or skips the test.
func Binary(t testing.TB, name string) string {
	t.Helper()
	var globs []string
	if dir := os.Getenv("WEFT_TEST_KUBE_BIN"); dir != "" {
		globs = append(globs, filepath.Join(dir, name))
	}
	if cache, err := os.UserCacheDir(); err == nil {
		globs = append(globs, filepath.Join(cache, "weft-lab", "bin", "*", name))
	}
	for _, g := range globs {
		if found, err := filepath.Glob(g); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	t.Skipf("no %s: `build/bin/weft-lab build` compiles one, or set WEFT_TEST_KUBE_BIN", name)
	return ""
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// run starts a process that ends with the test, at the latest with this one.
func (s *Server) run(name string, cmd *exec.Cmd) {
	s.t.Helper()
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The kernel counts the thread that started it as a process' parent
	// (prctl(2), PR_SET_PDEATHSIG), so that thread is kept.
	started, end := make(chan error, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-end
	}()
	if err := <-started; err != nil {
		close(end)
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		close(end)
	})
}

func (s *Server) writeKeys() {
	s.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		s.t.Fatal(err)
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	for name, content := range map[string][]byte{
		"sa.key": b, "tokens.csv": []byte(Token + ",admin,admin,system:masters\n"),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

// Stop kills the server, as a crash does. etcd stays.
func (s *Server) Stop() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	_ = s.cmd.Wait()
}

// Restart starts the server, again on the same port, and waits until it is ready.
func (s *Server) Restart() {
	s.t.Helper()
	key := filepath.Join(s.dir, "sa.key")
	s.cmd = exec.Command(s.binary,
		"--etcd-servers="+s.etcdURL, "--bind-address=127.0.0.1", "--secure-port="+s.port,
		"--cert-dir="+filepath.Join(s.dir, "certs"), "--token-auth-file="+filepath.Join(s.dir, "tokens.csv"),
		"--service-account-issuer=https://t", "--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		"--service-cluster-ip-range=10.96.0.0/24", "--disable-admission-plugins=ServiceAccount",
		"--authorization-mode=RBAC", "--shutdown-delay-duration=0s",
		"--endpoint-reconciler-type=none")
	s.run("apiserver", s.cmd)
	s.client = &http.Client{Timeout: patient(10 * time.Second), Transport: &http.Transport{
		// The certificate is the server's own and of this minute.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	if !poll(func() bool { code, _ := s.try(http.MethodGet, "/readyz", "", nil); return code == http.StatusOK }) {
		log, _ := os.ReadFile(filepath.Join(s.dir, "apiserver.log"))
		s.t.Fatalf("kube-apiserver is not ready after %s:\n%s", startTimeout(), tail(log))
	}
}

// poll asks until ok or the timeout of a start: another process cannot be watched.
func poll(ok func() bool) bool {
	deadline := time.NewTimer(startTimeout())
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok() {
			return true
		}
		select {
		case <-deadline.C:
			return false
		case <-tick.C:
		}
	}
}

func tail(b []byte) []byte { return b[max(0, len(b)-4000):] }

func (s *Server) try(method, path, contentType string, body []byte) (int, []byte) {
	req, err := http.NewRequestWithContext(context.Background(), method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		return 0, []byte(err.Error())
	}
	req.Header.Set("Authorization", "Bearer "+Token)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, b
}

// Do makes a call with a JSON body and wants success; the answer is decoded into
// out unless that is nil.
func (s *Server) Do(t testing.TB, method, path string, in, out any) {
	t.Helper()
	code, b := s.Call(t, method, path, in)
	if code < 200 || code > 299 {
		t.Fatalf("%s %s: %d: %s", method, path, code, b)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

// Call makes a call with a JSON body and returns what came of it.
func (s *Server) Call(t testing.TB, method, path string, in any) (int, []byte) {
	t.Helper()
	var body []byte
	contentType := "application/json"
	if method == http.MethodPatch {
		contentType = "application/merge-patch+json"
	}
	switch v := in.(type) {
	case nil:
	case string:
		body = []byte(v)
	default:
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		body = b
	}
	return s.try(method, path, contentType, body)
}

// InstallCRDs makes the definitions of a directory of YAML files and waits until
// they are served.
func (s *Server) InstallCRDs(dir string) {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("no definitions in %s: %v", dir, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			s.t.Fatal(err)
		}
		j, err := yaml.YAMLToJSON(b)
		if err != nil {
			s.t.Fatalf("%s: %v", f, err)
		}
		s.Do(s.t, http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", string(j), nil)
		var d struct {
			Spec struct {
				Group    string                  `json:"group"`
				Names    struct{ Plural string } `json:"names"`
				Versions []struct{ Name string } `json:"versions"`
			} `json:"spec"`
		}
		if err := json.Unmarshal(j, &d); err != nil || len(d.Spec.Versions) == 0 {
			s.t.Fatalf("%s: no definition: %v", f, err)
		}
		path := "/apis/" + d.Spec.Group + "/" + d.Spec.Versions[0].Name + "/" + d.Spec.Names.Plural
		if !poll(func() bool {
			code, _ := s.try(http.MethodGet, path, "", nil)
			return code == http.StatusOK
		}) {
			s.t.Fatalf("%s is not served", path)
		}
	}
}
