// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/test/bench/sandbox"
)

const (
	apiDir  = "/run/bench-api"
	apiPort = "6443"
	apiURL  = "https://127.0.0.1:" + apiPort
	etcdURL = "http://127.0.0.1:2379"
	token   = "bench"
	// serviceRange has room for all Services.
	serviceRange = "10.96.0.0/16"
)

// apiServer is a kube-apiserver with its etcd, on this namespace's loopback.
type apiServer struct {
	etcd, server *exec.Cmd
	client       *http.Client
}

// kubeBinary finds a program of Kubernetes that the lab has compiled.
func kubeBinary(name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(cache, "weft-lab", "bin", "*", name))
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", fmt.Errorf("no %s: `build/bin/weft-lab build` compiles one", name)
	}
	return found[0], nil
}

// daemon starts a program whose output goes to a file in apiDir.
func daemon(name string, cmd *exec.Cmd) error {
	log, err := os.Create(filepath.Join(apiDir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// said returns the end of what a daemon wrote.
func said(name string) string {
	b, err := os.ReadFile(filepath.Join(apiDir, name+".log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-3000):])
}

func stop(cmd *exec.Cmd) error {
	if err := cmd.Process.Kill(); err != nil {
		return err
	}
	_ = cmd.Wait() // killed: it says so
	return nil
}

func startAPI() (*apiServer, error) {
	apiserver, err := kubeBinary("kube-apiserver")
	if err != nil {
		return nil, err
	}
	etcd, err := kubeBinary("etcd")
	if err != nil {
		return nil, err
	}
	if err := apiFiles(); err != nil {
		return nil, err
	}
	const peer = "http://127.0.0.1:2380"
	a := &apiServer{
		etcd: exec.Command(etcd, "--name=b", "--data-dir="+apiDir+"/etcd", "--unsafe-no-fsync", "--log-level=error",
			"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
			"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=b="+peer),
		server: exec.Command(apiserver, "--etcd-servers="+etcdURL, "--bind-address=127.0.0.1", "--secure-port="+apiPort,
			"--storage-media-type=application/json", "--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none",
			"--cert-dir="+apiDir+"/certs", "--token-auth-file="+apiDir+"/tokens.csv",
			"--service-account-issuer=https://b", "--service-account-key-file="+apiDir+"/sa.key", "--service-account-signing-key-file="+apiDir+"/sa.key",
			"--service-cluster-ip-range="+serviceRange, "--disable-admission-plugins=ServiceAccount",
			"--authorization-mode=AlwaysAllow", "--enable-priority-and-fairness=false", "--shutdown-delay-duration=0s"),
		client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
			// The certificate is the server's own and of this minute.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
		}},
	}
	if err := errors.Join(daemon("etcd", a.etcd), daemon("kube-apiserver", a.server)); err != nil {
		return nil, err
	}
	if err := eventually(fastTick, time.Minute, func() error { return a.do(http.MethodGet, "/readyz", nil) }); err != nil {
		return nil, fmt.Errorf("kube-apiserver: %w; it said:\n%s", err, said("kube-apiserver"))
	}
	crt, err := os.ReadFile(apiDir + "/certs/apiserver.crt")
	if err != nil {
		return nil, err
	}
	return a, writeFiles(map[string]string{
		apiDir + "/credentials/ca.crt": string(crt), apiDir + "/credentials/token": token, apiDir + "/credentials/namespace": "kube-system",
	})
}

func apiFiles() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	return writeFiles(map[string]string{apiDir + "/sa.key": string(b), apiDir + "/tokens.csv": token + ",admin,admin,system:masters\n"})
}

func writeFiles(files map[string]string) error {
	for path, content := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// How often another process is asked: it cannot be watched.
const (
	fastTick = 2 * time.Millisecond
	slowTick = 20 * time.Millisecond
)

// eventually tries until it goes well.
func eventually(every, within time.Duration, try func() error) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-deadline.C:
			return fmt.Errorf("not within %s: %w", within, err)
		case <-tick.C:
		}
	}
}

func (a *apiServer) stop() error { return errors.Join(stop(a.server), stop(a.etcd)) }

// do makes a call with a JSON body, unless in is nil.
func (a *apiServer) do(method, path string, in any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequest(method, apiURL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	return nil
}

// define makes Weft's definitions, and waits until they are served.
func (a *apiServer) define(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return errors.Join(fmt.Errorf("no definitions in %s", dir), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var d struct {
			Spec struct {
				Group    string
				Names    struct{ Plural string }
				Versions []struct{ Name string }
			}
		}
		var whole any
		if err := errors.Join(yaml.Unmarshal(b, &d), yaml.Unmarshal(b, &whole)); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		if err := a.do(http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", whole); err != nil {
			return err
		}
		served := "/apis/" + d.Spec.Group + "/" + d.Spec.Versions[0].Name + "/" + d.Spec.Names.Plural
		if err := eventually(fastTick, time.Minute, func() error { return a.do(http.MethodGet, served, nil) }); err != nil {
			return err
		}
	}
	return nil
}

// reachable lets the API server be reached at the same address of a namespace.
func reachable(s sandbox.Space) error {
	var l net.Listener
	err := s.In(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:"+apiPort); return err })
	if err != nil {
		return fmt.Errorf("API server for %s: %w", s.Name, err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relay(c)
		}
	}()
	return nil
}

func relay(c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", "127.0.0.1:"+apiPort)
	if err != nil {
		return // as if nobody listened
	}
	defer up.Close()
	go func() {
		_, _ = io.Copy(up, c)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, up)
}
