// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/test/bench/load"
)

const (
	agentDir = "/run/bench" // settings, credentials, CNI directories
	runDir   = "/run/weft"
)

// realAgent is the agent as it is shipped, on a node that was proven before and
// whose API server is away: ADD and DEL work then, and nothing else is at work.
type realAgent struct {
	program string
	cmd     *exec.Cmd
	log     bytes.Buffer
}

func newRealAgent(o options) (*realAgent, error) {
	program, err := filepath.Abs(filepath.Join(o.bin, "weft-agent"))
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("%w: run make build", err)
	}
	return &realAgent{program: program}, agentFiles()
}

func (a *realAgent) start() error {
	a.log.Reset()
	a.cmd = exec.Command(a.program, "--node-name", nodeName, "--config-dir", agentDir+"/config", "--run-dir", runDir,
		"--bpf-root", bpffs+"/weft", "--cni-conf-dir", agentDir+"/net.d", "--cni-bin-dir", agentDir+"/bin",
		"--health-netns", "/run/netns/weft-health", "--credentials-dir", agentDir+"/credentials")
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	return a.cmd.Start()
}

// kill ends the agent as nothing can that it could prepare for.
func (a *realAgent) kill() error {
	err := a.cmd.Process.Kill()
	_ = a.cmd.Wait() // killed: it says so
	return err
}

// memory reads the agent's memory, idle and with pods.
func memory(f figures, pods []pod, o options) (err error) {
	a, err := newRealAgent(o)
	if err != nil {
		return err
	}
	if err := a.start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, a.kill())
		if err != nil {
			err = fmt.Errorf("%w; the agent said:\n%s", err, tail(a.log.String()))
		}
	}()
	if err := awaitAgent(context.Background()); err != nil {
		return err
	}
	if f["agent_rss_mib_idle"], err = load.RSS(a.cmd.Process.Pid); err != nil {
		return err
	}
	if _, err := oneByOne(pods, func(p pod) error { return ask(p.request("ADD")) }); err != nil {
		return err
	}
	f[fmt.Sprintf("agent_rss_mib_%d_pods", len(pods))], err = load.RSS(a.cmd.Process.Pid)
	return err
}

func tail(s string) string { return s[max(0, len(s)-3000):] }

// agentFiles writes what an agent finds on its node.
func agentFiles() error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	node, err := json.Marshal(map[string]any{
		"bootID": strings.TrimSpace(string(boot)), "node": nodeName, "uid": "bench",
		"addrs": []netip.Addr{netip.MustParseAddr(nodeAddr), netip.MustParseAddr(nodeSix)}, "podCIDRs": ranges, "provenAt": time.Now(),
	})
	if err != nil {
		return err
	}
	ca, err := certificate()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		runDir + "/node.json":                   node,
		agentDir + "/config/enable-ipv6":        []byte("true"),
		agentDir + "/config/k8s-api-server":     []byte("https://127.0.0.1:1"), // nobody listens
		agentDir + "/credentials/token":         []byte("bench"),
		agentDir + "/credentials/ca.crt":        ca,
		agentDir + "/net.d/" + cni.ConflistName: nil, // else the node is not taken for proven
		agentDir + "/bin/README":                nil,
		agentDir + "/credentials/namespace":     []byte("kube-system"),
	}
	for path, content := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// certificate makes a certificate authority that signs nothing.
func certificate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
